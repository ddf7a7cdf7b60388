"""Writes to read-only page tables: the instruction does what a processor does, the entry is checked like any other."""

from __future__ import annotations

from typing import Any

import pytest
import unicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from iced_x86 import Code, Encoder, Instruction, MemoryOperand, Register
from unicorn import x86_const

from tests.unit.hypervisor.support import CODE, KERNEL_BASE, NX, RW, USER, A, Bench, D, Guest, P, snapshot
from xenolith.cpu.registers import (
    CF,
    FLAGS_ARITHMETIC,
    RAX,
    RBX,
    RCX,
    RDI,
    RDX,
    REGISTER_WORDS,
    RIP,
    RSI,
    ZF,
)
from xenolith.hypervisor import ptwr
from xenolith.hypervisor.pagetables import GUEST_KERNEL

SLOT = 100
WORDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0x7FFF_FFFF, 0x8000_0000, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
words = st.one_of(st.sampled_from(WORDS), st.integers(0, (1 << 64) - 1))

MEMORY = MemoryOperand(Register.RDI)
REGISTERS = {8: Register.SIL, 16: Register.SI, 32: Register.ESI, 64: Register.RSI}
SECOND = {8: Register.R9L, 16: Register.R9W, 32: Register.R9D, 64: Register.R9}


def encode(instruction: Instruction, lock: bool = False) -> bytes:
    instruction.has_lock_prefix = lock
    encoder = Encoder(64)
    encoder.encode(instruction, KERNEL_BASE + CODE)
    return bytes(encoder.take_buffer())


def forms() -> dict[str, bytes]:
    """Every form of every instruction that is understood, by name."""
    found = {}
    for size, register in REGISTERS.items():
        for name in ("MOV", "XCHG", "CMPXCHG", "AND", "OR", "XOR", "ADD", "SUB", "XADD", "BTS", "BTR", "BTC"):
            code = getattr(Code, f"{name}_RM{size}_R{size}", None)
            for which in (register, SECOND[size]) if code is not None else ():
                for lock in (False, True) if name != "MOV" else (False,):
                    instruction = Instruction.create_mem_reg(code, MEMORY, which)
                    found[f"{'lock ' * lock}{name} {size} {which}"] = encode(instruction, lock)
        for name in ("INC", "DEC", "NOT", "NEG"):
            code = getattr(Code, f"{name}_RM{size}")
            # The flags of a locked NEG are wrong in this engine.
            found[f"{name} {size}"] = encode(Instruction.create_mem(code, MEMORY), lock=name != "NEG")
        for name in ("MOV", "AND", "OR", "XOR", "ADD", "SUB"):
            code = getattr(Code, f"{name}_RM{size}_IMM{min(size, 32)}")
            for constant in (1, 0x7E, -2):
                if size >= 32 or constant >= 0:
                    instruction = Instruction.create_mem_i32(code, MEMORY, constant)
                    found[f"{name} {size} {constant}"] = encode(instruction)
        for name in ("AND", "OR", "XOR", "ADD", "SUB", "BTS", "BTR", "BTC"):
            code = getattr(Code, f"{name}_RM{size}_IMM8", None)
            if code is not None and size > 8:
                for constant in (0, 5, 63) if name.startswith("BT") else (5, -3):
                    instruction = Instruction.create_mem_i32(code, MEMORY, constant)
                    found[f"{name} {size} byte {constant}"] = encode(instruction, lock=True)
    for code in (Code.MOVNTI_M32_R32, Code.MOVNTI_M64_R64):
        found[f"MOVNTI {code}"] = encode(
            Instruction.create_mem_reg(code, MEMORY, REGISTERS[64 if code == Code.MOVNTI_M64_R64 else 32])
        )
    found["CMPXCHG8B"] = encode(Instruction.create_mem(Code.CMPXCHG8B_M64, MEMORY), lock=True)
    found["CMPXCHG16B"] = encode(Instruction.create_mem(Code.CMPXCHG16B_M128, MEMORY), lock=True)
    found["STOSQ"], found["STOSD"] = bytes.fromhex("48ab"), bytes.fromhex("ab")
    return found


