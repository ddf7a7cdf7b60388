"""Stores to page tables that the guest has mapped read-only: trapped, checked and carried out.

The reference is xen/arch/x86/pv/ro-page-fault.c: with VMASST_TYPE_writable_pagetables, L1 tables only.
"""

from __future__ import annotations

import pytest

from tests.guest.pvguest import NO_EXCEPTION, NX, PRESENT, RW, USER, PvGuest
from xenolith.abi.hypercalls import HYPERVISOR_vm_assist
from xenolith.abi.vm_assist import VMASST_CMD_enable, VMASST_TYPE_writable_pagetables

WITHOUT_HELPER_TOO = True

PAGE_FAULT = 14
AD = 0x60
HARDWARE_BITS = AD | 1 << 52 | USER | 0x100
CF, PF, ZF = 1, 4, 0x40


@pytest.fixture
def window(guest: PvGuest) -> int:
    """The address at which the guest sees the L1 entry of playground page 10, in a read-only mapping of its L1."""
    assert guest.hypercall(HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables) == 0
    maddr = guest.pte_maddr(guest.page(10))
    assert guest.map(guest.page(0), maddr & ~0xFFF | PRESENT | NX) == 0
    return guest.page(0) | maddr & 0xFFF


def plain(entry: int) -> int:
    """An entry without what the hypervisor and the processor add."""
    return entry & ~HARDWARE_BITS


def entry_for(guest: PvGuest, page: int, flags: int = PRESENT | RW) -> int:
    return guest.mfn(guest.page(page)) << 12 | flags


def test_without_the_assist_it_is_a_fault(guest: PvGuest) -> None:
    maddr = guest.pte_maddr(guest.page(10))
    assert guest.map(guest.page(0), maddr & ~0xFFF | PRESENT | NX) == 0
    assert guest.call("poke", guest.page(0) | maddr & 0xFFF, 0).fault == (PAGE_FAULT, 3)


def test_mov(guest: PvGuest, window: int) -> None:
    new = entry_for(guest, 11)
    assert guest.call("poke", window, new).vector == NO_EXCEPTION
    assert plain(guest.pte(guest.page(10))) == new
    assert guest.pte(guest.page(10)) & USER
    assert guest.call("poke", window, 0).vector == NO_EXCEPTION
    assert guest.pte(guest.page(10)) == 0
    assert guest.call("peek", guest.page(10)).fault == (PAGE_FAULT, 0)


def test_xchg(guest: PvGuest, window: int) -> None:
    old = guest.pte(guest.page(10))
    outcome = guest.call("store_xchg", window, entry_for(guest, 11))
    assert (outcome.vector, outcome.rax | AD) == (NO_EXCEPTION, old | AD)
    assert plain(guest.pte(guest.page(10))) == entry_for(guest, 11)


def test_cmpxchg(guest: PvGuest, window: int) -> None:
    old = guest.pte(guest.page(10))
    outcome = guest.call("store_cmpxchg", window, entry_for(guest, 11), old ^ 1 << 9)
    assert (outcome.vector, outcome.rax) == (NO_EXCEPTION, old), "another value is there"
    assert guest.pte(guest.page(10)) == old
    outcome = guest.call("store_cmpxchg", window, entry_for(guest, 11), old)
    assert (outcome.vector, outcome.rax) == (NO_EXCEPTION, old)
    assert plain(guest.pte(guest.page(10))) == entry_for(guest, 11)


def test_locked_logic(guest: PvGuest, window: int) -> None:
    vaddr = guest.page(10)
    guest.write_words(vaddr, 5)
    assert guest.call("store_and", window, ~RW & (1 << 64) - 1).vector == NO_EXCEPTION
    assert not guest.pte(vaddr) & RW
    guest.hypercall(26, guest.arguments(bytes([6]) + bytes(23)), 1, 0, 0x7FF0)  # TLB_FLUSH_LOCAL
    assert guest.call("poke", vaddr, 1).fault == (PAGE_FAULT, 3)
    assert guest.call("store_or", window, RW).vector == NO_EXCEPTION
    assert guest.call("poke", vaddr, 1).vector == NO_EXCEPTION
    assert guest.call("store_bts", window, 9).rax == 0
    assert guest.call("store_bts", window, 9).rax == 1
    assert guest.pte(vaddr) >> 9 & 1
    assert guest.call("store_btr", window, 9).rax == 1
    assert guest.call("store_btr", window, 9).rax == 0
    assert guest.call("store_add", window, 1 << 10).vector == NO_EXCEPTION
    assert guest.pte(vaddr) >> 10 & 1


