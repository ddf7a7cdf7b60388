"""The machine's one clock: system time since power-on, and the calendar time of power-on.

It runs with the host, or it is virtual: then it advances only by executed work and jumps over idle time, so that a
whole run can be repeated exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

VIRTUAL_EPOCH_NS: Final = 1_704_067_200_000_000_000
"""When a machine with a virtual clock is switched on: 2024-01-01T00:00:00Z."""


class Clock(Protocol):
    """All times are nanoseconds."""

    virtual: bool

    def now_ns(self) -> int:
        """System time: since power-on."""

    def wall_ns(self) -> int:
        """UTC since 1970."""


class HostClock:
    """System time that passes as the host's monotonic clock does."""

    virtual = False

    def __init__(self) -> None:
        self._start = time.monotonic_ns()
        self._wall = time.time_ns()

    def now_ns(self) -> int:
        return time.monotonic_ns() - self._start

    def wall_ns(self) -> int:
        return self._wall + self.now_ns()


class VirtualClock:
    """System time that is the work done, as `work` counts it, times `ns_per_unit`, plus the idle time skipped."""

    virtual = True

    def __init__(self, work: Callable[[], int], ns_per_unit: float) -> None:
        self._work = work
        self._ns_per_unit = ns_per_unit
        self._skipped = 0

    def now_ns(self) -> int:
        return self._skipped + int(self._work() * self._ns_per_unit)

    def wall_ns(self) -> int:
        return VIRTUAL_EPOCH_NS + self.now_ns()

    def spend(self, ns: int) -> None:
        """Time passes without the processor working."""
        self._skipped += ns

    def skip_to(self, deadline_ns: int) -> None:
        """Nobody has anything to do before `deadline_ns`."""
        self._skipped += max(0, deadline_ns - self.now_ns())

    def units_until(self, deadline_ns: int) -> int:
        """How much work it takes until `deadline_ns`, at least 1."""
        return max(1, int((deadline_ns - self.now_ns()) / self._ns_per_unit))
