"""Exceptions, callbacks, frames and modes of a guest, well-meant and hostile.

The expected outcomes are those of Xen 4.17 (xen/arch/x86/traps.c, pv/traps.c, pv/iret.c, x86_64/entry.S).
"""

from __future__ import annotations

import struct

import pytest

from tests.guest.pvguest import (
    NO_EXCEPTION,
    NX,
    PRESENT,
    RW,
    USER_CODE,
    USER_DATA,
    USER_SYSCALL,
    GuestCrashed,
    PvGuest,
    TestMachine,
)
from xenolith.abi.errno import EFAULT, EINVAL, ENOSYS
from xenolith.abi.hypercalls import (
    HYPERVISOR_callback_op,
    HYPERVISOR_event_channel_op,
    HYPERVISOR_fpu_taskswitch,
    HYPERVISOR_get_debugreg,
    HYPERVISOR_physdev_op,
    HYPERVISOR_set_callbacks,
    HYPERVISOR_set_debugreg,
    HYPERVISOR_set_trap_table,
    HYPERVISOR_stack_switch,
    HYPERVISOR_xen_version,
)
from xenolith.abi.mmu import MMUEXT_NEW_USER_BASEPTR
from xenolith.abi.physdev import PHYSDEVOP_set_iopl, PhysdevSetIopl
from xenolith.abi.traps import CallbackRegister, CALLBACKTYPE_event, CALLBACKTYPE_sysenter

WITHOUT_HELPER_TOO = True
IN_RING0_TOO = True

DIVIDE, DEBUG, BREAKPOINT, UNDEFINED, NO_DEVICE, GENERAL_PROTECTION, PAGE_FAULT = 0, 1, 3, 6, 7, 13, 14
IF, TF, RF = 1 << 9, 1 << 8, 1 << 16
USER_CS, USER_SS = 0xE033, 0xE02B
HYPERVISOR = 0xFFFF_8200_0000_0000
UNMAPPED = 0x7000_0000_0000
NON_CANONICAL = 0x8000_0000_0000
DR6_BS = 1 << 14


def set_trap(guest: PvGuest, vector: int, address: int, flags: int = 0) -> int:
    table = guest.arguments(struct.pack("<BBHIQ", vector, flags, USER_CS, 0, address) + bytes(16))
    return guest.hypercall(HYPERVISOR_set_trap_table, table)


def iret_frame(
    guest: PvGuest, rip: int, cs: int = USER_CS & ~3, rflags: int = IF, rsp: int = 0, ss: int = USER_SS
) -> int:
    rsp = rsp or guest.symbols["stack_top_0"] - 256
    return guest.arguments(struct.pack("<9Q", 1, 2, 3, 0, rip, cs, rflags, rsp, ss))


# -- exceptions of the kernel -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("routine", "fault"),
    [
        ("divide_by_zero", (DIVIDE, 0)),
        ("undefined", (UNDEFINED, 0)),
        ("breakpoint", (BREAKPOINT, 0)),
        ("interrupt_128", (128, 0)),
        ("interrupt_129", (129, 0)),
        ("interrupt_14", (GENERAL_PROTECTION, 14 * 8 + 2)),
        ("cli_sti", (GENERAL_PROTECTION, 0)),
        ("halt", (GENERAL_PROTECTION, 0)),
        ("load_gdt", (GENERAL_PROTECTION, 0)),
        ("load_idt", (GENERAL_PROTECTION, 0)),
        ("load_task", (GENERAL_PROTECTION, 0)),
        ("invalidate_page", (GENERAL_PROTECTION, 0)),
        ("swap_gs", (GENERAL_PROTECTION, 0)),
        ("system_return", (GENERAL_PROTECTION, 0)),
        pytest.param("enter_by_sysenter", (GENERAL_PROTECTION, 0), marks=pytest.mark.needs("sysenter")),
        ("write_cr8", (GENERAL_PROTECTION, 0)),
    ],
)
def test_kernel_exception(guest: PvGuest, routine: str, fault: tuple[int, int]) -> None:
    outcome = guest.call(routine, guest.page(0))
    assert outcome.fault == fault
    assert outcome.cs & 3 == 0, "interrupted in the kernel"
    assert guest.call("nothing").rax == 42


