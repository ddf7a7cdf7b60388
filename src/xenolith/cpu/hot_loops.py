"""Lets the host's own processor run small loops that keep a guest busy, on x86-64 hosts.

Where a guest is stopped again and again, its code is looked at; if that is a loop of plain instructions, it is compiled
(`loop_compiler`) and run instead of the emulator's code whenever the guest comes by. Nobody can tell but by the time
that it takes: before each run the guest's code must still be what was compiled, and every load must be one that the
guest may do and that needs no mark in a page table. A loop that is left too soon to be worth it is forgotten.

An instruction that repeats itself to fill memory is a loop as well, which needs no compiler (`string_fill`).
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenolith.cpu import string_fill
from xenolith.cpu.registers import FLAGS_ARITHMETIC, FLAGS_FIXED, IF

if TYPE_CHECKING:
    import mmap

    from iced_x86 import Instruction

    from xenolith.cpu.engine import Cpu
    from xenolith.cpu.loop_compiler import Load, Loop
    from xenolith.machine.ram import Ram

_REMEMBERED_STOPS: Final = 8
_NEAR: Final = 256
"""Bytes between two stops in what may be the same loop."""
_STOPS: Final = 2
"""How many of the last stops must have been near for a place to be looked at."""
_MOST_LOOPS: Final = 16
_MOST_REFUSED: Final = 1024
_BATCH: Final = 1 << 17
"""Iterations between two looks at whether the guest is to stop: a fraction of a millisecond."""
_BREAK_EVEN: Final = 400
"""Iterations that the emulator runs in the time that it takes to leave it and come back."""
_FIRST_CREDIT: Final = 32 * _BREAK_EVEN
_MOST_CREDIT: Final = 256 * _BREAK_EVEN
_LONGEST_INSTRUCTION: Final = 15

_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_PRESENT_USER: Final = 5
_LARGE: Final = 1 << 7
_PRESENT_USER_ACCESSED: Final = 0x25
_WRITABLE: Final = 2
_WRITTEN: Final = 0x42
"""Writable, and written to before: a store needs no mark in the page table."""
_NX: Final = 1 << 63


class _Ready:
    """A compiled loop in executable memory, the guest's code that it stands for, and whether it is worth it."""

    def __init__(self, loop: Loop, page: mmap.mmap, spans: list[tuple[int, bytes]], watch: int) -> None:
        from xenolith.cpu.loop_compiler import CODE_AT

        page[CODE_AT : CODE_AT + len(loop.code)] = loop.code
        self.words = memoryview(page).cast("Q")
        self._page = page
        self.head, self.loads, self.exits = loop.head, loop.loads, loop.exits
        self.spans = spans
        self.watch = watch
        self.call = ctypes.CFUNCTYPE(None)(_address_of(page) + CODE_AT)
        self.credit = _FIRST_CREDIT
        self.break_even = _BREAK_EVEN


class _Fill:
    """A REP STOS, whose elements have `width` bytes."""

    def __init__(self, head: int, code: bytes, width: int, watch: int) -> None:
        self.head = head
        self.spans = [(head, code)]
        self.width = width
        self.watch = watch
        self.credit = _FIRST_CREDIT
        self.break_even = string_fill.BREAK_EVEN


