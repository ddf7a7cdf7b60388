from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from xenolith.cli import doctor
from xenolith.toolstack import doctor as examination
from xenolith.toolstack.doctor import EngineReport, HostReport, KernelReport, ToolReport


def host(**changes: object) -> HostReport:
    report = HostReport(
        processor="Some Processor",
        processors=2,
        architecture="x86_64",
        memory_available=2 << 30,
        memory_needed=662 << 20,
        engines=[
            EngineReport(
                "unicorn", True, "emulates", "2.1.4", True, 0.61, 1400.0, True, processors=3, works_in_ring0=True
            ),
            EngineReport("kvm", False, "no"),
        ],
        kernels=[KernelReport("debian", "cache", "/cache/vmlinuz", True, "it boots")],
        tools=[ToolReport("cc", "gcc", "tests", None)],
        advice=["for everything else: apt-get install gcc"],
    )
    for name, value in changes.items():
        setattr(report, name, value)
    return report


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> HostReport:
    """The host that the command sees."""
    report = host()
    monkeypatch.setattr(examination, "examine", lambda: report)
    return report


def test_text(examined: HostReport) -> None:
    result = CliRunner().invoke(doctor.command)
    assert result.exit_code == 0
    for words in (
        "2 × Some Processor (x86_64)",
        "+ memory     2048 MiB free, 662 MiB for the usual machine",
        "+ unicorn  2.1.4; emulates; stops a guest that spins; 0.61 µs an exit; 1400 million instructions a second",
        "hot loops run on the host processor",
        "runs 3 vCPUs at the same time; handles the commonest exits in ring 0",
        "- kvm      no",
        "+ debian  cache: it boots",
        "- cc  missing, for tests",
        "apt-get install gcc",
    ):
        assert words in result.output
    assert "\x1b" not in result.output


def test_json(examined: HostReport) -> None:
    result = CliRunner().invoke(doctor.command, ["--json"])
    record = json.loads(result.output)
    assert record["ready"] is True
    assert record["engines"][0]["exit_us"] == 0.61
    assert record["kernels"][0]["path"] == "/cache/vmlinuz"
    assert record["tools"][0] == {"name": "cc", "package": "gcc", "purpose": "tests", "path": None}


def test_a_host_that_cannot_is_told_so(examined: HostReport) -> None:
    examined.memory_available = 64 << 20
    result = CliRunner().invoke(doctor.command)
    assert result.exit_code == 1
    assert "- memory     64 MiB free" in result.output
    assert "No machine can be started here." in result.output
    assert json.loads(CliRunner().invoke(doctor.command, ["--json"]).output)["ready"] is False


def test_no_kernel(examined: HostReport) -> None:
    examined.kernels = []
    assert "none  xenolith pull brings one" in CliRunner().invoke(doctor.command).output
