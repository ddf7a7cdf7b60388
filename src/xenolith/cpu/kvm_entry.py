"""The few pages of its own that the KVM engine has in every guest's address space: where exceptions and SYSCALL arrive.

Every gate of the interrupt table leads to one OUT to the port of its vector's number, every other entry to one of the
width of four bytes; KVM returns to the engine from it. Where there is a program for ring 0 (`ring0`), SYSCALL and page
faults come to that first. The pages lie outside the machine's RAM, and are mapped for ring 0 alone.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from typing import Final

from xenolith.cpu import ring0
from xenolith.cpu.engine import ENGINE_SLOT, RING0_CODE_SELECTOR, RING0_DESCRIPTORS
from xenolith.cpu.shortcuts import Program

USER_DATA_SELECTOR: Final = 0xE02B
_USER_DATA: Final = 0x00CF_F300_0000_FFFF

SYSCALL: Final = ring0.SYSCALL
SYSENTER: Final = 1
COMPAT_SYSCALL: Final = 2
DONE: Final = 3
STOPPED: Final = ring0.STOPPED
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
SOFTWARE_EXCEPTIONS: Final = (3, 4)
"""#BP and #OF."""
SOFTWARE_VECTORS: Final = frozenset((*SOFTWARE_EXCEPTIONS, *range(32, 256)))
"""What INT3, INTO and INT n raise."""
_STUB_BYTES: Final = 8
_NO_IO_BITMAP: Final = 0xFFFF
_AREA_PAGES: Final = ring0.AREA_BYTES // _PAGE
_OUT_ALL: Final = 0xE7
_REPLAY: Final = bytes.fromhex("488b06 4883c608 a801 7508 488b10 488910 eb04 8a10 8810 ffc9 75e5 e703")
"""next: mov rax, [rsi]; add rsi, 8; test al, 1; jnz byte; mov rdx, [rax]; mov [rax], rdx; jmp counted;
byte: mov dl, [rax]; mov [rax], dl; counted: dec ecx; jnz next; out DONE, eax"""

# Pages, in their order.
_L3, _L2, _OWN_L4, _DIRECT_L3, _INTERRUPTS, _STUBS, _LIST, _DESCRIPTORS, _RING0, _MACHINE, _FIXED_PAGES = range(11)
LIST_ENTRIES: Final = 512


