"""A guest that makes other domains, by hypercalls only."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_uint8
from typing import Any, Final

from tests.guest.pvguest import PAGE, PRESENT, RW, PvGuest
from xenolith.abi.domctl import (
    XEN_DOMCTL_INTERFACE_VERSION,
    XEN_DOMCTL_createdomain,
    XEN_DOMCTL_destroydomain,
    XEN_DOMCTL_getdomaininfo,
    XEN_DOMCTL_max_mem,
    XEN_DOMCTL_max_vcpus,
    XEN_DOMCTL_setvcpucontext,
    XenDomctl,
)
from xenolith.abi.hypercalls import HYPERVISOR_domctl, HYPERVISOR_memory_op, HYPERVISOR_sched_op
from xenolith.abi.memory import XENMEM_populate_physmap, XenMemoryReservation
from xenolith.abi.sched import SCHEDOP_shutdown
from xenolith.abi.vcpu import VcpuGuestContext, VGCF_in_kernel, VGCF_online

CODE_AT: Final = 0xFFFF_FFFF_8000_0000
TINY_FRAMES: Final = 5
_TABLE: Final = 0x67
_FIRST_PAGE: Final = 80
"""Of the playground: where frames of others are mapped."""


def _code(*calls: tuple[int, int, int]) -> bytes:
    """Hypercalls (number, command, address), one after the other, and an endless loop."""
    code = b""
    for number, command, address in calls:
        code += b"\xb8" + number.to_bytes(4, "little") + b"\xbf" + command.to_bytes(4, "little")
        code += b"\x48\xbe" + address.to_bytes(8, "little") + b"\x0f\x05"
    return code + b"\xeb\xfe"


SPIN: Final = _code()
REASON_AT: Final = CODE_AT + 0x800
POWER_OFF: Final = _code((HYPERVISOR_sched_op, SCHEDOP_shutdown, REASON_AT))


class Builder:
    """What a toolstack does, as steps of `guest`."""

    def __init__(self, guest: PvGuest) -> None:
        self.guest = guest

    def domctl(self, command: int, domid: int, **fields: Any) -> tuple[int, XenDomctl]:
        """The result and the structure afterwards; `member__field` sets a field of the union."""
        op = XenDomctl(cmd=command, interface_version=XEN_DOMCTL_INTERFACE_VERSION, domain=domid)
        for name, value in fields.items():
            member, field = name.split("__")
            setattr(getattr(op.u, member), field, value)
        vaddr = self.guest.arguments(op.to_bytes())
        result = self.guest.hypercall(HYPERVISOR_domctl, vaddr)
        return result, XenDomctl.from_bytes(self.guest.read(vaddr, XenDomctl.sizeof()))

    def create(self, frames: int = TINY_FRAMES, vcpus: int = 1) -> int:
        """A domain with memory to come and vCPUs that were not started; its domid, or a negative errno."""
        result, op = self.domctl(
            XEN_DOMCTL_createdomain,
            0,
            createdomain__handle=(c_uint8 * 16)(*range(16)),
            createdomain__max_vcpus=vcpus,
            createdomain__max_evtchn_port=1023,
            createdomain__max_grant_frames=1,
            createdomain__max_maptrack_frames=1,
            createdomain__grant_opts=2,
        )
        if result < 0:
            return result
        domid: int = op.domain
        assert self.domctl(XEN_DOMCTL_max_vcpus, domid, max_vcpus__max=vcpus)[0] == 0
        assert self.domctl(XEN_DOMCTL_max_mem, domid, max_mem__max_memkb=frames * 4)[0] == 0
        return domid

    def populate(self, domid: int, frames: int) -> list[int]:
        """The machine frames that the domain got, for pfns from 0 on."""
        extents = self.guest.arguments(b"".join(pfn.to_bytes(8, "little") for pfn in range(frames)), PAGE)
        argument = XenMemoryReservation(extent_start=extents, nr_extents=frames, domid=domid)
        done = self.guest.operation(HYPERVISOR_memory_op, XENMEM_populate_physmap, argument)
        return list(memoryview(self.guest.read(extents, done * 8)).cast("Q"))

    def map(self, domid: int, mfns: Sequence[int]) -> list[int]:
        """Map frames of another domain in place of pages of the guest's own; their addresses."""
        pages = [self.guest.page(_FIRST_PAGE + index) for index in range(len(mfns))]
        self._own = [(self.guest.pte_maddr(page), self.guest.pte(page)) for page in pages]
        pairs = [(maddr, mfn << 12 | PRESENT | RW) for (maddr, _), mfn in zip(self._own, mfns, strict=True)]
        result, done = self.guest.mmu_update(*pairs, domid=domid)
        assert (result, done) == (0, len(mfns))
        return pages

    def unmap(self) -> None:
        """Map the guest's own pages again."""
        assert self.guest.mmu_update(*self._own)[0] == 0

    def build(self, code: bytes, reason: int = 0) -> int:
        """A domain of one page of code and four of tables, ready to be unpaused; its domid."""
        domid = self.create()
        mfns = self.populate(domid, TINY_FRAMES)
        text, l1, l2, l3, l4 = mfns
        pages = self.map(domid, mfns)
        self.guest.write(pages[0], code)
        self.guest.write(pages[0] + REASON_AT - CODE_AT, reason.to_bytes(4, "little"))
        for page, slot, entry in (
            (pages[1], 0, text << 12 | _TABLE),
            (pages[2], 0, l1 << 12 | _TABLE),
            (pages[3], 510, l2 << 12 | _TABLE),
            (pages[4], 511, l3 << 12 | _TABLE),
        ):
            self.guest.write_words(page + slot * 8, entry)
        self.unmap()
        assert self.guest.pin(4, l4, domid) == 0
        assert self.start(domid, l4) == 0
        return domid

    def start(self, domid: int, l4: int) -> int:
        """setvcpucontext for vCPU 0, which begins at the start of its code."""
        context = VcpuGuestContext(flags=VGCF_in_kernel | VGCF_online)
        context.user_regs.rip = CODE_AT
        context.ctrlreg[3] = l4 << 12
        at = self.guest.arguments(context.to_bytes(), PAGE)
        return self.domctl(XEN_DOMCTL_setvcpucontext, domid, vcpucontext__vcpu=0, vcpucontext__ctxt=at)[0]

    def info(self, domid: int) -> Any:
        """struct xen_domctl_getdomaininfo of this domain, or of the next there is."""
        result, op = self.domctl(XEN_DOMCTL_getdomaininfo, domid)
        assert result == 0
        return op.u.getdomaininfo

    def destroy(self, domid: int) -> int:
        return self.domctl(XEN_DOMCTL_destroydomain, domid)[0]
