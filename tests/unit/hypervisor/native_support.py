"""The hypervisor on the real processor, on which exits are made by hand: natively, or in Python alone."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from tests.unit.hypervisor.support import RW, A, Bench, Clock, Host, P
from xenolith.cpu.unicorn import UnicornEngine
from xenolith.hypervisor import native_exits
from xenolith.hypervisor.descriptors import FLAT_CODE32, FLAT_CODE64, FLAT_DATA
from xenolith.hypervisor.frames import FLAG_EXECUTABLE, TYPE_L4
from xenolith.hypervisor.hypercalls.mmu import new_user_base, pin
from xenolith.hypervisor.machine import Hypervisor
from xenolith.hypervisor.shared_state import clear
from xenolith.machine.ram import Ram

GDT = {1: FLAT_CODE32, 5: FLAT_DATA, 6: FLAT_CODE64, 7: FLAT_DATA & ~(2 << 40), 8: FLAT_CODE64 & ~(1 << 47)}


class Machine(Bench):
    """`subject` is a guest on the running vCPU; `roots` are more L4 tables that it has pinned, and `spare`
    frames that nothing maps."""

    engine: UnicornEngine  # type: ignore[assignment]

    def __init__(self) -> None:
        ram = Ram(256 << 12)
        Hypervisor.__init__(self, ram, UnicornEngine(ram), Clock(), Host(), None)  # type: ignore[arg-type]
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
        self.asked = 0
        processor = self.state.processor
        self.hooks = (
            ctypes.CFUNCTYPE(None)(processor.syscall),
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32)(processor.exception),
        )
        self.counting = (
            ctypes.CFUNCTYPE(None)(self._syscall),
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32)(self._exception),
        )
        processor.syscall, processor.exception = (ctypes.cast(each, ctypes.c_void_p) for each in self.counting)
        library = native_exits._library()
        assert library is not None
        library.xenolith_syscall.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        library.xenolith_exception.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
        self.native = (library.xenolith_syscall, library.xenolith_exception)
        self.at = ctypes.addressof(self.state)

    def _syscall(self) -> None:
        self.asked += 1
        self.hooks[0]()

    def _exception(self, uc: int, vector: int) -> None:
        self.asked += 1
        self.hooks[1](uc, vector)

    def exit(self, vector: int | None, natively: bool) -> None:
        """SYSCALL, or an exception, as the engine tells of it."""
        if vector is None:
            self.native[0](None, self.at) if natively else self.hooks[0]()
        elif natively:
            self.native[1](None, vector, self.at)
        else:
            self.hooks[1](None, vector)

    def save(self) -> tuple[Any, ...]:
        frames = self.frames
        arrays = (frames.owners, frames.counts, frames.types, frames.type_counts, frames.all_flags, frames.stale_epochs)
        return (
            *(bytes(self.ram.bytes), bytes(self.engine._live), bytes(self.subject.vcpu), bytes(self.state)),
            *(array.tobytes() for array in arrays),
            *(frames.epoch, frames.free_frames, self.subject.domain.tot_frames),
        )

    def restore(self, saved: tuple[Any, ...]) -> None:
        self.ram.bytes[:], self.engine._live[:] = saved[0], saved[1]
        ctypes.memmove(ctypes.addressof(self.subject.vcpu), saved[2], len(saved[2]))
        ctypes.memmove(self.at, saved[3], len(saved[3]))
        frames = self.frames
        arrays = (frames.owners, frames.counts, frames.types, frames.type_counts, frames.all_flags, frames.stale_epochs)
        for array, content in zip(arrays, saved[4:], strict=False):
            array[:] = np.frombuffer(content, array.dtype)
        frames.epoch_counter.value, frames.free_frames, self.subject.domain.tot_frames = saved[10:]
        domain, engine = self.subject.domain, self.engine
        domain.shutdown_code, domain.crash_reason, domain.crash_report = None, "", None
        domain.pause_count = 0
        engine._stopping.value, engine._stepped_syscall, engine._failure = 0, False, None

    def both(self, vector: int | None, notes_calls: bool = True) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What comes of an exit natively, and what in Python, from the state that there is now.

        The hypercalls that a vCPU has made, which are noted for crash reports, may be left out.
        """
        prepared = self.save()
        self.restore(prepared)
        self.exit(vector, natively=True)
        natively = self.outcome(notes_calls)
        self.restore(prepared)
        self.exit(vector, natively=False)
        return natively, self.outcome(notes_calls)

    def outcome(self, notes_calls: bool) -> tuple[Any, ...]:
        if not notes_calls:
            clear(self.subject.vcpu.last_hypercalls.calls)
        domain, engine = self.subject.domain, self.engine
        return (
            *self.save(),
            *(domain.shutdown_code, domain.crash_reason),
            *(engine._cr3.value, engine._stopping.value, engine._stepped_syscall, engine._failure),
        )
