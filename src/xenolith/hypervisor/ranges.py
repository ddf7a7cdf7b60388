"""Sets of numbers as lists of ranges (first, last), in ascending order and never touching: ports, frames of devices."""

from __future__ import annotations

Ranges = list[tuple[int, int]]


def contains(ranges: Ranges, first: int, last: int) -> bool:
    """Whether all numbers from `first` to `last` are in the set."""
    return any(start <= first and last <= end for start, end in ranges)


def without(ranges: Ranges, first: int, last: int) -> Ranges:
    """The set less the numbers from `first` to `last`."""
    left = []
    for start, end in ranges:
        left += [(start, min(end, first - 1)), (max(start, last + 1), end)]
    return sorted({(start, end) for start, end in left if start <= end})


def with_added(ranges: Ranges, first: int, last: int) -> Ranges:
    """The set and the numbers from `first` to `last`."""
    touching = [(start, end) for start, end in ranges if start <= last + 1 and first - 1 <= end]
    apart = [part for part in ranges if part not in touching]
    return sorted([*apart, (min([first, *(s for s, _ in touching)]), max([last, *(e for _, e in touching)]))])
