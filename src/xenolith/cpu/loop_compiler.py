"""Makes host code of a small loop of guest code, for x86-64 hosts.

Guest and host have the same instructions, so the loop stays nearly as it is: registers keep their names, a load from a
place that is the same in each iteration reads the host's memory instead, and whatever else touches memory, RSP or
anything but general registers and flags leaves the loop. Around it there is a prologue that loads the guest's registers
and flags, a count of iterations at each place that is jumped back to, and for every way out a note of where the guest
goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from iced_x86 import (
    BlockEncoder,
    Code,
    FlowControl,
    Instruction,
    InstructionInfoFactory,
    MemoryOperand,
    MemorySizeExt,
    Mnemonic,
    OpAccess,
    Register,
    Register_,
    RegisterExt,
    RflagsBits,
)

from xenolith.cpu.registers import RCX, RSP

REGISTERS_AT: Final = 0
"""The first of sixteen registers in the loop's area, as a 64-bit word. The following ones are words as well."""
FLAGS_AT: Final = 16
BUDGET_AT: Final = 17
"""How often the loop may still pass a place that is jumped back to; it leaves there when this becomes 0."""
EXIT_AT: Final = 18
"""Which of the loop's exits it took."""
_COUNTED_AT: Final = 19
LOADS_AT: Final = 20
"""The host address of each load."""
CODE_AT: Final = 256
"""Bytes from the start of the area to the code."""
_MOST_LOADS: Final = CODE_AT // 8 - LOADS_AT
_MOST_INSTRUCTIONS: Final = 64

_PURE: Final = frozenset(
    (
        Mnemonic.MOV, Mnemonic.LEA, Mnemonic.ADD, Mnemonic.ADC, Mnemonic.SUB, Mnemonic.SBB, Mnemonic.INC, Mnemonic.DEC,
        Mnemonic.NEG, Mnemonic.NOT, Mnemonic.CMP, Mnemonic.TEST, Mnemonic.AND, Mnemonic.OR, Mnemonic.XOR,
        Mnemonic.MOVZX, Mnemonic.MOVSX, Mnemonic.MOVSXD, Mnemonic.BSWAP, Mnemonic.XCHG, Mnemonic.NOP, Mnemonic.JMP,
        Mnemonic.CBW, Mnemonic.CWDE, Mnemonic.CDQE, Mnemonic.CLC, Mnemonic.STC, Mnemonic.CMC, Mnemonic.ENDBR64,
        Mnemonic.JA, Mnemonic.JAE, Mnemonic.JB, Mnemonic.JBE, Mnemonic.JE, Mnemonic.JG, Mnemonic.JGE, Mnemonic.JL,
        Mnemonic.JLE, Mnemonic.JNE, Mnemonic.JNO, Mnemonic.JNP, Mnemonic.JNS, Mnemonic.JO, Mnemonic.JP, Mnemonic.JS,
        Mnemonic.CMOVA, Mnemonic.CMOVAE, Mnemonic.CMOVB, Mnemonic.CMOVBE, Mnemonic.CMOVE, Mnemonic.CMOVG,
        Mnemonic.CMOVGE, Mnemonic.CMOVL, Mnemonic.CMOVLE, Mnemonic.CMOVNE, Mnemonic.CMOVNO, Mnemonic.CMOVNP,
        Mnemonic.CMOVNS, Mnemonic.CMOVO, Mnemonic.CMOVP, Mnemonic.CMOVS,
        Mnemonic.SETA, Mnemonic.SETAE, Mnemonic.SETB, Mnemonic.SETBE, Mnemonic.SETE, Mnemonic.SETG, Mnemonic.SETGE,
        Mnemonic.SETL, Mnemonic.SETLE, Mnemonic.SETNE, Mnemonic.SETNO, Mnemonic.SETNP, Mnemonic.SETNS, Mnemonic.SETO,
        Mnemonic.SETP, Mnemonic.SETS,
    )
)  # fmt: skip
_MAY_BE_UNDEFINED: Final = RflagsBits.AF
"""Flags that an instruction may leave undefined: logic clears AF on every processor, and in the emulator as well."""
_GENERAL: Final = (
    Register.RAX, Register.RCX, Register.RDX, Register.RBX, Register.RSP, Register.RBP, Register.RSI, Register.RDI,
    Register.R8, Register.R9, Register.R10, Register.R11, Register.R12, Register.R13, Register.R14, Register.R15,
)  # fmt: skip
"""By their numbers."""
_WRITES: Final = frozenset((OpAccess.WRITE, OpAccess.READ_WRITE, OpAccess.COND_WRITE, OpAccess.READ_COND_WRITE))
_CALLEE_SAVED: Final = (Register.RBX, Register.RBP, Register.R12, Register.R13, Register.R14, Register.R15)
_JUMPS: Final = frozenset((FlowControl.UNCONDITIONAL_BRANCH, FlowControl.CONDITIONAL_BRANCH))
_LABELS: Final = 1 << 63
"""Where the names of places in the new code begin: not canonical, so no guest code is there."""

