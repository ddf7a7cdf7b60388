"""Code that changes under the processor: by the guest, through another mapping, and by the hypervisor."""

from __future__ import annotations

import pytest

from tests.guest.pvguest import NO_EXCEPTION, NX, PRESENT, RW, USER, USER_CODE, USER_SYSCALL, GuestCrashed, PvGuest
from xenolith.abi.hypercalls import HYPERVISOR_update_va_mapping, HYPERVISOR_xen_version
from xenolith.abi.mmu import (
    MMUEXT_CLEAR_PAGE,
    MMUEXT_COPY_PAGE,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_TLB_FLUSH_LOCAL,
    UVMF_INVLPG,
    UVMF_NONE,
)

WITHOUT_HELPER_TOO = True

PAGE_FAULT = 14


def returning(value: int) -> bytes:
    """mov $value, %eax; ret"""
    return b"\xb8" + value.to_bytes(4, "little") + b"\xc3"


@pytest.fixture
def code(guest: PvGuest) -> int:
    """A page that holds a routine that returns 1 and has been called."""
    vaddr = guest.page(0)
    guest.protect(vaddr, PRESENT | RW)
    for at in range(0, 4096, 8):
        guest.call("poke", vaddr + at, 0) if at < 16 else None
    guest.call("poke", vaddr, int.from_bytes(returning(1).ljust(8, b"\0"), "little"))
    assert guest.call(vaddr).rax == 1
    return vaddr


def poke_code(guest: PvGuest, vaddr: int, value: int) -> None:
    outcome = guest.call("poke", vaddr, int.from_bytes(returning(value).ljust(8, b"\0"), "little"))
    assert outcome.vector == NO_EXCEPTION


def test_code_that_the_guest_rewrites(guest: PvGuest, code: int) -> None:
    for value in range(2, 6):
        poke_code(guest, code, value)
        assert guest.call(code).rax == value


def test_code_rewritten_through_another_mapping(guest: PvGuest, code: int) -> None:
    alias = guest.page(1)
    assert guest.map(alias, guest.mfn(code) << 12 | PRESENT | RW | NX) == 0
    poke_code(guest, alias, 1)
    assert guest.call(code).rax == 1
    for value in range(2, 6):
        poke_code(guest, alias, value)
        assert guest.mmuext(MMUEXT_TLB_FLUSH_LOCAL) == 0
        assert guest.call(code).rax == value


def test_code_rewritten_through_a_warm_alias_without_a_switch(guest: PvGuest, code: int) -> None:
    """A processor notices at once; the guest makes no call to the hypervisor in between."""
    alias = guest.page(1)
    assert guest.map(alias, guest.mfn(code) << 12 | PRESENT | RW | NX) == 0
    poke_code(guest, alias, 1)
    assert guest.call("rewrite_through_alias", code, alias, 9).rax == 9


def test_code_rewritten_through_a_warm_alias_before_a_hypercall(guest: PvGuest, code: int) -> None:
    alias = guest.page(1)
    assert guest.map(alias, guest.mfn(code) << 12 | PRESENT | RW | NX) == 0
    poke_code(guest, alias, 1)
    assert guest.call("rewrite_and_call_hypervisor", code, alias, 9).rax == 9


def test_user_code_rewritten_by_the_kernel(guest: PvGuest) -> None:
    """The usual case: a kernel writes a program's code through its own mapping, and returns to the program."""
    guest.make_user_space(40)
    l1 = guest.page(40)
    entry = guest.mfn(guest.page(2)) << 12 | PRESENT | USER
    assert guest.mmu_update((guest.maddr(l1) + 8 * 5, entry)) == (0, 1)
    code = USER_CODE + 5 * 4096
    for value in range(1, 6):
        program = b"\xb8" + value.to_bytes(4, "little") + b"\x0f\x05"  # mov $value, %eax; syscall
        guest.call("poke", guest.page(2), int.from_bytes(program.ljust(8, b"\0"), "little"))
        outcome = guest.user(code)
        assert (outcome.vector, outcome.rax) == (USER_SYSCALL, value)


