"""A small assembler for what the KVM engine executes in ring 0: text in, machine code out.

The text is written Intel's way: a label or an instruction a line, and comments behind semicolons. A memory operand is
the name of a `Memory`, or `[register+register+displacement]` behind its size where no register says that (`byte`,
`word`, `dword`, `qword`). A number may be a name as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from iced_x86 import BlockEncoder, Code, Decoder, Instruction, MemoryOperand, Register

_SIZES: Final = {"byte": 1, "word": 2, "dword": 4, "qword": 8}
_REGISTERS: Final = {
    **dict.fromkeys(("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11"), 8),
    **dict.fromkeys(("eax", "ecx", "edx", "ebx", "esi", "edi", "r8d", "r9d", "r10d", "r11d"), 4),
    **dict.fromkeys(("al", "cl", "dl", "bl"), 1),
}
"""Their sizes, in bytes."""
_CONTROL: Final = ("cr2", "cr3")
_ALONE: Final = frozenset(("iretq", "rdmsr", "wrmsr"))
_ADDRESS: Final = re.compile(r"(?:(byte|word|dword|qword) )?\[([^]]+)\]")
_PLACES: Final = 1 << 63
"""Where instructions lie before they have an address: it is not canonical, so nothing else is there."""


class Memory(NamedTuple):
    """A place of `size` bytes, `displacement` bytes from a register; with the register `rip` that is an address."""

    base: str
    displacement: int
    size: int


class Assembled(NamedTuple):
    """Machine code, and the address of each label."""

    code: bytes
    labels: dict[str, int]


class _Place(NamedTuple):
    """A memory operand, with its size if the text says it."""

    operand: MemoryOperand
    size: int | None


_Operand = str | int | _Place


def assemble(text: str, address: int, memory: Mapping[str, Memory], numbers: Mapping[str, int]) -> Assembled:
    """The code of `text` for `address`. Raises ValueError for what it does not know."""
    labels: dict[str, int] = {}
    statements: list[str] = []
    for line in text.splitlines():
        statement = line.partition(";")[0].strip()
        if statement.endswith(":"):
            labels[statement[:-1]] = len(statements)
        elif statement:
            statements.append(statement)
    names = _Names(memory, numbers, labels)
    encoder = BlockEncoder(64)
    for number, statement in enumerate(statements):
        try:
            instruction = _instruction(statement, names)
        except (AttributeError, KeyError, ValueError, OverflowError) as error:
            raise ValueError(f"cannot assemble '{statement}': {error}") from error
        instruction.ip = _PLACES + number
        encoder.add(instruction)
    code = encoder.encode(address)
    addresses = [instruction.ip for instruction in Decoder(64, code, ip=address)]
    return Assembled(code, {label: addresses[number] for label, number in labels.items()})


class _Names(NamedTuple):
    memory: Mapping[str, Memory]
    numbers: Mapping[str, int]
    labels: Mapping[str, int]

    def number(self, text: str) -> int:
        return self.numbers[text] if text in self.numbers else int(text, 0)

    def operand(self, text: str) -> _Operand:
        """A register stays its name."""
        if text in _REGISTERS or text in _CONTROL:
            return text
        if text in self.memory:
            base, displacement, size = self.memory[text]
            return _Place(_memory_operand([base], displacement), size)
        if found := _ADDRESS.fullmatch(text):
            parts = found[2].replace("-", "+-").split("+")
            registers = [part for part in parts if part in _REGISTERS]
            displacement = sum(self.number(part) for part in parts if part not in _REGISTERS)
            return _Place(_memory_operand(registers, displacement), _SIZES.get(found[1]))
        return self.number(text)


def _memory_operand(registers: list[str], displacement: int) -> MemoryOperand:
    base, index = (*(_register(name) for name in registers), Register.NONE)[:2]
    if base == Register.RIP:  # as a signed number
        return MemoryOperand(base, displ=displacement - (displacement >> 63 << 64), displ_size=8)
    return MemoryOperand(base, index, displ=displacement, displ_size=int(displacement != 0))


def _register(name: str) -> Any:
    return getattr(Register, name.upper())


def _instruction(statement: str, names: _Names) -> Instruction:
    name, rest = (*statement.split(maxsplit=1), "")[:2]
    if name == "lock":
        instruction = _instruction(rest, names)
        instruction.has_lock_prefix = True
        return instruction
    if name in _ALONE:
        return Instruction.create(_code(name))
    if name.startswith("j"):
        target = _PLACES + names.labels[rest] if rest in names.labels else names.number(rest)
        return Instruction.create_branch(_code(name, "rel32_64"), target)
    operands = [names.operand(part.strip()) for part in rest.split(",")]
    if len(operands) == 1:
        return _with_one(name, operands[0])
    to, source = operands
    if name == "out":
        assert isinstance(to, int)
        return Instruction.create_u32_reg(_code(name, "imm8", str(source)), to, _register(str(source)))
    if isinstance(source, int):
        return _with_number(name, to, source)
    if isinstance(to, str) and isinstance(source, str):
        return _between_registers(name, to, source)
    if isinstance(to, _Place) and isinstance(source, str):
        bits = 8 * _REGISTERS[source]
        return Instruction.create_mem_reg(_code(name, f"rm{bits}", f"r{bits}"), to.operand, _register(source))
    if isinstance(to, str) and isinstance(source, _Place):
        bits = 8 * _REGISTERS[to]
        of = {"lea": "m", "movzx": f"rm{8 * (source.size or 0)}"}.get(name, f"rm{bits}")
        return Instruction.create_reg_mem(_code(name, f"r{bits}", of), _register(to), source.operand)
    raise ValueError("no such operands")


def _with_one(name: str, operand: _Operand) -> Instruction:
    if isinstance(operand, str):
        return Instruction.create_reg(_code(name, f"rm{8 * _REGISTERS[operand]}"), _register(operand))
    if isinstance(operand, _Place) and operand.size:
        return Instruction.create_mem(_code(name, f"rm{8 * operand.size}"), operand.operand)
    raise ValueError("no size")


def _between_registers(name: str, to: str, source: str) -> Instruction:
    if to in _CONTROL:
        code = _code(name, "cr_r64")
    elif source in _CONTROL:
        code = _code(name, "r64_cr")
    elif name == "movzx":
        code = _code(name, f"r{8 * _REGISTERS[to]}", f"rm{8 * _REGISTERS[source]}")
    else:
        bits = 8 * _REGISTERS[to]
        code = _code(name, f"rm{bits}", f"r{bits}")
    return Instruction.create_reg_reg(code, _register(to), _register(source))


def _with_number(name: str, to: _Operand, number: int) -> Instruction:
    """The shortest form; a number of 32 bits and more is one without a sign."""
    size = _REGISTERS[to] if isinstance(to, str) else to.size if isinstance(to, _Place) else None
    if not size:
        raise ValueError("no size")
    bits = 8 * size
    if name == "mov" and isinstance(to, str) and not -(1 << 31) <= number < 1 << 31 and bits == 64:
        return Instruction.create_reg_u64(_code("mov_r64_imm64"), _register(to), number)
    short = f"{name}_rm{bits}_imm8"
    if (-128 <= number < 128 or bits == 8) and hasattr(Code, short.upper()):
        code = _code(short)
    else:
        code = _code(name, f"rm{bits}", f"imm{min(bits, 32)}")
    number = number - (1 << bits) if number >> bits - 1 == 1 else number
    if isinstance(to, _Place):
        return Instruction.create_mem_i32(code, to.operand, number)
    return Instruction.create_reg_i32(code, _register(str(to)), number)


def _code(*parts: str) -> Any:
    return getattr(Code, "_".join(parts).upper())