class HotLoops:
    """The hot loops of one engine. `addresses` are the machine addresses that are RAM.

    `make_page` makes an executable page and raises OSError or NotImplementedError where it cannot. `watch` has the
    engine call `run` whenever the guest jumps to an address, whose code is at a machine address; `unwatch` ends that.
    `invalidate` is told of machine addresses, and how many bytes, that were written to.
    """

    def __init__(
        self,
        ram: Ram,
        addresses: list[range],
        make_page: Callable[[bytes], mmap.mmap],
        watch: Callable[[int, int], int],
        unwatch: Callable[[int, int], None],
        invalidate: Callable[[int, int], None],
    ) -> None:
        self._ram = ram
        self._addresses = addresses
        self._make_page = make_page
        self._watch = watch
        self._unwatch = unwatch
        self._invalidate = invalidate
        self._stops: deque[int] = deque(maxlen=_REMEMBERED_STOPS)
        self._refused: set[int] = set()
        self._loops: dict[int, _Ready | _Fill] = {}
        self._worthless: list[_Ready | _Fill] = []

    @property
    def heads(self) -> list[int]:
        """Where the loops begin that are compiled now."""
        return list(self._loops)

    # -- finding ------------------------------------------------------------------------------------------------------

    def stopped_at(self, address: int, root: int) -> None:
        """The guest was stopped from outside at `address`, between two blocks of its code."""
        stops = sum(abs(address - other) < _NEAR for other in self._stops)
        self._stops.append(address)
        if stops >= _STOPS and address not in self._refused and not self._is_compiled(address):
            self._compile(address, root)

    def _is_compiled(self, address: int) -> bool:
        return any(at <= address < at + len(code) for loop in self._loops.values() for at, code in loop.spans)

    def _compile(self, address: int, root: int) -> None:
        from xenolith.cpu.loop_compiler import CODE_AT, compile_loop, pages

        code = self._read(root, address, string_fill.LONGEST)
        width = string_fill.width_of(code)
        if width is not None:
            self._make_room()
            self._loops[address] = _Fill(address, code, width, self._watch(address, self._translate(root, address)))
            return
        try:
            page = self._make_page(bytes(CODE_AT))
        except OSError:  # the host is out of memory, or of mappings
            self._refuse(address)
            return
        loop = compile_loop(address, lambda at: self._decode(root, at), _address_of(page))
        if loop is None or CODE_AT + len(loop.code) > len(page):
            self._refuse(address)
            return
        spans = [(at, self._read(root, at, size)) for at, size in pages(loop.spans)]
        self._make_room()
        self._loops[loop.head] = _Ready(loop, page, spans, self._watch(loop.head, self._translate(root, loop.head)))

    def _make_room(self) -> None:
        while len(self._loops) >= _MOST_LOOPS:
            self._give_up(next(iter(self._loops.values())))

    def _refuse(self, address: int) -> None:
        """Look at this place no more, for a while."""
        if len(self._refused) >= _MOST_REFUSED:
            self._refused.clear()
        self._refused.add(address)

    def _decode(self, root: int, address: int) -> Instruction | None:
        from iced_x86 import Decoder

        code = self._read(root, address, min(_LONGEST_INSTRUCTION, 4096 - (address & 0xFFF)))
        if code and len(code) < _LONGEST_INSTRUCTION:
            code += self._read(root, address + len(code), _LONGEST_INSTRUCTION - len(code))
        instruction = Decoder(64, code, ip=address).decode()
        return None if instruction.is_invalid else instruction

    def _read(self, root: int, address: int, size: int) -> bytes:
        """Code of one page; nothing where the guest could not execute it."""
        at = self._translate(root, address, _NX)
        return bytes(self._ram.bytes[at : at + size]) if at >= 0 else b""

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self, address: int, root: int, cpu: Cpu, stopping: ctypes.c_uint32) -> int | None:
        """Run the loop at `address` until it ends or `stopping` says so. Returns where the guest goes on.

        None: the guest is where it was. Nothing was run, or a part of an instruction that repeats itself.
        """
        from xenolith.cpu.loop_compiler import BUDGET_AT, EXIT_AT, FLAGS_AT

        loop = self._loops.get(address)
        if isinstance(loop, _Fill):
            self._fill(loop, root, cpu)
            return None
        if loop is None or not self._may_run(loop, root, cpu.regs):
            if loop is not None:
                self._judge(loop, 0)
            return None
        words, flags = loop.words, cpu.flags
        words[:16] = cpu.regs[:16]
        words[FLAGS_AT] = flags & FLAGS_ARITHMETIC | FLAGS_FIXED | IF
        passed = 0
        while True:
            words[BUDGET_AT] = _BATCH
            loop.call()
            passed += _BATCH - words[BUDGET_AT]
            out = loop.exits[words[EXIT_AT]]
            if words[BUDGET_AT] or out != address or stopping.value:
                break
        cpu.regs[:16] = words[:16]
        cpu.flags = flags & ~FLAGS_ARITHMETIC | words[FLAGS_AT] & FLAGS_ARITHMETIC
        self._judge(loop, passed)
        return out

    def _fill(self, loop: _Fill, root: int, cpu: Cpu) -> None:
        """The instruction itself is about to be executed, for whatever is left."""
        (address, code), done = loop.spans[0], 0
        if self._read(root, address, len(code)) == code:
            stored = string_fill.fill(self._ram, cpu, loop.width, lambda vaddr: self._translate_store(root, vaddr))
            for addresses in stored:
                self._invalidate(addresses.start, len(addresses))
                done += len(addresses) // loop.width
        self._judge(loop, done)

    def _may_run(self, loop: _Ready, root: int, regs: memoryview) -> bool:
        """Whether the code is still the same and its loads are permitted; they are prepared."""
        from xenolith.cpu.loop_compiler import LOADS_AT

        memory = self._ram.bytes
        for address, code in loop.spans:
            at = self._translate(root, address, _NX)
            if at < 0 or memory[at : at + len(code)] != code:
                return False
        for slot, load in enumerate(loop.loads, LOADS_AT):
            address = _address_of_load(load, regs)
            at = self._translate(root, address) if (address & 0xFFF) + load.size <= 4096 else -1
            if at < 0:
                return False
            loop.words[slot] = self._ram.host_address + at
        return True

    def _judge(self, loop: _Ready | _Fill, passed: int) -> None:
        loop.credit = min(loop.credit + passed - loop.break_even, _MOST_CREDIT)
        if loop.credit < 0:
            self._worthless.append(loop)

    @property
    def has_worthless(self) -> bool:
        """Whether `clean_up` has something to do."""
        return bool(self._worthless)

    def clean_up(self) -> None:
        """Give up the loops that are not worth it. To be called while no guest code runs."""
        while self._worthless:
            loop = self._worthless.pop()
            if self._loops.get(loop.head) is loop:
                self._refuse(loop.head)
                self._give_up(loop)

    def _give_up(self, loop: _Ready | _Fill) -> None:
        del self._loops[loop.head]
        self._unwatch(loop.watch, loop.head)

    # -- page tables --------------------------------------------------------------------------------------------------

    def _translate_store(self, root: int, vaddr: int) -> int:
        """The machine address at which CPL 3 may write to `vaddr`, if it is RAM and was written before; else -1."""
        return self._translate(root, vaddr, 0, _WRITABLE, _WRITTEN)

    def _translate(self, root: int, vaddr: int, forbidden: int = 0, needed: int = 0, last: int = 0) -> int:
        """The machine address that CPL 3 finds at `vaddr`, if it is RAM and was accessed before; else -1.

        No level's entry may have any of the flags `forbidden`. Each must have those `needed`, the last one `last`.
        """
        needed |= _PRESENT_USER
        words, table = self._ram.words, root
        if (vaddr + (1 << 47)) & 0xFFFF_FFFF_FFFF_FFFF >= 1 << 48:
            return -1
        for shift in (39, 30, 21):
            entry = words[(table >> 3) + (vaddr >> shift & 511)]
            if entry & needed != needed or entry & (_LARGE | forbidden):
                return -1
            table = entry & _ADDRESS
        entry = words[(table >> 3) + (vaddr >> 12 & 511)]
        maddr = entry & _ADDRESS | vaddr & 0xFFF
        last |= _PRESENT_USER_ACCESSED
        if entry & last != last or entry & forbidden:
            return -1
        return maddr if any(maddr in addresses for addresses in self._addresses) else -1


def _address_of_load(load: Load, regs: memoryview) -> int:
    address = load.displacement
    if load.base_register is not None:
        address += regs[load.base_register]
    if load.index_register is not None:
        address += regs[load.index_register] * load.scale
    return address & 0xFFFF_FFFF_FFFF_FFFF


def _address_of(page: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(page))
