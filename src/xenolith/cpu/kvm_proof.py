"""What this host's KVM can do, found by trying: a few instructions at CPL 3 on tables of our own, before any guest."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from xenolith.cpu import native
from xenolith.cpu.engine import ENGINE_SLOT
from xenolith.cpu.kvm_entry import USER_DATA_SELECTOR
from xenolith.cpu.registers import DR7_FIXED, RAX, RDX, RIP, RSI, RSP

if TYPE_CHECKING:
    from xenolith.cpu.engine import Cpu
    from xenolith.cpu.kvm import KvmEngine
    from xenolith.machine.ram import Ram

_L4, _L3, _L2, _L1, _OTHER_L1, _CODE, _ONE, _OTHER = range(8)
FRAMES: Final = 8
_ALL: Final = 7
_CODE_AT: Final = _CODE << 12
_DATA_AT: Final = _ONE << 12
_READ: Final = bytes.fromhex("488b06 0f05")
"""mov rax, [rsi]; syscall"""
_CPUID: Final = bytes.fromhex("0fa2 0f05")
_USE_FPU: Final = bytes.fromhex("0f57c0 0f05")
"""xorps xmm0, xmm0; syscall"""
_LOAD_FS: Final = bytes.fromhex("b9") + USER_DATA_SELECTOR.to_bytes(4, "little") + bytes.fromhex("8ee1 8ce0 0f05")
"""mov ecx, selector; mov fs, ecx; mov eax, fs; syscall"""
_BREAK_AT_CODE: Final = DR7_FIXED | 1
_SYSENTER: Final = bytes.fromhex("0f34")
_DEBUG: Final = 1
_INVALID_OPCODE: Final = 6
_NO_DEVICE: Final = 7
_GENERAL_PROTECTION: Final = 13
_RDTSC: Final = bytes.fromhex("0f31 0f05")
_CONTENT: Final = (0x1111, 0x2222)
_SLOTS: Final = (256, 257)
_TRIES: Final = 3
_REPLAYED: Final = 128
_INSTEAD_OF_AN_EXIT: Final = 30
"""Entries that take as long to write anew as what is done in ring 0 instead of an exit: it has dear instructions."""


class Findings(NamedTuple):
    """What KVM can do here. `first_slot` is the lowest of the hypervisor's L4 slots that a guest can use; `lacks` are
    keys of `engine.LACKING`."""

    shadows_tables: bool
    first_slot: int
    lacks: frozenset[str]


class Unproven(Exception):
    """KVM does not do what guests need; the message says what."""


class Proof:
    """Runs on the last frames of a range of RAM, and leaves them clear. It is the engine's handler meanwhile."""

    def __init__(self, engine: KvmEngine, ram: Ram, end: int) -> None:
        self._engine = engine
        self._ram = ram
        self._base = (end >> 12) - FRAMES
        self._came: tuple[Any, ...] = ()
        engine.attach(self)
        self._cpu = engine.create_cpu()
        engine.switch_to(self._cpu)
        self._make_tables()

    def _maddr(self, frame: int) -> int:
        return self._base + frame << 12

    def _set(self, table: int, slot: int, entry: int) -> None:
        self._ram.words[(self._base + table << 9) + slot] = entry

    def _make_tables(self) -> None:
        for slot in (0, *_SLOTS):
            self._set(_L4, slot, self._maddr(_L3) | _ALL)
        self._set(_L4, ENGINE_SLOT, self._engine.entry_table)
        self._set(_L3, 0, self._maddr(_L2) | _ALL)
        self._set(_L2, 0, self._maddr(_L1) | _ALL)
        for table in (_L1, _OTHER_L1):
            self._set(table, _CODE, self._maddr(_CODE) | _ALL)
            self._set(table, _ONE, self._maddr(_ONE if table == _L1 else _OTHER) | _ALL)
        for frame, content in zip((_ONE, _OTHER), _CONTENT, strict=True):
            self._set(frame, 0, content)

    def _run(self, code: bytes, vaddr: int = _DATA_AT) -> int:
        """RAX after some code that ends with SYSCALL, or -1 if that is not how it ended."""
        at = self._maddr(_CODE)
        self._ram.bytes[at : at + len(code)] = code
        regs = self._cpu.regs
        regs[RIP], regs[RSP], regs[RSI], regs[RAX] = _CODE_AT, 0, vaddr, 0
        self._came = ()
        self._engine.load_root(self._maddr(_L4))
        self._engine.run()
        return regs[RAX] if "syscall" in self._came else -1

    def find(self) -> Findings:
        """Raises Unproven."""
        if self._run(_READ) != _CONTENT[0]:
            raise Unproven(f"a guest that reads memory and calls does not get there ({self._came})")
        shadows = self._sees_no_changes()
        first_slot = next((slot for slot in _SLOTS if self._reaches(slot)), 0)
        if not first_slot:
            raise Unproven("guests cannot use the hypervisor's part of the address space")
        self._check_tsc()
        return Findings(shadows, first_slot, self._lacks())

    def _sees_no_changes(self) -> bool:
        """Whether KVM must be told of changes of page tables; then it must heed that."""
        self._set(_L1, _ONE, self._maddr(_OTHER) | _ALL)
        if self._run(_READ) == _CONTENT[1]:
            return False
        engine = self._engine
        engine.shadows_tables = True
        engine.mapping_removed(self._base + _ONE)
        if self._run(_READ) != _CONTENT[1]:
            raise Unproven("changes of L1 tables are not seen")
        self._set(_L1, _ONE, self._maddr(_ONE) | _ALL)
        self._set(_L2, 0, self._maddr(_OTHER_L1) | _ALL)
        engine.table_entry_changed(self._maddr(_L2))
        if self._run(_READ) != _CONTENT[1]:
            raise Unproven("changes of L2 tables are not seen")
        self._set(_OTHER_L1, _ONE, self._maddr(_ONE) | _ALL)
        engine.table_gone(self._base + _OTHER_L1)
        if self._run(_READ) != _CONTENT[0]:
            raise Unproven("a frame that becomes a page table once more is not seen")
        return True

    def _reaches(self, slot: int) -> bool:
        return self._run(_READ, (0xFFFF << 48 | slot << 39) + _DATA_AT) in _CONTENT

    def _lacks(self) -> frozenset[str]:
        cpu, lacks = self._cpu, set()
        if not self._raises(_CPUID, _GENERAL_PROTECTION):
            lacks.add("cpuid")
        cpu.task_switched = True
        if not self._raises(_USE_FPU, _NO_DEVICE):
            lacks.add("task switch")
        cpu.task_switched = False
        cpu.set_debug_register(0, _CODE_AT)
        cpu.set_debug_register(7, _BREAK_AT_CODE)
        if not self._raises(_READ, _DEBUG):
            lacks.add("breakpoints")
        cpu.set_debug_register(7, DR7_FIXED)
        if self._raises(_SYSENTER, _INVALID_OPCODE):
            lacks.add("sysenter")
        if self._run(_LOAD_FS) != USER_DATA_SELECTOR:
            lacks.add("segments")
        return frozenset(lacks)

    def _raises(self, code: bytes, vector: int) -> bool:
        self._run(code)
        return self._came[:2] == ("exception", vector)

    def _check_tsc(self) -> None:
        """The guest's time stamp counter must be the host's."""
        before = native.read_tsc()
        low = self._run(_RDTSC)
        value = low | self._cpu.regs[RDX] << 32
        if not before <= value <= native.read_tsc():
            raise Unproven("the guest's time stamp counter is not the host's")

    def ring0_is_fast(self) -> bool:
        """Whether a few hundred instructions in ring 0 take less than an exit: whether they are not interpreted.

        To write an entry anew takes nine.
        """
        few, many = (min(self._replay_seconds(count) for _ in range(_TRIES)) for count in (1, 1 + _REPLAYED))
        exit_seconds = few / 2  # one for the entries, one for the guest
        return (many - few) * _INSTEAD_OF_AN_EXIT / _REPLAYED < exit_seconds

    def _replay_seconds(self, entries: int) -> float:
        for _ in range(entries):
            self._engine.table_entry_changed(self._maddr(_ONE))
        started = time.perf_counter()
        self._run(_READ)
        return time.perf_counter() - started

    def clear(self) -> None:
        """Leave no trace."""
        self._ram.clear(self._base, FRAMES)
        for frame in range(self._base, self._base + FRAMES):
            self._engine.table_gone(frame)
            self._engine.mapping_removed(frame)
        self._engine.release_cpu(self._cpu)

    # -- what the engine tells ----------------------------------------------------------------------------------------

    def _note(self, *what: Any) -> None:
        self._came = what
        self._engine.stop()

    def on_processor(self, cpu: Cpu) -> bool:
        return True

    def on_all_stopped(self) -> bool:
        return True

    def on_syscall(self) -> None:
        self._note("syscall")

    def on_sysenter(self) -> None:
        self._note("sysenter")

    def on_exception(self, vector: int, error_code: int, address: int, software: bool) -> None:
        self._note("exception", vector, error_code, address)

    def on_port_in(self, port: int, size: int) -> int | None:
        return None

    def on_port_out(self, port: int, size: int, value: int) -> bool:
        return False

    def on_cpuid(self) -> None:
        return

    def on_rdtsc(self) -> int:
        return 0

    def on_rdtscp(self) -> int:
        return 0

    def on_spin(self) -> None:
        return

    def on_instruction_finished(self) -> None:
        return

    def on_failure(self, reason: str) -> None:
        self._note("failure", reason)