_info = InstructionInfoFactory()
Decode = Callable[[int], "Instruction | None"]


class Load(NamedTuple):
    """A load whose address is base + index * scale + displacement; the registers are 0 to 15, or None."""

    base_register: int | None
    index_register: int | None
    scale: int
    displacement: int
    size: int


class Loop(NamedTuple):
    """A compiled loop. `spans` are first address and length of the guest code that it stands for."""

    head: int
    spans: tuple[tuple[int, int], ...]
    loads: tuple[Load, ...]
    exits: tuple[int, ...]
    code: bytes


class _Step(NamedTuple):
    """One instruction of a loop and what it does to registers."""

    instruction: Instruction
    used: frozenset[int]
    written: frozenset[int]
    load: Load | None
    next: tuple[int, ...]


def compile_loop(head: int, decode: Decode, area: int) -> Loop | None:
    """Make code of the loop around `head`, for an area at host address `area`. None if there is none that would do.

    The loop's own head is where it jumps back to. `decode` gives the guest's instruction at an address, or None.
    """
    body = _find_body(head, decode)
    if not body:
        return None
    head = _jumped_back_to(head, body)
    try:
        return _Emitter(head, body, area).loop()
    except ValueError:  # what the encoder cannot express, such as AH beside a register that needs a prefix
        return None


def _find_body(head: int, decode: Decode) -> dict[int, _Step]:
    """Every instruction on a way from `head` back to `head` that can be kept; empty if there is no such way."""
    steps: dict[int, _Step] = {}
    refused: set[int] = set()
    waiting = deque([head])
    while waiting and len(steps) < _MOST_INSTRUCTIONS:
        address = waiting.popleft()
        if address in steps or address in refused:
            continue
        instruction = decode(address)
        step = _step(instruction) if instruction is not None else None
        if step is None:
            refused.add(address)
        else:
            steps[address] = step
            waiting.extend(step.next)
    while True:
        body = _cycle(head, steps)
        written = frozenset(register for step in body.values() for register in step.written)
        varying = [
            address
            for address, step in body.items()
            if step.load and written & {step.load.base_register, step.load.index_register}
        ]
        if not varying:
            return body
        for address in varying:
            del steps[address]


def _cycle(head: int, steps: dict[int, _Step]) -> dict[int, _Step]:
    """The steps that `head` leads to and that lead back to it."""
    ahead = _closure([head] if head in steps else [], lambda address: (at for at in steps[address].next if at in steps))
    before: dict[int, list[int]] = {address: [] for address in ahead}
    for address in ahead:
        for following in steps[address].next:
            if following in before:
                before[following].append(address)
    back = _closure(before.get(head, []), lambda address: before[address])
    return {address: steps[address] for address in sorted(back)}


def _jumped_back_to(inside: int, body: dict[int, _Step]) -> int:
    """Where the innermost loop around an instruction begins, if that can be told."""
    jumps = [(at - to, to) for at, step in body.items() for to in step.next if to in body and to <= inside <= at]
    return min(jumps)[1] if jumps else inside


def _in_order(head: int, body: dict[int, _Step]) -> list[int]:
    """All instructions, from `head` on, each followed by one that comes after it in the guest as far as possible."""
    order: dict[int, None] = {}
    waiting = [head]
    while waiting:
        address: int | None = waiting.pop()
        while address is not None:
            order[address] = None
            following = [to for to in body[address].next if to in body and to not in order]
            waiting += following[1:]
            address = following[0] if following else None
        waiting = [each for each in waiting if each not in order]
    return list(order)


def _closure(start: Iterable[int], following: Callable[[int], Iterable[int]]) -> set[int]:
    seen: set[int] = set()
    waiting = list(start)
    while waiting:
        address = waiting.pop()
        if address not in seen:
            seen.add(address)
            waiting.extend(following(address))
    return seen


