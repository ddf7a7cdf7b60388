"""System calls and page faults of user mode, and the ways back: the same wherever they are handled.

That is in Python, in the native helper, or in ring 0 of the processor itself. More hostile frames are in `test_traps`.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import IN_RING0
from tests.guest.pvguest import (
    NO_EXCEPTION,
    USER_DATA,
    USER_STACK,
    USER_SYSCALL,
    GuestCrashed,
    Outcome,
    PvGuest,
    TestMachine,
)
from xenolith.abi.hypercalls import (
    HYPERVISOR_callback_op,
    HYPERVISOR_iret,
    HYPERVISOR_physdev_op,
    HYPERVISOR_sched_op,
    HYPERVISOR_set_debugreg,
    HYPERVISOR_set_segment_base,
    HYPERVISOR_set_trap_table,
    HYPERVISOR_stack_switch,
    HYPERVISOR_vm_assist,
)
from xenolith.abi.mmu import MMUEXT_NEW_USER_BASEPTR
from xenolith.abi.physdev import PHYSDEVOP_set_iopl, PhysdevSetIopl
from xenolith.abi.traps import CALLBACKF_mask_events, CallbackRegister, CALLBACKTYPE_syscall
from xenolith.abi.vm_assist import VMASST_CMD_enable, VMASST_TYPE_architectural_iopl
from xenolith.abi.x86_64 import SEGBASE_FS, SEGBASE_GS_KERNEL, SEGBASE_GS_USER
from xenolith.cpu.kvm_cpu import KvmCpu
from xenolith.cpu.registers import AC, CF, DF, FLAGS_FIXED, IF, IOPL, NT, RF, TF, VIF, VIP, VM
from xenolith.hypervisor import scheduler
from xenolith.hypervisor.vcpu import INFO_CR2, UPCALL_MASK, UPCALL_PENDING

WITHOUT_HELPER_TOO = True
IN_RING0_TOO = True

USER_CS, USER_SS = 0xE033, 0xE02B
ID = 1 << 21
BREAKPOINT, GENERAL_PROTECTION, PAGE_FAULT = 3, 13, 14
UNMAPPED = 0x7000_0000_0000
NON_CANONICAL = 0x8000_0000_0000
TOP = 1 << 64
ENGINE = 0xFFFF_8280_0000_0000
BAD_STACKS = (
    0, 8, UNMAPPED, NON_CANONICAL, NON_CANONICAL + 64, 1 << 63, TOP - NON_CANONICAL, TOP - NON_CANONICAL + 64, TOP - 8,
    0xFFFF_8080_0000_1000, 0xFFFF_8200_0000_1000, ENGINE + 0x5000, ENGINE + 0xB400, 0xFFFF_87FF_FFFF_F000,
)  # fmt: skip
"""Among them places of the M2P, of descriptors, and of the KVM engine: a gate, and a processor's area."""
KERNEL_WORD, USER_WORD = 1000, 2000
ROUNDS = 200


@pytest.fixture
def user(guest: PvGuest) -> PvGuest:
    guest.make_user_space(40)
    return guest


def set_syscall_callback(guest: PvGuest, routine: str, flags: int = 0, vcpu: int = 0) -> None:
    register = CallbackRegister(type=CALLBACKTYPE_syscall, flags=flags, address=guest.symbols[routine])
    assert guest.operation(HYPERVISOR_callback_op, 0, register, vcpu=vcpu) == 0


def set_handler(guest: PvGuest, vector: int, routine: str, flags: int = 0, vcpu: int = 0) -> None:
    entry = struct.pack("<BBHIQ", vector, flags, USER_CS, 0, guest.symbols[routine])
    assert guest.hypercall(HYPERVISOR_set_trap_table, guest.arguments(entry + bytes(16)), vcpu=vcpu) == 0


def return_to(guest: PvGuest, rip: int | str, argument: int = 0, **changes: int) -> Outcome:
    """Have the kernel return to user mode by a frame with these changes."""
    words = {"rax": 11, "r11": 12, "rcx": 13, "how": 0, "rip": 0, "cs": USER_CS, "rflags": IF, "rsp": USER_STACK}
    words["rip"] = guest.user_address(rip) if isinstance(rip, str) else rip
    packed = struct.pack("<9Q", *(words | {"ss": USER_SS} | changes).values())
    return guest.call("raw_iret", guest.arguments(packed), argument)


