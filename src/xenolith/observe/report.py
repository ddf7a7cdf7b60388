"""The report of a crashed guest as a person reads it, with symbols where the user has them."""

from __future__ import annotations

import bisect
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xenolith.abi.types import PAGE_SIZE
from xenolith.errors import UserError

if TYPE_CHECKING:
    from xenolith.hypervisor.crash import CrashReport

_ROWS: Final = (
    ("rip", "rsp", "rflags"),
    ("rax", "rbx", "rcx"),
    ("rdx", "rsi", "rdi"),
    ("rbp", "r8", "r9"),
    ("r10", "r11", "r12"),
    ("r13", "r14", "r15"),
    ("fs_base", "gs_base"),
)
_FARTHEST: Final = 1 << 20


class Symbols:
    """Names of addresses, from a System.map or an ELF file with a symbol table."""

    def __init__(self, symbols: list[tuple[int, str]] | None = None) -> None:
        pairs = sorted(symbols or [])
        self._addresses = [address for address, _ in pairs]
        self._names = [name for _, name in pairs]

    @classmethod
    def read(cls, path: Path) -> Symbols:
        """UserError if the file cannot be read or names nothing."""
        try:
            data = path.read_bytes()
        except OSError as error:
            problem = f"the symbols {path} cannot be read: {error.strerror}"
            raise UserError(problem, "name a System.map or vmlinux") from None
        symbols = _from_elf(data) if data.startswith(b"\x7fELF") else _from_map(data)
        if not symbols:
            raise UserError(f"{path} has no symbols", "name a System.map, or a vmlinux that was not stripped")
        return cls(symbols)

    def name(self, address: int) -> str:
        """ " name+0x10" with a space before it, or nothing."""
        at = bisect.bisect_right(self._addresses, address) - 1
        if at < 0 or address - self._addresses[at] > _FARTHEST:
            return ""
        return f" {self._names[at]}+{address - self._addresses[at]:#x}"


def _from_map(data: bytes) -> list[tuple[int, str]]:
    symbols = []
    for line in data.decode("ascii", "replace").splitlines():
        fields = line.split()
        if len(fields) >= 3:
            try:
                symbols.append((int(fields[0], 16), fields[2]))
            except ValueError:
                continue
    return symbols


def _from_elf(data: bytes) -> list[tuple[int, str]]:
    from xenolith.loader.elf import ElfFile

    return [(symbol.value, symbol.name) for symbol in ElfFile.parse(data).symbols()]


def as_dict(report: CrashReport) -> dict[str, Any]:
    """The report for programs."""
    values = dataclasses.asdict(report)
    values["code"] = report.code.hex()
    return values


def render(report: CrashReport, symbols: Symbols) -> str:
    """The report for people."""
    mode = "kernel" if report.kernel_mode else "user"
    registers = report.registers
    lines = [
        f"xenolith: {report.vcpu} ({report.domain}) crashed: {report.reason}",
        f"  in {mode} mode at {registers['rip']:#x}{symbols.name(registers['rip'])}",
    ]
    lines += ["  " + "  ".join(f"{name:>7} {registers[name]:016x}" for name in row) for row in _ROWS]
    selectors = " ".join(f"{name} {registers[name]:04x}" for name in ("cs", "ss", "ds", "es", "fs", "gs"))
    lines.append(f"  {selectors}  cr2 {report.cr2:016x}")
    lines.append(f"  code: {report.code.hex(' ') or 'cannot be read'}")
    lines.append("  stack:" if report.stack else "  the stack cannot be read")
    lines += _stack(report, symbols)
    if report.hypercalls:
        lines.append("  last hypercalls:")
        lines += [f"    {call}" for call in report.hypercalls]
    if report.last_refusal:
        lines.append(f"  last rule broken: {report.last_refusal}")
    return "\n".join(lines)


def _stack(report: CrashReport, symbols: Symbols) -> list[str]:
    lines = []
    for at in range(0, len(report.stack), 4):
        words = report.stack[at : at + 4]
        lines.append(f"    {report.registers['rsp'] + at * 8:016x}: " + " ".join(f"{word:016x}" for word in words))
    words = [word for word in report.stack if _may_be_code(word, report.registers["rip"])]
    lines += [f"    {word:016x}{name}" for word in words if (name := symbols.name(word))]
    return lines


def _may_be_code(word: int, rip: int) -> bool:
    """Whether a word of the stack can be a return address: symbol files have names for small numbers too."""
    return word >= PAGE_SIZE and word >> 47 == rip >> 47