class EntryPages:
    """The pages, at guest-physical `maddr`, for `processors` virtual processors over `ram_size` bytes of RAM."""

    def __init__(self, maddr: int, processors: int, ram_size: int) -> None:
        gib = -(-ram_size // (1 << 30))
        self._direct_l2 = _FIXED_PAGES + processors * _AREA_PAGES
        self._l1 = self._direct_l2 + gib
        self.size = (self._l1 + -(-self._direct_l2 // 512)) * _PAGE
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
        self.machine_memory = self._bytes[_MACHINE * _PAGE : (_MACHINE + 1) * _PAGE]
        """What the hypervisor keeps there is seen by its program for ring 0 as well."""
        self.labels: dict[str, int] | None = None
        """Addresses in the code that virtual processors execute in ring 0 by themselves, if they do."""
        self._make_tables(gib)
        self._make_stubs()

    def _maddr_of(self, page: int) -> int:
        return self.maddr + page * _PAGE

    def _make_tables(self, gib: int) -> None:
        words = self._words
        words[_L3 * 512] = self._maddr_of(_L2) | _SUPERVISOR
        for number in range(self.size // _PAGE - self._l1):
            words[_L2 * 512 + number] = self._maddr_of(self._l1 + number) | _SUPERVISOR
        for page in range(_INTERRUPTS, _FIXED_PAGES):
            words[self._l1 * 512 + page] = self._maddr_of(page) | _SUPERVISOR
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
            self._set_gate(vector, _START + at)
        at = stubs + 256 * _STUB_BYTES
        for port in (SYSENTER, COMPAT_SYSCALL):
            self._bytes[at + port * _STUB_BYTES :][:2] = bytes((_OUT_ALL, port))
        self.sysenter, self.compat_syscall = (_START + at + port * _STUB_BYTES for port in (SYSENTER, COMPAT_SYSCALL))
        """Where SYSENTER and SYSCALL in compatibility mode go."""
        at += 4 * _STUB_BYTES
        self._bytes[at : at + len(_REPLAY)] = _REPLAY
        self.replay = _START + at

    def _set_gate(self, vector: int, target: int) -> None:
        kind = _GATE_FOR_ALL if vector in SOFTWARE_VECTORS else _GATE
        gate = struct.pack(
            "<HHBBHII", target & 0xFFFF, RING0_CODE_SELECTOR, 0, kind, target >> 16 & 0xFFFF, target >> 32, 0
        )
        self._bytes[_INTERRUPTS * _PAGE + vector * 16 :][:16] = gate

    def install(self, program: Program) -> None:
        """Have virtual processors that are made, or made anew, from now on execute this in ring 0."""
        code, self.labels = ring0.code(program, _START + _RING0 * _PAGE, _START + _MACHINE * _PAGE)
        if len(code) > _PAGE:
            raise ValueError(f"{len(code)} bytes of code are too many")
        self._bytes[_RING0 * _PAGE :][: len(code)] = code
        self._set_gate(ring0.PAGE_FAULT, self.labels["fault"])

    # -- one virtual processor ----------------------------------------------------------------------------------------

    def make_area(self, number: int) -> Area:
        """That of virtual processor `number`."""
        page = _FIXED_PAGES + number * _AREA_PAGES
        for each in range(page, page + _AREA_PAGES - 1):
            self._words[self._l1 * 512 + each] = self._maddr_of(each) | _SUPERVISOR
        return Area(self, _START + page * _PAGE, self._bytes[page * _PAGE :][: ring0.AREA_BYTES])

    def show(self, area: Area, mfn: int) -> None:
        """Let a window be on frame `mfn`, or on nothing (0)."""
        page = (area.address + ring0.WINDOW - _START) // _PAGE
        self._words[self._l1 * 512 + page] = mfn << 12 | _SUPERVISOR if mfn else 0

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


class Area:
    """What a virtual processor has of the pages for itself, at `address` (see `ring0`)."""

    def __init__(self, pages: EntryPages, address: int, content: memoryview) -> None:
        self.address = address
        self.stack_top = address + ring0.STACK_TOP
        """Where the ring-0 stack ends."""
        self.stack_end = ctypes.addressof(ctypes.c_char.from_buffer(content, ring0.STACK_TOP))
        """Where the host sees that."""
        self.frame = address + ring0.FRAME
        self.entry = address + ring0.STUB
        """Where SYSCALL goes."""
        self.memory = content[ring0.MEMORY : ring0.WINDOW]
        self.words = ring0.Words.from_buffer(content, ring0.FRAME)
        self._pages = pages
        self._content = content

    def clear(self) -> None:
        """As it is for a new processor."""
        content = self._content
        content[:] = bytes(len(content))
        struct.pack_into("<Q", content, 4, self.stack_top)
        struct.pack_into("<H", content, 102, _NO_IO_BITMAP)
        labels = self._pages.labels
        stub = ring0.stub(self.address, labels["arrive"]) if labels else bytes((_OUT_ALL, SYSCALL))
        content[ring0.STUB : ring0.STUB + len(stub)] = stub


def entry_written(maddr: int) -> int:
    """For `put_list`: the page-table entry at machine address `maddr` was changed."""
    return _DIRECT_START + maddr


def table_gone(mfn: int) -> int:
    """For `put_list`: frame `mfn` is no page table any more. A write of a single byte into the middle of an entry makes
    KVM forget the whole table."""
    return _DIRECT_START + (mfn << 12) + 1
