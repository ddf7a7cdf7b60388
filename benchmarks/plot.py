"""Plots as plain SVG: a row of panels, each with one measured line and the straight line through its ends."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import floor, log10
from typing import NamedTuple

_WIDTH, _HEIGHT = 360, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 34, 44
_TICKS = 5
_STYLE = (
    "text{font:12px sans-serif;fill:#333}.title{font-weight:bold}.axis{stroke:#888}.grid{stroke:#e4e4e4}"
    ".line{fill:none;stroke:#1764ab;stroke-width:2}.straight{stroke:#bbb;stroke-dasharray:4 4}.dot{fill:#1764ab}"
)


class Panel(NamedTuple):
    """One plot: its title, which says what y is, and its points in ascending x."""

    title: str
    x_label: str
    points: Sequence[tuple[float, float]]


def svg(panels: Sequence[Panel]) -> str:
    """The panels side by side."""
    width = _WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}" viewBox="0 0 {width} {_HEIGHT}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{width}" height="{_HEIGHT}" fill="#fff"/>',
    ]
    for number, panel in enumerate(panels):
        parts += [f'<g transform="translate({_WIDTH * number})">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def ticks(highest: float) -> list[float]:
    """Round numbers from 0 to `highest` or just above."""
    rough = (highest or 1) / _TICKS
    scale = 10.0 ** floor(log10(rough))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= rough * 0.999)
    count = -int(-highest / step // 1) if highest else 1
    return [step * number for number in range(count + 1)]


def _panel(panel: Panel) -> list[str]:
    x_ticks, y_ticks = (ticks(max(point[axis] for point in panel.points)) for axis in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(_LEFT + x / x_ticks[-1] * (_WIDTH - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - y / y_ticks[-1] * (_HEIGHT - _TOP - _BOTTOM), 1),
        )

    (left, bottom), (right, top) = place(0, 0), place(x_ticks[-1], y_ticks[-1])
    parts = [f'<text class="title" x="{left}" y="20">{escape(panel.title)}</text>']
    for value in y_ticks:
        _, y = place(0, value)
        parts.append(f'<path class="grid" d="M{left} {y}H{right}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        x, _ = place(value, 0)
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<path class="axis" d="M{left} {top}V{bottom}H{right}" fill="none"/>')
    parts.append(
        f'<text x="{(left + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(panel.x_label)}</text>'
    )
    where = [place(x, y) for x, y in panel.points]
    (x1, y1), (x2, y2) = where[0], where[-1]
    parts.append(f'<path class="straight" d="M{x1} {y1}L{x2} {y2}"/>')
    parts.append(f'<path class="line" d="M{"L".join(f"{x} {y}" for x, y in where)}"/>')
    return parts + [f'<circle class="dot" cx="{x}" cy="{y}" r="3"/>' for x, y in where]