def test_exceptions_report_where(guest: PvGuest) -> None:
    assert guest.call("undefined").rip == guest.symbols["undefined"]
    assert guest.call("breakpoint").rip == guest.symbols["breakpoint"] + 1
    assert guest.call("interrupt_128").rip == guest.symbols["interrupt_128"] + 2
    assert guest.call("interrupt_14").rip == guest.symbols["interrupt_14"]


@pytest.mark.parametrize("routine", ["port_in", "port_out"])
def test_io_without_privilege_faults(guest: PvGuest, routine: str) -> None:
    assert guest.call(routine, 0x80).fault == (GENERAL_PROTECTION, 0)


def test_io_with_privilege(guest: PvGuest) -> None:
    assert guest.operation(HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, PhysdevSetIopl(iopl=1)) == 0
    outcome = guest.call("port_in", 0x80)
    assert (outcome.vector, outcome.rax & 0xFF) == (NO_EXCEPTION, 0xFF)
    assert guest.call("port_out", 0x80).vector == NO_EXCEPTION
    assert guest.call("cli_sti").rax == 1


def test_io_privilege_has_four_levels(guest: PvGuest) -> None:
    for level in (4, 0xFFFFFFFF):
        assert guest.operation(HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, PhysdevSetIopl(iopl=level)) == -EINVAL


def test_control_registers(guest: PvGuest) -> None:
    root = guest.domain.vcpus[0].kernel_root
    cr0 = guest.call("read_cr0").rax
    assert cr0 & 0x80000001 == 0x80000001
    assert guest.call("write_cr0", cr0 ^ (1 << 16)).fault == (GENERAL_PROTECTION, 0)
    assert guest.call("read_cr3").rax == root
    for value in (0, (1 << 52) - 4096, guest.mfn(guest.page(0)) << 12):
        assert guest.call("write_cr3", value).fault == (GENERAL_PROTECTION, 0)
    assert guest.call("write_cr3", root).vector == NO_EXCEPTION


def test_unknown_registers_fault_once_the_guest_can_take_it(guest: PvGuest) -> None:
    assert guest.call("read_msr", 0xDEAD).fault == (GENERAL_PROTECTION, 0)
    assert guest.call("write_msr", 0xDEAD, 1).fault == (GENERAL_PROTECTION, 0)
    assert guest.call("write_msr", 0xC0000101, NON_CANONICAL).fault == (GENERAL_PROTECTION, 0)
    assert guest.call("write_msr", 0xC0000082, HYPERVISOR).fault == (GENERAL_PROTECTION, 0), "LSTAR"


def test_single_step(guest: PvGuest) -> None:
    outcome = guest.call("single_step")
    assert outcome.vector == DEBUG
    assert outcome.flags & TF
    assert outcome.rip == guest.symbols["single_step"] + 11  # after the first instruction behind popf
    assert guest.hypercall(HYPERVISOR_get_debugreg, 6) & DR6_BS


def test_single_step_from_iret(guest: PvGuest) -> None:
    outcome = guest.call("raw_iret", iret_frame(guest, guest.symbols["nothing"], rflags=IF | TF))
    assert (outcome.vector, outcome.rip) == (DEBUG, guest.symbols["nothing"] + 5)
    assert guest.hypercall(HYPERVISOR_get_debugreg, 6) & (DR6_BS | 0xF) == DR6_BS


@pytest.mark.needs("breakpoints")
def test_breakpoint_on_code(guest: PvGuest) -> None:
    assert guest.hypercall(HYPERVISOR_set_debugreg, 0, guest.symbols["nothing"]) == 0
    assert guest.hypercall(HYPERVISOR_set_debugreg, 7, 1) == 0
    outcome = guest.call("nothing")
    assert (outcome.vector, outcome.rip) == (DEBUG, guest.symbols["nothing"])
    assert outcome.flags & RF, "to be passed when the handler returns"
    assert guest.hypercall(HYPERVISOR_get_debugreg, 6) & 0xF == 1
    frame = iret_frame(guest, outcome.rip, rflags=IF | RF, rsp=outcome.rsp)
    assert guest.call("raw_iret", frame).rax == 42
    assert guest.hypercall(HYPERVISOR_set_debugreg, 7, 0) == 0
    assert guest.call("nothing").rax == 42