def _step(instruction: Instruction) -> _Step | None:
    """What the instruction does, or None if a loop cannot keep it."""
    if instruction.mnemonic not in _PURE or instruction.has_lock_prefix or instruction.segment_prefix != Register.NONE:
        return None
    if instruction.rflags_undefined & ~_MAY_BE_UNDEFINED or instruction.code == Code.BSWAP_R16:  # undefined as well
        return None
    if instruction.mnemonic in (Mnemonic.NOP, Mnemonic.ENDBR64):
        return _Step(instruction, frozenset(), frozenset(), None, (instruction.next_ip,))
    flow = instruction.flow_control
    if flow not in (FlowControl.NEXT, FlowControl.UNCONDITIONAL_BRANCH, FlowControl.CONDITIONAL_BRANCH):
        return None
    info = _info.info(instruction)
    used: set[int] = set()
    written: set[int] = set()
    for each in info.used_registers():
        register = RegisterExt.full_register(each.register)
        if register not in _GENERAL or register == Register.RSP:
            return None
        used.add(_GENERAL.index(register))
        if each.access in _WRITES:
            written.add(_GENERAL.index(register))
    load = None
    for memory in info.used_memory():
        if memory.access != OpAccess.READ:
            return None
        load = _load(instruction)
        if load is None:
            return None
    following: tuple[int, ...] = () if flow == FlowControl.UNCONDITIONAL_BRANCH else (instruction.next_ip,)
    if flow in _JUMPS:
        following += (instruction.near_branch_target,)
    return _Step(instruction, frozenset(used), frozenset(written), load, following)


def _load(instruction: Instruction) -> Load | None:
    size = MemorySizeExt.size(instruction.memory_size)
    if instruction.is_ip_rel_memory_operand:
        if instruction.memory_base != Register.RIP:
            return None
        return Load(None, None, 1, instruction.ip_rel_memory_address, size)
    if instruction.memory_displ_size == 4:  # an address of 32 bits
        return None
    registers: list[int | None] = []
    for register in (instruction.memory_base, instruction.memory_index):
        if register != Register.NONE and register not in _GENERAL:
            return None
        registers.append(None if register == Register.NONE else _GENERAL.index(register))
    return Load(registers[0], registers[1], instruction.memory_index_scale, instruction.memory_displacement, size)


