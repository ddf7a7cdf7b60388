"""Hostile descriptor tables: what may stand in a GDT and an LDT, and what their frames may be used for.

The rules are those of xen/arch/x86/pv/descriptor-tables.c and check_descriptor() of Xen 4.17.
"""

from __future__ import annotations

import struct

import pytest

from tests.guest.pvguest import NO_EXCEPTION, PRESENT, RW, PvGuest
from xenolith.abi.errno import EFAULT, EINVAL
from xenolith.abi.hypercalls import HYPERVISOR_set_gdt, HYPERVISOR_set_segment_base, HYPERVISOR_update_descriptor
from xenolith.abi.mmu import MMUEXT_SET_LDT
from xenolith.abi.x86_64 import SEGBASE_GS_USER_SEL

WITHOUT_HELPER_TOO = True

GENERAL_PROTECTION, PAGE_FAULT = 13, 14
CODE64 = 0x00AF_9B00_0000_FFFF
DATA = 0x00CF_9300_0000_FFFF
ACCESSED = 1 << 40
DPL3 = 3 << 45
NOT_PRESENT = (DATA | DPL3) & ~(1 << 47)
SYSTEM_TYPES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15)
HYPERVISOR = 0xFFFF_8200_0000_0000


def system(kind: int, dpl: int = 3) -> int:
    return 1 << 47 | dpl << 45 | kind << 40 | 0x67


def set_gdt(guest: PvGuest, *mfns: int, entries: int | None = None) -> int:
    frames = guest.arguments(struct.pack(f"<{len(mfns)}Q", *mfns))
    return guest.hypercall(HYPERVISOR_set_gdt, frames, len(mfns) * 512 if entries is None else entries)


def selector(index: int, ldt: bool = False) -> int:
    return index << 3 | (4 if ldt else 0) | 3


@pytest.mark.needs("segments")
def test_gdt_is_read_only_and_its_descriptors_have_privilege_3(guest: PvGuest) -> None:
    mfn = guest.table(1, {1: DATA, 2: CODE64, 3: DATA | 1 << 45, 4: NOT_PRESENT, 5: DATA | DPL3})
    assert set_gdt(guest, mfn) == 0
    words = guest.hv.ram.words[(mfn << 9) + 1 : (mfn << 9) + 6].tolist()
    assert words == [DATA | DPL3, CODE64 | DPL3, DATA | DPL3, NOT_PRESENT, DATA | DPL3]
    assert guest.map(guest.page(1), mfn << 12 | PRESENT | RW) == -EINVAL
    assert guest.pin(1, mfn) == -EINVAL
    assert guest.call("load_fs", selector(1)).rax == selector(1)
    assert guest.call("load_fs", selector(4)).fault == (11, selector(4) & ~3), "not present"
    assert guest.call("load_fs", selector(6)).vector == GENERAL_PROTECTION
    assert set_gdt(guest) == 0
    assert guest.call("load_fs", selector(1)).vector == GENERAL_PROTECTION
    assert guest.map(guest.page(1), mfn << 12 | PRESENT | RW) == 0


@pytest.mark.needs("segments")
@pytest.mark.parametrize("ldt", [False, True])
def test_the_processor_marks_a_descriptor_as_accessed(guest: PvGuest, ldt: bool) -> None:
    """It writes to the guest's table for that, where the guest itself cannot: no fault may come of it."""
    mfn = guest.table(1, {2: DATA & ~ACCESSED})
    assert (guest.mmuext(MMUEXT_SET_LDT, guest.page(1), 512) if ldt else set_gdt(guest, mfn)) == 0
    assert guest.call("load_fs", selector(2, ldt)).rax == selector(2, ldt)
    assert guest.hv.ram.words[(mfn << 9) + 2] == DATA | DPL3
    assert guest.hv.frames.type_count[mfn] == 1


