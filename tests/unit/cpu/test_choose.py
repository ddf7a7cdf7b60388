"""Which engine "auto" means: what was asked for, what is faster, and what is remembered of that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xenolith.cpu import choose, measure
from xenolith.cpu.measure import Bench, Speed
from xenolith.cpu.unicorn import UnicornEngine
from xenolith.errors import UserError
from xenolith.machine.ram import Ram

FAST_EXITS = Speed(1.5, 2000)
SLOW_EXITS = Speed(500, 20000)
EMULATION = Speed(0.5, 900)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Speed]:
    """An unknown host with /dev/kvm, on which nothing was asked for; the speeds that are measured there."""
    monkeypatch.delenv("XENOLITH_ENGINE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choose, "DEVICE", "/dev/null")
    speeds = {"unicorn": EMULATION, "kvm": FAST_EXITS}

    def pretend(create: object) -> tuple[object, Speed]:
        name = create.args[0]  # type: ignore[attr-defined]
        if name not in speeds:
            raise UserError("unusable", "")
        return None, speeds[name]

    monkeypatch.setattr(measure, "measure", pretend)
    return speeds


def test_the_faster_one_is_chosen(measured: dict[str, Speed]) -> None:
    assert choose.choose() == "kvm"


def test_slow_exits_outweigh_fast_code(measured: dict[str, Speed]) -> None:
    measured["kvm"] = SLOW_EXITS
    assert choose.choose() == "unicorn"


def test_an_engine_that_cannot_be_used_is_not_chosen(measured: dict[str, Speed]) -> None:
    del measured["kvm"]
    assert choose.choose() == "unicorn"


def test_the_choice_is_remembered_for_this_host(measured: dict[str, Speed], tmp_path: Path) -> None:
    assert choose.choose() == "kvm"
    measured["kvm"] = SLOW_EXITS
    assert choose.choose() == "kvm"
    place = tmp_path / "xenolith/engine.json"
    place.write_text(json.dumps({"another host": "kvm"}))
    assert choose.choose() == "unicorn"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": "abacus"}', '{"x": ["kvm"]}'])
def test_a_memory_that_makes_no_sense_is_forgotten(measured: dict[str, Speed], tmp_path: Path, content: str) -> None:
    (tmp_path / "xenolith").mkdir()
    (tmp_path / "xenolith/engine.json").write_text(content)
    assert choose.choose() == "kvm"


def test_what_was_asked_for_wins(measured: dict[str, Speed], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENOLITH_ENGINE", "unicorn")
    assert choose.choose() == "unicorn"
    monkeypatch.setenv("XENOLITH_ENGINE", "abacus")
    with pytest.raises(UserError, match="names no engine: 'abacus'"):
        choose.choose()


def test_without_the_device_nothing_is_measured(measured: dict[str, Speed], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "DEVICE", "/nowhere")
    measured.clear()
    assert choose.choose() == "unicorn"


def test_a_virtual_clock_needs_an_engine_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENOLITH_ENGINE", "kvm")
    assert choose.create_engine("auto", Ram(1 << 20), counts_work=True).name == "unicorn"


def test_a_guest_that_faults_in_the_measurement_is_an_error() -> None:
    bench = Bench(UnicornEngine)
    with pytest.raises(UserError, match="exception 6"):
        bench._run(bytes.fromhex("0f0b"), exits=1)
