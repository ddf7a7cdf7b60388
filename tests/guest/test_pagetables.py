"""Hostile page tables: what a guest may map, and what it may make a table of.

The expected numbers are those of Xen 4.17 (xen/arch/x86/mm.c); after each test the fixture checks all counts.
"""

from __future__ import annotations

import struct

import pytest

from tests.guest.pvguest import NO_EXCEPTION, PAGE, PvGuest, TestMachine
from xenolith.abi.errno import EFAULT, EINVAL, ENOSYS, EPERM, ESRCH
from xenolith.abi.hypercalls import (
    HYPERVISOR_mmu_update,
    HYPERVISOR_mmuext_op,
    HYPERVISOR_update_va_mapping_otherdomain,
    HYPERVISOR_vm_assist,
)
from xenolith.abi.mmu import (
    MMU_MACHPHYS_UPDATE,
    MMU_PT_UPDATE_PRESERVE_AD,
    MMUEXT_CLEAR_PAGE,
    MMUEXT_COPY_PAGE,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_NEW_USER_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_PIN_L2_TABLE,
    MMUEXT_PIN_L3_TABLE,
    MMUEXT_PIN_L4_TABLE,
    MMUEXT_TLB_FLUSH_LOCAL,
    MMUEXT_UNPIN_TABLE,
    UVMF_INVLPG,
)
from xenolith.abi.types import DOMID_IO, DOMID_SELF, DOMID_XEN
from xenolith.abi.vm_assist import VMASST_CMD_enable, VMASST_TYPE_writable_pagetables
from xenolith.hypervisor.domain import Capability

WITHOUT_HELPER_TOO = True

PRESENT, RW, USER, PWT, PCD, PSE, GLOBAL, NX = 1, 2, 4, 8, 0x10, 0x80, 0x100, 1 << 63
RO = PRESENT
WRITABLE = PRESENT | RW
GENERAL_PROTECTION, PAGE_FAULT = 13, 14
DOMID_INVALID = 0x7FF4
PIN = {1: MMUEXT_PIN_L1_TABLE, 2: MMUEXT_PIN_L2_TABLE, 3: MMUEXT_PIN_L3_TABLE, 4: MMUEXT_PIN_L4_TABLE}


# -- whose frames -----------------------------------------------------------------------------------------------------


def hypervisor_frames(machine: TestMachine, guest: PvGuest) -> dict[str, int]:
    """Frames that are the hypervisor's, by what they are for."""
    hv = machine.hv
    l3 = guest.domain.perdomain_l3_mfn
    return {
        "m2p": hv.xenspace.m2p_chunks()[0],
        "m2p_l3": hv.xenspace._l3_mfn,
        "perdomain_l3": l3,
        "perdomain_l2": hv.ram.words[l3 << 9] >> 12,
        "xen_gdt": hv.descriptors._xen_gdt_mfn,
        "dummy_vcpu_info": hv.dummy_vcpu_info_maddr >> 12,
    }


@pytest.mark.parametrize("flags", [RO, WRITABLE, WRITABLE | NX])
def test_frames_of_others_cannot_be_mapped(
    machine: TestMachine, guest: PvGuest, bystander: PvGuest, flags: int
) -> None:
    free = int((machine.hv.frames.owners == -1).nonzero()[0][0])
    targets = {
        **hypervisor_frames(machine, guest),
        "other": bystander.mfn(bystander.page(95)),
        "other_table": bystander.domain.vcpus[0].kernel_root >> 12,
        "other_shared_info": bystander.domain.shared_info_mfn,
        "other_grants": bystander.domain.grants.frames[0],
        "free": free,
        "nothing": 0,
        "beyond": machine.hv.frames.total,
        "far": (1 << 40) - 1,
    }
    before = guest.pte(guest.page(0))
    for name, mfn in targets.items():
        assert guest.map(guest.page(0), mfn << 12 | flags) == -EINVAL, name
        assert guest.mmu_update((guest.pte_maddr(guest.page(0)), mfn << 12 | flags)) == (-EINVAL, 0), name
    assert guest.pte(guest.page(0)) == before


