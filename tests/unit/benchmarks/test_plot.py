"""Plots as SVG."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.plot import Panel, svg, ticks

_SPACE = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("highest", "expected"),
    [
        (4096, [0, 1000, 2000, 3000, 4000, 5000]),
        (200, [0, 50, 100, 150, 200]),
        (8, [0, 2, 4, 6, 8]),
        (0.7, [0, 0.2, 0.4, 0.6, 0.8]),
        (0, [0, 0.2]),
    ],
)
def test_ticks(highest: float, expected: list[float]) -> None:
    assert ticks(highest) == pytest.approx(expected)


def test_points_lie_where_they_should() -> None:
    drawn = ElementTree.fromstring(svg([Panel("a < b", "x", [(0, 0), (50, 5), (100, 20)])]))
    dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in drawn.iter(f"{_SPACE}circle")]
    (left, bottom), (middle, above), (right, top) = dots
    assert middle == pytest.approx((left + right) / 2)
    assert above == pytest.approx(bottom - (bottom - top) / 4)
    assert "a < b" in [text.text for text in drawn.iter(f"{_SPACE}text")]


def test_panels_stand_side_by_side() -> None:
    panel = Panel("one", "x", [(1, 1), (2, 2)])
    drawn = ElementTree.fromstring(svg([panel, panel]))
    assert [group.attrib["transform"] for group in drawn.iter(f"{_SPACE}g")] == ["translate(0)", "translate(360)"]
