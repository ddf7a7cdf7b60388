"""The few pages of its own that the KVM engine has in every guest's address space: where exceptions and SYSCALL arrive.

Nothing is done there but to leave the guest. Every gate of the interrupt table leads to one OUT to the port of its
vector's number, every other entry to one of the width of four bytes; KVM returns to the engine from it. The pages lie
outside the machine's RAM, and are mapped for ring 0 alone.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from typing import Final

from xenolith.cpu.engine import ENGINE_SLOT, RING0_CODE_SELECTOR, RING0_DESCRIPTORS

USER_DATA_SELECTOR: Final = 0xE02B
_USER_DATA: Final = 0x00CF_F300_0000_FFFF

SYSCALL: Final = 0
SYSENTER: Final = 1
COMPAT_SYSCALL: Final = 2
DONE: Final = 3
"""The ports of entries that are no interrupts, told from vectors by the width of the OUT."""
ENTRY_WIDTH: Final = 4

_PAGE: Final = 4096
_START: Final = 0xFFFF_8000_0000_0000 + (ENGINE_SLOT - 256 << 39)
_SUPERVISOR: Final = 0x63
_LARGE_PAGE: Final = 0xE3
_DIRECT_SLOT: Final = 262
_DIRECT_START: Final = _START + (1 << 39)
_GATE: Final = 0x8E
_GATE_FOR_ALL: Final = 0xEE
_SOFTWARE_VECTORS: Final = frozenset((3, 4, *range(32, 256)))
_STUB_BYTES: Final = 8
_NO_IO_BITMAP: Final = 0xFFFF
_AREA_BYTES: Final = 512
"""Of each virtual processor: its task state, and behind it a stack that takes one exception frame or two."""
_REPLAY: Final = bytes.fromhex("488b06 4883c608 a801 7508 488b10 488910 eb04 8a10 8810 ffc9 75e5 e703")
"""next: mov rax, [rsi]; add rsi, 8; test al, 1; jnz byte; mov rdx, [rax]; mov [rax], rdx; jmp counted;
byte: mov dl, [rax]; mov [rax], dl; counted: dec ecx; jnz next; out DONE, eax"""

# Pages, in their order.
_L3, _L2, _L1, _OWN_L4, _DIRECT_L3, _INTERRUPTS, _STUBS, _LIST, _DESCRIPTORS, _FIXED_PAGES = range(10)
LIST_ENTRIES: Final = 512


class EntryPages:
    """The pages, at guest-physical `maddr`, for `processors` virtual processors over `ram_size` bytes of RAM."""

    def __init__(self, maddr: int, processors: int, ram_size: int) -> None:
        gib = -(-ram_size // (1 << 30))
        areas = -(-processors * _AREA_BYTES // _PAGE)
        self._direct_l2 = _FIXED_PAGES + areas
        self.size = (self._direct_l2 + gib) * _PAGE
        self.maddr = maddr - self.size
        self._map = mmap.mmap(-1, self.size)
        self._bytes = memoryview(self._map)
        self._words = self._bytes.cast("Q")
        self.host_address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.table = self._maddr_of(_L3) | _SUPERVISOR
        """What stands in slot ENGINE_SLOT of every L4."""
        self.own_root = self._maddr_of(_OWN_L4)
        """An L4 with nothing in it but these pages and all of RAM, for ring 0."""
        self.interrupts = _START + _INTERRUPTS * _PAGE
        self.gdt = _START + _DESCRIPTORS * _PAGE - (RING0_CODE_SELECTOR & ~0xFFF)
        """A descriptor table with ring 0's segments and one for data, for processors that have none of their own."""
        for selector, descriptor in (*RING0_DESCRIPTORS.items(), (USER_DATA_SELECTOR, _USER_DATA)):
            self._words[_DESCRIPTORS * 512 + (selector >> 3 & 511)] = descriptor
        self._make_tables(areas, gib)
        self._make_stubs()

    def _maddr_of(self, page: int) -> int:
        return self.maddr + page * _PAGE

    def _make_tables(self, areas: int, gib: int) -> None:
        words = self._words
        words[_L3 * 512] = self._maddr_of(_L2) | _SUPERVISOR
        words[_L2 * 512] = self._maddr_of(_L1) | _SUPERVISOR
        for page in range(_INTERRUPTS, _FIXED_PAGES + areas):
            words[_L1 * 512 + page] = self._maddr_of(page) | _SUPERVISOR
        words[_OWN_L4 * 512 + ENGINE_SLOT] = self.table
        words[_OWN_L4 * 512 + _DIRECT_SLOT] = self._maddr_of(_DIRECT_L3) | _SUPERVISOR
        for number in range(gib):
            l2 = self._direct_l2 + number
            words[_DIRECT_L3 * 512 + number] = self._maddr_of(l2) | _SUPERVISOR
            for slot in range(512):
                words[l2 * 512 + slot] = (number << 30 | slot << 21) | _LARGE_PAGE

    def _make_stubs(self) -> None:
        stubs = _STUBS * _PAGE
        for vector in range(256):
            at = stubs + vector * _STUB_BYTES
            self._bytes[at : at + 2] = bytes((0xE6, vector))
            kind = _GATE_FOR_ALL if vector in _SOFTWARE_VECTORS else _GATE
            target = _START + at
            gate = struct.pack(
                "<HHBBHII", target & 0xFFFF, RING0_CODE_SELECTOR, 0, kind, target >> 16 & 0xFFFF, target >> 32, 0
            )
            self._bytes[_INTERRUPTS * _PAGE + vector * 16 :][:16] = gate
        entries = stubs + 256 * _STUB_BYTES
        for port in (SYSCALL, SYSENTER, COMPAT_SYSCALL):
            at = entries + port * _STUB_BYTES
            self._bytes[at : at + 2] = bytes((0xE7, port))
        self.entries = tuple(_START + entries + port * _STUB_BYTES for port in (SYSCALL, SYSENTER, COMPAT_SYSCALL))
        """Where SYSCALL, SYSENTER and SYSCALL in compatibility mode go."""
        at = entries + 4 * _STUB_BYTES
        self._bytes[at : at + len(_REPLAY)] = _REPLAY
        self.replay = _START + at

    # -- one virtual processor ----------------------------------------------------------------------------------------

    def make_area(self, number: int) -> tuple[int, int, int]:
        """The task state and the top of the ring-0 stack of virtual processor `number`, as addresses, and where that
        top is for the host."""
        at = _FIXED_PAGES * _PAGE + number * _AREA_BYTES
        self._bytes[at : at + _AREA_BYTES] = bytes(_AREA_BYTES)
        top = _START + at + _AREA_BYTES
        struct.pack_into("<Q", self._bytes, at + 4, top)
        struct.pack_into("<H", self._bytes, at + 102, _NO_IO_BITMAP)
        return _START + at, top, self.host_address + at + _AREA_BYTES

    def frame_words(self, stack_pointer: int) -> list[int] | None:
        """The six words at a ring-0 stack pointer: an exception frame, with or without an error code before it."""
        at = stack_pointer - _START
        if not _FIXED_PAGES * _PAGE <= at <= self._direct_l2 * _PAGE - 48 or at & 7:
            return None
        return self._words[at >> 3 : (at >> 3) + 6].tolist()

    def put_list(self, entries: list[int]) -> int:
        """Write what `replay` is to go through (at most LIST_ENTRIES words); returns its address."""
        start = _LIST * 512
        for at, entry in enumerate(entries, start):
            self._words[at] = entry
        return _START + _LIST * _PAGE


def entry_written(maddr: int) -> int:
    """For `put_list`: the page-table entry at machine address `maddr` was changed."""
    return _DIRECT_START + maddr


def table_gone(mfn: int) -> int:
    """For `put_list`: frame `mfn` is no page table any more. A write of a single byte into the middle of an entry makes
    KVM forget the whole table."""
    return _DIRECT_START + (mfn << 12) + 1
