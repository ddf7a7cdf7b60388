"""Segment descriptors: which ones a guest may have, and where the processor finds each vCPU's tables.

A guest's GDT frames and Xen's own descriptors (selectors 0xe000 and up) lie side by side in the hypervisor's range, one
area for each vCPU, in a part of every L4 that belongs to the domain. Guests cannot write there; the frames themselves
have the type "segment descriptors" and exclude writable mappings.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from xenolith.abi.errno import EINVAL, XenError
from xenolith.cpu.engine import RING0_DESCRIPTORS
from xenolith.cpu.registers import MASK64
from xenolith.hypervisor.domain import Domain
from xenolith.hypervisor.frames import HYPERVISOR, TYPE_SEG_DESC, TYPE_WRITABLE, FrameTable
from xenolith.hypervisor.guest_memory import GuestMemory
from xenolith.hypervisor.pagetables import PageTables
from xenolith.hypervisor.vcpu import Vcpu

PERDOMAIN_START: Final = 0xFFFF_8200_0000_0000
"""L4 slot 260."""
_VCPU_AREA: Final = 32 * 4096
_LDT_OFFSET: Final = 16 * 4096
_GUEST_GDT_FRAMES: Final = 14
MAX_GDT_ENTRIES: Final = 7168
MAX_LDT_ENTRIES: Final = 8192
_SUPERVISOR_RO: Final = 0x8000_0000_0000_0021
_SUPERVISOR_RW: Final = 0x8000_0000_0000_0063
"""For the guest's own frames: a processor that loads a segment marks its descriptor as accessed."""
_SUPERVISOR_TABLE: Final = 0x23

FLAT_CODE64: Final = 0x00AF_FB00_0000_FFFF
FLAT_CODE32: Final = 0x00CF_FB00_0000_FFFF
FLAT_DATA: Final = 0x00CF_F300_0000_FFFF
XEN_CS32: Final = 0xE023
XEN_SS: Final = 0xE02B
XEN_CS64: Final = 0xE033
_XEN_DESCRIPTORS: Final = {
    XEN_CS32: FLAT_CODE32,
    XEN_SS: FLAT_DATA,
    XEN_CS64: FLAT_CODE64,
    **RING0_DESCRIPTORS,
}

_PRESENT: Final = 1 << 47
_DPL: Final = 3 << 45
_NOT_SYSTEM: Final = 1 << 44
_CALL_GATE: Final = 0xC
_CALL_GATE_RESERVED: Final = 0xFF << 32
_FIRST_XEN_SELECTOR: Final = 0xE000
_IN_LDT: Final = 4


def check_descriptor(descriptor: int) -> int:
    """The descriptor as a guest may have it: privilege 3 for code and data.

    A call gate gets privilege 0, so that a call through it always faults; the privilege that it is meant to have is
    kept in its selector. A descriptor that is not present, or is a call gate's second half, may be anything.
    Raises XenError(EINVAL) for all other system descriptors, and for call gates into the hypervisor's selectors or with
    reserved bits (xen/arch/x86/pv/descriptor-tables.c has the rules).
    """
    if not descriptor & _PRESENT:
        return descriptor
    if descriptor & _NOT_SYSTEM:
        return descriptor | _DPL
    kind = descriptor >> 40 & 0xF
    if kind == 0:
        return descriptor
    if kind != _CALL_GATE:
        raise XenError(EINVAL, f"system descriptor {descriptor:#018x} of type {kind:#x} is not allowed")
    selector = descriptor >> 16 & 0xFFFF
    if selector >= _FIRST_XEN_SELECTOR and not selector & _IN_LDT and selector != XEN_CS64:
        raise XenError(EINVAL, f"call gate {descriptor:#018x} leads into the hypervisor's selectors")
    if descriptor & _CALL_GATE_RESERVED:
        raise XenError(EINVAL, f"call gate {descriptor:#018x} has reserved bits")
    return (descriptor | 3 << 16) & ~_DPL