def test_frames_of_others_cannot_be_mapped_by_naming_their_owner(guest: PvGuest, bystander: PvGuest) -> None:
    mfn = bystander.mfn(bystander.page(95))
    entry, vaddr = mfn << 12 | RO, guest.page(0)
    owners = {bystander.domid: -EPERM, 999: -ESRCH, DOMID_IO: -EPERM, DOMID_XEN: -EPERM, DOMID_INVALID: -EPERM}
    for domid, expected in owners.items():
        result = guest.hypercall(HYPERVISOR_update_va_mapping_otherdomain, vaddr, entry, 0, domid)
        assert result == expected, hex(domid)
        assert guest.mmu_update((guest.pte_maddr(vaddr), entry), domid=domid) == (expected, 0), hex(domid)
    for domid in (DOMID_SELF, guest.domid):
        assert guest.hypercall(HYPERVISOR_update_va_mapping_otherdomain, vaddr, entry, 0, domid) == -EINVAL


def test_tables_of_others_cannot_be_written(guest: PvGuest, bystander: PvGuest) -> None:
    pte = bystander.pte_maddr(bystander.page(0))
    before = bystander.pte(bystander.page(0))
    assert guest.mmu_update((pte, 0)) == (-EINVAL, 0)
    assert guest.mmu_update((pte, 0), domid=(bystander.domid + 1) << 16 | bystander.domid) == (-EPERM, 0)
    assert guest.mmu_update((pte, 0), domid=(1000 + 1) << 16 | bystander.domid)[0] == -ESRCH
    assert bystander.pte(bystander.page(0)) == before


def test_m2p_entries_of_others_cannot_be_written(machine: TestMachine, guest: PvGuest, bystander: PvGuest) -> None:
    own, other = guest.mfn(guest.page(0)), bystander.mfn(bystander.page(0))
    assert guest.mmu_update((own << 12 | MMU_MACHPHYS_UPDATE, 0x1234)) == (0, 1)
    assert machine.hv.m2p[own] == 0x1234
    before = machine.hv.m2p[other]
    for mfn in (other, machine.hv.frames.total, machine.hv.xenspace.m2p_chunks()[0], 0, (1 << 52) - 1):
        assert guest.mmu_update((mfn << 12 | MMU_MACHPHYS_UPDATE, 0x1234)) == (-EINVAL, 0), hex(mfn)
    assert machine.hv.m2p[other] == before


def test_tables_of_others_cannot_be_pinned_or_loaded(guest: PvGuest, bystander: PvGuest) -> None:
    root = bystander.domain.vcpus[0].kernel_root >> 12
    for command in (*PIN.values(), MMUEXT_UNPIN_TABLE, MMUEXT_NEW_BASEPTR, MMUEXT_NEW_USER_BASEPTR):
        assert guest.mmuext(command, root) == -EINVAL, command
        assert guest.mmuext(command, root, domid=bystander.domid) == -EPERM, command
        assert guest.mmuext(command, root, domid=999) == -ESRCH, command
        assert guest.mmuext(command, root, domid=DOMID_XEN) == -EPERM, command
    assert guest.mmuext(MMUEXT_CLEAR_PAGE, bystander.mfn(bystander.page(95))) == -EINVAL
    assert guest.mmuext(MMUEXT_COPY_PAGE, guest.mfn(guest.page(0)), bystander.mfn(bystander.page(95))) == -EINVAL


# -- writable mappings ------------------------------------------------------------------------------------------------


def test_live_page_table_cannot_be_mapped_writable(guest: PvGuest) -> None:
    root = guest.domain.vcpus[0].kernel_root >> 12
    l1 = guest.pte_maddr(guest.page(0)) >> 12
    for mfn in (root, l1):
        assert guest.map(guest.page(0), mfn << 12 | WRITABLE) == -EINVAL
        assert guest.map(guest.page(0), mfn << 12 | RO) == 0
        outcome = guest.call("poke", guest.page(0), 0x67)
        assert outcome.fault == (PAGE_FAULT, 3)


