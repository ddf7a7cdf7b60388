"""Descriptors: which ones a guest may have, and tables that keep their frames from being written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.hypervisor.support import RW, Bench, Guest, P, snapshot
from xenolith.abi.errno import EINVAL, XenError
from xenolith.hypervisor.descriptors import (
    FLAT_CODE32,
    FLAT_CODE64,
    FLAT_DATA,
    MAX_GDT_ENTRIES,
    MAX_LDT_ENTRIES,
    PERDOMAIN_START,
    XEN_CS32,
    XEN_CS64,
    XEN_SS,
    check_descriptor,
)
from xenolith.hypervisor.frames import TYPE_SEG_DESC, TYPE_WRITABLE

PRESENT, DPL, ORDINARY = 1 << 47, 3 << 45, 1 << 44
LDT = 16 * 4096


@pytest.fixture
def hv() -> Bench:
    return Bench()


@pytest.fixture
def guest(hv: Bench) -> Guest:
    return hv.guest()


# -- single descriptors ------------------------------------------------------------------------------------------------


def attempt(descriptor: int) -> int | None:
    """What becomes of a descriptor; None if it is refused."""
    try:
        return check_descriptor(descriptor)
    except XenError:
        return None


@given(st.integers(0, (1 << 64) - 1))
def test_no_descriptor_gives_a_guest_more_than_privilege_3(descriptor: int) -> None:
    allowed = attempt(descriptor)
    if allowed is None:
        assert descriptor & PRESENT
        assert not descriptor & ORDINARY, "code and data are never refused"
        return
    if allowed & PRESENT and allowed & ORDINARY:
        assert allowed & DPL == DPL
    if allowed & PRESENT and not allowed & ORDINARY:
        assert allowed >> 40 & 0xF in (0, 0xC), "no task, trap or interrupt gates, no TSS and no LDT"
        assert allowed >> 40 & 0xF == 0 or not allowed & DPL, "a call gate cannot be used from privilege 3"
    changed = allowed ^ descriptor
    assert not changed & ~(DPL | 3 << 16)


@given(st.integers(0, (1 << 64) - 1))
def test_an_absent_descriptor_may_be_anything(descriptor: int) -> None:
    assert check_descriptor(descriptor & ~PRESENT) == descriptor & ~PRESENT


@pytest.mark.parametrize("flat", [FLAT_CODE64, FLAT_CODE32, FLAT_DATA])
def test_flat_segments_of_any_privilege_become_ones_of_privilege_3(flat: int) -> None:
    for dpl in range(4):
        assert check_descriptor(flat & ~DPL | dpl << 45) == flat


# -- where the processor finds them ------------------------------------------------------------------------------------


def entry(hv: Bench, guest: Guest, page: int) -> int:
    """The L1 entry of a page of the first vCPU's area."""
    l2 = hv.entry(guest.domain.perdomain_l3_mfn, 0) >> 12
    l1 = (hv.entry(l2, guest.vcpu.vcpu_id // 16) & 0xFFFF_FFFF_F000) >> 12
    return hv.entry(l1, guest.vcpu.vcpu_id % 16 * 32 + page)


def test_xens_own_descriptors_are_in_every_gdt(hv: Bench, guest: Guest) -> None:
    for selector, descriptor in ((XEN_CS64, FLAT_CODE64), (XEN_CS32, FLAT_CODE32), (XEN_SS, FLAT_DATA)):
        assert hv.descriptors.lookup(guest.vcpu, selector) == descriptor
    assert hv.descriptors.lookup(guest.vcpu, 0x10) == 0
    assert guest.cpu.tables == (PERDOMAIN_START, 0xFFFF, 0, 0)


def test_a_gdt_is_mapped_for_the_processor_alone(hv: Bench, guest: Guest) -> None:
    mfn = hv.give(guest.domain, 1)[0]
    hv.table(mfn, {2: FLAT_DATA & ~DPL})
    hv.descriptors.set_gdt(guest.vcpu, [mfn], 512)
    assert entry(hv, guest, 0) >> 12 & 0xFFFF == mfn
    assert entry(hv, guest, 0) & (P | RW | 4) == P | RW, "it marks descriptors as accessed"
    assert [entry(hv, guest, slot) & (P | RW | 4) for slot in (1, 14)] == [P, P], "what is no guest's stays as it is"
    assert hv.descriptors.lookup(guest.vcpu, 0x13) == FLAT_DATA
    assert hv.frames.type[mfn] == TYPE_SEG_DESC
    with pytest.raises(XenError):
        hv.frames.get_page_and_type(mfn, guest.domain.domid, TYPE_WRITABLE)


def test_each_vcpu_has_tables_of_its_own(hv: Bench) -> None:
    guest = hv.guest(vcpus=18)
    tables = hv.give(guest.domain, 18)
    for vcpu, mfn in zip(guest.domain.vcpus, tables, strict=True):
        hv.table(mfn, {1: vcpu.vcpu_id << 16 | FLAT_DATA})
        hv.descriptors.set_gdt(vcpu, [mfn], 512)
    for vcpu in guest.domain.vcpus:
        assert hv.descriptors.lookup(vcpu, 8) == vcpu.vcpu_id << 16 | FLAT_DATA


def test_a_new_gdt_lets_the_old_one_go(hv: Bench, guest: Guest) -> None:
    old, new = hv.give(guest.domain, 2)
    before = snapshot(hv)
    hv.descriptors.set_gdt(guest.vcpu, [old, old], 1024)
    hv.engine.calls.clear()
    hv.descriptors.set_gdt(guest.vcpu, [new], 512)
    assert ("flush",) in hv.engine.calls
    assert hv.frames.count[old] == 1
    assert hv.descriptors.lookup(guest.vcpu, 513 * 8) == 0, "the second page is empty again"
    hv.descriptors.set_gdt(guest.vcpu, [], 0)
    assert snapshot(hv) == before


def test_a_gdt_has_an_end(hv: Bench, guest: Guest) -> None:
    with pytest.raises(XenError):
        hv.descriptors.set_gdt(guest.vcpu, [], MAX_GDT_ENTRIES + 1)


def test_a_frame_with_one_bad_descriptor_is_no_gdt(hv: Bench, guest: Guest) -> None:
    good, bad = hv.give(guest.domain, 2)
    hv.table(bad, {511: PRESENT | 0xE << 40})
    before = snapshot(hv)
    with pytest.raises(XenError, match="system descriptor") as caught:
        hv.descriptors.set_gdt(guest.vcpu, [good, bad], 1024)
    assert caught.value.errno == EINVAL
    assert snapshot(hv) == before
    assert guest.vcpu.gdt_mfns == []


# -- LDT ---------------------------------------------------------------------------------------------------------------


def read_only(guest: Guest, index: int) -> None:
    """Take write access to a data page away, as for a table."""
    guest.hv.pagetables.update_l1(
        guest.l1 << 12 | (index + 1) << 3, guest.data[index] << 12 | P, guest.domain, guest.domain.domid
    )


def test_pages_of_an_ldt_are_found_when_they_are_used(hv: Bench, guest: Guest) -> None:
    hv.table(guest.data[3], {2: FLAT_DATA & ~DPL})
    read_only(guest, 3)
    hv.descriptors.set_ldt(guest.vcpu, guest.va(3), 1024)
    assert guest.cpu.tables[2:] == (PERDOMAIN_START + LDT, 1024 * 8 - 1)
    assert guest.vcpu.ldt_mfns == {}
    assert hv.descriptors.ldt_fault(guest.vcpu, PERDOMAIN_START + LDT + 16) is None
    assert guest.vcpu.ldt_mfns == {0: guest.data[3]}
    assert hv.descriptors.lookup(guest.vcpu, 0x17) == FLAT_DATA
    hv.engine.calls.clear()
    hv.descriptors.set_ldt(guest.vcpu, 0, 0)
    assert hv.frames.type_count[guest.data[3]] == 0
    assert ("flush",) in hv.engine.calls
    assert hv.descriptors.lookup(guest.vcpu, 0x17) == 0


def test_an_ldt_that_is_not_there_is_the_guests_page_fault(hv: Bench, guest: Guest) -> None:
    hv.descriptors.set_ldt(guest.vcpu, guest.va(3), 2000)
    fault = hv.descriptors.ldt_fault
    assert fault(guest.vcpu, PERDOMAIN_START + LDT + 16) == guest.va(3, 16), "it is mapped writable"
    assert fault(guest.vcpu, PERDOMAIN_START + LDT + 1999 * 8) == guest.va(3) + 1999 * 8
    for address in (PERDOMAIN_START + LDT + 2000 * 8, PERDOMAIN_START + LDT - 1, PERDOMAIN_START, 1 << 63):
        assert fault(guest.vcpu, address) == -1, "not in the LDT"
    hv.descriptors.set_ldt(guest.vcpu, (1 << 64) - 4096, MAX_LDT_ENTRIES)
    assert fault(guest.vcpu, PERDOMAIN_START + LDT + 8192) == 4096, "addresses have 64 bits"
    assert hv.descriptors.lookup(guest.vcpu, 0xFFFC) == 0


@pytest.mark.parametrize(("base", "entries"), [(1, 1), (4095, 1), (0, MAX_LDT_ENTRIES + 1), (0, (1 << 32) - 1)])
def test_ldts_that_cannot_be(hv: Bench, guest: Guest, base: int, entries: int) -> None:
    with pytest.raises(XenError):
        hv.descriptors.set_ldt(guest.vcpu, base, entries)
    assert guest.vcpu.ldt_entries == 0


def test_a_new_base_forgets_the_ldts_pages(hv: Bench, guest: Guest) -> None:
    from xenolith.hypervisor.hypercalls import mmu

    read_only(guest, 3)
    hv.descriptors.set_ldt(guest.vcpu, guest.va(3), 8)
    hv.descriptors.lookup(guest.vcpu, 4)
    assert guest.vcpu.ldt_mfns
    fresh = hv.give(guest.domain, 1)[0]
    mmu.new_base(hv, guest.vcpu, fresh)
    assert not guest.vcpu.ldt_mfns
    assert guest.vcpu.ldt_entries == 8, "but not where it is"


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_domain_that_goes_gives_everything_back(hv: Bench) -> None:
    free = hv.frames.free_frames
    guest = hv.guest(vcpus=40)
    mfns = hv.give(guest.domain, 2)
    hv.descriptors.set_gdt(guest.vcpu, mfns, 1024)
    read_only(guest, 3)
    hv.descriptors.set_ldt(guest.vcpu, guest.va(3), 8)
    hv.descriptors.lookup(guest.vcpu, 4)
    hv.destroy_domain(guest.domain)
    assert hv.frames.free_frames == free
