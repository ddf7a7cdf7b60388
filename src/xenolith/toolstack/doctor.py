"""What this host offers to a machine: engines and their measured speed, memory, kernels, tools, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from xenolith.cpu.choose import choose, create_engine
from xenolith.cpu.engine import LACKING
from xenolith.cpu.measure import measure
from xenolith.errors import UserError
from xenolith.hypervisor import native_exits
from xenolith.loader import kernels
from xenolith.toolstack.config import DEFAULT_CONTROL_MEMORY

OWN_MEMORY: Final = 150 << 20
"""The most, in bytes, that Xenolith takes beside its guests' memory on a machine of the usual size."""


@dataclass(frozen=True, slots=True)
class EngineReport:
    """One CPU engine: `usable` now, or why not in `about`. Figures are None where nothing was measured."""

    name: str
    usable: bool
    about: str
    version: str | None = None
    preemptible: bool | None = None
    """Whether a guest that never leaves by itself can be stopped."""
    exit_us: float | None = None
    """Microseconds from the guest to an empty handler and back."""
    million_instructions_per_second: float | None = None
    runs_loops: bool | None = None
    """Whether the host's processor runs a guest's small hot loops."""
    processors: int | None = None
    """How many vCPUs run at the same time."""
    works_in_ring0: bool | None = None
    """Whether the commonest exits are none, but are handled in ring 0 of the guest's processor."""
    lacks: tuple[str, ...] = ()
    """What guests cannot have on it, one sentence each."""


@dataclass(frozen=True, slots=True)
class ToolReport:
    """A program that Xenolith can use: what for, and the Debian package that has it."""

    name: str
    package: str
    purpose: str
    path: str | None


@dataclass(frozen=True, slots=True)
class KernelReport:
    """A kernel on this host; `verdict` says why it boots or does not."""

    name: str
    origin: str
    path: str
    boots: bool
    verdict: str


@dataclass(slots=True)
class HostReport:
    """Everything. Memory is in bytes; `advice` is one sentence for each thing that would give more."""

    processor: str
    processors: int
    architecture: str
    memory_available: int
    memory_needed: int
    engines: list[EngineReport] = field(default_factory=list)
    kernels: list[KernelReport] = field(default_factory=list)
    tools: list[ToolReport] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    chosen: str = "unicorn"
    """What "auto" means here."""
    helper_missing: str | None = None
    """Why Python handles all exits; None if the native helper handles the commonest ones."""

    @property
    def ready(self) -> bool:
        """Whether a machine can be started here and now, or after a kernel was pulled by itself."""
        engine = any(engine.usable for engine in self.engines)
        kernel = any(kernel.boots for kernel in self.kernels) or self.has_tool("apt-get")
        return engine and kernel and self.memory_available >= self.memory_needed

    def has_tool(self, name: str) -> bool:
        return any(tool.name == name and tool.path for tool in self.tools)


_TOOLS: Final = (
    ("apt-get", "apt", "bringing kernels (xenolith pull)"),
    ("dpkg-deb", "dpkg", "unpacking them"),
    ("as", "binutils", "the tests' small guests"),
    ("cc", "gcc", "checking the ABI against Xen's headers (tests)"),
    ("iasl", "acpica-tools", "checking the ACPI tables (tests)"),
    ("qemu-system-x86_64", "qemu-system-x86", "the peer of the benchmarks (make bench)"),
)


def examine() -> HostReport:
    """Look at this host. It takes about a second, most of it to measure the engine."""
    report = HostReport(
        processor=_processor(),
        processors=len(os.sched_getaffinity(0)),
        architecture=platform.machine(),
        memory_available=_available_memory(),
        memory_needed=DEFAULT_CONTROL_MEMORY + OWN_MEMORY,
        engines=[unicorn(), kvm()],
        chosen=choose(),
        helper_missing=native_exits.COMPILED.missing(),
        kernels=[_kernel(kernel) for kernel in (*kernels.cached(), *kernels.host())],
        tools=[ToolReport(name, package, purpose, shutil.which(name)) for name, package, purpose in _TOOLS],
    )
    report.advice = _advice(report)
    return report


def _advice(report: HostReport) -> list[str]:
    advice = [f"{engine.name}: {engine.about}" for engine in report.engines[:1] if not engine.usable]
    if report.memory_available < report.memory_needed:
        advice.append(
            f"{report.memory_needed >> 20} MiB of free memory are wanted for the usual machine: "
            "free some, or give the domain less with --memory"
        )
    if not any(kernel.boots for kernel in report.kernels):
        advice.append("no kernel is here yet: xenolith pull brings one (xenolith boot does so by itself)")
    if report.helper_missing is not None:
        advice.append(f"system calls of guests are slow, for there is no native helper: {report.helper_missing}")
    missing = [tool.package for tool in report.tools if tool.path is None]
    if missing:
        advice.append("for everything else: apt-get install " + " ".join(missing))
    return advice


# -- the host ---------------------------------------------------------------------------------------------------------


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _available_memory(meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes that can still be used: what the kernel says (MemAvailable), or less where a container is limited."""
    available = next(
        int(line.split()[1]) << 10 for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")
    )
    try:
        return min(available, int(limit.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return available


def _kernel(kernel: kernels.Kernel) -> KernelReport:
    try:
        verdict = kernel.image().verdict
        boots, sentence = verdict.bootable, verdict.sentence
    except UserError as error:
        boots, sentence = False, error.message
    return KernelReport(kernel.name, kernel.origin, str(kernel.path), boots, sentence)


# -- engines ----------------------------------------------------------------------------------------------------------


def unicorn() -> EngineReport:
    """Start the Unicorn engine, which verifies what it rests on, and measure it."""
    try:
        version = importlib.metadata.version("unicorn")
    except importlib.metadata.PackageNotFoundError:
        return EngineReport("unicorn", usable=False, about="not installed: pip install unicorn==2.1.4")
    return _measured("unicorn", "emulates on any host; state overlay verified", version)


def kvm() -> EngineReport:
    """Start the KVM engine, which tries out what this host's KVM can do, and measure it."""
    return _measured("kvm", "runs guests on the host's processor", platform.release())


def _measured(name: str, about: str, version: str) -> EngineReport:
    try:
        engine, speed = measure(partial(create_engine, name))
    except UserError as error:
        return EngineReport(name, usable=False, about=f"{error.message} ({error.hint})", version=version)
    return EngineReport(
        name,
        usable=True,
        about=about,
        version=version,
        preemptible=engine.preemptible,
        runs_loops=engine.runs_loops,
        exit_us=round(speed.exit_us, 2),
        million_instructions_per_second=round(speed.million_instructions_per_second),
        processors=engine.processors,
        works_in_ring0=engine.works_in_ring0,
        lacks=tuple(LACKING[what] for what in sorted(engine.lacks)),
    )