@pytest.mark.needs("breakpoints")
def test_breakpoint_on_data(guest: PvGuest) -> None:
    address = guest.page(0)
    assert guest.hypercall(HYPERVISOR_set_debugreg, 1, address) == 0
    assert guest.hypercall(HYPERVISOR_set_debugreg, 7, 1 << 2 | 1 << 20 | 2 << 22) == 0
    assert guest.call("peek", address).vector == NO_EXCEPTION
    outcome = guest.call("poke", address, 7)
    assert (outcome.vector, outcome.rip) == (DEBUG, guest.symbols["poke"] + 3)
    assert guest.hypercall(HYPERVISOR_get_debugreg, 6) & 0xF == 2
    assert guest.read(address, 8) == bytes([7]) + bytes(7)
    assert guest.hypercall(HYPERVISOR_set_debugreg, 7, 0) == 0
    assert guest.call("poke", address, 8).vector == NO_EXCEPTION


def test_debug_registers_are_checked(guest: PvGuest) -> None:
    for register in range(4):
        for address in (HYPERVISOR, NON_CANONICAL):
            assert guest.hypercall(HYPERVISOR_set_debugreg, register, address) == -1
        assert guest.hypercall(HYPERVISOR_set_debugreg, register, 0x1000 * register) == 0
        assert guest.hypercall(HYPERVISOR_get_debugreg, register) == 0x1000 * register
    assert guest.hypercall(HYPERVISOR_set_debugreg, 7, 1 << 13) == -1
    assert guest.hypercall(HYPERVISOR_set_debugreg, 8, 0) < 0


@pytest.mark.needs("task switch")
def test_fpu_switch_raises_once(guest: PvGuest) -> None:
    assert guest.call("fpu").rax == 1
    assert guest.hypercall(HYPERVISOR_fpu_taskswitch, 1) == 0
    assert guest.call("fpu").fault == (NO_DEVICE, 0)
    assert guest.call("fpu").rax == 1
    assert guest.hypercall(HYPERVISOR_fpu_taskswitch, 1) == 0
    assert guest.hypercall(HYPERVISOR_fpu_taskswitch, 0) == 0
    assert guest.call("fpu").rax == 1


def test_no_execute(guest: PvGuest) -> None:
    vaddr = guest.page(0)
    guest.write(vaddr, b"\xb8\x07\x00\x00\x00\xc3")  # mov $7, %eax; ret
    guest.protect(vaddr, PRESENT | RW)
    assert guest.call(vaddr).rax == 7
    guest.protect(vaddr, PRESENT | RW | NX)
    outcome = guest.call(vaddr)
    assert (outcome.vector, outcome.error & 0x10, outcome.cr2) == (PAGE_FAULT, 0x10, vaddr)


# -- user mode --------------------------------------------------------------------------------------------------------


@pytest.fixture
def user(guest: PvGuest) -> PvGuest:
    guest.make_user_space(40)
    return guest


def test_user_system_call_reaches_the_kernel(user: PvGuest) -> None:
    outcome = user.user("user_syscall", 1234)
    assert (outcome.vector, outcome.rax) == (USER_SYSCALL, 1234)
    assert outcome.cs & 3 == 3
    assert outcome.rip > USER_CODE


def test_user_cannot_call_the_hypervisor(user: PvGuest) -> None:
    outcome = user.user("user_hypercall", HYPERVISOR_xen_version, 0, 0)
    assert (outcome.vector, outcome.rax) == (USER_SYSCALL, HYPERVISOR_xen_version)
    assert list(user.domain.vcpus[0].last_hypercalls)[-1][0] != HYPERVISOR_xen_version


def test_user_reads_its_own_pages_and_no_others(user: PvGuest) -> None:
    user.write_words(user.page(0), 77)
    assert user.user("user_peek", USER_DATA).rax == 77
    for address in (user.page(0), user.symbols["step_0"], user.symbols["user_text"], 0):
        outcome = user.user("user_peek", address)
        assert outcome.fault == (PAGE_FAULT, 4)
        assert outcome.cr2 == address
        assert user.user("user_poke", address, 1).fault == (PAGE_FAULT, 6)
    assert user.user("user_poke", USER_CODE, 1).fault == (PAGE_FAULT, 7), "its code is read-only"
    assert user.user("user_jump", USER_DATA).error & 0x14 == 0x14, "its data is not code"
    for address in (HYPERVISOR, 0xFFFF_87FF_FFFF_F000):
        assert user.user("user_peek", address).vector in (GENERAL_PROTECTION, PAGE_FAULT)
        assert user.user("user_poke", address, 0).vector in (GENERAL_PROTECTION, PAGE_FAULT)
    assert user.user("user_poke", 0xFFFF_8000_0000_0000, 0).vector in (GENERAL_PROTECTION, PAGE_FAULT)


