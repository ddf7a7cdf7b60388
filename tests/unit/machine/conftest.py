"""Fixtures for the machine's devices: a clock that stands still until it is told, and a wire that remembers."""

from __future__ import annotations

import pytest

NS_PER_SECOND = 1_000_000_000


class HandClock:
    """A clock moved by hand. Boot was at wall time 1 600 000 000 s, 2020-09-13 12:26:40 UTC, a Sunday."""

    BOOT_SECOND = 1_600_000_000

    def __init__(self) -> None:
        self.ns = 0

    def now_ns(self) -> int:
        return self.ns

    def wall_ns(self) -> int:
        return self.BOOT_SECOND * NS_PER_SECOND + self.ns

    def advance(self, seconds: float) -> None:
        self.ns += round(seconds * NS_PER_SECOND)


class Wire:
    """An interrupt line: its level now, and how often it rose."""

    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def __call__(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level


@pytest.fixture(scope="session")
def new_clock() -> type[HandClock]:
    """For a test that needs many clocks."""
    return HandClock


@pytest.fixture(scope="session")
def new_wire() -> type[Wire]:
    """For a test that needs many wires."""
    return Wire


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def wire() -> Wire:
    return Wire()
