"""A virtual processor as Xen keeps it: traps, roots, callbacks, timers, runstate and what it waits for."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from xenolith.abi.vcpu import RUNSTATE_offline
from xenolith.abi.vm_assist import VMASST_TYPE_architectural_iopl
from xenolith.cpu.registers import IOPL_SHIFT
from xenolith.hypervisor.shared_state import Callback, Gate, LastHypercalls, VcpuState

if TYPE_CHECKING:
    from xenolith.cpu.engine import Cpu
    from xenolith.hypervisor.domain import Domain

UPCALL_PENDING: Final = 0
UPCALL_MASK: Final = 1
PENDING_SEL: Final = 8
INFO_CR2: Final = 16
INFO_TIME: Final = 32
"""Offsets in struct vcpu_info (public/xen.h)."""

ALL_PROCESSORS: Final = -1
"""A bitmap, of however many there are."""


@dataclass(slots=True)
class Runstate:
    state: int = RUNSTATE_offline
    entered_ns: int = 0
    times_ns: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    area_vaddr: int = 0


@dataclass(eq=False)
class Vcpu(VcpuState):
    """One vCPU of `domain`. `info_maddr` is where its struct vcpu_info lies in machine memory.

    Times are nanoseconds of system time; 0 means that a timer is not set. What exits touch is in the base class, and
    lies in memory of the processor's if that has any: `kernel_mode`, the page tables (`kernel_root`, `user_root`:
    machine addresses) and the GS base of the mode that the vCPU is not in (`other_gs_base`, what swapgs would bring),
    the kernel's stack (`kernel_sp`, `kernel_ss`), `iopl`, and what of it RFLAGS in frames show (`shown_iopl`), whether
    an NMI waits (`nmi_pending`), and how many returns from event handlers in a row found the next event pending
    (`upcall_streak`).
    """

    domain: Domain
    vcpu_id: int
    cpu: Cpu
    info_maddr: int = field()

    initialised: bool = False
    down: bool = True
    blocked: bool = False
    polling: bool = False
    poll_ports: tuple[int, ...] = ()
    poll_deadline_ns: int = 0
    pause_count: int = 0
    hard_affinity: int = ALL_PROCESSORS
    soft_affinity: int = ALL_PROCESSORS
    """Bitmaps of the processors on which it may run, and of those on which it should."""
    processor: int = 0
    """That on which it runs, or has run."""

    traps: ctypes.Array[Gate] = field(init=False)
    """The guest's handlers by vector."""
    callbacks: ctypes.Array[Callback] = field(init=False)
    """Its entry points by CALLBACKTYPE_*."""
    last_hypercalls: LastHypercalls = field(init=False)
    gdt_mfns: list[int] = field(default_factory=list)
    gdt_entries: int = 0
    ldt_base: int = 0
    ldt_entries: int = 0
    ldt_mfns: dict[int, int] = field(default_factory=dict)
    cr4: int = 0
    xcr0: int = 1
    """The parts of extended state that the guest has switched on."""
    debug: list[int] = field(default_factory=lambda: [0] * 8)
    tsc_aux: int = 0
    """What RDTSCP puts into ECX: the number that the guest gave this vCPU (32 bits)."""
    io_bitmap_vaddr: int = 0
    io_bitmap_ports: int = 0
    """The bitmap that says which of the first so many ports the vCPU's user mode may use (PHYSDEVOP_set_iobitmap)."""

    native: Callable[[], None] | None = None
    """For a native domain: what looks at its events. It is called in the machine's own turn, never inside an exit."""
    info_registered: bool = False
    time_version: int = 0
    time_area_vaddr: int = 0
    """Where the guest wants a second clock record, for its user space; 0 for nowhere."""
    runstate: Runstate = field(default_factory=Runstate)
    periodic_ns: int = 0
    periodic_next_ns: int = 0
    singleshot_ns: int = 0
    timer_op_ns: int = 0
    vruntime_ns: int = 0
    exits_seen: int = 0
    """How many exits of its processor are accounted for."""
    recent_ns: int = 0
    recent_exits: int = 0
    """How long it has run lately, and how often it has left the guest in that time."""

    def __new__(cls, domain: Domain, vcpu_id: int, cpu: Cpu, info_maddr: int) -> Vcpu:
        return super().__new__(cls) if cpu.memory is None else cls.from_buffer(cpu.memory)

    def __post_init__(self) -> None:
        self.kernel_mode = True
        self.domain_at = ctypes.addressof(self.domain)
        self.traps, self.callbacks, self.last_hypercalls = self.traps_, self.callbacks_, self.hypercalls_

    def __repr__(self) -> str:
        return f"d{self.domain.domid}v{self.vcpu_id}"

    def show_iopl(self) -> None:
        """To be called when `iopl` has changed, or whether the domain wants to see it."""
        sees_it = self.domain.vm_assist >> VMASST_TYPE_architectural_iopl & 1
        self.shown_iopl = self.iopl << IOPL_SHIFT if sees_it else 0

    @property
    def root(self) -> int:
        """The machine address of the L4 table of the mode that it is in."""
        return self.kernel_root if self.kernel_mode else self.user_root

    @property
    def runnable(self) -> bool:
        return not (self.down or self.blocked or self.pause_count or self.domain.pause_count or self.domain.is_dying)