class DescriptorTables:
    """Places the GDT and LDT of every vCPU and keeps the types of the frames that they lie in."""

    def __init__(self, frames: FrameTable, memory: GuestMemory, tables: PageTables) -> None:
        self._frames = frames
        self._tables = tables
        self._memory = memory
        self._words = frames.ram.words
        self._zero_mfn, self._xen_gdt_mfn = frames.allocate(HYPERVISOR, 2)
        for selector, descriptor in _XEN_DESCRIPTORS.items():
            self._words[(self._xen_gdt_mfn << 9) + ((selector & 0xFFF) >> 3)] = descriptor

    def add_domain(self, domain: Domain) -> None:
        """Make the domain's part of the hypervisor's range: an L3, an L2 and an L1 table of supervisor mappings."""
        l3, l2 = self._frames.allocate(HYPERVISOR, 2)
        self._words[l3 << 9] = l2 << 12 | _SUPERVISOR_TABLE
        domain.perdomain_l3_mfn = l3

    def _replace(self, at: int, entry: int) -> None:
        """Write the L1 entry that is word `at` of RAM."""
        old, self._words[at] = self._words[at], entry
        if old and self._tables.mapping_removed is not None:
            self._tables.mapping_removed(old >> 12 & 0xFFFFFFF)

    def remove_domain(self, domain: Domain) -> None:
        l3 = domain.perdomain_l3_mfn
        l2 = self._words[l3 << 9] >> 12
        for slot in range(512):
            if entry := self._words[(l2 << 9) + slot]:
                self._give_back(entry >> 12 & 0xFFFFFFF)
        self._give_back(l2)
        self._give_back(l3)

    def _give_back(self, mfn: int) -> None:
        self._tables.table_gone(mfn)
        self._frames.release_allocation(mfn)

    def _l1_slot(self, vcpu: Vcpu) -> int:
        """The word index in RAM of the first L1 entry of this vCPU's area; the L1 table is made at first use."""
        l2 = self._words[vcpu.domain.perdomain_l3_mfn << 9] >> 12
        at = (l2 << 9) + vcpu.vcpu_id // 16
        if not self._words[at]:
            self._words[at] = self._frames.allocate(HYPERVISOR, 1)[0] << 12 | _SUPERVISOR_TABLE
        return ((self._words[at] & 0x000F_FFFF_FFFF_F000) >> 3) + vcpu.vcpu_id % 16 * 32

    def add_vcpu(self, vcpu: Vcpu) -> None:
        """An empty guest GDT with Xen's descriptors above it, and no LDT."""
        at = self._l1_slot(vcpu)
        for slot in range(16):
            self._words[at + slot] = self._zero_mfn << 12 | _SUPERVISOR_RO
        self._words[at + _GUEST_GDT_FRAMES] = self._xen_gdt_mfn << 12 | _SUPERVISOR_RO
        self._load(vcpu)

    def _load(self, vcpu: Vcpu) -> None:
        base = PERDOMAIN_START + vcpu.vcpu_id * _VCPU_AREA
        ldt_limit = vcpu.ldt_entries * 8 - 1 if vcpu.ldt_entries else 0
        vcpu.cpu.set_descriptor_tables(base, 0xFFFF, base + _LDT_OFFSET if vcpu.ldt_entries else 0, ldt_limit)

    # -- GDT ----------------------------------------------------------------------------------------------------------

    def set_gdt(self, vcpu: Vcpu, mfns: list[int], entries: int) -> None:
        """Use `entries` descriptors in `mfns` as the vCPU's GDT. Raises XenError(EINVAL) and keeps the old one."""
        if entries > MAX_GDT_ENTRIES:
            raise XenError(EINVAL, f"{entries} GDT entries")
        taken: list[int] = []
        try:
            for mfn in mfns:
                self._frames.get_page_and_type(mfn, vcpu.domain.domid, TYPE_SEG_DESC)
                taken.append(mfn)
        except XenError:
            for mfn in taken:
                self._frames.put_page_and_type(mfn)
            raise
        self._drop_gdt(vcpu)
        at = self._l1_slot(vcpu)
        for slot, mfn in enumerate(mfns):
            self._replace(at + slot, mfn << 12 | _SUPERVISOR_RW)
        vcpu.gdt_mfns, vcpu.gdt_entries = list(mfns), entries
        self._frames.flush()

    def _drop_gdt(self, vcpu: Vcpu) -> None:
        at = self._l1_slot(vcpu)
        for slot, mfn in enumerate(vcpu.gdt_mfns):
            self._replace(at + slot, self._zero_mfn << 12 | _SUPERVISOR_RO)
            self._frames.put_page_and_type(mfn)
        vcpu.gdt_mfns, vcpu.gdt_entries = [], 0

    def check_frame(self, mfn: int) -> None:
        """Check, and correct the privilege of, the 512 descriptors of a frame. Raises XenError(EINVAL)."""
        base = mfn << 9
        table = np.frombuffer(self._frames.ram.frame(mfn), dtype=np.uint64)
        for slot in np.flatnonzero(table & np.uint64(_PRESENT)).tolist():
            self._words[base + slot] = check_descriptor(self._words[base + slot])

    def update_descriptor(self, domain: Domain, maddr: int, descriptor: int) -> None:
        """Write one descriptor at machine address `maddr`. Raises XenError(EINVAL)."""
        mfn = maddr >> 12
        frames = self._frames
        if maddr & 7:
            raise XenError(EINVAL, f"descriptor address {maddr:#x} is not aligned")
        descriptor = check_descriptor(descriptor)
        if not frames.get_page(mfn, domain.domid):
            raise XenError(EINVAL, f"frame {mfn:#x} {frames.describe_owner(mfn)}")
        try:
            if frames.type[mfn] == TYPE_SEG_DESC and frames.type_count[mfn]:
                self._words[maddr >> 3] = descriptor
            else:
                frames.get_page_type(mfn, TYPE_WRITABLE)
                self._memory.write_machine(maddr, descriptor.to_bytes(8, "little"))
                frames.put_page_type(mfn)
        finally:
            frames.put_page(mfn)

    # -- LDT ----------------------------------------------------------------------------------------------------------

    def set_ldt(self, vcpu: Vcpu, base: int, entries: int) -> None:
        """Use `entries` descriptors at guest address `base` as LDT; its pages are looked up when first used."""
        if base & 0xFFF or entries > MAX_LDT_ENTRIES:
            raise XenError(EINVAL, f"LDT of {entries} entries at {base:#x}")
        if (vcpu.ldt_base, vcpu.ldt_entries) == (base, entries) and not vcpu.ldt_mfns:
            return
        self.drop_ldt(vcpu)
        vcpu.ldt_base, vcpu.ldt_entries = base, entries
        self._load(vcpu)

    def drop_ldt(self, vcpu: Vcpu) -> None:
        """Forget which frames hold the LDT."""
        if not vcpu.ldt_mfns:
            return
        at = self._l1_slot(vcpu) + 16
        for page, mfn in vcpu.ldt_mfns.items():
            self._replace(at + page, 0)
            self._frames.put_page_and_type(mfn)
        vcpu.ldt_mfns.clear()
        self._frames.flush()

    def ldt_fault(self, vcpu: Vcpu, address: int) -> int | None:
        """The processor found no LDT page at `address`: map it if the guest has one there.

        Returns None if the instruction may run again, else the guest address at which the guest sees a page fault;
        -1 if `address` is not in this vCPU's LDT at all.
        """
        offset = address - (PERDOMAIN_START + vcpu.vcpu_id * _VCPU_AREA + _LDT_OFFSET)
        if not 0 <= offset < vcpu.ldt_entries * 8:
            return -1
        page = offset >> 12
        guest_address = (vcpu.ldt_base + offset) & MASK64
        try:
            mfn = self._memory.walk(vcpu.kernel_root, guest_address & ~0xFFF) >> 12
            self._frames.get_page_and_type(mfn, vcpu.domain.domid, TYPE_SEG_DESC)
        except XenError:
            return guest_address
        self._words[self._l1_slot(vcpu) + 16 + page] = mfn << 12 | _SUPERVISOR_RW
        vcpu.ldt_mfns[page] = mfn
        return None

    def release(self, vcpu: Vcpu) -> None:
        """Give back all frames that this vCPU's tables refer to."""
        self.drop_ldt(vcpu)
        self._drop_gdt(vcpu)

    # -- lookup -------------------------------------------------------------------------------------------------------

    def lookup(self, vcpu: Vcpu, selector: int) -> int:
        """The descriptor that a selector names, 0 where there is none."""
        index = (selector & 0xFFFF) >> 3
        if not selector & 4 and index >> 9 < len(vcpu.gdt_mfns):
            return self._words[(vcpu.gdt_mfns[index >> 9] << 9) + (index & 511)]
        at = self._l1_slot(vcpu) + (16 if selector & 4 else 0) + (index >> 9)
        if selector & 4 and not self._in_ldt(vcpu, index):
            return 0
        frame = self._words[at] & 0x000F_FFFF_FFFF_F000
        return self._words[(frame >> 3) + (index & 511)] if frame else 0

    def _in_ldt(self, vcpu: Vcpu, index: int) -> bool:
        """Whether the LDT has such a descriptor; the page that it lies in is looked up if it was not used before."""
        if index >= vcpu.ldt_entries or index >> 9 in vcpu.ldt_mfns:
            return index < vcpu.ldt_entries
        address = PERDOMAIN_START + vcpu.vcpu_id * _VCPU_AREA + _LDT_OFFSET + index * 8
        return self.ldt_fault(vcpu, address) is None
