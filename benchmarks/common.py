"""The harness: alternating runs, medians, ratios, marks, and one table and one JSON file at the end."""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.console import RunFailed

MINIMUM_RUNS = 3
_CALIBRATION_MIB = 32
RESULTS = Path(__file__).parent / "results"


class Unavailable(Exception):
    """Something that a measurement needs is not on this host; the message says what, and how to get it."""


@dataclass(frozen=True)
class Metric:
    """One measured quantity: its name, its unit, and whether more of it is better."""

    name: str
    unit: str
    more_is_better: bool = False

    def advantage(self, ours: float, theirs: float) -> float:
        """How many times better `ours` is than `theirs`; above 1 is better, whatever the metric's direction."""
        return ours / theirs if self.more_is_better else theirs / ours


@dataclass(frozen=True)
class Contender:
    """One side of a comparison: its name and one run of it, which returns a value for each metric by name.

    A peer is what we are compared with.
    """

    name: str
    measure: Callable[[], Mapping[str, float]]
    is_peer: bool = False


@dataclass(frozen=True)
class Mark:
    """A goal: `value` is to be at least, or at most, `limit`; a `value` of None could not be measured."""

    text: str
    value: float | None
    limit: float
    at_least: bool

    @property
    def verdict(self) -> str:
        """In words: "reached", "not reached" or "not measured"."""
        if self.value is None:
            return "not measured"
        met = self.value >= self.limit if self.at_least else self.value <= self.limit
        return "reached" if met else "not reached"


@dataclass
class Report:
    """The answer to one question: raw samples by metric and contender, what was missing or failed, and the marks.

    `comparisons` are the pairs (ours, theirs) of contenders whose ratio is shown.
    """

    name: str
    question: str
    metrics: tuple[Metric, ...]
    comparisons: tuple[tuple[str, str], ...] = ()
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)
    host_speed: list[float] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)

    def median(self, metric: str, contender: str) -> float | None:
        """The median sample, or None if there is none."""
        values = self.samples.get(metric, {}).get(contender)
        return statistics.median(values) if values else None

    def advantage(self, metric: str, ours: str, theirs: str) -> float | None:
        """How many times better `ours` is than `theirs` by their medians, or None if either has none."""
        mine, other = self.median(metric, ours), self.median(metric, theirs)
        declared = next(m for m in self.metrics if m.name == metric)
        return None if not mine or not other else declared.advantage(mine, other)

    def add(self, contender: str, values: Mapping[str, float]) -> None:
        """Keeps one run's values."""
        for metric, value in values.items():
            self.samples.setdefault(metric, {}).setdefault(contender, []).append(value)

    def as_json(self) -> dict[str, Any]:
        """The report as plain data, medians and verdicts included."""
        return {
            "question": self.question,
            "units": {metric.name: metric.unit for metric in self.metrics},
            "more_is_better": [metric.name for metric in self.metrics if metric.more_is_better],
            "peers": self.peers,
            "samples": self.samples,
            "medians": {m: {c: statistics.median(v) for c, v in by.items()} for m, by in self.samples.items()},
            "missing": self.missing,
            "failures": self.failures,
            "host_speed_mib_per_s": self.host_speed,
            "marks": [
                {"text": mark.text, "value": mark.value, "limit": mark.limit, "verdict": mark.verdict}
                for mark in self.marks
            ],
            "notes": self.notes,
        }


def alternate(report: Report, contenders: Sequence[Contender], runs: int) -> None:
    """Runs the contenders in turn, `runs` times round, so that a host that slows down slows all of them down.

    A contender that is unavailable is noted once and left out; a failed run is noted and leaves no sample.
    """
    report.peers += [contender.name for contender in contenders if contender.is_peer]
    for turn in range(max(runs, 1)):
        for contender in contenders:
            if contender.name in report.missing:
                continue
            print(f"  {report.name}: {contender.name}, run {turn + 1} of {runs}", file=sys.stderr, flush=True)
            report.host_speed.append(_host_speed())
            try:
                report.add(contender.name, contender.measure())
            except Unavailable as reason:
                report.missing[contender.name] = str(reason)
            except RunFailed as reason:
                report.failures.setdefault(contender.name, []).append(str(reason))