FORMS = forms()
UNICORN_REGISTERS = [
    x86_const.UC_X86_REG_RAX, x86_const.UC_X86_REG_RCX, x86_const.UC_X86_REG_RDX, x86_const.UC_X86_REG_RBX,
    x86_const.UC_X86_REG_RSP, x86_const.UC_X86_REG_RBP, x86_const.UC_X86_REG_RSI, x86_const.UC_X86_REG_RDI,
    x86_const.UC_X86_REG_R8, x86_const.UC_X86_REG_R9, x86_const.UC_X86_REG_R10, x86_const.UC_X86_REG_R11,
    x86_const.UC_X86_REG_R12, x86_const.UC_X86_REG_R13, x86_const.UC_X86_REG_R14, x86_const.UC_X86_REG_R15,
    x86_const.UC_X86_REG_RIP,
]  # fmt: skip


class Processor:
    """What a processor does with an instruction at address 0x1000 and the words at 0x2000."""

    def __init__(self) -> None:
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.uc.mem_map(0x1000, 0x2000)

    def run(self, code: bytes, registers: list[int], flags: int, memory: bytes) -> tuple[list[int], int, bytes]:
        self.uc.mem_write(0x1000, code)
        self.uc.mem_write(0x2000, memory)
        self.uc.ctl_remove_cache(0x1000, 0x1100)
        for which, value in zip(UNICORN_REGISTERS, registers, strict=True):
            self.uc.reg_write(which, value)
        self.uc.reg_write(x86_const.UC_X86_REG_EFLAGS, flags)
        self.uc.emu_start(0x1000, 0x1000 + len(code), count=1)
        after = [self.uc.reg_read(which) for which in UNICORN_REGISTERS]
        return after, self.uc.reg_read(x86_const.UC_X86_REG_EFLAGS), bytes(self.uc.mem_read(0x2000, len(memory)))


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor()


@pytest.fixture(scope="module")
def unchecked() -> Guest:
    """A guest whose entries are stored as they are, to see what the instruction alone does."""
    guest = Bench().guest()

    def store(maddr: int, new: int, *rest: Any) -> None:
        guest.hv.ram.words[maddr >> 3] = new

    guest.hv.pagetables.update_l1 = store  # type: ignore[method-assign]
    guest.hv.pagetables.get_l1e = guest.hv.pagetables.put_l1e = lambda *rest: None  # type: ignore[method-assign]
    return guest


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_an_instruction_does_what_a_processor_does(data: st.DataObject, processor: Processor, unchecked: Guest) -> None:
    guest = unchecked
    name = data.draw(st.sampled_from(sorted(FORMS)))
    memory = [data.draw(words), data.draw(words)]
    registers = [data.draw(words) for _ in range(REGISTER_WORDS)]
    if data.draw(st.booleans()):
        registers[RAX], registers[RDX] = memory[0], memory[1] if name == "CMPXCHG16B" else memory[0] >> 32
    flags = data.draw(st.integers(0, FLAGS_ARITHMETIC)) & FLAGS_ARITHMETIC | data.draw(st.sampled_from((0x202, 0x602)))
    size = ptwr._decode(FORMS[name].ljust(15, b"\x90")).size  # type: ignore[union-attr]
    offset = data.draw(st.sampled_from(range(0, 8, size))) if size < 8 else 0
    if name.startswith(("BTS", "BTR", "BTC", "lock BT")):
        registers[RSI], registers[9] = registers[RSI] % (size * 8), registers[9] % (size * 8)
    registers[RDI], registers[RIP] = 0x2000 + offset, 0x1000
    expected, expected_flags, expected_memory = processor.run(
        FORMS[name], registers, flags, b"".join(word.to_bytes(8, "little") for word in memory)
    )

    guest.hv.table(guest.l1, {SLOT: memory[0], SLOT + 1: memory[1]})
    guest.execute(FORMS[name].ljust(15, b"\x90"), **{f"r{number}": value for number, value in enumerate(registers)})
    address = guest.table_va(guest.l1, SLOT) + offset
    guest.cpu.regs[RDI], guest.cpu.regs[RIP], guest.cpu.flags = address, KERNEL_BASE + CODE, flags
    assert ptwr.emulate_write(guest.hv, guest.vcpu, address)

    found = list(guest.cpu.regs)
    found[RIP] += 0x1000 - (KERNEL_BASE + CODE)
    found[RDI] += 0x2000 + offset - address
    assert bytes(guest.hv.ram.frame(guest.l1)[SLOT * 8 : SLOT * 8 + 16]) == expected_memory
    if "CMPXCHG 32" in name and expected_flags & ZF:
        expected[RAX] = registers[RAX]  # of which this emulator clears the upper half, though nothing is loaded
    assert found == expected
    defined = CF if "BT" in name else FLAGS_ARITHMETIC
    assert guest.cpu.flags & defined == expected_flags & defined


