"""The protocol between the hypervisor and whatever executes guest instructions.

An engine owns the physical processors' view: it runs virtual processors (`Cpu`) at CPL 3 on page tables that
somebody else has validated, and calls an `ExitHandler` whenever the guest does something that it cannot do by itself.
The handler changes the registers and returns; the guest goes on from there. An engine knows nothing of Xen.

Whenever a handler is called, no guest code runs on any processor, and after the handler has the engine's translations
flushed, none runs on old ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from xenolith.cpu.shortcuts import Program, Shortcuts

ENGINE_SLOT: Final = 261
"""The slot of every L4 table in which an engine may have pages of its own."""
RING0_CODE_SELECTOR: Final = 0xE008
RING0_STACK_SELECTOR: Final = 0xE010
RING0_DESCRIPTORS: Final = {RING0_CODE_SELECTOR: 0x00AF_9B00_0000_FFFF, RING0_STACK_SELECTOR: 0x00CF_9300_0000_FFFF}
"""Ring 0's segments, which every GDT that a processor is given must have; Xen's selectors, asm-x86/config.h."""


LACKING: Final = {
    "breakpoints": "hardware breakpoints never trigger",
    "cpuid": "CPUID is answered by the host's processor, but where a kernel asks by Xen's prefix",
    "segments": "segment registers are not loaded from a guest's own descriptor tables",
    "sysenter": "SYSENTER is no instruction of this host's processor in 64-bit mode",
    "task switch": "the first FPU instruction after a task switch is not reported",
}
"""What an engine may leave undone, because its host does. Ordinary kernels depend on none of it."""


class Segment(NamedTuple):
    """One loaded segment: selector, base (bytes), limit (bytes) and the descriptor's high word (attributes)."""

    selector: int
    base: int
    limit: int
    attributes: int


class Cpu(Protocol):
    """The state of one virtual processor. Valid to read and write whether or not it is the one that runs.

    `regs` must be fetched anew after a switch: it is the live register file only while this processor runs.
    """

    regs: memoryview
    memory: memoryview | None
    """Memory that a `Program` for ring 0 sees as well, clear at first; None where there is none."""

    def show(self, maddr: int) -> None:
        """Let that program see the page of RAM at `maddr`."""

    @property
    def flags(self) -> int:
        """RFLAGS."""

    @flags.setter
    def flags(self, value: int) -> None: ...

    @property
    def fs_base(self) -> int: ...
    @fs_base.setter
    def fs_base(self, value: int) -> None: ...
    @property
    def gs_base(self) -> int: ...
    @gs_base.setter
    def gs_base(self, value: int) -> None: ...
    @property
    def task_switched(self) -> bool:
        """CR0.TS: the next FPU instruction raises #NM."""

    @task_switched.setter
    def task_switched(self, value: bool) -> None: ...

    def selector(self, segment: int) -> int:
        """The selector that segment register `segment` (ES..GS) holds."""

    def load_segment(self, segment: int, selector: int, base: int, limit: int, attributes: int) -> None:
        """Load a segment register with a selector and the descriptor that it names, without any check."""

    def set_descriptor_tables(self, gdt_base: int, gdt_limit: int, ldt_base: int, ldt_limit: int) -> None:
        """Where the processor finds its GDT and LDT: virtual addresses and limits in bytes (LDT limit 0: none)."""

    @property
    def exits(self) -> int:
        """How often it has left the guest, where the engine runs several processors at once (and else 0)."""

    def set_xcr0(self, value: int) -> None:
        """Switch parts of extended state on, of those in the engine's `xcr0_mask`."""

    def debug_register(self, number: int) -> int: ...
    def set_debug_register(self, number: int, value: int) -> None: ...


class ExitHandler(Protocol):
    """What an engine asks of its owner. Each call runs with the exiting processor's state current."""

    def on_processor(self, cpu: Cpu) -> bool:
        """Of several that ran at once this one is current now. False if nobody wants to know what it has come to."""

    def on_all_stopped(self) -> bool:
        """All that ran at once have been told of. False if they are not to go on together."""

    def on_syscall(self) -> None:
        """SYSCALL was executed; RIP is after it."""

    def on_sysenter(self) -> None:
        """SYSENTER was executed; RIP is after it."""

    def on_exception(self, vector: int, error_code: int, address: int, software: bool) -> None:
        """An exception: RIP at the faulting instruction, or after it for INT n (`software`). `address` is CR2."""

    def on_port_in(self, port: int, size: int) -> int | None:
        """IN of `size` bytes; RIP at the instruction. None: the instruction faults with #GP(0)."""

    def on_port_out(self, port: int, size: int, value: int) -> bool:
        """OUT of `size` bytes; RIP at the instruction. False: the instruction faults with #GP(0)."""

    def on_cpuid(self) -> None:
        """CPUID was executed: put the answer into RAX, RBX, RCX and RDX."""

    def on_rdtsc(self) -> int:
        """The time stamp counter's value, for RDTSC and RDTSCP."""

    def on_rdtscp(self) -> int:
        """What RDTSCP puts into RCX: TSC_AUX."""

    def on_spin(self) -> None:
        """PAUSE was executed many times, and nothing else was asked for: the processor waits for another one."""

    def on_instruction_finished(self) -> None:
        """What `finish_instruction` asked for: RIP is at the next instruction, and may be changed."""

    def on_failure(self, reason: str) -> None:
        """The engine cannot execute what the guest asks for."""


