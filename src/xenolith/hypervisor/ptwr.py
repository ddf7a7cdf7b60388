"""Writes of a guest kernel to its L1 tables, which it has mapped read-only: trapped, checked, and carried out.

The guest believes that it writes to memory. The instruction is decoded and its result computed; the new entry is then
validated like one given by mmu_update. What is not understood or not allowed stays the guest's page fault.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final

from xenolith.abi.errno import XenError
from xenolith.cpu.registers import AF, CF, FLAGS_ARITHMETIC, OF, PF, RAX, RBX, RCX, RDX, RIP, SF, ZF
from xenolith.hypervisor.frames import TYPE_L1
from xenolith.hypervisor.pagetables import PageTables, refers_anew

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

_ADDRESS: Final = 0x000F_FFFF_FFFF_F000


def emulate_write(hv: Hypervisor, vcpu: Vcpu, address: int) -> bool:
    """Carry out the write to `address` that just faulted, if it is one to an L1 table of this domain.

    Returns False, having changed nothing, where it is not, or the instruction or the new entry is not acceptable.
    """
    l1e_maddr = hv.memory.l1e_maddr(vcpu.kernel_root, address)
    if not l1e_maddr:
        return False
    mapping = hv.ram.words[l1e_maddr >> 3]
    mfn = (mapping & _ADDRESS) >> 12
    frames = hv.frames
    if (
        mapping & 3 != 1
        or mfn >= frames.total
        or frames.owner[mfn] != vcpu.domain.domid
        or frames.type[mfn] != TYPE_L1
        or not frames.type_count[mfn]
    ):
        return False
    step = _decode(hv.memory.fetch(vcpu, vcpu.cpu.regs[RIP]))
    if step is None or address & (step.size - 1):
        return False
    maddr = mfn << 12 | (address & 0xFF8)
    old = hv.ram.words[maddr >> 3]
    shift = (address & 7) * 8
    mask = (1 << step.size * 8) - 1
    if step.size == 16:
        return _compare_exchange_pair(hv, vcpu, step, maddr)
    outcome = step.compute(vcpu, old >> shift & mask)
    if outcome is None:
        return False
    value, finish = outcome
    new = (old & ~(mask << shift)) | (value & mask) << shift
    if new != old:
        try:
            hv.pagetables.update_l1(maddr, new, vcpu.domain, vcpu.domain.domid)
        except XenError as error:
            hv.note_refusal(vcpu, -1, error)
            return False
    finish()
    regs = vcpu.cpu.regs
    regs[RIP] += step.length
    return True


Outcome = tuple[int, Callable[[], None]]


class _Step:
    """One decoded instruction with a memory destination of `size` bytes."""

    def __init__(self, length: int, size: int, compute: Callable[[Vcpu, int], Outcome | None], name: str) -> None:
        self.length = length
        self.size = size
        self.compute = compute
        self.name = name


@cache
def _tables() -> tuple[Any, dict[int, int], dict[int, str]]:
    """iced-x86, its register numbers mapped to ours, and the mnemonics that are understood. Imported at first use."""
    import iced_x86

    register = iced_x86.Register
    order = ("AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI")
    numbers: dict[int, int] = {}
    for index, name in enumerate(order):
        for prefix in ("R", "E", ""):
            numbers[getattr(register, prefix + name)] = index
    for index, name in enumerate(("AL", "CL", "DL", "BL", "SPL", "BPL", "SIL", "DIL")):
        numbers[getattr(register, name)] = index
    for index in range(8, 16):
        for suffix in ("", "D", "W", "L"):
            numbers[getattr(register, f"R{index}{suffix}")] = index
    names = {getattr(iced_x86.Mnemonic, name): name for name in (*_COMPUTE, "STOSQ", "STOSD")}
    return iced_x86, numbers, names


@lru_cache(maxsize=512)
def _decode(code: bytes) -> _Step | None:
    iced, numbers, names = _tables()
    instruction = iced.Decoder(64, code).decode()
    name = names.get(instruction.mnemonic)
    if name is None:
        return None
    if name in ("STOSQ", "STOSD"):
        return None if instruction.has_rep_prefix or instruction.has_repne_prefix else _store_string(instruction, name)
    if instruction.op0_kind != iced.OpKind.MEMORY:
        return None
    size = iced.MemorySizeExt.size(instruction.memory_size)
    source = _source(iced, numbers, instruction, size)
    if size not in (1, 2, 4, 8, 16) or source is None:
        return None
    return _Step(instruction.len, size, _COMPUTE[name](source, size, name), name)


def _source(iced: Any, numbers: dict[int, int], instruction: Any, size: int) -> _Source | None:
    if instruction.op_count < 2:
        return _Source(None, 1, size)
    kind = instruction.op1_kind
    if kind == iced.OpKind.REGISTER:
        index = numbers.get(instruction.op1_register)
        return None if index is None else _Source(index, 0, size)
    try:
        return _Source(None, instruction.immediate(1), size)
    except ValueError:
        return None


class _Source:
    """The second operand: a register number or a constant."""

    def __init__(self, register: int | None, constant: int, size: int) -> None:
        self.register = register
        self.constant = constant
        self.size = size

    def read(self, vcpu: Vcpu) -> int:
        value: int = self.constant if self.register is None else vcpu.cpu.regs[self.register]
        return value & ((1 << self.size * 8) - 1)


def _put_register(vcpu: Vcpu, register: int, size: int, value: int) -> None:
    """A register write of `size` bytes: 4-byte writes clear the upper half, smaller ones keep the rest."""
    regs = vcpu.cpu.regs
    if size >= 4:
        regs[register] = value
    else:
        mask = (1 << size * 8) - 1
        regs[register] = (regs[register] & ~mask) | value


def _nothing() -> None:
    pass


def _move(source: _Source, size: int, name: str) -> Callable[[Vcpu, int], Outcome | None]:
    return lambda vcpu, old: (source.read(vcpu), _nothing)


def _exchange(source: _Source, size: int, name: str) -> Callable[[Vcpu, int], Outcome | None]:
    def compute(vcpu: Vcpu, old: int) -> Outcome | None:
        register = source.register
        return None if register is None else (source.read(vcpu), lambda: _put_register(vcpu, register, size, old))

    return compute


def _compare_exchange(source: _Source, size: int, name: str) -> Callable[[Vcpu, int], Outcome | None]:
    def compute(vcpu: Vcpu, old: int) -> Outcome | None:
        mask = (1 << size * 8) - 1
        expected = vcpu.cpu.regs[RAX] & mask
        flags = _subtract_flags(expected, old, size)

        def finish() -> None:
            _set_flags(vcpu, flags)
            if expected != old:
                _put_register(vcpu, RAX, size, old)

        return (source.read(vcpu) if expected == old else old, finish)

    return compute


def _compare_exchange_8b(source: _Source, size: int, name: str) -> Callable[[Vcpu, int], Outcome | None]:
    def compute(vcpu: Vcpu, old: int) -> Outcome | None:
        regs = vcpu.cpu.regs
        equal = (regs[RDX] & 0xFFFFFFFF) << 32 | (regs[RAX] & 0xFFFFFFFF) == old

        def finish() -> None:
            vcpu.cpu.flags = (vcpu.cpu.flags & ~ZF) | (ZF if equal else 0)
            if not equal:
                regs[RAX], regs[RDX] = old & 0xFFFFFFFF, old >> 32

        return ((regs[RCX] & 0xFFFFFFFF) << 32 | (regs[RBX] & 0xFFFFFFFF) if equal else old, finish)

    return compute


def _compare_exchange_pair(hv: Hypervisor, vcpu: Vcpu, step: _Step, maddr: int) -> bool:
    """CMPXCHG16B over two entries: both are replaced, or neither."""
    if step.name != "CMPXCHG16B":
        return False
    words, regs = hv.ram.words, vcpu.cpu.regs
    low, high = words[maddr >> 3], words[(maddr >> 3) + 1]
    equal = (low, high) == (regs[RAX], regs[RDX])
    if equal:
        try:
            _update_pair(hv.pagetables, vcpu.domain, maddr, regs[RBX], regs[RCX], high)
        except XenError as error:
            hv.note_refusal(vcpu, -1, error)
            return False
    else:
        regs[RAX], regs[RDX] = low, high
    vcpu.cpu.flags = (vcpu.cpu.flags & ~ZF) | (ZF if equal else 0)
    regs[RIP] += step.length
    return True


def _update_pair(tables: PageTables, domain: Domain, maddr: int, low: int, high: int, old_high: int) -> None:
    held = refers_anew(old_high, high)
    if held:
        tables.get_l1e(high, domain, domain.domid)  # the second cannot be refused after the first is in place
    try:
        tables.update_l1(maddr, low, domain, domain.domid)
        tables.update_l1(maddr + 8, high, domain, domain.domid)
    finally:
        if held:
            tables.put_l1e(high)


def _logic(source: _Source, size: int, name: str) -> Callable[[Vcpu, int], Outcome | None]:
    def compute(vcpu: Vcpu, old: int) -> Outcome | None:
        operand = source.read(vcpu)
        value = old & operand if name == "AND" else old | operand if name == "OR" else old ^ operand
        return (value, lambda: _set_flags(vcpu, _result_flags(value, size)))

    return compute


def _arithmetic(source: _Source, size: int, name: str) -> Callable[[Vcpu, int], Outcome | None]:
    def compute(vcpu: Vcpu, old: int) -> Outcome | None:
        mask = (1 << size * 8) - 1
        operand = source.read(vcpu)
        if name in ("SUB", "DEC"):
            value, flags = (old - operand) & mask, _subtract_flags(old, operand, size)
        elif name == "NEG":
            value, flags = -old & mask, _subtract_flags(0, old, size)
        else:
            value, flags = (old + operand) & mask, _add_flags(old, operand, size)
        register = source.register

        def finish() -> None:
            if name in ("INC", "DEC"):
                _set_flags(vcpu, (flags & ~CF) | (vcpu.cpu.flags & CF))
            else:
                _set_flags(vcpu, flags)
            if name == "XADD" and register is not None:
                _put_register(vcpu, register, size, old)

        return (value, finish)

    return compute


def _invert(source: _Source, size: int, name: str) -> Callable[[Vcpu, int], Outcome | None]:
    return lambda vcpu, old: (~old, _nothing)


def _bit(source: _Source, size: int, name: str) -> Callable[[Vcpu, int], Outcome | None]:
    def compute(vcpu: Vcpu, old: int) -> Outcome | None:
        # The address that faulted is already the word that holds the bit.
        bit = 1 << source.read(vcpu) % (size * 8)
        value = old | bit if name == "BTS" else old & ~bit if name == "BTR" else old ^ bit

        def finish() -> None:
            vcpu.cpu.flags = (vcpu.cpu.flags & ~CF) | (CF if old & bit else 0)

        return (value, finish)

    return compute


def _store_string(instruction: Any, name: str) -> _Step:
    size = 8 if name == "STOSQ" else 4

    def compute(vcpu: Vcpu, old: int) -> Outcome | None:
        regs = vcpu.cpu.regs

        def finish() -> None:
            step = -size if vcpu.cpu.flags & 0x400 else size
            regs[7] = (regs[7] + step) & 0xFFFF_FFFF_FFFF_FFFF

        return (regs[RAX], finish)

    return _Step(instruction.len, size, compute, name)


_COMPUTE: Final[dict[str, Callable[[_Source, int, str], Callable[[Vcpu, int], Outcome | None]]]] = {
    "MOV": _move, "MOVNTI": _move, "XCHG": _exchange, "CMPXCHG": _compare_exchange, "CMPXCHG8B": _compare_exchange_8b,
    "CMPXCHG16B": _move, "AND": _logic, "OR": _logic, "XOR": _logic, "ADD": _arithmetic, "SUB": _arithmetic,
    "INC": _arithmetic, "DEC": _arithmetic, "NEG": _arithmetic, "XADD": _arithmetic, "NOT": _invert,
    "BTS": _bit, "BTR": _bit, "BTC": _bit,
}  # fmt: skip


def _set_flags(vcpu: Vcpu, flags: int) -> None:
    vcpu.cpu.flags = (vcpu.cpu.flags & ~FLAGS_ARITHMETIC) | flags


def _result_flags(value: int, size: int) -> int:
    flags = 0 if value else ZF
    if value >> (size * 8 - 1) & 1:
        flags |= SF
    return flags | (0 if (value & 0xFF).bit_count() & 1 else PF)


def _add_flags(a: int, b: int, size: int) -> int:
    top = size * 8
    value = (a + b) & ((1 << top) - 1)
    carry = CF if (a + b) >> top else 0
    overflow = OF if (~(a ^ b) & (a ^ value)) >> (top - 1) & 1 else 0
    return _result_flags(value, size) | carry | overflow | ((a ^ b ^ value) & AF)


def _subtract_flags(a: int, b: int, size: int) -> int:
    top = size * 8
    value = (a - b) & ((1 << top) - 1)
    borrow = CF if a < b else 0
    overflow = OF if ((a ^ b) & (a ^ value)) >> (top - 1) & 1 else 0
    return _result_flags(value, size) | borrow | overflow | ((a ^ b ^ value) & AF)