def test_writable_page_cannot_become_a_table(guest: PvGuest) -> None:
    mfn = guest.mfn(guest.page(1))
    for level in (1, 2, 3, 4):
        assert guest.pin(level, mfn) == -EINVAL
    guest.protect(guest.page(1))
    for level in (1, 2, 3, 4):
        assert guest.pin(level, mfn) == 0
        assert guest.map(guest.page(1), mfn << 12 | WRITABLE) == -EINVAL
        assert guest.mmuext(MMUEXT_UNPIN_TABLE, mfn) == 0
    assert guest.map(guest.page(1), mfn << 12 | WRITABLE) == 0


def test_second_writable_mapping_keeps_a_page_from_becoming_a_table(guest: PvGuest) -> None:
    mfn = guest.mfn(guest.page(1))
    assert guest.map(guest.page(2), mfn << 12 | WRITABLE) == 0
    guest.protect(guest.page(1))
    assert guest.pin(1, mfn) == -EINVAL
    assert guest.map(guest.page(2), 0) == 0
    assert guest.pin(1, mfn) == 0


# -- types ------------------------------------------------------------------------------------------------------------


def test_table_of_one_level_is_none_of_another(guest: PvGuest) -> None:
    for level in (1, 2, 3, 4):
        mfn = guest.table(level)
        assert guest.pin(level, mfn) == 0
        assert guest.pin(level, mfn) == -EINVAL  # pinned already
        for other in {1, 2, 3, 4} - {level}:
            assert guest.pin(other, mfn) == -EINVAL
        assert guest.mmuext(MMUEXT_NEW_USER_BASEPTR, mfn) == (0 if level == 4 else -EINVAL)
    l2 = guest.table(5, {0: guest.mfn(guest.page(3)) << 12 | WRITABLE})
    assert guest.pin(2, l2) == -EINVAL, "an L2 that refers to an L3"
    l3 = guest.table(6, {0: guest.mfn(guest.page(1)) << 12 | WRITABLE})
    assert guest.pin(3, l3) == -EINVAL, "an L3 that refers to an L1"


def test_table_that_refers_to_writable_data_as_table_is_refused(guest: PvGuest) -> None:
    data = guest.mfn(guest.page(0)) << 12
    for level in (2, 3, 4):
        assert guest.pin(level, guest.table(1, {7: data | WRITABLE})) == -EINVAL


def test_failed_pin_takes_nothing(guest: PvGuest, machine: TestMachine) -> None:
    good = guest.table(2)
    bad = guest.table(3, {0: guest.mfn(guest.page(0)) << 12 | WRITABLE | PSE})
    l3 = guest.table(4, {0: good << 12 | RO, 1: bad << 12 | RO})
    assert guest.pin(3, l3) == -EINVAL
    for number in (2, 3, 4):
        mfn = guest.mfn(guest.page(number))
        assert machine.hv.frames.type_count[mfn] == 0
        assert machine.hv.frames.count[mfn] == 2  # the guest's own and its mapping
        guest.protect(guest.page(number), WRITABLE)


def test_cycle_of_tables_is_refused(guest: PvGuest) -> None:
    a, b = guest.mfn(guest.page(1)), guest.mfn(guest.page(2))
    guest.table(1, {0: b << 12 | RO})
    guest.table(2, {0: a << 12 | RO})
    for level in (3, 4):
        assert guest.pin(level, a) == -EINVAL
    assert guest.pin(2, a) == 0, "an L1 may map its L2 read-only, as it may any page"