class Engine(Protocol):
    """One or several physical processors, each of which runs one `Cpu` at a time."""

    name: str
    preemptible: bool
    """Whether `kick` stops a guest wherever it is, and not only at its next exit."""

    @property
    def runs_loops(self) -> bool:
        """Whether the host's own processor runs a guest's hot loops, if it does not run all of its code."""

    processors: int
    """How many `Cpu`s can run at the same time."""
    works_in_ring0: bool | None
    """Whether processors execute a `Program` for ring 0, once the engine has started."""
    lacks: frozenset[str]
    """Keys of LACKING."""
    entry_table: int
    """What must stand in slot ENGINE_SLOT of each L4 that processors run on; 0 for nothing."""
    xcr0_mask: int
    """The parts of extended state (XSAVE) that guests may switch on; 0 where there is no XSAVE."""
    reserved: range
    """Machine addresses of the engine's own memory, which nobody may map; they are outside RAM."""
    first_slot: int
    """The lowest of the hypervisor's L4 slots (256 to 271) that guests can be given something in."""
    memory: memoryview | None
    """Memory that a `Program` for ring 0 sees as well; None where there is none."""
    tsc_khz: int | None
    """How fast the time stamp counter counts that guests read; None if each reading is asked of the handler."""
    forgets_code: bool
    """Whether it has room for so much of the guests' code, and is slower with what it has not run lately."""
    shadows_tables: bool
    """Whether changes of page tables have to be told, by the next three methods. TLB flushes are told in any case."""

    def mapping_removed(self, mfn: int) -> None:
        """Some L1 entry that mapped frame `mfn` maps it no more, or with other rights."""

    def table_entry_changed(self, maddr: int) -> None:
        """The present entry at `maddr`, of a table above L1, was changed."""

    def table_gone(self, mfn: int) -> None:
        """Frame `mfn` is no page table any more."""

    def read_tsc(self) -> int:
        """The time stamp counter as guests read it now, where `tsc_khz` is known."""

    def create_cpu(self) -> Cpu: ...
    def release_cpu(self, cpu: Cpu) -> None:
        """Nobody needs `cpu` any more."""

    def switch_to(self, cpu: Cpu) -> None:
        """Make `cpu` the current one. The caller loads its root afterwards."""

    def attach(self, handler: ExitHandler, shortcuts: Shortcuts | None = None, program: Program | None = None) -> None:
        """Tell `handler` of every exit from now on, but for those that `shortcuts` take, if the engine can ask them, or
        `program`, if processors can execute it.
        """

    def run(self, *beside: Cpu) -> None:
        """Execute the current processor, and `beside` it others at the same time, until `stop` or `kick`.

        There are at most `processors` together. Each of them was made current, and its root loaded.
        """

    def settle(self) -> None:
        """Tell what others have come to at the same time, after `run` or this has raised what a handler raised."""

    def comes_first(self, cpu: Cpu) -> bool:
        """Whether the handler has still to be told what `cpu` has come to. It will be, before the current processor's
        next exit is."""

    def stop(self) -> None:
        """From within a handler: `run` returns when the handler does."""

    def finish_instruction(self) -> None:
        """From within a handler, in the middle of an instruction: when that is over, `on_instruction_finished` is
        called, or `run` returns."""

    def kick(self) -> None:
        """From any thread: `run` returns soon."""

    def count_work(self) -> None:
        """Count executed work from now on, for virtual time. To be called before anything runs."""

    def set_work_limit(self, units: int | None) -> None:
        """Stop after so many units of executed work (bytes of code), for virtual time; None: no limit."""

    def work_done(self) -> int:
        """Units of work executed since `count_work`."""

    def load_root(self, maddr: int) -> None:
        """The current processor uses the L4 table at `maddr` and forgets all cached translations."""

    def change_mode(self, maddr: int, kernel_mode: bool) -> bool:
        """The current processor uses the L4 table at `maddr`, of the guest's other mode, if it has kept what it knew of
        that. False: the caller loads it."""

    def still_has(self, maddr: int) -> bool:
        """Whether the current processor ran last, on the L4 table at `maddr`, and can go on with its translations."""

    def flush_all(self) -> None:
        """All processors that run forget all cached translations."""

    def flush_page(self, vaddr: int) -> None:
        """All processors that run forget the translation of one page."""

    def invalidate_code(self, maddr: int, size: int) -> None:
        """The memory at `maddr` was changed from outside the guest and may hold code that was executed."""

    def map_mmio(
        self, maddr: int, size: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """Route guest accesses to machine addresses outside RAM to callbacks (offset, size[, value])."""

    def unmapped(self, end: int) -> list[range]:
        """The machine addresses below `end` at which the processor finds neither RAM nor a device."""

    def host_cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """What the processor can really do: EAX, EBX, ECX, EDX of a CPUID leaf before any policy."""


def gaps(mapped: list[range], end: int) -> list[range]:
    """What of the addresses below `end` is in none of these ranges, which do not overlap."""
    found, at = [], 0
    for addresses in sorted(mapped, key=lambda each: each.start):
        if at < min(addresses.start, end):
            found.append(range(at, min(addresses.start, end)))
        at = addresses.stop
    return [*found, range(at, end)] if at < end else found
