"""Hardware breakpoints on the Unicorn engine: what the debug registers DR0 to DR3 and DR7 of a processor ask for.

The library knows breakpoints on instructions and on ports, but was built without those on data: it still asks two
functions of its own whether a page and whether an access is watched, and both always say no. It calls them through
pointers, so while data is watched other functions stand there. A hit ends the block of code before the access; the
instruction then runs again, alone, and is followed by the #DB. None of this costs anything while nothing is watched.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from xenolith.cpu.registers import DR6_BS, RF, TF

_DR6: Final = 6
_DR7: Final = 7
_ENABLES: Final = 0xFF
_HITS: Final = 0xF
_DEBUG: Final = 1
_EXECUTE: Final = 0
_WRITE: Final = 1
_PORT: Final = 2
_LENGTHS: Final = (1, 2, 8, 4)
"""Bytes that a breakpoint covers, by its LEN field in DR7."""
_BP_CPU: Final = 0x20
_BP_MEM_WRITE: Final = 2
_BP_MEM_ACCESS: Final = 3
_PAGE: Final = 4096
_NEAR: Final = 16
"""Bytes: the longest access that is stored in parts. All of it must run again if any part of it is watched."""

_ON_PAGE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)
_ON_ACCESS = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int
)
_CHECK_ACCESS: Final = (
    bytes.fromhex("53 4154 4883ec08 4889fb 4d89cc 48b8"),
    bytes.fromhex("ffd0 85c0 7412 4889df 4c89e6 48b8"),
    bytes.fromhex("ffd0 4883c408 415c 5b c3"),
)
"""What is called for each access to a watched page, because Python cannot be left by the library's way of leaving a
block: push rbx; push r12; sub rsp, 8; mov rbx, rdi; mov r12, r9; mov rax, `_on_access`; call rax; test eax, eax; je
+18; mov rdi, rbx; mov rsi, r12; mov rax, cpu_loop_exit_restore; call rax; add rsp, 8; pop r12; pop rbx; ret
"""


class Breakpoint(NamedTuple):
    """One that is enabled: its number, what it is for (DR7's R/W field), first address and length in bytes."""

    number: int
    kind: int
    start: int
    length: int

    def overlaps(self, start: int, length: int) -> bool:
        return start < self.start + self.length and self.start < start + length


class Breakpoints:
    """The breakpoints of one engine's current processor.

    `words` is the processor state, `flags_at` and `debug_at` where RFLAGS and DR0 are in it. `make_code` makes native
    code executable and raises OSError or NotImplementedError where it cannot; data is not watched there.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        processor: int,
        words: memoryview,
        flags_at: int,
        debug_at: int,
        make_code: Callable[[bytes], Any],
    ) -> None:
        self._library = library
        self._processor = processor
        self._words = words
        self._flags_at = flags_at
        self._debug_at = debug_at
        self._make_code = make_code
        self._code: list[int] = []
        self._data: list[Breakpoint] = []
        self.armed = False
        self.alone = False
        """Whether one instruction runs by itself, with a trap flag that is not the guest's."""
        self._guest_traps = False
        self._hits = 0

    def update(self) -> None:
        """Watch for what the debug registers say now."""
        wanted = self._wanted() if self._words[self._debug_at + _DR7] & _ENABLES else []
        code = [each.start for each in wanted if each.kind == _EXECUTE]
        data = [each for each in wanted if each.kind not in (_EXECUTE, _PORT)]
        self.armed = bool(code or data)
        if code != self._code:
            self._watch_code(code)
        if data != self._data:
            self._watch_data(data)

    def _wanted(self) -> list[Breakpoint]:
        control = self._words[self._debug_at + _DR7]
        found = []
        for number in range(4):
            if control >> 2 * number & 3:
                length = _LENGTHS[control >> 18 + 4 * number & 3]
                start = self._words[self._debug_at + number] & ~(length - 1)
                found.append(Breakpoint(number, control >> 16 + 4 * number & 3, start, length))
        return found

    def _watch_code(self, addresses: list[int]) -> None:
        self._library.cpu_breakpoint_remove_all_x86_64(ctypes.c_void_p(self._processor), _BP_CPU)
        for address in addresses:
            self._library.cpu_breakpoint_insert_x86_64(
                ctypes.c_void_p(self._processor), ctypes.c_uint64(address), _BP_CPU, None
            )
        self._code = addresses

    def _watch_data(self, data: list[Breakpoint]) -> None:
        self._data = data
        if data:
            _watchers[self._processor] = self
        else:
            _watchers.pop(self._processor, None)
        interposer = _interposer(self._library, self._make_code)
        if interposer is not None:
            interposer.set(bool(_watchers))
        self._library.tlb_flush_x86_64(ctypes.c_void_p(self._processor))

    # -- one instruction by itself ------------------------------------------------------------------------------------

    def resume(self) -> None:
        """The guest goes on. With RFLAGS.RF it passes the instruction that it was stopped at, whatever is there."""
        if self._words[self._flags_at] & RF:
            self._run_alone()

    def passed(self) -> None:
        """The instruction that the guest was at has been emulated."""
        self._words[self._flags_at] &= ~RF

    def _run_alone(self) -> None:
        self.alone = True
        self._hits = 0
        self._guest_traps = bool(self._words[self._flags_at] & TF)
        self._words[self._flags_at] |= TF

    def finish(self, vector: int) -> bool:
        """The instruction that ran alone has ended in an exception. Returns whether the guest is to hear of it."""
        self.alone = False
        if not self._guest_traps:
            self._words[self._flags_at] &= ~TF
        if vector != _DEBUG:
            return True
        status = self._words[self._debug_at + _DR6] & ~_HITS | self._hits
        self._words[self._debug_at + _DR6] = status if self._guest_traps else status & ~DR6_BS
        self._words[self._flags_at] &= ~RF
        return self._guest_traps or bool(self._hits)

    # -- the library's questions --------------------------------------------------------------------------------------

    def page_flags(self, vaddr: int) -> int:
        """Which accesses to a page must be asked about."""
        flags = 0
        for each in self._data:
            if each.overlaps(vaddr - _NEAR, _PAGE + 2 * _NEAR):
                flags |= _BP_MEM_WRITE if each.kind == _WRITE else _BP_MEM_ACCESS
        return flags

    def access(self, start: int, length: int, flags: int) -> bool:
        """An access is about to happen. Returns whether its instruction must run alone, from its beginning.

        The lengths that the library tells of accesses off their alignment are wrong; it tells of their parts as well.
        """
        writes = bool(flags & _BP_MEM_WRITE)
        watched = [each for each in self._data if writes or each.kind != _WRITE]
        if self.alone:
            if length & (length - 1) == 0 and not start & (length - 1):
                for each in watched:
                    self._hits |= each.overlaps(start, length) << each.number
            return False
        if not any(each.overlaps(start - _NEAR, 2 * _NEAR) for each in watched):
            return False
        self._run_alone()
        return True


# -- interposing on the library ---------------------------------------------------------------------------------------

_watchers: dict[int, Breakpoints] = {}
"""By processor: several engines share the library."""


def _page_flags(processor: int, vaddr: int, _length: int) -> int:
    watcher = _watchers.get(processor)
    return watcher.page_flags(vaddr) if watcher is not None else 0


def _access(processor: int, start: int, length: int, _attributes: int, flags: int) -> int:
    watcher = _watchers.get(processor)
    return watcher is not None and watcher.access(start, length, flags)


_on_page = _ON_PAGE(_page_flags)
_on_access = _ON_ACCESS(_access)


class _Interposer:
    """Two pointers through which the library calls itself, and what stands there while data is watched."""

    def __init__(self, library: ctypes.CDLL, make_code: Callable[[bytes], Any]) -> None:
        functions = [
            _address(library.cpu_watchpoint_address_matches_x86_64),
            _address(library.cpu_check_watchpoint_x86_64),
        ]
        first, second, third = _CHECK_ACCESS
        leave = _address(library.cpu_loop_exit_restore_x86_64)
        self._check = make_code(
            first + _address(_on_access).to_bytes(8, "little") + second + leave.to_bytes(8, "little") + third
        )
        check = ctypes.addressof(ctypes.c_char.from_buffer(self._check))
        self._own = functions
        self._ours = [_address(_on_page), check]
        self._slots = [_find_slot(library, function) for function in functions]

    def set(self, active: bool) -> None:
        for slot, value in zip(self._slots, self._ours if active else self._own, strict=True):
            slot.value = value


_interposers: dict[str, _Interposer | None] = {}


def _interposer(library: ctypes.CDLL, make_code: Callable[[bytes], Any]) -> _Interposer | None:
    """None where the library cannot be made to watch data."""
    if library._name not in _interposers:
        try:
            _interposers[library._name] = _Interposer(library, make_code)
        except (OSError, NotImplementedError, AttributeError):
            _interposers[library._name] = None
    return _interposers[library._name]


def _find_slot(library: ctypes.CDLL, function: int) -> ctypes.c_uint64:
    """The one pointer to `function` in the library's writable memory. Raises OSError if there is not one."""
    pattern = function.to_bytes(8, "little")
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1].startswith("rw") and fields[5] == library._name:
            start, end = (int(text, 16) for text in fields[0].split("-"))
            memory = ctypes.string_at(start, end - start)
            at = memory.find(pattern)
            while at >= 0:
                found.append(start + at)
                at = memory.find(pattern, at + 1)
    if len(found) != 1:
        raise OSError(f"{len(found)} pointers to a function of the library")
    return ctypes.c_uint64.from_address(found[0])


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