def test_table_may_map_itself_read_only(guest: PvGuest) -> None:
    for level in (2, 3, 4):
        mfn = guest.mfn(guest.page(level))
        guest.table(level, {5: mfn << 12 | WRITABLE})
        assert guest.pin(level, mfn) == -EINVAL
        guest.table(level, {5: mfn << 12 | RO})
        assert guest.pin(level, mfn) == 0
        assert guest.mmu_update((mfn << 12 | 8 * 6, mfn << 12 | WRITABLE)) == (-EINVAL, 0)
        assert guest.mmu_update((mfn << 12 | 8 * 6, mfn << 12 | RO)) == (0, 1)
        assert guest.mmuext(MMUEXT_UNPIN_TABLE, mfn) == 0


def test_linear_tables_do_not_chain(guest: PvGuest) -> None:
    a, b, c = (guest.table(number) for number in (1, 2, 3))
    for mfn in (a, b, c):
        assert guest.pin(3, mfn) == 0
    assert guest.mmu_update((a << 12, b << 12 | RO)) == (0, 1)
    assert guest.mmu_update((b << 12, c << 12 | RO)) == (-EINVAL, 0), "b is used linearly"
    assert guest.mmu_update((c << 12, a << 12 | RO)) == (-EINVAL, 0), "a uses another linearly"
    assert guest.mmu_update((b << 12, a << 12 | RO)) == (-EINVAL, 0), "a cycle"
    for mfn in (b, a, c):
        assert guest.mmuext(MMUEXT_UNPIN_TABLE, mfn) == 0


def test_self_map_shows_the_table_and_takes_no_writes(guest: PvGuest) -> None:
    root = guest.domain.vcpus[0].kernel_root
    assert guest.mmu_update((root | 300 * 8, root | RO)) == (0, 1)
    # Slot 300 of the root leads to the root at every level: the page at which the root itself can be read.
    vaddr = 0xFFFF_0000_0000_0000 | 300 << 39 | 300 << 30 | 300 << 21 | 300 << 12
    outcome = guest.call("peek", vaddr + 300 * 8)
    assert outcome.vector == NO_EXCEPTION
    assert outcome.rax & ~0x60 == root | RO | USER
    assert guest.call("poke", vaddr, 0).fault == (PAGE_FAULT, 3)
    assert guest.mmu_update((root | 300 * 8, 0)) == (0, 1)


# -- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [PWT, PCD, PSE])
def test_cache_attributes_are_refused_without_hardware(guest: PvGuest, bit: int) -> None:
    assert guest.map(guest.page(0), guest.mfn(guest.page(0)) << 12 | WRITABLE | bit) == -EINVAL


@pytest.mark.parametrize("bit", [PWT, PCD, PSE, GLOBAL])
def test_upper_tables_take_no_large_pages_nor_cache_attributes(guest: PvGuest, bit: int) -> None:
    lower = guest.table(1)
    assert guest.pin(1, lower) == 0
    assert guest.pin(2, guest.table(2, {0: lower << 12 | WRITABLE | bit})) == -EINVAL
    l2 = guest.table(2)
    assert guest.pin(2, l2) == 0
    assert guest.mmu_update((l2 << 12, lower << 12 | WRITABLE | bit)) == (-EINVAL, 0)
    assert guest.mmu_update((l2 << 12, lower << 12 | WRITABLE)) == (0, 1)
    assert guest.mmu_update((l2 << 12, lower << 12 | WRITABLE | bit)) == (-EINVAL, 0)


@pytest.mark.parametrize("bit", range(40, 52))
def test_reserved_address_bits_are_refused(guest: PvGuest, bit: int) -> None:
    entry = guest.mfn(guest.page(1)) << 12 | WRITABLE | 1 << bit
    assert guest.map(guest.page(0), entry) == -EINVAL
    assert guest.pin(2, guest.table(1, {0: entry})) == -EINVAL


