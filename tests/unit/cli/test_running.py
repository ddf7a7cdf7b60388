"""What the verbs that run guests offer, and what they say of the engine."""

from __future__ import annotations

import click
import pytest

from xenolith.cli.run import command
from xenolith.cli.running import warn_of_engine
from xenolith.cpu import unicorn
from xenolith.cpu.choose import ENGINES
from xenolith.hypervisor.cpuid import LEVELS
from xenolith.hypervisor.release import RELEASES
from xenolith.machine.ram import Ram


@pytest.mark.parametrize(("name", "choices"), [("engine", ENGINES), ("cpu", LEVELS), ("xen_version", RELEASES)])
def test_what_can_be_chosen_is_all_that_there_is(name: str, choices: object) -> None:
    option = next(parameter for parameter in command.params if parameter.name == name)
    assert isinstance(option.type, click.Choice)
    assert set(option.type.choices) == set(choices)  # type: ignore[call-overload]


@pytest.mark.parametrize("size", [None, 0x8000])
def test_an_engine_that_cannot_preempt_is_warned_of(
    size: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if size is not None:  # too small to find the processor's class in
        monkeypatch.setattr(unicorn, "_PROCESSOR_SIZE", size)
    warn_of_engine(unicorn.UnicornEngine(Ram(1 << 20)))
    warning = capsys.readouterr().err
    assert warning.count("\n") == (size is not None)
    assert ("a guest that spins cannot be stopped" in warning) == (size is not None)


@pytest.mark.parametrize(
    ("cpu", "lacks", "said"), [("x86-64-v2", "cpuid", True), ("host", "cpuid", False), ("x86-64-v2", "", False)]
)
def test_a_limit_that_programs_do_not_see_is_warned_of(
    cpu: str, lacks: str, said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = unicorn.UnicornEngine(Ram(1 << 20))
    monkeypatch.setattr(engine, "lacks", frozenset({lacks}))
    warn_of_engine(engine, cpu)
    assert ("--cpu x86-64-v2 is for kernels only" in capsys.readouterr().err) == said