class _Emitter:
    """Writes the host code of one loop."""

    def __init__(self, head: int, body: dict[int, _Step], area: int) -> None:
        self._head, self._body, self._area = head, body, area
        self._code: list[Instruction] = []
        self._next_label = _LABELS
        self._used = frozenset(register for step in body.values() for register in step.used)
        self._written = frozenset(register for step in body.values() for register in step.written)
        self._loads: dict[Load, Register_] = {}
        self._exits: dict[int, int] = {}
        self._exit_labels: dict[int, int] = {}
        self._over: dict[int, int] = {}
        self._own_counter = RCX not in self._used
        free = [register for n, register in enumerate(_GENERAL) if n not in self._used | {RSP, RCX}]
        for step in body.values():
            if step.load is not None and step.load not in self._loads:
                if not free or len(self._loads) == _MOST_LOADS:
                    raise ValueError("too few registers")
                self._loads[step.load] = free.pop()
        self._targets = {to for at, step in body.items() for to in step.next if to in body and to <= at}
        self._labels = {address: self._label() for address in body}
        self._steps_labels = {at: self._label() if at in self._targets else label for at, label in self._labels.items()}

    def loop(self) -> Loop:
        self._prologue()
        order = _in_order(self._head, self._body)
        for address, following in zip(order, [*order[1:], None], strict=True):
            if address in self._targets:
                self._count(address)
            self._keep(self._body[address], self._steps_labels[address], following)
        for address, label in self._over.items():
            self._put(self._fetch(Register.RCX, _COUNTED_AT), label)
            self._jump(self._exit(address))
        common = self._label()
        for target, label in self._exit_labels.items():
            self._put(self._store_number(EXIT_AT, self._exits[target]), label)
            self._jump(common)
        self._epilogue(common)
        encoder = BlockEncoder(64)
        encoder.add_many(self._code)
        code = encoder.encode(self._area + CODE_AT)
        return Loop(self._head, self._spans(), tuple(self._loads), tuple(self._exits), code)

    def _spans(self) -> tuple[tuple[int, int], ...]:
        spans: list[tuple[int, int]] = []
        for address, step in self._body.items():
            if spans and sum(spans[-1]) == address:
                spans[-1] = (spans[-1][0], spans[-1][1] + step.instruction.len)
            else:
                spans.append((address, step.instruction.len))
        return tuple(spans)

    # -- the parts ----------------------------------------------------------------------------------------------------

    def _saved(self) -> list[Register_]:
        taken = {_GENERAL[number] for number in self._used} | set(self._loads.values())
        return [register for register in _CALLEE_SAVED if register in taken]

    def _prologue(self) -> None:
        for register in self._saved():
            self._put(Instruction.create_reg(Code.PUSH_R64, register))
        self._put(Instruction.create_mem(Code.PUSH_RM64, self._word(FLAGS_AT)))
        self._put(Instruction.create(Code.POPFQ))
        for number in sorted(self._used):
            self._put(self._fetch(_GENERAL[number], REGISTERS_AT + number))
        if self._own_counter:
            self._put(self._fetch(Register.RCX, BUDGET_AT))
        for slot, register in enumerate(self._loads.values()):
            self._put(self._fetch(register, LOADS_AT + slot))
        self._jump(self._steps_labels[self._head])

    def _count(self, address: int) -> None:
        """One iteration less, without a change of flags."""
        label = self._labels[address]
        if not self._own_counter:
            self._put(self._store(_COUNTED_AT, Register.RCX), label)
            self._put(self._fetch(Register.RCX, BUDGET_AT))
            label = 0
        less = MemoryOperand(Register.RCX, displ=-1, displ_size=1)
        self._put(Instruction.create_reg_mem(Code.LEA_R64_M, Register.RCX, less), label)
        if self._own_counter:
            self._put(Instruction.create_branch(Code.JRCXZ_REL8_64, self._exit(address)))
            return
        self._over[address] = self._label()
        self._put(self._store(BUDGET_AT, Register.RCX))
        self._put(Instruction.create_branch(Code.JRCXZ_REL8_64, self._over[address]))
        self._put(self._fetch(Register.RCX, _COUNTED_AT))

    def _keep(self, step: _Step, label: int, following: int | None) -> None:
        """The guest's instruction, and a jump if what comes next in the guest does not come next here."""
        instruction = step.instruction.copy()
        follows = step.next[0]
        if instruction.flow_control == FlowControl.CONDITIONAL_BRANCH:
            target = step.next[1]
            if target == following:
                instruction.negate_condition_code()
                follows, target = target, follows
            instruction.near_branch64 = self._place(target)
        elif instruction.mnemonic in (Mnemonic.NOP, Mnemonic.ENDBR64, Mnemonic.JMP):
            instruction = Instruction.create(Code.NOPD)
        elif step.load is not None:
            instruction.memory_base = self._loads[step.load]
            instruction.memory_index = Register.NONE
            instruction.memory_index_scale = 1
            instruction.memory_displacement = 0
            instruction.memory_displ_size = 0
        elif instruction.is_ip_rel_memory_operand:  # LEA, which only computes
            address = instruction.ip_rel_memory_address
            if instruction.code != Code.LEA_R64_M:
                raise ValueError("a relative address in part")
            instruction = Instruction.create_reg_u64(Code.MOV_R64_IMM64, instruction.op0_register, address)
        self._put(instruction, label)
        if follows != following:
            self._jump(self._place(follows))

    def _epilogue(self, label: int) -> None:
        for number in sorted(self._written):
            self._put(self._store(REGISTERS_AT + number, _GENERAL[number]), label)
            label = 0
        if self._own_counter:
            self._put(self._store(BUDGET_AT, Register.RCX), label)
            label = 0
        self._put(Instruction.create(Code.PUSHFQ), label)
        self._put(Instruction.create_mem(Code.POP_RM64, self._word(FLAGS_AT)))
        for register in reversed(self._saved()):
            self._put(Instruction.create_reg(Code.POP_R64, register))
        self._put(Instruction.create(Code.RETNQ))

    # -- words and places ---------------------------------------------------------------------------------------------

    def _put(self, instruction: Instruction, label: int = 0) -> None:
        instruction.ip = label or self._label()
        self._code.append(instruction)

    def _jump(self, label: int) -> None:
        self._put(Instruction.create_branch(Code.JMP_REL32_64, label))

    def _label(self) -> int:
        self._next_label += 1
        return self._next_label

    def _place(self, address: int) -> int:
        return self._labels[address] if address in self._labels else self._exit(address)

    def _exit(self, address: int) -> int:
        if address not in self._exits:
            self._exits[address] = len(self._exits)
            self._exit_labels[address] = self._label()
        return self._exit_labels[address]

    def _word(self, at: int) -> MemoryOperand:
        return MemoryOperand(Register.RIP, displ=self._area + 8 * at, displ_size=8)

    def _fetch(self, register: Register_, at: int) -> Instruction:
        return Instruction.create_reg_mem(Code.MOV_R64_RM64, register, self._word(at))

    def _store(self, at: int, register: Register_) -> Instruction:
        return Instruction.create_mem_reg(Code.MOV_RM64_R64, self._word(at), register)

    def _store_number(self, at: int, number: int) -> Instruction:
        return Instruction.create_mem_i32(Code.MOV_RM64_IMM32, self._word(at), number)


def pages(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same spans, none of which crosses a page's end."""
    for address, length in spans:
        end = address + length
        while address < end:
            piece = min(end - address, 4096 - (address & 0xFFF))
            yield address, piece
            address += piece
