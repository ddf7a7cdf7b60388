"""REP STOS carried out by the host: long fills of memory, which the emulator does element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenolith.cpu.registers import DF, RAX, RCX, RDI
from xenolith.machine.ram import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from xenolith.cpu.engine import Cpu
    from xenolith.machine.ram import Ram

BREAK_EVEN: Final = 2500
"""Elements that the emulator stores in the time that it takes to begin a fill here."""
_AT_ONCE: Final = 256
"""Pages between two moments at which the guest can be stopped."""
_WORTH_FORGETTING: Final = 16
"""Frames in a row that are given back to the host, which has them read as zeros, rather than filled with zeros."""
_INSTRUCTIONS: Final = {b"\xf3\xaa": 1, b"\x66\xf3\xab": 2, b"\xf3\x66\xab": 2, b"\xf3\xab": 4, b"\xf3\x48\xab": 8}
LONGEST: Final = 3
_MASK64: Final = (1 << 64) - 1


def width_of(code: bytes) -> int | None:
    """Bytes in an element of the REP STOS that `code` begins with; None if it begins with something else."""
    return next((width for prefix, width in _INSTRUCTIONS.items() if code.startswith(prefix)), None)


def fill(ram: Ram, cpu: Cpu, width: int, translate: Callable[[int], int]) -> list[range]:
    """Do a part of the REP STOS that the guest is at, and leave the registers as if it had been stopped there.

    `translate` says where in RAM the guest may write to an address, or -1. Returns the machine addresses that were
    filled; what is not done is the emulator's, together with any fault.
    """
    regs = cpu.regs
    vaddr, left = regs[RDI], regs[RCX]
    if vaddr & (width - 1) or cpu.flags & DF:
        return []
    filled: list[range] = []
    for _ in range(_AT_ONCE):
        maddr = translate(vaddr) if left else -1
        if maddr < 0:
            break
        size = min(left * width, PAGE_SIZE - (vaddr & (PAGE_SIZE - 1)))
        if filled and filled[-1].stop == maddr:
            filled[-1] = range(filled[-1].start, maddr + size)
        else:
            filled.append(range(maddr, maddr + size))
        vaddr, left = (vaddr + size) & _MASK64, left - size // width
    element = (regs[RAX] & ((1 << width * 8) - 1)).to_bytes(width, "little")
    for addresses in filled:
        _store(ram, addresses, element)
    regs[RDI], regs[RCX] = vaddr, left
    return filled


def _store(ram: Ram, addresses: range, element: bytes) -> None:
    first, last = -(-addresses.start >> PAGE_SHIFT), addresses.stop >> PAGE_SHIFT
    if any(element) or last - first < _WORTH_FORGETTING:
        ram.bytes[addresses.start : addresses.stop] = element * (len(addresses) // len(element))
        return
    for edge in (range(addresses.start, first << PAGE_SHIFT), range(last << PAGE_SHIFT, addresses.stop)):
        ram.bytes[edge.start : edge.stop] = bytes(len(edge))
    ram.clear(first, last - first)
