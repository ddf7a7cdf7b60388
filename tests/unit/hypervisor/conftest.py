"""A hypervisor without an engine: real memory, frame table, page tables and policy, and nobody who runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.unit.hypervisor.fake_cpu import FakeCpu
from xenolith.abi.errno import EFAULT, ESRCH, XenError
from xenolith.abi.types import DOMID_SELF, Struct
from xenolith.hypervisor.console_ring import ConsoleRing
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.events import EventChannels
from xenolith.hypervisor.frames import FLAG_SHARED, TYPE_WRITABLE, FrameTable
from xenolith.hypervisor.grants import GrantTable
from xenolith.hypervisor.guest_memory import GuestMemory
from xenolith.hypervisor.hypercalls import event_channel as _event_channel  # noqa: F401  binds the handlers
from xenolith.hypervisor.hypercalls import grant_table as _grant_table  # noqa: F401  binds the handlers
from xenolith.hypervisor.hypercalls.table import HANDLERS
from xenolith.hypervisor.iommu import Iommu
from xenolith.hypervisor.pagetables import PageTables
from xenolith.hypervisor.policy import Policy
from xenolith.hypervisor.vcpu import Vcpu
from xenolith.machine.ram import Ram


class IdentityMemory(GuestMemory):
    """Guest memory in which every virtual address is the machine address of the same number."""

    def walk(self, root: int, vaddr: int, needed: int = 1) -> int:
        if not 4096 <= vaddr < self._ram_size:
            raise XenError(EFAULT)
        return vaddr


class StandIn:
    """What handlers use of the hypervisor, on `mib` MiB of memory."""

    def __init__(self, mib: int = 2) -> None:
        self.ram = Ram(mib << 20)
        self.frames = FrameTable(self.ram)
        self.frames.add_ram(1, self.frames.total - 1)
        self.memory = IdentityMemory(self.frames)
        self.domains: dict[int, Domain] = {}
        self.policy = Policy()
        self.pagetables = PageTables(self.frames, self.memory, self.domains)
        self.m2p = memoryview(bytearray(self.frames.total * 8)).cast("Q")
        self.woken: list[Vcpu] = []
        self.scratch: dict[int, int] = {}
        self.unimplemented: Counter[tuple[int, int]] = Counter()
        self.frames.on_free = self._frame_freed
        self.log = ConsoleRing()
        self.iommu = Iommu(self)  # type: ignore[arg-type]

    def _frame_freed(self, mfn: int, domid: int) -> None:
        if domid in self.domains:
            self.domains[domid].tot_frames -= 1

    def publish(self, kind: str, **data: Any) -> None:
        pass

    def wake(self, vcpu: Vcpu) -> None:
        self.woken.append(vcpu)

    def count_unimplemented(self, number: int, command: int) -> None:
        self.unimplemented[number, command] += 1

    def domain_by_id(self, caller: Vcpu, domid: int) -> Domain:
        if domid == DOMID_SELF:
            return caller.domain
        if domid not in self.domains:
            raise XenError(ESRCH)
        return self.domains[domid]

    def share_frame(self, domain: Domain, writable: bool = True) -> int:
        mfn = self.frames.allocate(domain.domid, 1)[0]
        self.frames.flags[mfn] = FLAG_SHARED
        if writable:
            self.frames.get_page_type(mfn, TYPE_WRITABLE)
        return mfn

    def unshare_frame(self, mfn: int) -> None:
        if self.frames.type_count[mfn]:
            self.frames.put_page_type(mfn)
        self.frames.put_page(mfn)

    # -- what only tests use ------------------------------------------------------------------------------------------

    def create(self, domid: int, vcpus: int = 1, capabilities: Capability = Capability.NONE, frames: int = 4) -> Domain:
        """A domain with `frames` frames of memory, `memory_of` it."""
        domain = Domain(domid, f"test{domid}", 64, capabilities)
        self.domains[domid] = domain
        domain.shared_info_mfn = self.share_frame(domain)
        domain.events = EventChannels(self, domain)  # type: ignore[arg-type]
        domain.grants = GrantTable(self, domain)  # type: ignore[arg-type]
        for number in range(vcpus):
            info = (domain.shared_info_mfn << 12) + number * 64
            domain.vcpus.append(Vcpu(domain, number, FakeCpu(), info))  # type: ignore[arg-type]
        self.scratch[domid] = self.frames.allocate(domid, frames)[-1]
        domain.tot_frames = frames
        return domain

    def memory_of(self, domain: Domain) -> list[int]:
        """The frames that are the domain's own and nobody's tables."""
        return [mfn for mfn in self.frames.owned_by(domain.domid) if not self.frames.flags[mfn] & FLAG_SHARED]

    def destroy(self, domain: Domain) -> None:
        domain.is_dying = True
        domain.grants.destroy(1 << 20)
        domain.events.destroy(1 << 20)
        for mfn in self.memory_of(domain):
            if self.frames.flags[mfn] & 1:
                self.frames.release_allocation(mfn)
        self.unshare_frame(domain.shared_info_mfn)
        del self.domains[domain.domid]

    def call(self, caller: Domain, number: int, command: int, *arguments: Struct, at: int | None = None) -> int:
        """The hypercall with its argument structures in the caller's last frame; they are updated. Raises XenError."""
        vaddr = self.scratch[caller.domid] << 12 if at is None else at
        vcpu = caller.vcpus[0]
        size = type(arguments[0]).sizeof() if arguments else 0
        for index, argument in enumerate(arguments):
            self.memory.write(vcpu, vaddr + index * size, argument.to_bytes())
        counts = (len(arguments),) if number == 20 else ()
        try:
            return HANDLERS[number](self, vcpu, command, vaddr, *counts) or 0
        finally:
            for index, argument in enumerate(arguments):
                copied = type(argument).from_bytes(self.memory.read(vcpu, vaddr + index * size, size))
                for name, *_ in argument._fields_:
                    setattr(argument, name, getattr(copied, name))


@pytest.fixture
def hv() -> StandIn:
    return StandIn()
