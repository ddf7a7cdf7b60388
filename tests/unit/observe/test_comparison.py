"""Measurements compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.common import Metric, Report, save
from xenolith.cli.verbs import cli
from xenolith.errors import UserError
from xenolith.observe.comparison import compare, missing, read


def measured(path: Path, boot: list[float], rate: list[float], peer: float = 9.0) -> dict[str, Any]:
    metrics = (Metric("boot", "s"), Metric("rate", "/s", more_is_better=True))
    report = Report("speed", "How fast?", metrics, peers=["peer"])
    report.samples = {"boot": {"xenolith": boot, "peer": [peer] * 3}, "rate": {"xenolith": rate}}
    save(path, {}, [report])
    return read(path)


@pytest.mark.parametrize(
    ("boot", "rate", "verdicts"),
    [
        ([1, 2, 3], [5, 6, 7], ["", "peer", ""]),
        ([3.1, 4, 5], [5, 6, 7], ["regression", "peer", ""]),
        ([2.9, 4, 5], [7.1, 8, 9], ["", "peer", "better"]),
        ([0.1, 0.2, 0.9], [1, 2, 4.9], ["better", "peer", "regression"]),
        ([9, 9], [1, 1, 1], ["too few samples", "peer", "regression"]),
    ],
)
def test_what_is_beyond_the_spread(tmp_path: Path, boot: list[float], rate: list[float], verdicts: list[str]) -> None:
    before = measured(tmp_path / "a.json", [1, 2, 3], [5, 6, 7])
    after = measured(tmp_path / "b.json", boot, rate, peer=90)
    assert [change.verdict for change in compare(before, after)] == verdicts
    ended = CliRunner().invoke(cli, ["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json"])
    assert ended.exit_code == int("regression" in verdicts)
    assert [change["verdict"] for change in json.loads(ended.output)["changes"]] == verdicts


def test_ratios_say_how_many_times_better(tmp_path: Path) -> None:
    before = measured(tmp_path / "a.json", [4, 4, 4], [5, 5, 5])
    after = measured(tmp_path / "b.json", [2, 2, 2], [10, 10, 10])
    assert [change.ratio for change in compare(before, after) if change.contender == "xenolith"] == [2, 2]


def test_what_is_measured_no_more(tmp_path: Path) -> None:
    before = measured(tmp_path / "a.json", [1], [1])
    after = measured(tmp_path / "b.json", [1], [1])
    del after["reports"]["speed"]["samples"]["rate"]
    assert list(missing(before, after)) == ["speed: rate: xenolith"]
    ended = CliRunner().invoke(cli, ["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert "too few samples" in ended.output


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"reports": []}', '{"reports": {"a": {}}}', '{"reports": {"a": 1}}'])
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match="cannot be read"):
        read(path)
    path.write_text(text)
    with pytest.raises(UserError, match="holds no measurements"):
        read(path)