@pytest.mark.parametrize(
    ("routine", "fault"),
    [
        ("user_interrupt_128", (128, 0)),
        ("user_interrupt_129", (GENERAL_PROTECTION, 129 * 8 + 2)),
        ("user_interrupt_14", (GENERAL_PROTECTION, 14 * 8 + 2)),
        ("user_breakpoint", (BREAKPOINT, 0)),
        ("user_undefined", (UNDEFINED, 0)),
        ("user_divide_by_zero", (DIVIDE, 0)),
        ("user_cli", (GENERAL_PROTECTION, 0)),
        ("user_halt", (GENERAL_PROTECTION, 0)),
        ("user_port_in", (GENERAL_PROTECTION, 0)),
        ("user_port_out", (GENERAL_PROTECTION, 0)),
        ("user_read_cr3", (GENERAL_PROTECTION, 0)),
        ("user_write_cr3", (GENERAL_PROTECTION, 0)),
        ("user_read_msr", (GENERAL_PROTECTION, 0)),
        ("user_load_gdt", (GENERAL_PROTECTION, 0)),
        ("user_swap_gs", (GENERAL_PROTECTION, 0)),
        pytest.param("user_sysenter", (GENERAL_PROTECTION, 0), marks=pytest.mark.needs("sysenter")),
    ],
)
def test_user_exception(user: PvGuest, routine: str, fault: tuple[int, int]) -> None:
    outcome = user.user(routine, 0x10)
    assert outcome.fault == fault
    assert outcome.cs & 3 == 3
    assert user.call("nothing").rax == 42


def test_user_may_do_io_at_the_highest_level_only(user: PvGuest) -> None:
    for level, vector in ((1, GENERAL_PROTECTION), (3, USER_SYSCALL)):
        assert user.operation(HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, PhysdevSetIopl(iopl=level)) == 0
        assert user.user("user_port_in", 0x80).vector == vector


def test_user_single_step(user: PvGuest) -> None:
    assert user.user("user_single_step").vector == DEBUG
    assert user.hypercall(HYPERVISOR_get_debugreg, 6) & DR6_BS


@pytest.mark.needs("task switch")
def test_user_fpu(user: PvGuest) -> None:
    assert user.user("user_fpu").vector == USER_SYSCALL
    assert user.hypercall(HYPERVISOR_fpu_taskswitch, 1) == 0
    assert user.user("user_fpu").fault == (NO_DEVICE, 0)
    assert user.user("user_fpu").vector == USER_SYSCALL


@pytest.mark.needs("sysenter")
def test_user_sysenter_reaches_its_callback(user: PvGuest) -> None:
    register = CallbackRegister(type=CALLBACKTYPE_sysenter, address=user.symbols["user_syscall_0"])
    assert user.operation(HYPERVISOR_callback_op, 0, register) == 0
    outcome = user.user("user_sysenter")
    assert (outcome.vector, outcome.rip) == (USER_SYSCALL, 0)


def test_user_mode_without_a_user_root(guest: PvGuest, bystander: PvGuest) -> None:
    with pytest.raises(GuestCrashed, match="without a user base pointer"):
        guest.user(USER_CODE)


def test_user_root_can_be_given_up(user: PvGuest, bystander: PvGuest) -> None:
    assert user.mmuext(MMUEXT_NEW_USER_BASEPTR, 0) == 0
    with pytest.raises(GuestCrashed):
        user.user("user_syscall")


# -- frames of iret ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [0, UNMAPPED, NON_CANONICAL, HYPERVISOR, (1 << 64) - 8, 0xFFFF_7FFF_FFFF_FFF0])
def test_iret_from_a_bad_stack_crashes_the_guest(guest: PvGuest, bystander: PvGuest, frame: int) -> None:
    with pytest.raises(GuestCrashed, match="iret: the frame"):
        guest.call("raw_iret", frame)


