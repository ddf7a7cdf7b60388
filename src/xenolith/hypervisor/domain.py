"""A domain: its memory, vCPUs, tables and capabilities. dom0 is one of these with more capabilities, nothing else."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import TYPE_CHECKING

from xenolith.hypervisor.shared_state import DomainState

if TYPE_CHECKING:
    from xenolith.hypervisor.crash import CrashReport
    from xenolith.hypervisor.dirty_log import DirtyLog
    from xenolith.hypervisor.events import EventChannels
    from xenolith.hypervisor.grants import GrantTable
    from xenolith.hypervisor.vcpu import Vcpu


class Capability(Flag):
    """What a domain may do beyond its own affairs. Any domain can be given any of them."""

    NONE = 0
    CONTROL = auto()
    """Act on other domains, or on those in `Domain.targets`: build, inspect, pause and destroy them."""
    HARDWARE = auto()
    """Ports, device memory, interrupts and power of the machine."""
    CONSOLE = auto()
    """Read and write the hypervisor's own console and log."""
    STORE = auto()
    """Serve xenstore: learn of domains that come and go."""
    CREATE = auto()
    """Make domains, and control those that it made."""
    ALL = CONTROL | HARDWARE | CONSOLE | STORE | CREATE


@dataclass(eq=False)
class Domain(DomainState):
    """One domain. Sizes are frames; `shared_info_mfn` is the frame of its struct shared_info.

    `vm_assist`, in the base class, are the flags that it switched on (1 << VMASST_TYPE_*).
    """

    domid: int = field()
    name: str
    max_frames: int
    capabilities: Capability = Capability.NONE
    targets: frozenset[int] | None = None
    """The domids that CONTROL is over; None: everybody."""
    creator: int | None = None
    """The domain that made this one by hypercall, and controls it with CREATE; None for one made at power-on."""
    handle: uuid.UUID = field(default_factory=uuid.uuid4)
    shared_info_mfn: int = 0
    max_vcpus: int = 0
    vcpus: list[Vcpu] = field(default_factory=list)
    """As many as `max_vcpus` says, or none yet."""
    tot_frames: int = 0
    claimed_frames: int = 0
    """Frames that are kept for this domain until it takes them (XENMEM_claim_pages)."""
    pause_count: int = 0
    """Reasons for which the domain does not run, those of control domains included."""
    controller_pause_count: int = 0
    was_started: bool = False
    """Whether control domains have let it run once: what it is made of is fixed since then."""
    is_dying: bool = False
    """Its end has begun: it runs no more and gets nothing more."""
    is_dead: bool = False
    """It holds nothing more. It stays until others have let go of its last frame."""
    frames_left: int = 0
    """Of a dead domain: its frames that others still hold."""
    shutdown_code: int | None = None
    announced_shutdown_code: int | None = None
    watchdogs: list[int] = field(default_factory=lambda: [0, 0])
    """System times (ns) at which the domain's watchdogs bite; 0 for one that does not run."""
    crash_reason: str = ""
    bug: str = ""
    """The traceback of the mistake of ours that ended this domain; empty if there was none."""
    crash_report: CrashReport | None = None
    time_offset_s: int = 0
    tsc_incarnation: int = 1
    """How many machines the domain has been on."""
    weight: int = 256
    cap: int = 0
    """The most that the domain may have of the processor, in percent; 0 for all."""
    budget_ns: int = 0
    """Of a domain with a cap: how long it may still run in this period of the scheduler's."""
    is_debugged: bool = False
    dirty_log: DirtyLog | None = None
    """What a control domain that copies this one is told of the frames that have changed; None unless one does."""
    emulation_flags: int = 0
    misc_flags: int = 0
    """What the domain was made with (struct xen_arch_domainconfig)."""
    cpu_policy: dict[tuple[int, int], tuple[int, int, int, int]] = field(default_factory=dict)
    """What its builder wants CPUID to answer: (leaf, subleaf) to EAX, EBX, ECX, EDX. Empty for no wishes."""
    perdomain_l3_mfn: int = 0
    pirq_eoi_mfn: int = 0
    suspend_port: int = 0
    memory_map: list[tuple[int, int, int]] = field(default_factory=list)
    """(start, length, E820 type) in bytes, as the builder set it; empty for none."""
    port_ranges: list[tuple[int, int]] = field(default_factory=list)
    iomem_ranges: list[tuple[int, int]] = field(default_factory=list)
    pci_functions: frozenset[int] | None = None
    """The PCI functions (bus, device and function number) that HARDWARE is over; None: all."""
    irqs: frozenset[int] = frozenset()
    """The irqs that the domain may map though it has not HARDWARE (XEN_DOMCTL_irq_permission)."""
    has_iommu: bool = False
    """Whether PCI functions may be given to it (XEN_DOMCTL_CDF_iommu)."""
    rtc_index: int = 0
    pci_config_address: int = 0
    """What the domain last wrote to the index ports of the clock chip and of PCI, which it shares with others."""
    events: EventChannels = field(init=False)
    grants: GrantTable = field(init=False)

    def __repr__(self) -> str:
        return f"d{self.domid}"

    def can(self, capability: Capability) -> bool:
        return capability in self.capabilities