def contend(
    report: Report,
    subjects: Iterable[str],
    ours: Callable[[str], Mapping[str, float]],
    theirs: Callable[[str], Mapping[str, float]],
    runs: int,
) -> None:
    """Measures each subject on both sides, which are called as `report.comparisons` says, and marks every metric."""
    contenders = [
        contender
        for subject, (mine, other) in zip(subjects, report.comparisons, strict=True)
        for contender in (
            Contender(mine, partial(ours, subject)),
            Contender(other, partial(theirs, subject), is_peer=True),
        )
    ]
    alternate(report, contenders, runs)
    for mine, other in report.comparisons:
        for metric in report.metrics:
            advantage = report.advantage(metric.name, mine, other)
            report.marks.append(Mark(f"{metric.name}, {mine}, times better", advantage, 1, at_least=True))


def _host_speed() -> float:
    """MiB of SHA-256 that one of the host's processors does per second just now: tells a disturbed measurement."""
    started = time.perf_counter()
    hashlib.sha256(bytes(_CALIBRATION_MIB << 20)).digest()
    return _CALIBRATION_MIB / (time.perf_counter() - started)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned plain text: the first row is the heading, the first column is left-aligned, the rest right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [_aligned(row, widths) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def text(report: Report) -> str:
    """The report for a reader: medians, spread and advantages by contender, then the marks and what was missing."""
    contenders = list(dict.fromkeys(name for by in report.samples.values() for name in by))
    rows = [["median [lowest, highest]", *(f"{metric.name} ({metric.unit})" for metric in report.metrics)]]
    rows += [_row(report, name) for name in contenders]
    rows += [_ratios(report, ours, theirs) for ours, theirs in report.comparisons]
    lines = [f"{report.name}: {report.question}", "", table(rows) if contenders else "(nothing was measured)", ""]
    lines += [mark_line(mark) for mark in report.marks]
    lines += [f"missing: {name}: {reason}" for name, reason in report.missing.items()]
    lines += [f"failed:  {name}: {reason}" for name, reasons in report.failures.items() for reason in reasons]
    lines += [f"note:    {note}" for note in report.notes]
    if report.host_speed:
        lines.append(f"host:    SHA-256 at {_spread(report.host_speed)} MiB/s before the runs")
    return "\n".join(lines)


def mark_line(mark: Mark) -> str:
    """The mark, its value, its limit and its verdict in one line."""
    bound = "at least" if mark.at_least else "at most"
    value = "-" if mark.value is None else _short(mark.value)
    return f"mark:    {mark.text}: {value} ({bound} {_short(mark.limit)}): {mark.verdict}"


def save(path: Path, host: Mapping[str, Any], reports: Sequence[Report]) -> None:
    """Writes the raw samples of all `reports`, and the host that they came from, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"host": host, "reports": {report.name: report.as_json() for report in reports}}
    path.write_text(json.dumps(document, indent=1) + "\n")


def _row(report: Report, contender: str) -> list[str]:
    samples = (report.samples.get(metric.name, {}).get(contender, []) for metric in report.metrics)
    return [contender, *(_spread(values) for values in samples)]


def _ratios(report: Report, ours: str, theirs: str) -> list[str]:
    advantages = (report.advantage(metric.name, ours, theirs) for metric in report.metrics)
    return [f"{ours} : {theirs}", *("-" if ratio is None else f"{ratio:.2f} x" for ratio in advantages)]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{_short(statistics.median(values))} [{_short(min(values))}, {_short(max(values))}]"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first = row[0].ljust(widths[0])
    rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    return "  ".join([first, *rest]).rstrip()