@pytest.mark.parametrize("rip", [NON_CANONICAL, 0xFFFF_7FFF_FFFF_FFFF, 0xDEAD_BEEF_DEAD_BEEF])
def test_iret_to_a_non_canonical_address(guest: PvGuest, rip: int) -> None:
    assert guest.call("raw_iret", iret_frame(guest, rip)).vector == GENERAL_PROTECTION
    assert guest.call("nothing").rax == 42


@pytest.mark.parametrize("rip", [UNMAPPED, HYPERVISOR, 0])
def test_iret_to_an_unmapped_address(guest: PvGuest, rip: int) -> None:
    outcome = guest.call("raw_iret", iret_frame(guest, rip))
    assert outcome.vector in (PAGE_FAULT, GENERAL_PROTECTION)
    assert outcome.rip == rip


@pytest.mark.parametrize("cs", [0, 0x10, 0xE028, 0xE030 | 4, 0xFFF8, 0xE040])
def test_iret_with_a_bad_code_segment(guest: PvGuest, cs: int) -> None:
    outcome = guest.call("raw_iret", iret_frame(guest, guest.symbols["nothing"], cs=cs))
    assert outcome.vector == GENERAL_PROTECTION
    assert guest.call("nothing").rax == 42


@pytest.mark.parametrize("ss", [0x10, 0xE030, 0xFFF8, 0xE044])
def test_iret_with_a_bad_stack_segment(guest: PvGuest, ss: int) -> None:
    outcome = guest.call("raw_iret", iret_frame(guest, guest.symbols["nothing"], ss=ss))
    assert outcome.vector in (GENERAL_PROTECTION, 11, 12)
    assert guest.call("nothing").rax == 42


def test_iret_cannot_raise_privilege_by_flags(guest: PvGuest) -> None:
    frame = iret_frame(guest, guest.symbols["undefined"], rflags=0x3000 | 1 << 17 | 1 << 19 | 1 << 20)
    outcome = guest.call("raw_iret", frame)
    assert outcome.vector == UNDEFINED
    assert outcome.flags & (0x3000 | 1 << 17) == 0
    assert not outcome.flags & IF, "the frame said that events are masked"
    guest.call("events_on")


# -- handlers ---------------------------------------------------------------------------------------------------------


def test_trap_table_addresses_are_checked(guest: PvGuest) -> None:
    assert set_trap(guest, UNDEFINED, NON_CANONICAL) == -EINVAL
    for pointer in (UNMAPPED, NON_CANONICAL, HYPERVISOR, (1 << 64) - 8):
        assert guest.hypercall(HYPERVISOR_set_trap_table, pointer) == -EFAULT
    assert guest.call("undefined").vector == UNDEFINED


def test_trap_table_without_an_end(guest: PvGuest) -> None:
    entry = struct.pack("<BBHIQ", 6, 0, USER_CS, 0, guest.symbols["trap_6_0"])
    table = guest.page(95) + 2048
    guest.write(guest.page(90), entry * 1536)
    assert guest.hypercall(HYPERVISOR_set_trap_table, guest.page(90)) == 0, "a list may be long"
    guest.write(table, entry * 128)
    guest.map(guest.symbols["playground"] + 96 * 4096, 0)
    assert guest.hypercall(HYPERVISOR_set_trap_table, table) == -EFAULT


@pytest.mark.parametrize("address", [UNMAPPED, 1, HYPERVISOR, 0xFFFF_8000_0000_0000])
def test_unmapped_handler_is_a_page_fault_of_the_guest(guest: PvGuest, address: int) -> None:
    assert set_trap(guest, UNDEFINED, address) == 0
    outcome = guest.call("undefined")
    assert (outcome.vector, outcome.rip, outcome.cr2) == (PAGE_FAULT, address, address)
    assert not outcome.error & 4, "the kernel's own"


@pytest.mark.parametrize("address", [UNMAPPED, HYPERVISOR])
def test_unmapped_page_fault_handler_eats_the_stack_and_crashes(
    guest: PvGuest, bystander: PvGuest, address: int
) -> None:
    assert set_trap(guest, PAGE_FAULT, address) == 0
    guest.map(guest.symbols["shared_info"], 0)  # the page below the stack
    with pytest.raises(GuestCrashed, match="kernel stack"):
        guest.call("poke", 0, 0)