def test_gdt_frames_that_cannot_be(guest: PvGuest, bystander: PvGuest) -> None:
    hv = guest.hv
    writable = guest.mfn(guest.page(0))
    root = guest.domain.vcpus[0].kernel_root >> 12
    for mfn in (
        writable,
        root,
        bystander.mfn(bystander.page(0)),
        hv.descriptors._xen_gdt_mfn,
        hv.descriptors._zero_mfn,
        0,
        hv.frames.total,
        (1 << 64) - 1,
        guest.domain.shared_info_mfn,
    ):
        assert set_gdt(guest, mfn) == -EINVAL, hex(mfn)
    good = guest.table(1)
    assert set_gdt(guest, good, writable) == -EINVAL
    assert hv.frames.type_count[good] == 0
    assert guest.domain.vcpus[0].gdt_mfns == []


@pytest.mark.parametrize("entries", [7169, 1 << 16, (1 << 32) - 1, (1 << 63) | 8000])
def test_gdt_has_an_end(guest: PvGuest, entries: int) -> None:
    assert set_gdt(guest, guest.table(1), entries=entries) == -EINVAL


@pytest.mark.parametrize("pointer", [0, 0x7000_0000_0000, 0x8000_0000_0000, HYPERVISOR, (1 << 64) - 4])
def test_gdt_list_must_be_readable(guest: PvGuest, pointer: int) -> None:
    assert guest.hypercall(HYPERVISOR_set_gdt, pointer, 512) == -EFAULT


@pytest.mark.parametrize("kind", SYSTEM_TYPES)
@pytest.mark.parametrize("dpl", [0, 3])
def test_system_descriptors_are_refused(guest: PvGuest, kind: int, dpl: int) -> None:
    assert set_gdt(guest, guest.table(1, {9: system(kind, dpl)})) == -EINVAL
    assert guest.hypercall(HYPERVISOR_update_descriptor, guest.maddr(guest.page(0)), system(kind, dpl)) == -EINVAL


@pytest.mark.parametrize("target", [0xE008, 0xE02B, 0xE040, 0xFFF8])
def test_call_gate_into_the_hypervisors_selectors_is_refused(guest: PvGuest, target: int) -> None:
    assert set_gdt(guest, guest.table(1, {9: system(0xC) | target << 16})) == -EINVAL


@pytest.mark.parametrize("bits", [0x01, 0x1F, 0x20, 0x80])
def test_call_gate_with_reserved_bits_is_refused(guest: PvGuest, bits: int) -> None:
    gate = 1 << 47 | 0xC << 40 | 0xE033 << 16 | bits << 32
    assert set_gdt(guest, guest.table(1, {9: gate})) == -EINVAL


@pytest.mark.needs("segments")
def test_call_gate_is_kept_out_of_reach(guest: PvGuest) -> None:
    """It gets privilege 0, so that a call through it faults; its own privilege is noted in the selector."""
    gate = 1 << 47 | 2 << 45 | 0xC << 40 | 0xE033 << 16
    mfn = guest.table(1, {9: gate})
    assert set_gdt(guest, mfn) == 0
    assert guest.hv.ram.words[(mfn << 9) + 9] == 1 << 47 | 0xC << 40 | 0xE033 << 16
    assert guest.call("far_call", 0, selector(9)).vector == GENERAL_PROTECTION


def test_descriptor_update(guest: PvGuest, bystander: PvGuest) -> None:
    mfn = guest.table(1)
    assert set_gdt(guest, mfn) == 0
    assert guest.hypercall(HYPERVISOR_update_descriptor, mfn << 12 | 8, DATA) == 0
    assert guest.hv.ram.words[(mfn << 9) + 1] == DATA | DPL3
    assert guest.call("load_fs", selector(1)).vector == NO_EXCEPTION
    for maddr in (
        mfn << 12 | 4,
        bystander.maddr(bystander.page(0)),
        guest.domain.vcpus[0].kernel_root,
        guest.hv.descriptors._xen_gdt_mfn << 12,
        0,
        guest.hv.frames.total << 12,
        (1 << 64) - 8,
    ):
        assert guest.hypercall(HYPERVISOR_update_descriptor, maddr, DATA) == -EINVAL, hex(maddr)


