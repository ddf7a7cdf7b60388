"""What engines have in common."""

from __future__ import annotations

import pytest

from xenolith.cpu.engine import gaps


@pytest.mark.parametrize(
    ("mapped", "found"),
    [
        ([], [range(100)]),
        ([range(100)], []),
        ([range(200)], []),
        ([range(20, 30), range(10)], [range(10, 20), range(30, 100)]),
        ([range(150, 160)], [range(100)]),
        ([range(90, 120)], [range(90)]),
    ],
)
def test_gaps(mapped: list[range], found: list[range]) -> None:
    assert gaps(mapped, 100) == found
