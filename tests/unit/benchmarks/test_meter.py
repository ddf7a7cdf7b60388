"""Reading how much processor time was used until a moment."""

from __future__ import annotations

import os

import pytest

from benchmarks.meter import Meter


def test_time_between_two_looks_is_in_proportion() -> None:
    meter = Meter()
    meter._samples += [(1.0, 0.5), (3.0, 2.5)]
    assert [meter.at(seconds) for seconds in (0.0, 0.5, 1.0, 2.0, 3.0, 9.0)] == [0.0, 0.25, 0.5, 1.5, 2.5, 2.5]


def test_a_look_counts_a_process() -> None:
    meter = Meter()
    meter.look(os.getpid())
    used = sum(os.times()[:2])
    assert meter.at(60.0) == pytest.approx(used, abs=0.5)