def test_string_store(guest: PvGuest, window: int) -> None:
    outcome = guest.call("store_string", window, 0)
    assert (outcome.vector, outcome.rax) == (NO_EXCEPTION, window + 8)
    assert guest.pte(guest.page(10)) == 0


def test_pair(guest: PvGuest, window: int) -> None:
    if window & 8:
        window += 8
        ten, eleven = 11, 12
    else:
        ten, eleven = 10, 11
    low, high = guest.pte(guest.page(ten)), guest.pte(guest.page(eleven))
    assert guest.call("store_pair", window, low ^ 1, high, 0, 0).rax == 0
    assert guest.call("store_pair", window, low, high, 0, entry_for(guest, 20)).rax == 1
    assert guest.pte(guest.page(ten)) == 0
    assert plain(guest.pte(guest.page(eleven))) == entry_for(guest, 20)


def test_half_entry(guest: PvGuest, window: int) -> None:
    """Smaller stores are carried out if the whole entry that results is good."""
    entry = guest.pte(guest.page(10))
    assert guest.call("store_long", window, entry & 0xFFFFFFFF | 1 << 11).vector == NO_EXCEPTION
    assert guest.pte(guest.page(10)) >> 11 & 1
    assert guest.call("store_byte", window + 1, 0).vector == NO_EXCEPTION
    assert not guest.pte(guest.page(10)) >> 11 & 1


@pytest.mark.parametrize("offset", [1, 2, 4, 7])
def test_misaligned_store_is_the_guests_fault(guest: PvGuest, window: int, offset: int) -> None:
    before = guest.pte(guest.page(10)), guest.pte(guest.page(11))
    assert guest.call("poke", window + offset, 0).fault == (PAGE_FAULT, 3)
    assert (guest.pte(guest.page(10)), guest.pte(guest.page(11))) == before


def test_invalid_entry_is_the_guests_fault(guest: PvGuest, bystander: PvGuest, window: int) -> None:
    before = guest.pte(guest.page(10))
    root = guest.domain.vcpus[0].kernel_root
    bad = (
        bystander.mfn(bystander.page(0)) << 12 | PRESENT,
        root | PRESENT | RW,
        guest.hv.frames.total << 12 | PRESENT,
        entry_for(guest, 11, PRESENT | RW | 0x80),
        entry_for(guest, 11, PRESENT | 0x10),
    )
    for entry in bad:
        for routine in ("poke", "store_xchg"):
            outcome = guest.call(routine, window, entry)
            assert outcome.fault == (PAGE_FAULT, 3), (routine, hex(entry))
            assert outcome.cr2 == window
        assert guest.call("store_cmpxchg", window, entry, before).fault == (PAGE_FAULT, 3)
        assert guest.pte(guest.page(10)) == before


def test_unknown_instruction_is_the_guests_fault(guest: PvGuest, window: int) -> None:
    assert guest.call("store_vector", window & ~15).fault == (PAGE_FAULT, 3)


def test_upper_tables_are_not_emulated(guest: PvGuest, window: int) -> None:
    root = guest.domain.vcpus[0].kernel_root
    guest.map(guest.page(1), root | PRESENT | NX)
    for slot in (0, 256, 300, 511):
        assert guest.call("poke", guest.page(1) + slot * 8, 0).fault == (PAGE_FAULT, 3)


def test_table_that_is_no_table_any_more(guest: PvGuest, window: int) -> None:
    mfn = guest.table(5)
    assert guest.pin(1, mfn) == 0
    assert guest.call("poke", guest.page(5), entry_for(guest, 11)).vector == NO_EXCEPTION
    assert guest.mmuext(4, mfn) == 0
    assert guest.call("poke", guest.page(5), 0).fault == (PAGE_FAULT, 3), "an ordinary read-only page"