# -- whose write it is -------------------------------------------------------------------------------------------------


@pytest.fixture
def guest() -> Guest:
    return Bench().guest()


STORE = FORMS[f"MOV 64 {Register.RSI}"]


def state(guest: Guest) -> object:
    return (
        snapshot(guest.hv),
        [bytes(guest.hv.ram.frame(table)) for table in guest.tables],
        list(guest.cpu.regs),
        guest.cpu.flags,
    )


def refused(guest: Guest, code: bytes, address: int, **registers: int) -> None:
    """The write is left to the guest as its page fault, and nothing has changed."""
    guest.execute(code.ljust(15, b"\x90"), r7=address, **registers)
    before = state(guest)
    assert not ptwr.emulate_write(guest.hv, guest.vcpu, address)
    assert state(guest) == before


def test_a_new_entry_is_validated_and_stored_as_one_given_by_hypercall(guest: Guest) -> None:
    page, address = guest.data[3], guest.table_va(guest.l1, SLOT)
    uses = guest.hv.frames.count[page]
    guest.execute(STORE, r7=address, r6=page << 12 | P | RW | A | D | NX)
    assert ptwr.emulate_write(guest.hv, guest.vcpu, address)
    assert guest.hv.entry(guest.l1, SLOT) == page << 12 | P | RW | A | D | NX | USER | GUEST_KERNEL
    assert guest.hv.frames.count[page] == uses + 1
    assert guest.cpu.regs[RIP] == KERNEL_BASE + CODE + len(STORE)


def test_half_an_entry_is_a_write_of_the_whole(guest: Guest) -> None:
    page = guest.data[3]
    code = FORMS[f"MOV 32 {Register.ESI}"]
    for half, value in ((4, 0x8000_0000), (0, page << 12 | P)):
        address = guest.table_va(guest.l1, SLOT) + half
        guest.execute(code, r7=address, r6=value)
        assert ptwr.emulate_write(guest.hv, guest.vcpu, address)
    assert guest.hv.entry(guest.l1, SLOT) == page << 12 | P | USER | GUEST_KERNEL | NX
    refused(guest, code, guest.table_va(guest.l1, SLOT) + 4, r6=0xFFFF)


@pytest.mark.parametrize("entry", ["foreign", "hypervisor", "nowhere", "own table", "cache attribute"])
def test_an_entry_that_is_not_allowed_is_the_guests_fault(guest: Guest, entry: str) -> None:
    hv = guest.hv
    other = hv.domain(1)
    value = {
        "foreign": hv.frames.owned_by(other.domid)[-1] << 12 | P,
        "hypervisor": hv.xenspace.m2p_chunks()[0] << 12 | P,
        "nowhere": 0xFF_FFFF_F000 | P,
        "own table": guest.l2 << 12 | P | RW,
        "cache attribute": guest.data[0] << 12 | P | 0x10,
    }[entry]
    refused(guest, STORE, guest.table_va(guest.l1, SLOT), r6=value)
    assert any(kind == "error" for kind, _ in hv.events), "the rule that was broken is told"


def test_only_l1_tables_are_written_so(guest: Guest) -> None:
    for table in (guest.l2, guest.l3, guest.l4):
        refused(guest, STORE, guest.table_va(table, SLOT), r6=0)
    for address in (guest.va(0), KERNEL_BASE + (1 << 22), guest.va(40)):
        refused(guest, STORE, address, r6=0)


def test_a_table_that_is_no_table_any_more_is_read_only_data(guest: Guest) -> None:
    page = guest.data[5]
    guest.hv.pagetables.update_l1(guest.l1 << 12 | 6 << 3, page << 12 | P, guest.domain, guest.domain.domid)
    refused(guest, STORE, guest.va(5), r6=0)


def test_a_table_of_another_domain_is_not_written(guest: Guest) -> None:
    hv = guest.hv
    theirs = hv.guest()
    hv.pagetables.update_l1(guest.l1 << 12 | SLOT << 3, theirs.l1 << 12 | P, guest.domain, theirs.domain.domid)
    refused(guest, STORE, KERNEL_BASE + SLOT * 4096, r6=0)


