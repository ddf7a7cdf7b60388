"""Page tables that change natively change as in Python, with every count; what is refused is left to Python."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.hypervisor.native_support import EXITS, Machine
from tests.unit.hypervisor.support import GLOBAL, NX, RW, USER, A, D, P
from xenolith.abi.hypercalls import (
    HYPERVISOR_mmu_update,
    HYPERVISOR_mmuext_op,
    HYPERVISOR_multicall,
    HYPERVISOR_set_segment_base,
    HYPERVISOR_stack_switch,
    HYPERVISOR_update_va_mapping,
    HYPERVISOR_xen_version,
)
from xenolith.abi.types import DOMID_SELF
from xenolith.cpu.registers import CS, IF, R10, R12, RAX, RCX, RDI, RDX, RIP, RSI, RSP, SS
from xenolith.cpu.segments import segment_of
from xenolith.hypervisor.descriptors import FLAT_CODE64, FLAT_DATA, XEN_CS64, XEN_SS
from xenolith.hypervisor.native_exits import COMPILED
from xenolith.hypervisor.shared_state import Gate

pytestmark = pytest.mark.skipif(COMPILED.missing() is not None, reason=f"no native helper: {COMPILED.missing()}")

PAGE_FAULT = 14
PAT, CACHE_OFF, GUEST_KERNEL, AVAILABLE = 0x80, 0x10, 1 << 52, 0x200
INVLPG, FLUSH, NEW_BASE, NEW_USER_BASE, PIN = 7, 6, 5, 15, 0
LIST, INFO, STACK, CODE = 3, 4, 2, 0
SLOTS = 20
OTHERS = (HYPERVISOR_xen_version, HYPERVISOR_multicall, 60)


@pytest.fixture(scope="module", params=EXITS)
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(request.param)


def frame_number(machine: Machine, which: int) -> int:
    """Data, spare, table, foreign, free and impossible frames."""
    subject = machine.subject
    own = [*subject.data, *machine.spare, *subject.tables, *machine.roots]
    return [*own, machine.dummy_vcpu_info_maddr >> 12, machine.frames.total - 1, machine.frames.total, 1 << 39][which]


FRAME = st.one_of(st.integers(0, 8), st.integers(0, 19))
FLAGS = st.builds(
    lambda usual, rare, nx: sum(usual) | rare | nx,
    st.sets(st.sampled_from([P, P, P, RW, USER, A, D, GLOBAL, AVAILABLE, GUEST_KERNEL])),
    st.sampled_from([0] * 8 + [PAT, CACHE_OFF, 1 << 60]),
    st.sampled_from([NX, NX, NX, 0]),
)
ENTRY = st.tuples(FRAME, FLAGS)
SLOT = st.integers(0, SLOTS)
REQUEST = st.tuples(
    st.sampled_from(["l1"] * 6 + ["data", "info", "l2", "foreign"]),
    SLOT,
    st.sampled_from([0] * 8 + [2, 2, 1, 3]),
    ENTRY,
)


def entry_of(machine: Machine, entry: tuple[int, int]) -> int:
    which, flags = entry
    return frame_number(machine, which) << 12 | flags


def begin(machine: Machine, before: list[tuple[int, tuple[int, int]]], flushed: bool) -> None:
    """A kernel that is about to make a hypercall, with other entries in its L1 table already."""
    subject = machine.subject
    vcpu, cpu = subject.vcpu, subject.vcpu.cpu
    machine.state.current = ctypes.addressof(vcpu)
    vcpu.kernel_mode, vcpu.info_maddr, vcpu.kernel_sp = True, subject.maddr(INFO), subject.va(STACK, 0x800)
    subject.domain.vm_assist = 1 << 2
    machine.ram.bytes[vcpu.info_maddr + 1] = 1
    for segment, selector, descriptor in ((CS, XEN_CS64, FLAT_CODE64), (SS, XEN_SS, FLAT_DATA)):
        about = segment_of(descriptor)
        cpu.load_segment(segment, selector, about.base, about.limit, about.attributes)
    cpu.flags, cpu.regs[RIP], cpu.regs[RSP] = IF, subject.va(CODE, 0x100), subject.va(STACK, 0x800)
    vcpu.traps[PAGE_FAULT] = Gate(0x1234_5678, XEN_CS64, 0, False)
    machine.exits.prepare(breaks=0x400)
    for slot, entry in before:
        value = entry_of(machine, entry)
        subject.call(HYPERVISOR_update_va_mapping, subject.va(SLOTS + slot), value, 0)
    if flushed:
        machine.frames.flushed()


def place(machine: Machine, where: str, slot: int) -> int:
    subject = machine.subject
    if where == "l1":
        return subject.l1 << 12 | (SLOTS + 1 + slot) * 8
    if where == "foreign":
        return machine.dummy_vcpu_info_maddr + slot * 8
    return {"data": subject.maddr(1), "info": subject.maddr(INFO), "l2": subject.l2 << 12}[where] + slot * 8


def call(machine: Machine, number: int, *arguments: int) -> None:
    regs = machine.subject.vcpu.cpu.regs
    for register, value in zip((RAX, RDI, RSI, RDX, R10), (number, *arguments), strict=False):
        regs[register] = value


BEFORE = st.lists(st.tuples(SLOT, ENTRY), max_size=12)
CALL = st.one_of(
    st.tuples(
        st.just(HYPERVISOR_mmu_update), st.lists(REQUEST, min_size=1, max_size=4), st.sampled_from([0] * 9 + [1])
    ),
    st.tuples(st.just(HYPERVISOR_update_va_mapping), SLOT, ENTRY, st.integers(0, 3)),
    st.tuples(
        st.just(HYPERVISOR_mmuext_op),
        st.lists(
            st.tuples(
                st.sampled_from([INVLPG, FLUSH, NEW_BASE, NEW_BASE, NEW_USER_BASE, NEW_USER_BASE, PIN]),
                st.one_of(st.integers(9, 15), st.integers(0, 19)),
            ),
            min_size=1,
            max_size=3,
        ),
        st.sampled_from([DOMID_SELF] * 9 + [5]),
    ),
)


LISTED = st.one_of(
    CALL,
    st.tuples(st.just(HYPERVISOR_stack_switch), st.integers(0, 0xFFFF), st.integers(0, 1 << 40)),
    st.tuples(st.just(HYPERVISOR_set_segment_base), st.integers(0, 4), st.sampled_from([0, 0x1000, 1 << 47])),
    st.tuples(st.sampled_from(OTHERS), st.just(0), st.just(0)),
)


@settings(max_examples=500, deadline=None)
@given(
    before=BEFORE,
    calls=st.lists(LISTED, max_size=5),
    flushed=st.booleans(),
    place=st.sampled_from([("data", 5)] * 12 + [("spare", 0), ("tables", 0)]),
    offset=st.sampled_from([0] * 8 + [4, 4096 - 128]),
)
def test_multicalls_do_the_same(
    machine: Machine,
    before: list[tuple[int, tuple[int, int]]],
    calls: list[tuple[Any, ...]],
    flushed: bool,
    place: tuple[str, int],
    offset: int,
) -> None:
    start = machine.save()
    subject, regs = machine.subject, machine.subject.vcpu.cpu.regs
    try:
        begin(machine, before, flushed)
        words: list[int] = []
        for index, what in enumerate(calls):
            prepare_call(machine, what, index * 0x100)
            words += [what[0], 0x5555, *(regs[register] for register in (RDI, RSI, RDX, R10)), 0, 0]
        address = {"data": subject.va(5, offset), "spare": subject.va(SLOTS), "tables": subject.table_va(subject.l1)}[
            place[0]
        ]
        if place[0] == "data":
            subject.put(address, words[: (4096 - offset) // 8])
        call(machine, HYPERVISOR_multicall, address, len(calls), 0, 0)
        natively, in_python = machine.both(None, notes_calls=False)
    finally:
        machine.restore(start)
    assert natively == in_python


def prepare_call(machine: Machine, what: tuple[Any, ...], offset: int = 0) -> None:
    """Put the lists that a call has into memory, and its arguments into registers."""
    subject = machine.subject
    if what[0] in (HYPERVISOR_stack_switch, HYPERVISOR_set_segment_base, *OTHERS):
        call(machine, what[0], what[1], what[2], 0, 0)
    elif what[0] == HYPERVISOR_mmu_update:
        words = []
        for where, slot, kind, entry in what[1]:
            words += [place(machine, where, slot) | kind, entry_of(machine, entry)]
        subject.put(subject.va(LIST, offset), words)
        done = subject.va(LIST, 0x800) if what[2] else 0
        call(machine, what[0], subject.va(LIST, offset), len(what[1]), done, DOMID_SELF)
    elif what[0] == HYPERVISOR_update_va_mapping:
        call(machine, what[0], subject.va(SLOTS + what[1]), entry_of(machine, what[2]), what[3])
    else:
        words = []
        for command, which in what[1]:
            words += [command, frame_number(machine, which) if command != INVLPG else subject.va(which), 0]
        subject.put(subject.va(LIST, offset), words)
        call(machine, what[0], subject.va(LIST, offset), len(what[1]), 0, what[2])


@settings(max_examples=500, deadline=None)
@given(before=BEFORE, what=CALL, flushed=st.booleans())
def test_hypercalls_do_the_same(
    machine: Machine, before: list[tuple[int, tuple[int, int]]], what: tuple[Any, ...], flushed: bool
) -> None:
    start = machine.save()
    try:
        begin(machine, before, flushed)
        prepare_call(machine, what)
        natively, in_python = machine.both(None)
    finally:
        machine.restore(start)
    assert natively == in_python


INSTRUCTIONS = (
    "48870a", "f048870a", "4c870b", "4d8724240f", "48894d08", "48890d00000000", "4889842400010000", "f041802424fd",
    "80220f", "800801", "80300f", "8702", "48c70200000000", "48ab", "f04889 0a", "8808", "4887c8",
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(
    before=BEFORE,
    code=st.sampled_from(INSTRUCTIONS),
    slot=SLOT,
    unaligned=st.sampled_from([0, 0, 0, 3, 7]),
    value=ENTRY,
    pending=st.sampled_from([0, 0, 0, 1]),
    assist=st.sampled_from([1 << 2] * 5 + [0]),
    flushed=st.booleans(),
)
def test_writes_to_tables_do_the_same(
    machine: Machine,
    before: list[tuple[int, tuple[int, int]]],
    code: str,
    slot: int,
    unaligned: int,
    value: tuple[int, int],
    pending: int,
    assist: int,
    flushed: bool,
) -> None:
    start = machine.save()
    try:
        begin(machine, before, flushed)
        subject = machine.subject
        machine.ram.bytes[subject.maddr(INFO)], machine.ram.bytes[subject.maddr(INFO) + 1] = pending, 0
        subject.domain.vm_assist = assist
        subject.put(subject.vcpu.cpu.regs[RIP], bytes.fromhex(code))
        for register in (RAX, RCX, R12):
            subject.vcpu.cpu.regs[register] = entry_of(machine, value)
        fault(machine, slot, unaligned)
        natively, in_python = machine.both(PAGE_FAULT)
    finally:
        machine.restore(start)
    assert natively == in_python


def fault(machine: Machine, slot: int, unaligned: int = 0) -> None:
    address = machine.subject.table_va(machine.subject.l1, SLOTS + 1 + slot) + unaligned
    machine.exits.prepare(0x400, 7, address)


# -- what is native ----------------------------------------------------------------------------------------------------

SPARE, OTHER_SPARE, ROOT, OTHER_ROOT = 6, 7, 14, 15


@pytest.mark.parametrize(
    "what",
    [
        (HYPERVISOR_mmu_update, [("l1", 3, 0, (SPARE, P | RW | NX))], 0),
        (HYPERVISOR_mmu_update, [("l1", 3, 2, (SPARE, P | NX)), ("l1", 4, 0, (OTHER_SPARE, P | RW | NX))], 0),
        (HYPERVISOR_mmu_update, [("data", 3, 0, (SPARE, P | RW | NX))], 0),
        (HYPERVISOR_update_va_mapping, 3, (SPARE, P | RW | NX), 2),
        (HYPERVISOR_mmuext_op, [(INVLPG, 3), (FLUSH, 0)], DOMID_SELF),
        (HYPERVISOR_mmuext_op, [(NEW_BASE, ROOT), (NEW_USER_BASE, OTHER_ROOT)], DOMID_SELF),
    ],
)
def test_what_is_common_never_gets_to_python(machine: Machine, what: tuple[Any, ...]) -> None:
    assert not asked(machine, what)


@pytest.mark.parametrize(
    "what",
    [
        (HYPERVISOR_mmu_update, [("l2", 3, 0, (SPARE, P | RW | NX))], 0),
        (HYPERVISOR_mmu_update, [("info", 3, 0, (SPARE, P))], 0),
        (HYPERVISOR_mmu_update, [("l1", 3, 0, (SPARE, P | RW | NX))] * 2, 0),
        (HYPERVISOR_mmu_update, [("l1", 3, 0, (9, P | RW | NX))], 0),
        (HYPERVISOR_mmuext_op, [(PIN, SPARE)], DOMID_SELF),
    ],
)
def test_what_is_uncommon_does(machine: Machine, what: tuple[Any, ...]) -> None:
    assert asked(machine, what)


def asked(machine: Machine, what: tuple[Any, ...]) -> bool:
    start = machine.save()
    begin(machine, [], True)
    machine.frames.flags[machine.subject.data[1]] &= 0xFB  # no code
    prepare_call(machine, what)
    is_pythons = machine.is_pythons(None)
    machine.restore(start)
    return is_pythons


@pytest.mark.parametrize("code", ["48870a", "4889480f", "f041802424fd"])
def test_a_common_write_never_gets_to_python(machine: Machine, code: str) -> None:
    start = machine.save()
    begin(machine, [(3, (SPARE, P | RW | NX))], True)
    machine.subject.put(machine.subject.vcpu.cpu.regs[RIP], bytes.fromhex(code))
    machine.subject.vcpu.cpu.regs[RCX] = entry_of(machine, (SPARE, P | NX))
    fault(machine, 3)
    is_pythons = machine.is_pythons(PAGE_FAULT)
    ended = machine.subject.vcpu.cpu.regs[RIP]
    machine.restore(start)
    assert not is_pythons
    assert ended == machine.subject.va(CODE, 0x100 + len(code) // 2)


@pytest.mark.parametrize(
    ("last", "is_pythons"), [(HYPERVISOR_update_va_mapping, False), (HYPERVISOR_xen_version, True)]
)
def test_a_multicall_is_native_as_far_as_its_calls_are(machine: Machine, last: int, is_pythons: bool) -> None:
    start, subject, regs = machine.save(), machine.subject, machine.subject.vcpu.cpu.regs
    begin(machine, [], True)
    frames = (machine.spare[0], machine.spare[1])
    words: list[int] = []
    for slot, number in enumerate((HYPERVISOR_update_va_mapping, last)):
        words += [number, 0x5555, subject.va(SLOTS + slot), frames[slot] << 12 | P | RW | NX, 0, 0, 0, 0]
    subject.put(subject.va(STACK), words)
    call(machine, HYPERVISOR_multicall, subject.va(STACK), 2)
    asked = machine.is_pythons(None)
    left = (regs[RAX], regs[RDI], regs[RSI], subject.word(subject.va(STACK, 8)), machine.frames.count[frames[0]])
    machine.restore(start)
    assert left == (0, subject.va(STACK), 2, 0, 2)
    assert asked == is_pythons
    assert machine.state.processor.rest.count == 0, "the next exit has nothing to do with this one"
