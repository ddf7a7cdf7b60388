"""What this host offers to a machine: engines and their measured speed, memory, kernels, tools, and what is missing."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import platform
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from xenolith.cpu.registers import RBX, RIP, RSI
from xenolith.cpu.unicorn import UnicornEngine
from xenolith.errors import UserError
from xenolith.loader import kernels
from xenolith.machine.ram import Ram
from xenolith.toolstack.config import DEFAULT_CONTROL_MEMORY

OWN_MEMORY: Final = 150 << 20
"""The most, in bytes, that Xenolith takes beside its guests' memory on a machine of the usual size."""

_KVM_GET_API_VERSION: Final = 0xAE00
_KVM_API_VERSION: Final = 12
"""linux/kvm.h, and the only version that Linux has had since 2.6.22 (Documentation/virt/kvm/api.rst)."""


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
        bench = _Bench()
        return EngineReport(
            "unicorn",
            usable=True,
            about="emulates on any host; state overlay verified",
            version=version,
            preemptible=bench.engine.preemptible,
            runs_loops=bench.engine.runs_loops,
            exit_us=round(bench.exit_us(), 2),
            million_instructions_per_second=round(bench.million_instructions_per_second()),
        )
    except importlib.metadata.PackageNotFoundError:
        return EngineReport("unicorn", usable=False, about="not installed: pip install unicorn==2.1.4")
    except UserError as error:
        return EngineReport("unicorn", usable=False, about=f"{error.message} ({error.hint})", version=version)


def kvm(device: Path = Path("/dev/kvm")) -> EngineReport:
    """Whether the host's own virtualisation could be used. There is no engine for it yet."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return EngineReport("kvm", usable=False, about=f"{device} cannot be opened: {error.strerror}")
    try:
        version = fcntl.ioctl(fd, _KVM_GET_API_VERSION)
    except OSError:
        version = None
    finally:
        os.close(fd)
    if version != _KVM_API_VERSION:
        return EngineReport("kvm", usable=False, about=f"{device} is no KVM device")
    return EngineReport("kvm", usable=False, about=f"{device} can be opened, but Xenolith has no engine for it yet")


_CODE: Final = 0x8000
_DATA: Final = 0x9000
_FRAMES: Final = 16
_PRESENT_WRITABLE_USER: Final = 7
_NX: Final = 1 << 63

_EXITS: Final = 20_000
_SYSCALL_LOOP: Final = bytes.fromhex("0f05 ebfc")
"""syscall; jmp back to it."""

_ROUNDS: Final = 1_000_000
_WORK_INSTRUCTIONS: Final = 8
_WORK_LOOP: Final = bytes.fromhex("488b06 4801d8 4831c1 488906 488d5308 480fafca 48ffcb 75e7 0f05")
"""mov rax,[rsi]; add rax,rbx; xor rcx,rax; mov [rsi],rax; lea rdx,[rbx+8]; imul rcx,rdx; dec rbx; jnz; then syscall."""


class _Bench:
    """A processor with one page of code and one of data, at CPL 3, whose every exit is counted."""

    def __init__(self) -> None:
        ram = Ram(_FRAMES << 12)
        for level in range(1, 4):
            ram.words[level << 9] = (level + 1) << 12 | _PRESENT_WRITABLE_USER
        ram.words[(4 << 9) + (_CODE >> 12)] = _CODE | _PRESENT_WRITABLE_USER
        ram.words[(4 << 9) + (_DATA >> 12)] = _DATA | _PRESENT_WRITABLE_USER | _NX
        self._ram = ram
        self.engine = UnicornEngine(ram)
        self.engine.attach(self)
        self._cpu = self.engine.create_cpu()
        self.engine.switch_to(self._cpu)
        self.engine.load_root(1 << 12)
        self._exits_left = 0

    def exit_us(self) -> float:
        """Microseconds for one SYSCALL that is counted and nothing else."""
        self._run(_SYSCALL_LOOP, exits=100)
        return self._run(_SYSCALL_LOOP, exits=_EXITS) / _EXITS * 1e6

    def million_instructions_per_second(self) -> float:
        """How fast a tight loop of arithmetic with one load and one store in eight instructions runs."""
        self._run(_WORK_LOOP, exits=1)
        seconds = self._run(_WORK_LOOP, exits=1)
        return _ROUNDS * _WORK_INSTRUCTIONS / seconds / 1e6

    def _run(self, code: bytes, exits: int) -> float:
        """Run `code` until it has exited so often; the seconds that took."""
        self._ram.bytes[_CODE : _CODE + len(code)] = code
        self.engine.invalidate_code(_CODE, 4096)
        registers = self._cpu.regs
        registers[RIP], registers[RSI], registers[RBX] = _CODE, _DATA, _ROUNDS
        self._exits_left = exits
        started = time.perf_counter()
        self.engine.run()
        seconds = time.perf_counter() - started
        if self._exits_left:
            raise UserError("the engine stopped before it should", "pip install --force-reinstall unicorn==2.1.4")
        return seconds

    # -- ExitHandler: only on_syscall is expected --------------------------------------------------------------------

    def on_syscall(self) -> None:
        self._exits_left -= 1
        if not self._exits_left:
            self.engine.stop()

    def on_sysenter(self) -> None:
        self.on_failure("sysenter")

    def on_exception(self, vector: int, error_code: int, address: int, software: bool) -> None:
        self.on_failure(f"exception {vector} (error {error_code:#x}) at {address:#x}")

    def on_port_in(self, port: int, size: int) -> int:
        self.on_failure("in")
        return 0

    def on_port_out(self, port: int, size: int, value: int) -> bool:
        self.on_failure("out")
        return True

    def on_cpuid(self) -> None:
        self.on_failure("cpuid")

    def on_rdtsc(self) -> int:
        self.on_failure("rdtsc")
        return 0

    def on_rdtscp(self) -> int:
        self.on_failure("rdtscp")
        return 0

    def on_spin(self) -> None:
        self.on_failure("pause")

    def on_failure(self, reason: str) -> None:
        raise UserError(f"the engine failed its test: {reason}", "pip install --force-reinstall unicorn==2.1.4")