def test_user_bit_is_forced_at_every_level(guest: PvGuest, machine: TestMachine) -> None:
    words = machine.hv.ram.words
    data = guest.mfn(guest.page(0)) << 12
    l1 = guest.table(1, {3: data | WRITABLE})
    l2 = guest.table(2, {3: l1 << 12 | WRITABLE})
    l3 = guest.table(3, {3: l2 << 12 | WRITABLE})
    l4 = guest.table(4, {3: l3 << 12 | WRITABLE})
    assert guest.pin(4, l4) == 0
    assert [words[(mfn << 9) + 3] & USER for mfn in (l1, l2, l3, l4)] == [USER] * 4
    assert words[(l1 << 9) + 3] >> 52 & 1, "a kernel page is marked as the guest's kernel's"
    assert guest.mmu_update((l1 << 12, data | WRITABLE | USER)) == (0, 1)
    assert words[l1 << 9] & GLOBAL, "a user page is global"


# -- the hypervisor's slots -------------------------------------------------------------------------------------------


def test_hypervisor_slots_cannot_be_updated(guest: PvGuest) -> None:
    root = guest.domain.vcpus[0].kernel_root
    before = guest.hv.ram.words[(root >> 3) + 256 : (root >> 3) + 272].tolist()
    for slot in range(256, 272):
        assert guest.mmu_update((root | slot * 8, 0)) == (-EINVAL, 0)
        assert guest.mmu_update((root | slot * 8, root | RO)) == (-EINVAL, 0)
    assert guest.hv.ram.words[(root >> 3) + 256 : (root >> 3) + 272].tolist() == before


def test_junk_in_hypervisor_slots_is_overwritten_by_pinning(guest: PvGuest) -> None:
    junk = {slot: guest.mfn(guest.page(0)) << 12 | WRITABLE | USER for slot in range(256, 272)}
    kernel = guest.domain.vcpus[0].kernel_root
    keep = {511: guest.hv.ram.words[(kernel >> 3) + 511]}
    l4 = guest.table(1, junk | keep)
    assert guest.pin(4, l4) == 0
    slots = guest.hv.ram.words[(l4 << 9) + 256 : (l4 << 9) + 272].tolist()
    assert slots == guest.hv.ram.words[(kernel >> 3) + 256 : (kernel >> 3) + 272].tolist()
    assert guest.mmuext(MMUEXT_NEW_BASEPTR, l4) == 0
    assert guest.call("peek", guest.hv.xenspace.m2p_range()[0] + 8 * guest.mfn(guest.page(0))).vector == NO_EXCEPTION
    assert guest.mmuext(MMUEXT_NEW_BASEPTR, kernel >> 12) == 0


def test_hypervisor_range_cannot_be_touched(guest: PvGuest) -> None:
    m2p, _, _ = guest.hv.xenspace.m2p_range()
    assert guest.call("peek", m2p + 8 * guest.mfn(guest.page(0))).vector == NO_EXCEPTION
    assert guest.call("poke", m2p, 0).vector in (GENERAL_PROTECTION, PAGE_FAULT)
    total = guest.hv.frames.total
    hole = m2p + 8 * (total + 1024)
    assert guest.call("peek", hole).vector in (GENERAL_PROTECTION, PAGE_FAULT), "the M2P faults beyond memory"
    for address in (0xFFFF_8200_0000_0000, 0xFFFF_8300_0000_0000, 0xFFFF_87FF_FFFF_F000):
        assert guest.call("peek", address).vector in (GENERAL_PROTECTION, PAGE_FAULT), hex(address)
        assert guest.call("poke", address, 0).vector in (GENERAL_PROTECTION, PAGE_FAULT), hex(address)
    for address in (0x8000_0000_0000, 0x1234_5678_9ABC_DEF0, 0xFFFF_7FFF_FFFF_F000):
        assert guest.call("peek", address).fault == (GENERAL_PROTECTION, 0), hex(address)


