"""Two files of measurements compared: medians, ratios, and what has become worse by more than the samples' spread."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from xenolith.errors import UserError

_FEWEST: Final = 3
"""Samples on each side below which nothing is called a regression: their spread says nothing."""


class Change(NamedTuple):
    """One measured quantity of one contender, before and after.

    `ratio` is how many times better it is now, below 1 if it is worse. `verdict` is "regression" or "better" where
    all samples of one side are beyond all of the other, "peer" for what is not ours to answer for, "too few samples",
    or "".
    """

    question: str
    metric: str
    unit: str
    contender: str
    before: float
    after: float
    ratio: float
    verdict: str


def read(path: Path) -> dict[str, Any]:
    """A file that `make bench` has written. UserError if it is none."""
    try:
        document = json.loads(path.read_text())
        reports = document["reports"]
        complete = all({"samples", "units", "more_is_better", "peers"} <= report.keys() for report in reports.values())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        complete = False
    if not complete:
        raise UserError(f"{path} holds no measurements", "give files that 'make bench' has written")
    return dict(document)


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    """Everything that was measured in both."""
    for question, report in after["reports"].items():
        earlier = before["reports"].get(question, {"samples": {}})
        for metric, contenders in report["samples"].items():
            for contender, samples in contenders.items():
                old = earlier["samples"].get(metric, {}).get(contender)
                if old and samples:
                    yield _change(question, report, metric, contender, old, samples)


def missing(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What was measured before and is not there any more."""
    for question, report in before["reports"].items():
        later = after["reports"].get(question, {"samples": {}})
        for metric, contenders in report["samples"].items():
            for contender in contenders.keys() - later["samples"].get(metric, {}).keys():
                yield f"{question}: {metric}: {contender}"


def _change(
    question: str, report: Mapping[str, Any], metric: str, contender: str, old: list[float], new: list[float]
) -> Change:
    more = metric in report["more_is_better"]
    before, after = median(old), median(new)
    better, worse = (after, before) if more else (before, after)
    ratio = better / worse if worse else 1.0
    if contender in report["peers"]:
        verdict = "peer"
    elif min(len(old), len(new)) < _FEWEST:
        verdict = "too few samples"
    elif max(new) < min(old):
        verdict = "regression" if more else "better"
    elif min(new) > max(old):
        verdict = "better" if more else "regression"
    else:
        verdict = ""
    return Change(question, metric, report["units"].get(metric, ""), contender, before, after, ratio, verdict)