@pytest.mark.parametrize("offset", [1, 2, 4, 7])
def test_a_write_across_two_entries_is_not_carried_out(guest: Guest, offset: int) -> None:
    refused(guest, STORE, guest.table_va(guest.l1, SLOT) + offset, r6=0)
    refused(guest, FORMS["CMPXCHG16B"], guest.table_va(guest.l1, SLOT + 1))


UNKNOWN = {
    "movaps": "0f2907",
    "movdqu": "f30f7f07",
    "rep stos": "f348ab",
    "rep movs": "f348a5",
    "movs": "48a5",
    "pop": "8f07",
    "shl": "d127",
    "mov from ah": "8827",
    "add to a register": "4801f8",
    "ud2": "0f0b",
}


@pytest.mark.parametrize("code", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_understood_is_the_guests_fault(guest: Guest, code: str) -> None:
    refused(guest, bytes.fromhex(code), guest.table_va(guest.l1, SLOT))


def test_code_that_cannot_be_read_is_no_write(guest: Guest) -> None:
    guest.cpu.regs[RIP] = KERNEL_BASE + (1 << 22)
    assert not ptwr.emulate_write(guest.hv, guest.vcpu, guest.table_va(guest.l1, SLOT))


# -- two entries at once -----------------------------------------------------------------------------------------------

PAIR = 102


def exchange_pair(guest: Guest, low: int, high: int) -> bool:
    address = guest.table_va(guest.l1, PAIR)
    old = guest.hv.entry(guest.l1, PAIR), guest.hv.entry(guest.l1, PAIR + 1)
    guest.execute(FORMS["CMPXCHG16B"], **{f"r{RAX}": old[0], f"r{RDX}": old[1], f"r{RBX}": low, f"r{RCX}": high})
    guest.cpu.regs[RDI] = address
    return ptwr.emulate_write(guest.hv, guest.vcpu, address)


def test_a_pair_is_replaced_as_one(guest: Guest) -> None:
    first, second = guest.data[2:4]
    before = snapshot(guest.hv)
    assert exchange_pair(guest, first << 12 | P | RW, second << 12 | P)
    assert guest.hv.frames.count[first] == 3
    assert guest.hv.frames.count[second] == 3
    assert exchange_pair(guest, second << 12 | P, second << 12 | P | A)
    assert exchange_pair(guest, 0, 0)
    assert snapshot(guest.hv) == before


@pytest.mark.parametrize("bad_first", [True, False])
def test_a_pair_with_a_bad_half_is_refused_whole(guest: Guest, bad_first: bool) -> None:
    good, bad = guest.data[2] << 12 | P | RW, guest.l2 << 12 | P | RW
    before = snapshot(guest.hv)
    assert not exchange_pair(guest, *((bad, good) if bad_first else (good, bad)))
    assert snapshot(guest.hv) == before
    assert not guest.hv.entry(guest.l1, PAIR)
    assert not guest.hv.entry(guest.l1, PAIR + 1)


def test_a_pair_whose_old_frame_would_be_freed_is_refused_whole(guest: Guest) -> None:
    """The only reference to a frame that was given back is the entry that is replaced first."""
    hv = guest.hv
    last = hv.give(guest.domain, 1)[0]
    update = hv.pagetables.update_l1
    update(guest.l1 << 12 | PAIR << 3, last << 12 | P | RW, guest.domain, guest.domain.domid)
    hv.frames.release_allocation(last)
    before = snapshot(hv)
    assert not exchange_pair(guest, 0, guest.l2 << 12 | P | RW)
    assert snapshot(hv) == before
    assert exchange_pair(guest, 0, last << 12 | P | RW), "the frame moves to the other entry and lives on"
    assert hv.frames.count[last] == 1
    assert exchange_pair(guest, 0, 0)
    assert hv.frames.owner[last] == -1


def test_a_pair_that_replaces_a_frame_of_another_domain_and_is_refused(guest: Guest) -> None:
    hv = guest.hv
    other = hv.domain(1)
    theirs = hv.frames.owned_by(other.domid)[-1]
    hv.pagetables.update_l1(guest.l1 << 12 | PAIR << 3, theirs << 12 | P | RW, guest.domain, other.domid)
    before = snapshot(hv)
    assert not exchange_pair(guest, 0, guest.l2 << 12 | P | RW)
    assert snapshot(hv) == before
    assert hv.entry(guest.l1, PAIR) >> 12 & 0xFFFF == theirs