def frame(guest: PvGuest, words: int) -> list[int]:
    """What was pushed last on the kernel's empty stack."""
    return list(struct.unpack(f"<{words}Q", guest.read(guest.symbols["stack_top_0"] - 8 * words, 8 * words)))


def info(guest: PvGuest, offset: int) -> int:
    """A byte of vCPU 0's struct vcpu_info."""
    return guest.hv.ram.bytes[guest.domain.vcpus[0].info_maddr + offset]


# -- what the kernel finds on its stack -------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("iopl", [0, 1, 3])
@pytest.mark.parametrize("flags", [0, CF | DF | AC | ID])
def test_frame_of_a_system_call(user: PvGuest, masked: bool, masks: bool, iopl: int, flags: int) -> None:
    set_syscall_callback(user, "user_syscall_0", CALLBACKF_mask_events if masks else 0)
    assert user.operation(HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, PhysdevSetIopl(iopl=iopl)) == 0
    if iopl == 1:
        assert user.hypercall(HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_architectural_iopl) == 0
    assert return_to(user, "user_flags", flags, rflags=0 if masked else IF).vector == USER_SYSCALL
    rip = user.user_address("user_report")
    real = flags | FLAGS_FIXED | IF
    shown = real & ~IF | (0 if masked else IF) | (IOPL // 3 if iopl == 1 else 0)
    assert frame(user, 7) == [rip, real, rip, USER_CS | masked << 32, shown, USER_STACK, USER_SS]
    assert info(user, UPCALL_MASK) == (masks or masked)
    user.call("events_on")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("masks", [False, True])
def test_frame_of_a_page_fault(user: PvGuest, masked: bool, masks: bool) -> None:
    set_handler(user, PAGE_FAULT, "trap_14_0", 4 if masks else 0)
    assert return_to(user, "user_poke", rflags=AC if masked else AC | IF).fault == (PAGE_FAULT, 6)
    rcx, r11, error, rip, code, flags, rsp, stack = frame(user, 8)
    assert (rcx, r11, error, rip) == (13, 12, 6, user.user_address("user_poke"))
    assert (code, rsp, stack) == (USER_CS | masked << 32, USER_STACK, USER_SS)
    assert flags & ~RF == AC | FLAGS_FIXED | (0 if masked else IF)
    assert info(user, UPCALL_MASK) == (masks or masked)
    assert user.hv.ram.words[user.domain.vcpus[0].info_maddr + INFO_CR2 >> 3] == user.symbols["arguments"]
    user.call("events_on")


# -- ways back --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [0, 1 << 8])
@pytest.mark.parametrize("flags", [0, CF | DF | AC | ID | NT, VM | VIF | VIP | IOPL | RF])
def test_return_to_user_mode(user: PvGuest, how: int, flags: int) -> None:
    assert return_to(user, "user_report", USER_DATA, how=how, rflags=flags | IF, rax=77).vector == USER_SYSCALL
    rcx, r11, rax, seen = struct.unpack("<4Q", user.read(user.page(0), 32))
    assert rax == 77
    if how:
        assert rcx != 13
        assert r11 != 12
    else:
        assert (rcx, r11) == (13, 12)
    assert seen & ~(NT | RF) == (flags & (CF | DF | AC | ID)) | FLAGS_FIXED | IF, "a software KVM has no NT"


@pytest.mark.parametrize("cs", [0, 3, 0x10, 0xE00B, 0xE013, 0xE037, 0xE02B, 0xFFFB, 0xE043])
def test_return_with_a_bad_code_segment(user: PvGuest, cs: int) -> None:
    assert return_to(user, "user_report", USER_DATA, cs=cs | 3).vector == GENERAL_PROTECTION
    assert user.call("nothing").rax == 42


@pytest.mark.parametrize("ss", [0x13, 0xE013, 0xE033, 0xE02F, 0xFFFB, 0xE043])
def test_return_with_a_bad_stack_segment(user: PvGuest, ss: int) -> None:
    assert return_to(user, "user_report", USER_DATA, ss=ss).vector == GENERAL_PROTECTION
    assert user.call("nothing").rax == 42


@pytest.mark.parametrize("rip", [NON_CANONICAL, TOP - NON_CANONICAL - 1, 0xDEAD_BEEF_DEAD_BEEF])
def test_return_to_a_place_that_cannot_be(user: PvGuest, rip: int) -> None:
    assert return_to(user, rip).vector == GENERAL_PROTECTION
    assert user.call("nothing").rax == 42


@pytest.mark.parametrize("rip", [UNMAPPED, ENGINE + 0x5000, ENGINE + 0xB080])
def test_return_to_a_place_where_nothing_is(user: PvGuest, rip: int) -> None:
    outcome = return_to(user, rip)
    assert (outcome.vector, outcome.rip) in ((PAGE_FAULT, rip), (GENERAL_PROTECTION, rip))
    assert user.call("nothing").rax == 42


@pytest.mark.parametrize("rsp", [0, NON_CANONICAL, 0xDEAD_BEEF_DEAD_BEEF, ENGINE + 0xB400])
def test_return_with_any_stack(user: PvGuest, rsp: int) -> None:
    outcome = return_to(user, "user_syscall", rsp=rsp)
    assert (outcome.vector, outcome.rsp) == (USER_SYSCALL, rsp)


def test_single_step_after_a_return(user: PvGuest) -> None:
    outcome = return_to(user, "user_spin", rflags=IF | TF)
    assert (outcome.vector, outcome.rip) == (1, user.user_address("user_spin"))


@pytest.mark.parametrize("mask_until", [0, IF])
def test_an_event_that_waits_comes_at_the_return(user: PvGuest, mask_until: int) -> None:
    assert user.call("nothing").rax == 42
    before, at = user.events(), user.domain.vcpus[0].info_maddr
    user.hv.ram.bytes[at + UPCALL_MASK], user.hv.ram.bytes[at + UPCALL_PENDING] = 1, 1
    assert return_to(user, "user_syscall", rflags=mask_until).vector == USER_SYSCALL
    assert user.events() - before == (1 if mask_until else 0)
    user.call("events_on")
    assert user.events() - before == 1


@pytest.mark.parametrize("stack", BAD_STACKS)
@pytest.mark.parametrize("routine", ["user_syscall", "user_peek"])
def test_a_stack_that_the_kernel_cannot_have(user: PvGuest, bystander: PvGuest, stack: int, routine: str) -> None:
    assert user.hypercall(HYPERVISOR_stack_switch, USER_SS, stack) == 0
    with pytest.raises(GuestCrashed, match="kernel stack"):
        user.user(routine)
    assert not user.domain.bug


def test_a_stack_that_the_kernel_may_not_write_to(user: PvGuest, bystander: PvGuest) -> None:
    user.protect(user.page(9))
    before = user.read(user.page(9), 4096)
    assert user.hypercall(HYPERVISOR_stack_switch, USER_SS, user.page(9) + 2048) == 0
    with pytest.raises(GuestCrashed, match="kernel stack"):
        user.user("user_syscall")
    assert user.read(user.page(9), 4096) == before


def test_a_frame_across_two_pages(user: PvGuest) -> None:
    place = user.page(9) + 4096 + 16
    assert user.hypercall(HYPERVISOR_stack_switch, USER_SS, place) == 0
    assert user.user("user_syscall", 5).rax == 5
    assert user.word(place - 8) == USER_SS


@pytest.mark.parametrize("flags", [IOPL, IOPL | TF, VM | NT | VIP])
def test_entry_points_of_the_engine_give_nothing(user: PvGuest, flags: int) -> None:
    """A kernel that goes where SYSCALL would have brought it, with RFLAGS of its own making, has no I/O privilege."""
    cpu = user.domain.vcpus[0].cpu
    places = (cpu.area.entry,) if isinstance(cpu, KvmCpu) else (ENGINE,)
    for place in places:
        outcome = user.call("jump_as_if_called", place, flags | FLAGS_FIXED | IF)
        assert outcome.vector in (PAGE_FAULT, GENERAL_PROTECTION, 1) or not outcome.rax & (IOPL | VM | VIP)
        assert user.user("user_port_in", 0x80).vector == GENERAL_PROTECTION


# -- a kernel that serves its user mode -------------------------------------------------------------------------------


def prepare_to_serve(guest: PvGuest, vcpu: int = 0) -> None:
    """Each mode of this vCPU has a word of its own at GS."""
    kernel, users = guest.page(2) + 8 * vcpu, guest.page(0) + 8 * vcpu
    guest.write_words(kernel, KERNEL_WORD + vcpu)
    guest.write_words(users, USER_WORD + vcpu)
    set_syscall_callback(guest, f"serve_call_{vcpu}", vcpu=vcpu)
    set_handler(guest, PAGE_FAULT, f"serve_fault_{vcpu}", vcpu=vcpu)
    for which, base in ((SEGBASE_GS_KERNEL, kernel), (SEGBASE_GS_USER, USER_DATA + 8 * vcpu), (SEGBASE_FS, 0)):
        assert guest.hypercall(HYPERVISOR_set_segment_base, which, base, vcpu=vcpu) == 0
    assert guest.hypercall(HYPERVISOR_stack_switch, USER_SS, guest.symbols[f"stack_top_{vcpu}"], vcpu=vcpu) == 0


def begin_to_serve(guest: PvGuest, rounds: int, vcpu: int = 0) -> None:
    guest.begin_user("user_served", rounds, UNMAPPED, 8 + KERNEL_WORD + vcpu, USER_WORD + vcpu, vcpu=vcpu)


@contextmanager
def kicks(machine: TestMachine) -> Iterator[None]:
    """As many as there can be."""
    ended = threading.Event()

    def kick() -> None:
        while not ended.wait(0.0002):
            machine.hv.engine.kick()

    thread = threading.Thread(target=kick)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_modes_do_not_mix(user: PvGuest, engine: str) -> None:
    prepare_to_serve(user)
    assert user.call("nothing").rax == 42
    cpu = user.domain.vcpus[0].cpu
    before, events, exits = user.hv.hypercall_counts[HYPERVISOR_iret], user.events(), cpu.exits
    begin_to_serve(user, ROUNDS)
    assert user.finish().vector == USER_SYSCALL
    irets = user.hv.hypercall_counts[HYPERVISOR_iret] - before
    assert irets == 2 * ROUNDS + 1 + user.events() - events
    last = list(user.domain.vcpus[0].last_hypercalls)
    assert [number for number, _ in last] == [HYPERVISOR_iret] * 15 + [HYPERVISOR_sched_op]
    assert last[-2][1][:2] == (1, UNMAPPED)
    if engine == IN_RING0:
        assert cpu.exits - exits < ROUNDS // 2, "but for a few at the ends of slices"


def test_modes_do_not_mix_under_kicks(machine: TestMachine, user: PvGuest) -> None:
    prepare_to_serve(user)
    begin_to_serve(user, 10 * ROUNDS)
    with kicks(machine):
        assert user.finish(limit_s=60).vector == USER_SYSCALL


def test_no_breakpoint_is_lost_under_kicks(machine: TestMachine, user: PvGuest) -> None:
    set_handler(user, BREAKPOINT, "serve_break_0", flags=3)
    with kicks(machine):
        user.begin_user("user_broken", 2 * ROUNDS)
        assert user.finish(limit_s=60).vector == USER_SYSCALL
        user.begin("broken", 2 * ROUNDS)
        assert user.finish(limit_s=60).vector == NO_EXCEPTION


def test_two_vcpus_serve_at_the_same_time(
    machine: TestMachine, running: PvGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_CALM_NS", 0)
    monkeypatch.setattr(scheduler, "_SHORTEST_WHILE_NS", 0)
    root = running.make_user_space(40)
    assert running.mmuext(MMUEXT_NEW_USER_BASEPTR, root, vcpu=1) == 0
    for vcpu in (0, 1):
        prepare_to_serve(running, vcpu)
        begin_to_serve(running, 4 * ROUNDS, vcpu)
    with kicks(machine):
        outcomes = [running.finish(vcpu, limit_s=60) for vcpu in (0, 1)]
    assert [outcome.vector for outcome in outcomes] == [USER_SYSCALL] * 2


def test_what_is_traced_is_not_done_in_ring_0(user: PvGuest, engine: str) -> None:
    prepare_to_serve(user)
    user.hv.state.traced = True
    cpu = user.domain.vcpus[0].cpu
    exits = cpu.exits
    try:
        begin_to_serve(user, ROUNDS)
        assert user.finish().vector == USER_SYSCALL
    finally:
        user.hv.state.traced = False
    if engine.startswith("kvm"):
        assert cpu.exits - exits >= 2 * ROUNDS


def test_what_breakpoints_watch_is_not_done_in_ring_0(user: PvGuest, engine: str) -> None:
    prepare_to_serve(user)
    assert user.hypercall(HYPERVISOR_set_debugreg, 7, 0xD0001) == 0
    cpu = user.domain.vcpus[0].cpu
    exits = cpu.exits
    begin_to_serve(user, ROUNDS)
    assert user.finish().vector == USER_SYSCALL
    if engine.startswith("kvm"):
        assert cpu.exits - exits >= 4 * ROUNDS