@pytest.mark.parametrize("how", ["update_va_mapping", "mmu_update", "store"])
def test_a_page_shows_the_frame_that_was_mapped_there_last(guest: PvGuest, how: str) -> None:
    """Not one from before, of which the processor, or whatever keeps its tables for it, may still know."""
    vaddr, window = guest.page(10), guest.page(0)
    maddr = guest.pte_maddr(vaddr)
    assert guest.hypercall(HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables) == 0
    assert guest.map(window, maddr & ~0xFFF | PRESENT | NX) == 0
    for number in (1, 2, 3):
        guest.write_words(guest.page(number), 100 + number)
    for number in (1, 2, 3, 2, 1):
        entry = guest.mfn(guest.page(number)) << 12 | WRITABLE | NX
        if how == "update_va_mapping":
            assert guest.map(vaddr, entry) == 0
        elif how == "mmu_update":
            requests = guest.arguments(struct.pack("<QQ", maddr, entry))
            assert guest.hypercall(HYPERVISOR_mmu_update, requests, 1, 0, DOMID_SELF) == 0
        else:
            assert guest.call("poke", window | maddr & 0xFFF, entry).vector == NO_EXCEPTION
        if how != "update_va_mapping":
            assert guest.mmuext(MMUEXT_TLB_FLUSH_LOCAL) == 0
        assert guest.call("peek", vaddr).rax == 100 + number


# -- mmu_update itself ------------------------------------------------------------------------------------------------


def test_updates_stop_at_the_first_that_fails(guest: PvGuest) -> None:
    a, b = guest.pte_maddr(guest.page(1)), guest.pte_maddr(guest.page(2))
    own = guest.mfn(guest.page(0)) << 12 | RO
    assert guest.mmu_update((a, own), (b, 0 | RO), (b, own)) == (-EINVAL, 1)
    assert guest.pte(guest.page(1)) >> 12 & 0xFFFFFFF == guest.mfn(guest.page(0))
    assert guest.pte(guest.page(2)) >> 12 & 0xFFFFFFF != guest.mfn(guest.page(0))


def test_list_of_updates_that_ends_in_nothing(guest: PvGuest) -> None:
    """What stands before the bad page is carried out, and counted."""
    start = guest.page(94) - 4 * 16 + 8  # the fourth request crosses into the page that is not there
    guest.write(start, struct.pack("<QQ", guest.maddr(guest.page(3)), 5) * 4)
    assert guest.map(guest.page(94), 0) == 0
    done = guest.arguments(bytes(8))
    assert guest.hypercall(HYPERVISOR_mmu_update, start, 8, done, DOMID_SELF) == -EFAULT
    assert guest.word(done) == 3


def test_command_bits_that_do_not_exist(guest: PvGuest) -> None:
    pte = guest.pte_maddr(guest.page(1))
    for command in range(4, 8):
        assert guest.mmu_update((pte | command, 0)) == (-ENOSYS, 0), command


def test_update_of_ordinary_memory_is_a_checked_store(guest: PvGuest) -> None:
    vaddr = guest.page(3)
    assert guest.mmu_update((guest.maddr(vaddr) + 16, 0xDEADBEEF)) == (0, 1)
    assert guest.word(vaddr + 16) == 0xDEADBEEF


def test_preserving_update_keeps_accessed_and_dirty(guest: PvGuest) -> None:
    vaddr = guest.page(1)
    guest.call("poke", vaddr, 1)
    pte = guest.pte(vaddr)
    assert pte & 0x60 == 0x60
    assert guest.mmu_update((guest.pte_maddr(vaddr) | MMU_PT_UPDATE_PRESERVE_AD, pte & ~0x60)) == (0, 1)
    assert guest.pte(vaddr) & 0x60 == 0x60
    assert guest.mmu_update((guest.pte_maddr(vaddr), pte & ~0x60)) == (0, 1)
    assert guest.pte(vaddr) & 0x60 == 0


@pytest.mark.parametrize("number", [HYPERVISOR_mmu_update, HYPERVISOR_mmuext_op])
def test_counts_are_32_bits(guest: PvGuest, number: int) -> None:
    assert guest.hypercall(number, 0, 0, 0, DOMID_SELF) == 0
    assert guest.hypercall(number, 0, 1 << 32, 0, DOMID_SELF) == 0


