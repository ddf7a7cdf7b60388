from __future__ import annotations

from pathlib import Path

import pytest

from xenolith.errors import UserError
from xenolith.loader import kernels
from xenolith.toolstack import doctor
from xenolith.toolstack.doctor import EngineReport, HostReport, KernelReport, ToolReport

USABLE = EngineReport("unicorn", True, "")
BOOTS = KernelReport("debian", "cache", "/vmlinuz", True, "")
APT = ToolReport("apt-get", "apt", "", "/usr/bin/apt-get")


def host(
    engines: list[EngineReport] | None = None,
    found: list[KernelReport] | None = None,
    tools: list[ToolReport] | None = None,
    available: int = 1000,
) -> HostReport:
    return HostReport("cpu", 1, "x86_64", available, 1000, engines or [USABLE], found or [], tools or [])


@pytest.mark.parametrize(
    ("report", "ready"),
    [
        (host(found=[BOOTS]), True),
        (host(tools=[APT]), True),
        (host(), False),
        (host(found=[KernelReport("x", "host", "/x", False, "no notes")]), False),
        (host(found=[BOOTS], available=999), False),
        (host([EngineReport("unicorn", False, "not installed")], [BOOTS]), False),
    ],
)
def test_ready(report: HostReport, ready: bool) -> None:
    assert report.ready is ready


def test_the_engine_is_measured() -> None:
    report = doctor.unicorn()
    assert report.usable
    assert report.version == "2.1.4"
    assert report.exit_us is not None
    assert 0.05 < report.exit_us < 500
    assert report.million_instructions_per_second is not None
    assert 1 < report.million_instructions_per_second < 50_000


def test_an_engine_that_does_not_start_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str, _ram: object) -> None:
        raise UserError("the Unicorn library hides its processor state", "pip install unicorn==2.1.4")

    monkeypatch.setattr(doctor, "create_engine", fail)
    report = doctor.unicorn()
    assert not report.usable
    assert report.about == "the Unicorn library hides its processor state (pip install unicorn==2.1.4)"
    assert report.exit_us is None


def test_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    report = doctor.kvm()
    assert report.usable == (report.exit_us is not None)
    monkeypatch.setattr("xenolith.cpu.kvm._DEVICE", "/nowhere/kvm")
    assert doctor.kvm().about == "/nowhere/kvm cannot be opened: No such file or directory (use --engine unicorn)"


def test_memory_is_what_the_host_and_the_container_allow(tmp_path: Path) -> None:
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text("MemTotal: 2000 kB\nMemFree: 10 kB\nMemAvailable: 1000 kB\n")
    assert doctor._available_memory(meminfo, limit) == 1000 << 10
    limit.write_text("max\n")
    assert doctor._available_memory(meminfo, limit) == 1000 << 10
    limit.write_text("4096\n")
    assert doctor._available_memory(meminfo, limit) == 4096


def test_the_processor_has_a_name(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: A Processor @ 2 GHz\n\nmodel name\t: another\n")
    assert doctor._processor(cpuinfo) == "A Processor @ 2 GHz"
    assert doctor._processor(tmp_path / "none")


def test_a_bare_host_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(kernels, "_BOOT", tmp_path / "boot")
    monkeypatch.setenv("XENOLITH_NATIVE", "0")
    monkeypatch.setattr(doctor, "_available_memory", lambda: 1 << 20)
    report = doctor.examine()
    assert not report.ready
    assert report.kernels == []
    advice = "\n".join(report.advice)
    assert "xenolith pull" in advice
    assert "apt-get install apt dpkg binutils gcc acpica-tools qemu-system-x86" in advice
    assert "662 MiB" in advice
    assert "no native helper: XENOLITH_NATIVE=0 switches it off" in advice


def test_a_damaged_kernel_is_listed_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(b"#!/bin/sh\n")
    report = doctor._kernel(kernels.Kernel("x", tmp_path / "vmlinuz", "host", None))
    assert not report.boots
    assert "neither an ELF file nor a bzImage" in report.verdict