def test_hypervisors_selectors(guest: PvGuest) -> None:
    assert guest.call("load_fs", 0xE02B).vector == NO_EXCEPTION
    for bad in (0xE003, 0xE00B, 0xE03B, 0xE043, 0xFFFB, 0xFFFF):
        assert guest.call("load_fs", bad).fault == (GENERAL_PROTECTION, bad & ~3), hex(bad)
    assert guest.call("load_ss", 0xE033).fault == (GENERAL_PROTECTION, 0xE030)


@pytest.mark.needs("segments")
def test_ldt(guest: PvGuest) -> None:
    mfn = guest.table(1, {2: DATA, 3: system(9)})
    assert guest.mmuext(MMUEXT_SET_LDT, guest.page(1), 512) == 0
    # The descriptor of a task makes the whole frame unfit: the guest sees a page fault at its own LDT.
    outcome = guest.call("load_fs", selector(2, ldt=True))
    assert (outcome.vector, outcome.cr2) == (PAGE_FAULT, guest.page(1) + 16)
    guest.table(1, {2: DATA})
    assert guest.call("load_fs", selector(2, ldt=True)).rax == selector(2, ldt=True)
    assert guest.hv.ram.words[(mfn << 9) + 2] == DATA | DPL3
    assert guest.map(guest.page(1), mfn << 12 | PRESENT | RW) == -EINVAL, "it is in use"
    assert guest.call("load_fs", selector(512, ldt=True)).vector == GENERAL_PROTECTION, "beyond its end"
    assert guest.mmuext(MMUEXT_SET_LDT, 0, 0) == 0
    assert guest.call("load_fs", selector(2, ldt=True)).vector == GENERAL_PROTECTION
    assert guest.map(guest.page(1), mfn << 12 | PRESENT | RW) == 0


def test_ldt_in_odd_places(guest: PvGuest) -> None:
    for base, entries in ((guest.page(1) + 8, 16), (guest.page(1), 8193), (guest.page(1), (1 << 32) - 1)):
        assert guest.mmuext(MMUEXT_SET_LDT, base, entries) == -EINVAL
    assert guest.mmuext(MMUEXT_SET_LDT, HYPERVISOR, 16) == -EINVAL
    for base in (0x7000_0000_0000, 0x7FFF_FFFF_F000, 0xFFFF_FFFF_FFFF_F000):
        assert guest.mmuext(MMUEXT_SET_LDT, base, 8192) == 0
        outcome = guest.call("load_fs", selector(8000, ldt=True))
        assert outcome.vector in (PAGE_FAULT, GENERAL_PROTECTION), hex(base)
    writable = guest.page(2)
    assert guest.mmuext(MMUEXT_SET_LDT, writable, 16) == 0
    assert guest.call("load_fs", selector(2, ldt=True)).vector == PAGE_FAULT, "the frame is mapped writable"


def test_ldt_is_dropped_when_its_page_is_unmapped(guest: PvGuest) -> None:
    mfn = guest.table(1, {2: DATA})
    assert guest.mmuext(MMUEXT_SET_LDT, guest.page(1), 512) == 0
    assert guest.call("load_fs", selector(2, ldt=True)).vector == NO_EXCEPTION
    assert guest.map(guest.page(1), 0) == 0
    assert guest.hv.frames.type_count[mfn] == 0
    assert guest.call("load_fs", selector(2, ldt=True)).vector == PAGE_FAULT


def test_gs_selector_for_user_mode(guest: PvGuest) -> None:
    mfn = guest.table(1, {1: DATA | 0x1234 << 16, 2: NOT_PRESENT})
    assert set_gdt(guest, mfn) == 0
    assert guest.hypercall(HYPERVISOR_set_segment_base, SEGBASE_GS_USER_SEL, selector(1)) == 0
    assert guest.domain.vcpus[0].other_gs_base == 0x1234
    assert guest.hypercall(HYPERVISOR_set_segment_base, SEGBASE_GS_USER_SEL, 0) == 0
    for base in (0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF):
        for which in range(3):
            assert guest.hypercall(HYPERVISOR_set_segment_base, which, base) == -EINVAL
    assert guest.hypercall(HYPERVISOR_set_segment_base, 4, 0) == -EINVAL