def test_huge_count_runs_into_the_end_of_the_buffer(guest: PvGuest) -> None:
    end = guest.page(96 - 1) + PAGE
    start = end - PAGE
    flush = struct.pack("<QQQ", MMUEXT_TLB_FLUSH_LOCAL, 0, 0)
    guest.write(start, flush * (PAGE // 24))
    assert guest.map(guest.page(94), 0) == 0
    assert guest.hypercall(HYPERVISOR_mmuext_op, guest.page(94), 0x7FFFFFFF, 0, DOMID_SELF) == -EFAULT


BAD_POINTERS = {
    "null": 0,
    "unmapped": 0x7000_0000_0000,
    "non_canonical": 0x8000_0000_0000,
    "non_canonical_high": 0xFFFF_7FFF_FFFF_FFF8,
    "m2p": 0xFFFF_8000_0000_0000,
    "hypervisor": 0xFFFF_8200_0000_0000,
    "last": 0xFFFF_FFFF_FFFF_FFF8,
}


@pytest.mark.parametrize("pointer", BAD_POINTERS.values(), ids=BAD_POINTERS.keys())
def test_bad_request_pointers(guest: PvGuest, pointer: int) -> None:
    assert guest.hypercall(HYPERVISOR_mmu_update, pointer, 1, 0, DOMID_SELF) == -EFAULT
    assert guest.hypercall(HYPERVISOR_mmuext_op, pointer, 1, 0, DOMID_SELF) == -EFAULT
    flush = guest.arguments(struct.pack("<QQQ", MMUEXT_TLB_FLUSH_LOCAL, 0, 0))
    assert guest.hypercall(HYPERVISOR_mmuext_op, flush, 1, pointer, DOMID_SELF) == 0, "a lost count is no failure"


@pytest.mark.parametrize("capability", [Capability.CONTROL])
def test_control_domain_may_map_what_it_names(machine: TestMachine, bystander: PvGuest, capability: Capability) -> None:
    control = machine.start("control", capability)
    mfn = bystander.mfn(bystander.page(95))
    assert control.map(control.page(0), mfn << 12 | RO) == -EINVAL, "not without naming the owner"
    result = control.hypercall(
        HYPERVISOR_update_va_mapping_otherdomain, control.page(0), mfn << 12 | RO, UVMF_INVLPG, bystander.domid
    )
    assert result == 0
    assert control.call("peek", control.page(0)).rax == int.from_bytes(b"unharmed", "little")
    root = bystander.domain.vcpus[0].kernel_root >> 12
    result = control.hypercall(
        HYPERVISOR_update_va_mapping_otherdomain, control.page(1), root << 12 | WRITABLE, UVMF_INVLPG, bystander.domid
    )
    assert result == -EINVAL, "nobody maps a table writable"


def test_control_domain_sees_of_the_hypervisor_the_m2p_only(machine: TestMachine) -> None:
    control = machine.start("control", Capability.CONTROL)
    frames = hypervisor_frames(machine, control)
    for name, mfn in frames.items():
        for flags in (RO, WRITABLE):
            result = control.hypercall(
                HYPERVISOR_update_va_mapping_otherdomain, control.page(0), mfn << 12 | flags, UVMF_INVLPG, DOMID_XEN
            )
            assert (result == 0) == (name == "m2p" and flags == RO), (name, flags, result)
    assert control.map(control.page(0), 0) == 0


def test_control_domain_cannot_pin_writable_pages_of_others(machine: TestMachine, bystander: PvGuest) -> None:
    control = machine.start("control", Capability.CONTROL)
    for level in (1, 2, 3, 4):
        assert control.pin(level, bystander.mfn(bystander.page(95)), domid=bystander.domid) == -EINVAL
    assert control.mmuext(MMUEXT_NEW_BASEPTR, bystander.domain.vcpus[0].kernel_root >> 12) == -EINVAL