def test_handler_that_faults_for_ever_on_its_stack_crashes(guest: PvGuest, bystander: PvGuest) -> None:
    assert set_trap(guest, UNDEFINED, guest.symbols["fault_again"]) == 0
    guest.map(guest.symbols["shared_info"], 0)
    with pytest.raises(GuestCrashed, match="kernel stack"):
        guest.call("undefined")


def test_handler_that_faults_for_ever_does_not_stop_others(
    machine: TestMachine, guest: PvGuest, bystander: PvGuest
) -> None:
    assert set_trap(guest, UNDEFINED, guest.symbols["fault_for_ever"]) == 0
    guest.begin("undefined")
    machine.run_for(0.05)
    assert not guest.stopped
    for _ in range(5):
        assert bystander.call("nothing").rax == 42


@pytest.mark.parametrize("stack", [0, 64, UNMAPPED, NON_CANONICAL, HYPERVISOR, 0xFFFF_8000_0000_1000, 1 << 63, 8])
def test_exception_on_a_bad_stack_crashes_the_guest(guest: PvGuest, bystander: PvGuest, stack: int) -> None:
    with pytest.raises(GuestCrashed, match="kernel stack"):
        guest.call("fault_with_stack", stack)


def test_exception_on_a_read_only_stack_crashes_the_guest(guest: PvGuest, bystander: PvGuest) -> None:
    l1 = guest.pte_maddr(guest.page(0)) & ~0xFFF
    guest.map(guest.page(0), l1 | PRESENT)
    before = bytes(guest.hv.ram.frame(l1 >> 12))
    with pytest.raises(GuestCrashed, match="kernel stack"):
        guest.call("fault_with_stack", guest.page(0) + 2048)
    assert bytes(guest.hv.ram.frame(l1 >> 12)) == before


@pytest.mark.parametrize("stack", [0, UNMAPPED, HYPERVISOR, NON_CANONICAL])
def test_entry_from_user_mode_onto_a_bad_stack(user: PvGuest, bystander: PvGuest, stack: int) -> None:
    assert user.hypercall(HYPERVISOR_stack_switch, USER_SS, stack) == 0
    with pytest.raises(GuestCrashed, match="kernel stack"):
        user.user("user_syscall")


def test_exception_on_a_good_stack_elsewhere(guest: PvGuest) -> None:
    outcome = guest.call("fault_with_stack", guest.page(3) - 8)
    assert (outcome.vector, outcome.rsp) == (UNDEFINED, guest.page(3) - 8)
    assert guest.word(guest.page(2) + 0xFF0 - 8) == USER_SS, "the frame starts at a multiple of 16"


def test_no_event_callback_address(guest: PvGuest, bystander: PvGuest) -> None:
    assert guest.hypercall(HYPERVISOR_set_callbacks, 0, 0, 0) == 0
    port = guest.arguments(struct.pack("<HHI", 0x7FF0, 0x7FF0, 0))
    assert guest.hypercall(HYPERVISOR_event_channel_op, 6, port) == 0  # alloc_unbound
    guest.domain.events.set_pending(struct.unpack("<HHI", guest.read(port, 8))[2])
    with pytest.raises(GuestCrashed):
        guest.call("events_on")


@pytest.mark.parametrize("kind", [6, 7, 0xFFFF, 0x100])
def test_callback_types_that_do_not_exist(guest: PvGuest, kind: int) -> None:
    register = CallbackRegister(type=kind, address=guest.symbols["upcall_0"])
    expected = 0 if kind == 7 else -ENOSYS
    assert guest.operation(HYPERVISOR_callback_op, 0, register) == expected


def test_callback_addresses_are_checked(guest: PvGuest) -> None:
    register = CallbackRegister(type=CALLBACKTYPE_event, address=NON_CANONICAL)
    assert guest.operation(HYPERVISOR_callback_op, 0, register) == -EINVAL
    assert guest.hypercall(HYPERVISOR_callback_op, 0, UNMAPPED) == -EFAULT
    assert guest.hypercall(HYPERVISOR_callback_op, 77, 0) == -ENOSYS