def test_code_that_the_hypervisor_overwrites(guest: PvGuest, code: int) -> None:
    source = guest.page(3)
    guest.write(source, returning(7))
    assert guest.mmuext(MMUEXT_COPY_PAGE, guest.mfn(code), guest.mfn(source)) == 0
    assert guest.call(code).rax == 7
    assert guest.mmu_update((guest.maddr(code), int.from_bytes(returning(8).ljust(8, b"\0"), "little"))) == (0, 1)
    assert guest.call(code).rax == 8
    guest.write(code + 64, returning(3))
    assert guest.call(code + 64).rax == 3
    assert guest.hypercall(HYPERVISOR_xen_version, 1, code + 64) == 0  # writes 16 bytes of text
    assert guest.call(code + 64).rax != 3 or guest.read(code + 64, 6) == returning(3)
    assert guest.mmuext(MMUEXT_CLEAR_PAGE, guest.mfn(code)) == 0
    assert guest.call(code).fault[0] in (PAGE_FAULT, NO_EXCEPTION)


def test_exception_frame_over_code(guest: PvGuest, code: int) -> None:
    """The hypervisor writes an exception's frame onto a stack that lies over code that has run."""
    place = code + 2048
    guest.write(place - 8, returning(5).rjust(8, b"\x90"))
    frame = place - 8
    assert guest.call(frame).rax == 5
    guest.call("fault_with_stack", place)
    assert guest.word(frame) == 0xE02B, "the stack selector, which as code spoils the stack pointer"
    with pytest.raises(GuestCrashed, match="kernel stack"):
        guest.call(frame)


def test_page_that_another_takes_the_place_of(guest: PvGuest, code: int) -> None:
    """The same address, another frame: the flush that goes with the update is enough."""
    guest.write(guest.page(5), returning(6))
    new = guest.mfn(guest.page(5)) << 12 | PRESENT | RW
    assert guest.hypercall(HYPERVISOR_update_va_mapping, code, new, UVMF_INVLPG) == 0
    assert guest.call(code).rax == 6


def test_stale_translation_of_a_frame_given_up(guest: PvGuest) -> None:
    """An unmapped page that the processor may still know becomes a table only after the processor has forgotten it."""
    vaddr = guest.page(6)
    mfn = guest.mfn(vaddr)
    guest.protect(vaddr, PRESENT | RW | NX)
    assert guest.call("poke", vaddr, 0).vector == NO_EXCEPTION
    assert guest.hypercall(HYPERVISOR_update_va_mapping, vaddr, 0, UVMF_NONE) == 0
    assert guest.pin(1, mfn) == 0
    assert guest.call("poke", vaddr, 0x67).fault == (PAGE_FAULT, 2)
    assert guest.hv.ram.words[mfn << 9] == 0


def test_address_space_that_is_left_is_forgotten(guest: PvGuest) -> None:
    root = guest.domain.vcpus[0].kernel_root
    entries = guest.hv.ram.words[root >> 3 : (root >> 3) + 512].tolist()
    copy = guest.table(7, {slot: entry for slot, entry in enumerate(entries) if entry and not 256 <= slot < 272})
    assert guest.pin(4, copy) == 0
    data = guest.mfn(guest.page(8)) << 12 | PRESENT | RW | NX
    l1 = guest.table(9, {0: data}) << 12 | PRESENT | RW
    l2 = guest.table(10, {0: l1}) << 12 | PRESENT | RW
    l3 = guest.table(11, {0: l2}) << 12 | PRESENT | RW
    assert guest.mmu_update((copy << 12 | 8, l3)) == (0, 1)
    assert guest.mmuext(MMUEXT_NEW_BASEPTR, copy) == 0
    assert guest.call("poke", 1 << 39, 5).vector == NO_EXCEPTION
    assert guest.mmuext(MMUEXT_NEW_BASEPTR, root >> 12) == 0
    assert guest.call("poke", 1 << 39, 6).fault == (PAGE_FAULT, 2)
    assert guest.word(guest.page(8)) == 5
