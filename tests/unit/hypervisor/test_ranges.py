"""Ranges against plain sets of numbers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from xenolith.hypervisor import ranges

SPAN = st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(st.tuples(st.booleans(), SPAN), max_size=12), SPAN)
def test_ranges_are_sets(changes: list[tuple[bool, tuple[int, int]]], asked: tuple[int, int]) -> None:
    found: ranges.Ranges = []
    numbers: set[int] = set()
    for add, (first, last) in changes:
        span = set(range(first, last + 1))
        numbers = numbers | span if add else numbers - span
        found = (ranges.with_added if add else ranges.without)(found, first, last)
        assert {number for start, end in found for number in range(start, end + 1)} == numbers
        assert all(one[1] + 1 < other[0] for one, other in pairwise(found))
    assert ranges.contains(found, *asked) == (set(range(asked[0], asked[1] + 1)) <= numbers)
