"""Statistics, alternation, marks and the table of the harness."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from benchmarks.common import Contender, Mark, Metric, Report, Unavailable, alternate, save, table, text
from benchmarks.console import RunFailed

BOOT = Metric("boot", "s")
RATE = Metric("rate", "/s", more_is_better=True)


def report() -> Report:
    return Report("example", "How long?", (BOOT, RATE), (("xenolith", "peer"),))


def filled() -> Report:
    result = report()
    for value in (3.0, 1.0, 2.0):
        result.add("xenolith", {"boot": value, "rate": 10 * value})
        result.add("peer", {"boot": 2 * value, "rate": 40 * value})
    return result


def test_median_ignores_the_order_and_the_outlier() -> None:
    result = report()
    for value in (9.0, 1.0, 2.0):
        result.add("xenolith", {"boot": value})
    assert result.median("boot", "xenolith") == 2.0


def test_median_of_nothing_is_none() -> None:
    assert report().median("boot", "xenolith") is None


def test_an_advantage_above_one_is_good_in_both_directions() -> None:
    result = filled()
    assert result.advantage("boot", "xenolith", "peer") == 2.0
    assert result.advantage("rate", "xenolith", "peer") == 0.25


def test_no_advantage_over_a_missing_peer() -> None:
    assert filled().advantage("boot", "xenolith", "nobody") is None


@pytest.mark.parametrize(
    ("value", "at_least", "verdict"),
    [
        (1.5, True, "reached"),
        (1.49, True, "not reached"),
        (1.5, False, "reached"),
        (1.51, False, "not reached"),
        (None, True, "not measured"),
    ],
)
def test_mark_verdict(value: float | None, at_least: bool, verdict: str) -> None:
    assert Mark("a mark", value, 1.5, at_least).verdict == verdict


def recording(name: str, order: list[str], results: Iterator[Mapping[str, float] | Exception]) -> Contender:
    def measure() -> Mapping[str, float]:
        order.append(name)
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    return Contender(name, measure)


def test_contenders_run_in_turn() -> None:
    order: list[str] = []
    sides = [recording(name, order, iter([{"boot": 1.0}] * 3)) for name in ("a", "b")]
    alternate(report(), sides, 3)
    assert order == ["a", "b"] * 3


def test_an_unavailable_contender_is_asked_once_and_does_not_stop_the_other() -> None:
    order: list[str] = []
    result = report()
    absent = recording("absent", order, iter([Unavailable("no qemu")]))
    there = recording("there", order, iter([{"boot": 1.0}] * 2))
    alternate(result, [absent, there], 2)
    assert order == ["absent", "there", "there"]
    assert result.missing == {"absent": "no qemu"}
    assert result.samples == {"boot": {"there": [1.0, 1.0]}}


def test_a_failed_run_leaves_no_sample_and_the_next_turn_tries_again() -> None:
    result = report()
    alternate(result, [recording("a", [], iter([RunFailed("hung"), {"boot": 4.0}]))], 2)
    assert result.failures == {"a": ["hung"]}
    assert result.samples == {"boot": {"a": [4.0]}}


def test_table_aligns_the_first_column_left_and_the_rest_right() -> None:
    assert table([["name", "n"], ["a", "1"], ["bb", "1000"]]) == "\n".join(
        ["name     n", "----  ----", "a        1", "bb    1000"]
    )


def test_text_shows_medians_spread_advantage_marks_and_what_was_missing() -> None:
    result = filled()
    result.missing["qemu"] = "not installed"
    result.marks.append(Mark("boot, times faster", 2.0, 1.5, at_least=True))
    shown = text(result)
    assert "2 [1, 3]" in shown
    assert "xenolith : peer" in shown
    assert "2.00 x" in shown
    assert "0.25 x" in shown
    assert "mark:    boot, times faster: 2 (at least 1.5): reached" in shown
    assert "missing: qemu: not installed" in shown


def test_text_of_a_report_without_samples() -> None:
    assert "(nothing was measured)" in text(report())


def test_saved_results_keep_the_raw_samples(tmp_path: Path) -> None:
    path = tmp_path / "results" / "latest.json"
    save(path, {"processor": "some"}, [filled()])
    document = json.loads(path.read_text())
    assert document["host"] == {"processor": "some"}
    assert document["reports"]["example"]["samples"]["boot"]["xenolith"] == [3.0, 1.0, 2.0]
    assert document["reports"]["example"]["medians"]["rate"] == {"xenolith": 20.0, "peer": 80.0}
