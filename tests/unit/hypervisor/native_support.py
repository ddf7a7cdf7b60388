"""The hypervisor on the real processor, on which exits are made by hand: natively, or in Python alone."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import numpy as np
import pytest

from tests.conftest import why_not_kvm
from tests.unit.hypervisor.support import RW, A, Bench, Clock, Host, P
from xenolith.cpu import kvm_abi, kvm_loop
from xenolith.cpu.kvm import KvmEngine
from xenolith.cpu.kvm_cpu import CR2
from xenolith.cpu.kvm_entry import ENTRY_WIDTH, SYSCALL
from xenolith.cpu.kvm_loop import CODE_AT
from xenolith.cpu.registers import CS, R11, RCX, RIP, RSP, SS
from xenolith.cpu.shortcuts import Processor
from xenolith.cpu.unicorn import UnicornEngine
from xenolith.hypervisor import native_exits
from xenolith.hypervisor.descriptors import FLAT_CODE32, FLAT_CODE64, FLAT_DATA
from xenolith.hypervisor.frames import FLAG_EXECUTABLE, TYPE_L4
from xenolith.hypervisor.hypercalls.mmu import new_user_base, pin
from xenolith.hypervisor.machine import Hypervisor
from xenolith.hypervisor.shared_state import clear
from xenolith.machine.ram import Ram

NO_DEVICE, PAGE_FAULT = 7, 14
_BEHIND_PROCESSOR = ctypes.sizeof(Processor)
GDT = {1: FLAT_CODE32, 5: FLAT_DATA, 6: FLAT_CODE64, 7: FLAT_DATA & ~(2 << 40), 8: FLAT_CODE64 & ~(1 << 47)}


class UnicornExits:
    """Exits by the hooks of the engine's own library. `asked` counts those natively made ones that Python got."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.engine = UnicornEngine(machine.ram)
        self.asked = 0

    def begin(self) -> None:
        processor = self._machine.state.processor
        self._hooks = (
            ctypes.CFUNCTYPE(None)(processor.syscall),
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32)(processor.exception),
        )
        self._counting = (
            ctypes.CFUNCTYPE(None)(self._syscall),
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32)(self._exception),
        )
        processor.syscall, processor.exception = (ctypes.cast(each, ctypes.c_void_p) for each in self._counting)
        library = native_exits.library()
        assert library is not None
        library.xenolith_syscall.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        library.xenolith_exception.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
        self._native = (library.xenolith_syscall, library.xenolith_exception)

    def _syscall(self) -> None:
        self.asked += 1
        self._hooks[0]()

    def _exception(self, uc: int, vector: int) -> None:
        self.asked += 1
        self._hooks[1](uc, vector)

    def put_flags_off(self, operation: int) -> None:
        """The library computes arithmetic flags only when somebody asks for them."""
        self._machine.subject.vcpu.cpu.longs[168 // 4] = operation  # CC_OP

    def prepare(self, breaks: int, error: int = 0, address: int = 0, software: bool = False) -> None:
        """What an exception is about, and DR7."""
        engine = self.engine
        engine._longs[engine._error_at], engine._longs[engine._is_int_at] = error, software
        engine._words[440 // 8] = address  # CR2
        engine._words[engine.debug_word + 7] = breaks

    def make(self, vector: int | None, natively: bool) -> None:
        at = self._machine.at
        if vector is None:
            self._native[0](None, at) if natively else self._hooks[0]()
        elif natively:
            self._native[1](None, vector, at)
        else:
            self._hooks[1](None, vector)

    def save(self) -> tuple[bytes, ...]:
        return (bytes(self.engine._live),)

    def restore(self, saved: tuple[bytes, ...]) -> None:
        engine = self.engine
        (engine._live[:],) = saved
        engine._change_mode(engine._state, 1, True)  # so that it always remembers the same of the other mode
        (engine._live[:],) = saved
        engine._stopping.value, engine._stepped_syscall, engine._failure = 0, False, None

    def outcome(self) -> tuple[Any, ...]:
        engine = self.engine
        return (engine._cr3.value, engine._stopping.value, engine._stepped_syscall, engine._failure)


class KvmExits:
    """Exits as KVM leaves them in the page that it shares with us."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.engine = KvmEngine(machine.ram)
        self.asked = 0
        self._error = 0

    def begin(self) -> None:
        library = native_exits.library()
        assert library is not None
        library.xenolith_kvm_done.argtypes = (ctypes.c_void_p,)
        library.xenolith_kvm_done.restype = ctypes.c_bool
        self._done = library.xenolith_kvm_done
        assert self.engine._native is not None
        self.engine._native.adopt(self._cpu)

    @property
    def _cpu(self) -> Any:
        return self._machine.subject.vcpu.cpu

    def put_flags_off(self, operation: int) -> None:
        """Real processors have all flags at all times."""

    def prepare(self, breaks: int, error: int = 0, address: int = 0, software: bool = False) -> None:
        self._cpu.debug_[7] = breaks
        self._cpu.words[CR2] = address
        self._error = error

    def make(self, vector: int | None, natively: bool) -> None:
        cpu, engine = self._cpu, self.engine
        self._leave(cpu, vector)
        engine._current, engine._running = cpu, [cpu]
        if natively:
            if self._done(ctypes.addressof(cpu)):
                return
            self.asked += 1
        engine._take_over(cpu, 0)
        cpu.enter()

    def _leave(self, cpu: Any, vector: int | None) -> None:
        """The guest leaves: by SYSCALL at RIP, or with the frame of an exception on the ring-0 stack."""
        cpu.enter()
        run, regs = cpu.run, cpu.regs
        flags, rsp = cpu.flags | 2, regs[RSP]
        width, port = ENTRY_WIDTH, SYSCALL
        if vector is not None:
            width, port = 1, vector
            frame = [regs[RIP], cpu.selector(CS), flags, rsp, cpu.selector(SS)]
            if vector in (13, PAGE_FAULT):
                frame.insert(0, self._error)
            at = cpu.stack_end - 8 * len(frame)
            ctypes.memmove(at, struct.pack(f"<{len(frame)}Q", *frame), 8 * len(frame))
            rsp = cpu.stack_top - 8 * len(frame)
        r = regs.tolist()
        if vector is None:
            r[RCX], r[R11] = r[RIP] + 2, flags
        struct.pack_into(
            *("<18Q", run, kvm_abi.RUN_REGS, r[0], r[3], r[1], r[2], r[6], r[7], rsp, r[5], *r[8:16]),
            *(0xFFFF_8280_0000_0000, 2),
        )
        struct.pack_into("<I", run, kvm_abi.RUN_EXIT_REASON, kvm_abi.EXIT_IO)
        struct.pack_into("<BH", run, kvm_abi.RUN_IO_SIZE, width, port)

    def save(self) -> tuple[bytes, ...]:
        cpu = self._cpu
        own = bytes(cpu)
        kept = slice(kvm_abi.RUN_DIRTY_REGS, kvm_abi.RUN_SREGS + kvm_abi.SREGS_BYTES)
        return (own[: 18 * 8], own[CODE_AT : kvm_loop.KvmState.exits.offset], bytes(cpu.debug_), cpu.run[kept])

    def restore(self, saved: tuple[bytes, ...]) -> None:
        cpu, engine = self._cpu, self.engine
        own = memoryview(cpu).cast("B")
        own[: 18 * 8], own[CODE_AT : kvm_loop.KvmState.exits.offset] = saved[0], saved[1]
        cpu.debug_[:] = memoryview(saved[2]).cast("Q").tolist()
        cpu.run[kvm_abi.RUN_DIRTY_REGS : kvm_abi.RUN_SREGS + kvm_abi.SREGS_BYTES] = saved[3]
        cpu.flush, engine._stopping = False, False
        engine._written.clear()

    def outcome(self) -> tuple[Any, ...]:
        return (self._cpu.flush, self.engine._stopping, tuple(self.engine._written))


EXITS = [
    pytest.param(UnicornExits, id="unicorn"),
    pytest.param(KvmExits, id="kvm", marks=pytest.mark.skipif(bool(why_not_kvm()), reason=why_not_kvm())),
]


class Machine(Bench):
    """`subject` is a guest on the running vCPU; `roots` are more L4 tables that it has pinned, and `spare`
    frames that nothing maps."""

    def __init__(self, exits: type[UnicornExits | KvmExits]) -> None:
        self.ram = Ram(256 << 12)
        self.exits = exits(self)
        engine: Any = self.exits.engine
        Hypervisor.__init__(self, self.ram, engine, Clock(), Host(), None)  # type: ignore[arg-type]
        self.subject = self.guest(pages=6)
        gdt = self.give(self.subject.domain, 1)
        self.table(gdt[0], GDT)
        self.descriptors.set_gdt(self.subject.vcpu, gdt, 512)
        domain, vcpu = self.subject.domain, self.subject.vcpu
        self.roots = self.give(domain, 3)
        for root in self.roots:
            self.table(root, {511: self.subject.l3 << 12 | P | RW | A})
        for root in self.roots:
            pin(self, domain, root, TYPE_L4)
        self.spare = self.give(domain, 3)
        new_user_base(self, vcpu, self.roots[0])
        self.user_root = vcpu.user_root
        self.stack = self.subject.data[2]
        self.frames.flags[self.stack] &= ~FLAG_EXECUTABLE & 0xFF
        self.engine.switch_to(self.subject.vcpu.cpu)
        self.at = ctypes.addressof(self.state)
        self.exits.begin()

    def is_pythons(self, vector: int | None) -> bool:
        """Make an exit natively: SYSCALL, or an exception. Whether Python had something to do."""
        self.exits.asked = 0
        self.exits.make(vector, natively=True)
        return bool(self.exits.asked)

    def save(self) -> tuple[Any, ...]:
        frames = self.frames
        arrays = (frames.owners, frames.counts, frames.types, frames.type_counts, frames.all_flags, frames.stale_epochs)
        return (
            *(bytes(self.ram.bytes), self.exits.save(), bytes(self.subject.vcpu), self._shared_state()),
            *(array.tobytes() for array in arrays),
            *(frames.epoch, frames.free_frames, self.subject.domain.tot_frames),
        )

    def restore(self, saved: tuple[Any, ...]) -> None:
        self.ram.bytes[:] = saved[0]
        self.exits.restore(saved[1])
        ctypes.memmove(ctypes.addressof(self.subject.vcpu), saved[2], len(saved[2]))
        ctypes.memmove(self.at + _BEHIND_PROCESSOR, saved[3], len(saved[3]))
        frames = self.frames
        arrays = (frames.owners, frames.counts, frames.types, frames.type_counts, frames.all_flags, frames.stale_epochs)
        for array, content in zip(arrays, saved[4:], strict=False):
            array[:] = np.frombuffer(content, array.dtype)
        frames.epoch_counter.value, frames.free_frames, self.subject.domain.tot_frames = saved[10:]
        domain = self.subject.domain
        domain.shutdown_code, domain.crash_reason, domain.crash_report = None, "", None
        domain.pause_count = 0

    def _shared_state(self) -> bytes:
        """All but what an engine tells of itself."""
        return bytes(self.state)[_BEHIND_PROCESSOR:]

    def both(self, vector: int | None, notes_calls: bool = True) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What comes of an exit natively, and what in Python, from the state that there is now.

        The hypercalls that a vCPU has made, which are noted for crash reports, may be left out.
        """
        prepared = self.save()
        self.restore(prepared)
        self.exits.make(vector, natively=True)
        natively = self.outcome(notes_calls)
        self.restore(prepared)
        self.exits.make(vector, natively=False)
        return natively, self.outcome(notes_calls)

    def outcome(self, notes_calls: bool) -> tuple[Any, ...]:
        if not notes_calls:
            clear(self.subject.vcpu.last_hypercalls.calls)
        domain = self.subject.domain
        return (*self.save(), domain.shutdown_code, domain.crash_reason, *self.exits.outcome())
