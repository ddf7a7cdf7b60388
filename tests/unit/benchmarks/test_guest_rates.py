"""Rates read from a guest's console."""

import pytest

from benchmarks.console import Line, RunFailed
from benchmarks.guest_rates import METRICS, rates


def console(skip: str = "") -> list[Line]:
    lines = [Line(0.5, "[    0.000000] Linux version 6.1")]
    for number, metric in enumerate(METRICS, start=1):
        if metric.name != skip:
            lines.append(Line(number, f"RATES begin {metric.name} 1000"))
            lines.append(Line(number + 0.25, f"[    5.0] noise\rRATES end {metric.name} 999999"))
    return lines


def test_rates_use_the_observers_clock_and_not_the_guests() -> None:
    assert rates(console()) == {metric.name: 4000.0 for metric in METRICS}


def test_a_missing_test_is_named() -> None:
    with pytest.raises(RunFailed, match="no rate printed for fork_exit"):
        rates(console(skip="fork_exit"))


def test_an_end_without_a_beginning_counts_for_nothing() -> None:
    with pytest.raises(RunFailed):
        rates([Line(1.0, "RATES end getpid 5")])
