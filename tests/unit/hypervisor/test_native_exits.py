"""The native helper does to the last bit what Python does, or leaves an exit alone."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.hypervisor.native_support import EXITS, Machine
from tests.unit.hypervisor.support import Guest
from xenolith.abi.hypercalls import (
    HYPERVISOR_fpu_taskswitch,
    HYPERVISOR_iret,
    HYPERVISOR_set_segment_base,
    HYPERVISOR_stack_switch,
    HYPERVISOR_vcpu_op,
    HYPERVISOR_xen_version,
)
from xenolith.abi.traps import CALLBACKTYPE_event, CALLBACKTYPE_nmi, CALLBACKTYPE_syscall
from xenolith.cpu.registers import (
    AC,
    CS,
    DF,
    FLAGS_ARITHMETIC,
    IF,
    IOPL,
    NT,
    R11,
    RAX,
    RCX,
    RDI,
    RF,
    RIP,
    RSI,
    RSP,
    SS,
    TF,
)
from xenolith.cpu.segments import segment_of
from xenolith.hypervisor.descriptors import (
    XEN_CS32,
    XEN_CS64,
    XEN_SS,
)
from xenolith.hypervisor.frames import FLAG_EXECUTABLE
from xenolith.hypervisor.native_exits import COMPILED
from xenolith.hypervisor.shared_state import Callback, Gate

pytestmark = pytest.mark.skipif(COMPILED.missing() is not None, reason=f"no native helper: {COMPILED.missing()}")

NO_DEVICE, PROTECTION, PAGE_FAULT = 7, 13, 14
CLI, STI, HLT = 0xFA, 0xFB, 0xF4
USER_CS, USER_SS, READ_ONLY, ABSENT, LDT = 0x33, 0x2B, 0x3B, 0x43, 0x0F
UNMAPPED, HOLE, HYPERVISOR = 0x7000_0000_0000, 0x8000_0000_0000, 0xFFFF_8200_0000_0000


@pytest.fixture(scope="module", params=EXITS)
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(request.param)


BITS = [1 << bit for bit in range(22) if FLAGS_ARITHMETIC >> bit & 1]
FLAGS = st.builds(
    lambda usual, rare: sum(usual) | rare,
    st.sets(st.sampled_from([*BITS, DF, IF, NT, AC, 1 << 21])),
    st.sampled_from([0, 0, 0, 0, TF, RF, IOPL]),
)
CODE = st.sampled_from([XEN_CS64, XEN_CS64, USER_CS, USER_CS, USER_CS & ~3, XEN_CS32, 0x0B, ABSENT, LDT, 0])
STACK = st.sampled_from([XEN_SS, XEN_SS, USER_SS, USER_SS, 0, READ_ONLY, LDT, 3])
WHERE = st.one_of(
    st.integers(0, 512).map(lambda at: ("page", at * 8)),
    st.sampled_from([("page", 0x801), ("page", 8 * 511), ("info", 64), ("tables", 0)]),
    st.sampled_from([("at", UNMAPPED), ("at", HOLE), ("at", HYPERVISOR), ("at", 8), ("at", (1 << 64) - 8)]),
)
ADDRESS = st.one_of(WHERE, st.integers(0, (1 << 64) - 1).map(lambda at: ("at", at)))
WORD = st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from([0, 1, HOLE, HYPERVISOR, HOLE - 1]))
RARELY = st.sampled_from([False] * 15 + [True])


def place(guest: Guest, where: tuple[str, int]) -> int:
    kind, at = where
    if kind == "page":
        return guest.va(2, at)
    if kind == "info":
        return guest.va(4, at)
    return guest.table_va(guest.l1) if kind == "tables" else at


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "vector": draw(st.sampled_from([None] * 5 + [PAGE_FAULT] * 3 + [NO_DEVICE, PROTECTION, PROTECTION])),
        "kernel_mode": draw(st.booleans()),
        "number": draw(
            st.sampled_from(
                [HYPERVISOR_iret] * 6
                + [HYPERVISOR_stack_switch, HYPERVISOR_fpu_taskswitch]
                + [HYPERVISOR_set_segment_base, HYPERVISOR_vcpu_op, HYPERVISOR_xen_version, 60, 1 << 40]
            )
        ),
        "arguments": (draw(st.one_of(st.integers(0, 4), WORD)), draw(WORD)),
        "flags": draw(FLAGS),
        "lazy": draw(st.one_of(st.just(1), st.integers(1, 50))),
        "selectors": (draw(CODE), draw(STACK)),
        "stack": draw(WHERE),
        "kernel_stack": draw(WHERE),
        "frame": (
            *(draw(WORD), draw(WORD), draw(WORD), draw(st.sampled_from([0, 0, 1 << 8])), draw(WORD)),
            *(draw(CODE), draw(FLAGS), draw(WORD), draw(STACK)),
        ),
        "pending": draw(st.sampled_from([0, 0, 0, 1, 0xFF])),
        "mask": draw(st.sampled_from([0, 0, 1, 1, 0x81])),
        "nmi": draw(RARELY),
        "handler": draw(st.sampled_from([0x1234_5678, 0xFFFF_FFFF_8000_1000, 0x42, 0])),
        "masks": draw(st.booleans()),
        "assist": draw(st.sampled_from([0, 1 << 2, 1 << 4, 0x3F])),
        "iopl": draw(st.integers(0, 3)),
        "has_user": not draw(RARELY),
        "error": draw(st.one_of(st.integers(0, 31), st.just(0))),
        "code": draw(st.sampled_from([CLI, STI, HLT])),
        "address": draw(ADDRESS),
        "breaks": draw(st.sampled_from([0x400] * 15 + [0x401])),
        "software": draw(RARELY),
        "reschedule": draw(RARELY),
    }


def prepare(machine: Machine, scenario: dict[str, Any]) -> None:
    guest = machine.subject
    vcpu, cpu = guest.vcpu, guest.vcpu.cpu
    vcpu.info_maddr = guest.maddr(4)
    for index, register in enumerate((RCX, R11, *range(12, 16))):
        cpu.regs[register] = 0x1111_1111_1111_1111 * (index + 1)
    cpu.regs[RAX], cpu.regs[RDI], cpu.regs[RSI] = scenario["number"], *scenario["arguments"]
    cpu.regs[RIP], cpu.regs[RSP] = guest.va(0, 0x100), place(guest, scenario["stack"])
    machine.ram.bytes[guest.maddr(0, 0x100)] = scenario["code"]
    cpu.flags = scenario["flags"]
    machine.exits.put_flags_off(scenario["lazy"])
    for segment, selector in zip((CS, SS), scenario["selectors"], strict=True):
        about = segment_of(machine.descriptors.lookup(vcpu, selector))
        cpu.load_segment(segment, selector, about.base, about.limit, about.attributes)
    cpu.gs_base, vcpu.other_gs_base = 0xAAAA_0000, 0xBBBB_0000
    cpu.task_switched = bool(scenario["arguments"][1] & 1)
    vcpu.kernel_mode, vcpu.kernel_sp = scenario["kernel_mode"], place(guest, scenario["kernel_stack"])
    vcpu.user_root = machine.user_root if scenario["has_user"] else 0
    vcpu.iopl, vcpu.nmi_pending, vcpu.upcall_streak = scenario["iopl"], scenario["nmi"], 3
    guest.domain.vm_assist = scenario["assist"]
    for kind in (CALLBACKTYPE_syscall, CALLBACKTYPE_event, CALLBACKTYPE_nmi):
        vcpu.callbacks[kind] = Callback(scenario["handler"] + kind if scenario["handler"] else 0, scenario["masks"])
    for vector in (0, NO_DEVICE, PROTECTION, PAGE_FAULT):
        vcpu.traps[vector] = Gate(scenario["handler"], XEN_CS64, 3, scenario["masks"])
    at = guest.maddr(4)
    machine.ram.bytes[at : at + 2] = bytes((scenario["pending"], scenario["mask"]))
    offset = cpu.regs[RSP] - guest.va(2)
    if 0 <= offset <= 4096 - 72:
        at = guest.maddr(2, offset)
        machine.ram.bytes[at : at + 72] = struct.pack("<9Q", *scenario["frame"])
    address = place(guest, scenario["address"])
    machine.exits.prepare(scenario["breaks"], scenario["error"], address, scenario["software"])
    machine.state.reschedule = scenario["reschedule"]
    machine.state.current = ctypes.addressof(vcpu)


@settings(max_examples=400, deadline=None)
@given(scenario=scenarios())
def test_native_and_python_do_the_same(machine: Machine, scenario: dict[str, Any]) -> None:
    begin = machine.save()
    try:
        prepare(machine, scenario)
        natively, in_python = machine.both(scenario["vector"])
    finally:
        machine.restore(begin)
    assert natively == in_python


USUAL: dict[str, Any] = {
    "vector": None, "kernel_mode": False, "number": 39, "arguments": (1, 0x5000), "flags": IF | 1, "lazy": 1,
    "selectors": (USER_CS, USER_SS), "stack": ("page", 0x800), "kernel_stack": ("page", 0x900),
    "frame": (1, 2, 3, 0, 0x4000, USER_CS, IF, 0x5000, USER_SS), "pending": 0, "mask": 0, "nmi": False,
    "handler": 0x1234, "masks": True, "assist": 0x3F, "iopl": 0, "has_user": True, "error": 6, "address": ("at", 0x42),
    "code": CLI, "breaks": 0x400, "software": False, "reschedule": False,
}  # fmt: skip
IN_KERNEL: dict[str, Any] = {"kernel_mode": True, "selectors": (XEN_CS64, XEN_SS)}


def was_native(machine: Machine, **changes: Any) -> bool:
    begin = machine.save()
    prepare(machine, USUAL | changes)
    is_pythons = machine.is_pythons(changes.get("vector"))
    machine.restore(begin)
    return not is_pythons


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"lazy": 17},
        {"pending": 1, "mask": 1},
        {"pending": 1},  # the callback masks events
        {**IN_KERNEL, "number": HYPERVISOR_iret},
        {**IN_KERNEL, "number": HYPERVISOR_iret, "frame": (1, 2, 3, 0, 4, XEN_CS64 & ~3, 0, 5, 0), "pending": 1},
        {**IN_KERNEL, "number": HYPERVISOR_stack_switch},
        {**IN_KERNEL, "number": HYPERVISOR_fpu_taskswitch},
        {**IN_KERNEL, "number": HYPERVISOR_set_segment_base},
        {"vector": PAGE_FAULT},
        {**IN_KERNEL, "vector": PAGE_FAULT},
        {"vector": NO_DEVICE},
        {**IN_KERNEL, "vector": PROTECTION, "error": 0},
        {**IN_KERNEL, "vector": PROTECTION, "error": 0, "code": STI, "assist": 0, "iopl": 1},
        {"vector": PROTECTION, "error": 0, "iopl": 3},
        {**IN_KERNEL, "number": HYPERVISOR_vcpu_op, "arguments": (3, 77)},
    ],
)
def test_what_is_common_never_gets_to_python(machine: Machine, case: dict[str, Any]) -> None:
    assert was_native(machine, **case)


@pytest.mark.parametrize(
    "case",
    [
        {"pending": 1, "masks": False},
        {"nmi": True},
        {"reschedule": True},
        {"breaks": 0x401},
        {"flags": TF},
        {"handler": 0},
        {"selectors": (LDT, USER_SS)},
        {"kernel_stack": ("at", UNMAPPED)},
        {**IN_KERNEL, "number": HYPERVISOR_iret, "pending": 1},
        {**IN_KERNEL, "number": HYPERVISOR_iret, "has_user": False},
        {**IN_KERNEL, "number": HYPERVISOR_set_segment_base, "arguments": (3, 0)},
        {**IN_KERNEL, "number": HYPERVISOR_xen_version},
        {**IN_KERNEL, "vector": PAGE_FAULT, "error": 7, "address": ("tables", 0)},
        {"vector": PROTECTION, "error": 0, "iopl": 2},
        {**IN_KERNEL, "vector": PROTECTION, "error": 8},
        {**IN_KERNEL, "vector": PROTECTION, "error": 0, "assist": 0},
        {**IN_KERNEL, "vector": PROTECTION, "error": 0, "code": HLT},
        {**IN_KERNEL, "number": HYPERVISOR_vcpu_op, "arguments": (3, 0)},
    ],
)
def test_what_is_uncommon_does(machine: Machine, case: dict[str, Any]) -> None:
    assert not was_native(machine, **case)


@pytest.mark.parametrize(
    "case",
    [
        {"vector": PAGE_FAULT, "flags": IF | RF},
        {**IN_KERNEL, "number": HYPERVISOR_iret, "frame": (1, 2, 3, 0, 0x4000, USER_CS, IF | RF, 0x5000, USER_SS)},
    ],
)
def test_rf_is_common_where_processors_set_it_at_faults(machine: Machine, case: dict[str, Any]) -> None:
    assert was_native(machine, **case) == (machine.engine.name == "kvm")


def test_hypercalls_are_pythons_while_they_are_traced(machine: Machine) -> None:
    case = {**IN_KERNEL, "number": HYPERVISOR_stack_switch}
    machine.state.traced = True
    assert not was_native(machine, **case)
    machine.state.traced = False
    assert was_native(machine, **case)


def test_code_on_the_stack_is_pythons(machine: Machine) -> None:
    machine.frames.flags[machine.stack] |= FLAG_EXECUTABLE
    assert not was_native(machine)
    machine.frames.flags[machine.stack] &= ~FLAG_EXECUTABLE & 0xFF
