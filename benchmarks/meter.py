"""Processor time while something runs, which says more than its duration does where others run too."""

from __future__ import annotations

import bisect
import contextlib
import os
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


class Meter:
    """How much processor time a command and what it has started have used, at each moment."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._samples: list[tuple[float, float]] = [(0.0, 0.0)]

    def look(self, process: int) -> None:
        """Remember how much it is now."""
        used: dict[int, float] = {}
        parents: dict[int, int] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                parents[int(stat.parent.name)] = int(fields[1])
                used[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
        family = {process}
        while more := {child for child, parent in parents.items() if parent in family} - family:
            family |= more
        self._samples.append((time.monotonic() - self._started, sum(used.get(member, 0.0) for member in family)))

    def at(self, seconds: float) -> float:
        """How much it was so many seconds after the start, between two looks in proportion."""
        after = bisect.bisect_left(self._samples, (seconds, 0.0))
        if after >= len(self._samples):
            return self._samples[-1][1]
        (t0, used0), (t1, used1) = self._samples[max(after - 1, 0)], self._samples[after]
        return used1 if t1 == t0 else used0 + (used1 - used0) * (seconds - t0) / (t1 - t0)
