"""One virtual processor of the KVM engine: its state, which lies in the page that KVM shares with us."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
import weakref
from typing import TYPE_CHECKING, Final

from xenolith.cpu import kvm_abi as abi
from xenolith.cpu.engine import RING0_CODE_SELECTOR, RING0_STACK_SELECTOR
from xenolith.cpu.kvm_entry import SOFTWARE_EXCEPTIONS, Area
from xenolith.cpu.kvm_loop import CODE_AT, SEGMENT_BYTES, STACK_AT, KvmState
from xenolith.cpu.kvm_thread import RunThread
from xenolith.cpu.registers import CR0_TS, CS, DR6_FIXED, DR7_FIXED, ES, FLAGS_FIXED, FS, GS, IF, REGISTER_WORDS, SS
from xenolith.cpu.segments import segment_of

if TYPE_CHECKING:
    from xenolith.cpu.kvm import KvmEngine

_FS_BASE: Final = (abi.RUN_SREGS + abi.SREGS_FS) // 8
_GS_BASE: Final = (abi.RUN_SREGS + abi.SREGS_GS) // 8
_CR0: Final = (abi.RUN_SREGS + abi.SREGS_CR0) // 8
CR2: Final = (abi.RUN_SREGS + abi.SREGS_CR2) // 8
CR3: Final = (abi.RUN_SREGS + abi.SREGS_CR3) // 8
_REGS_WORD: Final = abi.RUN_REGS // 8
_DIRTY_WORD: Final = abi.RUN_DIRTY_REGS // 8
_GDT_BASE: Final = (abi.RUN_SREGS + abi.SREGS_GDT) // 8
_BREAKPOINTS: Final = 0xFF
"""Of DR7: which ones are active."""
_ALL_REGS: Final = abi.SYNC_REGS | abi.SYNC_SREGS
_HOST_ORDER: Final = struct.Struct("<18Q")
_OUR_ORDER: Final = struct.Struct("<17Q")
_PLACES: Final = {
    ES: abi.SREGS_ES,
    CS: abi.SREGS_CS,
    SS: abi.SREGS_SS,
    3: abi.SREGS_DS,
    FS: abi.SREGS_FS,
    GS: abi.SREGS_GS,
}
_CODE64: Final = 0x00A0FB00
_DATA: Final = 0x00C0F300
_CODE0: Final = 0x00A09B00
_DATA0: Final = 0x00C09300
_TASK_STATE: Final = 0x8B00
_LOCAL_TABLE: Final = 0x8200
_SOME_SELECTOR: Final = 0x40
_DEBUG_WORD: Final = {0: 0, 1: 1, 2: 2, 3: 3, 6: 4, 7: 5}
"""Where struct kvm_debugregs has each register."""


def packed_segment(selector: int, base: int, limit: int, attributes: int) -> bytes:
    """struct kvm_segment of a selector and what its descriptor says (attributes: bits 8 to 23 of the high word)."""
    a = attributes
    present = a >> 15 & 1
    return struct.pack(
        abi.SEGMENT,
        base,
        limit,
        selector,
        a >> 8 & 15,
        present,
        a >> 13 & 3,
        a >> 22 & 1,
        a >> 12 & 1,
        a >> 21 & 1,
        a >> 23 & 1,
        a >> 20 & 1,
        1 - present,
    )


RING0_CODE: Final = packed_segment(RING0_CODE_SELECTOR, 0, 0xFFFFFFFF, _CODE0)
RING0_STACK: Final = packed_segment(RING0_STACK_SELECTOR, 0, 0xFFFFFFFF, _DATA0)


class KvmCpu(KvmState):
    """A virtual processor. Registers are copied from and to the shared page at each exit; all else is read there.

    `root` is the L4 table that the guest runs on, `flush` says that translations are to be forgotten before it does,
    `exits` counts how often it has left.
    """

    def __init__(self, engine: KvmEngine, fd: int, run_size: int, area: Area) -> None:
        super().__init__(fd=fd, stack_top=area.stack_top, stack_end=area.stack_end, entry=area.entry)
        self._engine = engine
        self.area = area
        self.memory: memoryview | None = area.memory
        self.shown = 0
        """The frame that ring 0 has a window on; 0 for none."""
        self.thread: RunThread | None = None
        """The thread in which it runs; None for the machine's own."""
        self.inside = False
        """Whether that thread is in KVM_RUN, or is just entering or leaving it."""
        self.error = 0
        """What the last KVM_RUN came to (errno), if it was one beside others."""
        self.run = mmap.mmap(fd, run_size)
        self.run_address = ctypes.addressof(ctypes.c_char.from_buffer(self.run))
        weakref.finalize(self, os.close, fd)
        self.words = memoryview(self.run).cast("Q")
        state = memoryview(self).cast("B")
        self._registers = state[: 8 * REGISTER_WORDS]
        self.regs = self._registers.cast("Q")
        self.code = state[CODE_AT:][:SEGMENT_BYTES]
        """The guest's code segment, as KVM has it; while the processor is in ring 0, KVM has another one."""
        self.stack = state[STACK_AT:][:SEGMENT_BYTES]
        self._code_halves, self._stack_halves = self.code.cast("H"), self.stack.cast("H")
        self.words[abi.RUN_VALID_REGS // 8] = _ALL_REGS
        self._sregs = bytes(abi.answer(fd, abi.GET_SREGS, abi.SREGS_BYTES))
        self.reset()

    def reset(self) -> None:
        """The state that every new processor starts from: long mode, CPL 3, flat segments, clear registers."""
        self._registers[:] = bytes(len(self._registers))
        self.area.clear()
        self.exits = 0
        self.flags = FLAGS_FIXED | IF
        sregs = self.run
        sregs[abi.RUN_SREGS : abi.RUN_SREGS + abi.SREGS_BYTES] = self._sregs
        for segment in (ES, 3, FS, GS):
            self.load_segment(segment, 0, 0, 0, 0)
        self.load_segment(CS, 0x33, 0, 0xFFFFFFFF, _CODE64)
        self.load_segment(SS, 0x2B, 0, 0xFFFFFFFF, _DATA)
        self._engine.set_modes(self)
        fpu = bytearray(abi.FPU_BYTES)
        struct.pack_into("<H", fpu, abi.FPU_CONTROL, 0x37F)
        struct.pack_into("<I", fpu, abi.FPU_MXCSR, 0x1F80)
        abi.request(self.fd, abi.SET_FPU, bytes(fpu))
        debug = bytearray(abi.DEBUGREGS_BYTES)
        struct.pack_into("<2Q", debug, 32, DR6_FIXED, DR7_FIXED)
        abi.request(self.fd, abi.SET_DEBUGREGS, bytes(debug))
        self.debug_[:] = [0, 0, 0, 0, 0, 0, DR6_FIXED, DR7_FIXED]

    # -- what the hypervisor sees -------------------------------------------------------------------------------------

    @property
    def fs_base(self) -> int:
        return self.words[_FS_BASE]

    @fs_base.setter
    def fs_base(self, value: int) -> None:
        self.words[_FS_BASE] = value

    @property
    def gs_base(self) -> int:
        return self.words[_GS_BASE]

    @gs_base.setter
    def gs_base(self, value: int) -> None:
        self.words[_GS_BASE] = value

    @property
    def task_switched(self) -> bool:
        return bool(self.words[_CR0] & CR0_TS)

    @task_switched.setter
    def task_switched(self, value: bool) -> None:
        self.words[_CR0] = self.words[_CR0] | CR0_TS if value else self.words[_CR0] & ~CR0_TS

    @property
    def code_selector(self) -> int:
        return self._code_halves[abi.SEGMENT_SELECTOR // 2]

    @property
    def stack_selector(self) -> int:
        return self._stack_halves[abi.SEGMENT_SELECTOR // 2]

    def selector(self, segment: int) -> int:
        if segment == CS:
            return self.code_selector
        if segment == SS:
            return self.stack_selector
        at = abi.RUN_SREGS + _PLACES[segment] + abi.SEGMENT_SELECTOR
        return int.from_bytes(self.run[at : at + 2], "little")

    def load_segment(self, segment: int, selector: int, base: int, limit: int, attributes: int) -> None:
        descriptor = packed_segment(selector, base, limit, attributes)
        if segment == CS:
            self.code[:] = descriptor
        elif segment == SS:
            self.stack[:] = descriptor
        else:
            at = abi.RUN_SREGS + _PLACES[segment]
            self.run[at : at + 24] = descriptor

    def set_descriptor_tables(self, gdt_base: int, gdt_limit: int, ldt_base: int, ldt_limit: int) -> None:
        at = abi.RUN_SREGS + abi.SREGS_GDT
        struct.pack_into("<QH", self.run, at, gdt_base, gdt_limit)
        attributes = _LOCAL_TABLE if ldt_limit else 0
        table = packed_segment(_SOME_SELECTOR if ldt_limit else 0, ldt_base, ldt_limit, attributes)
        at = abi.RUN_SREGS + abi.SREGS_LDT
        self.run[at : at + 24] = table

    def set_modes(self, cr0: int, cr4: int, efer: int, interrupts: int) -> None:
        """Control registers, and where exceptions find their stack and their gates."""
        words, base = self.words, abi.RUN_SREGS
        words[_CR0], words[(base + abi.SREGS_CR4) // 8], words[(base + abi.SREGS_EFER) // 8] = cr0, cr4, efer
        at = base + abi.SREGS_TR
        self.run[at : at + 24] = packed_segment(_SOME_SELECTOR, self.area.address, 0x67, _TASK_STATE)
        struct.pack_into("<QH", self.run, base + abi.SREGS_IDT, interrupts, 0xFFF)

    def table_base(self, local: bool) -> int:
        """Where the GDT, or the LDT, lies (virtual address)."""
        return self.words[(abi.RUN_SREGS + (abi.SREGS_LDT if local else abi.SREGS_GDT)) // 8]

    def load_descriptor(self, segment: int, selector: int, descriptor: int) -> None:
        """Load CS or SS with a descriptor as it stands in a table; 0 is a flat data segment."""
        if not descriptor:
            self.load_segment(segment, selector, 0, 0xFFFFFFFF, _DATA)
            return
        about = segment_of(descriptor)
        self.load_segment(segment, selector, about.base, about.limit, about.attributes)

    def set_xcr0(self, value: int) -> None:
        message = bytearray(abi.XCRS_BYTES)
        struct.pack_into("<IIIIQ", message, 0, 1, 0, 0, 0, value)
        with contextlib.suppress(OSError):  # a software KVM has the host's for all, and refuses
            abi.request(self.fd, abi.SET_XCRS, bytes(message))

    def debug_register(self, number: int) -> int:
        state = abi.answer(self.fd, abi.GET_DEBUGREGS, abi.DEBUGREGS_BYTES)
        return int(memoryview(state).cast("Q")[_DEBUG_WORD[number]])

    def set_debug_register(self, number: int, value: int) -> None:
        state = abi.answer(self.fd, abi.GET_DEBUGREGS, abi.DEBUGREGS_BYTES)
        memoryview(state).cast("Q")[_DEBUG_WORD[number]] = value
        abi.request(self.fd, abi.SET_DEBUGREGS, bytes(state))
        self.debug_[number] = value

    def show(self, maddr: int) -> None:
        if maddr >> 12 != self.shown:
            self._engine.show(self, maddr >> 12)

    def own_thread(self) -> RunThread:
        """A thread that runs it from now on."""
        if self.thread is None:
            self.thread = RunThread()
            weakref.finalize(self, self.thread.close)
        return self.thread

    # -- in and out of the guest --------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Put the guest's registers, code and stack segment where KVM takes them from."""
        r = self.regs.tolist()
        run = self.run
        _HOST_ORDER.pack_into(
            run, abi.RUN_REGS, r[0], r[3], r[1], r[2], r[6], r[7], r[4], r[5], *r[8:17], self.flags | FLAGS_FIXED
        )
        run[abi.RUN_SREGS + abi.SREGS_CS : abi.RUN_SREGS + abi.SREGS_CS + 24] = self.code
        run[abi.RUN_SREGS + abi.SREGS_SS : abi.RUN_SREGS + abi.SREGS_SS + 24] = self.stack
        self.words[_DIRTY_WORD] = _ALL_REGS
        words = self.area.words
        words.root, words.gdt, words.segments = self.root, self.words[_GDT_BASE], self._selectors
        words.stop = words.undoable = words.by_fault = False
        words.is_open = not self.debug_[7] & _BREAKPOINTS

    @property
    def _selectors(self) -> int:
        return self.code_selector | self.stack_selector << 16

    def enter_ring0(self, registers: list[int]) -> None:
        """Put registers in KVM's order (RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8 to R15, RIP, RFLAGS) there instead,
        with ring 0's segments."""
        run = self.run
        _HOST_ORDER.pack_into(run, abi.RUN_REGS, *registers)
        run[abi.RUN_SREGS + abi.SREGS_CS : abi.RUN_SREGS + abi.SREGS_CS + 24] = RING0_CODE
        run[abi.RUN_SREGS + abi.SREGS_SS : abi.RUN_SREGS + abi.SREGS_SS + 24] = RING0_STACK
        self.words[_DIRTY_WORD] = _ALL_REGS

    def shared_registers(self) -> list[int]:
        """The registers as KVM left them, in its order."""
        return self.words[_REGS_WORD : _REGS_WORD + abi.REGS_WORDS].tolist()

    def leave(self, v: list[int], rip: int, rsp: int, flags: int) -> None:
        """Take over the registers of the shared page, but for these three, which are the guest's, and what was changed
        in ring 0: only flat segments are loaded there.
        """
        words = self.area.words
        self.root = words.root
        if words.segments != self._selectors:
            self.load_segment(CS, words.segments & 0xFFFF, 0, 0xFFFFFFFF, _CODE64)
            self.load_segment(SS, words.segments >> 16, 0, 0xFFFFFFFF, _DATA)
        _OUR_ORDER.pack_into(self._registers, 0, v[0], v[2], v[3], v[1], rsp, v[7], v[4], v[5], *v[8:16], rip)
        self.flags = flags

    def leave_in_place(self) -> None:
        """The guest was stopped in the middle of its own code: all registers are its own."""
        v = self.shared_registers()
        self.leave(v, v[16], v[6], v[17])
        run = self.run
        at = abi.RUN_SREGS + abi.SREGS_CS
        self.code[:] = run[at : at + 24]
        at = abi.RUN_SREGS + abi.SREGS_SS
        self.stack[:] = run[at : at + 24]

    @property
    def exit_reason(self) -> int:
        """Why KVM returned (EXIT_*)."""
        return self.words[abi.RUN_EXIT_REASON // 8] & 0xFFFFFFFF

    @property
    def port(self) -> int:
        """Of the OUT by which the guest left."""
        return self.words[abi.RUN_IO_PORT // 8] >> 8 * (abi.RUN_IO_PORT % 8) & 0xFFFF

    def has_event(self) -> bool:
        """Whether KVM has an exception to deliver that it had begun with.

        Of INT3 and INTO it tells nothing but their number, which stays there until `forget_event`.
        """
        injected, vector, _, pending, *_ = abi.answer(self.fd, abi.GET_VCPU_EVENTS, abi.EVENTS_BYTES)
        return bool(injected or pending or vector in SOFTWARE_EXCEPTIONS)

    def forget_event(self) -> None:
        """To be called when INT3 or INTO has been delivered."""
        abi.request(self.fd, abi.SET_VCPU_EVENTS, bytes(abi.EVENTS_BYTES))

    def visit_root(self, root: int) -> None:
        """Have KVM load another CR3, for a moment."""
        sregs = bytearray(self.run[abi.RUN_SREGS : abi.RUN_SREGS + abi.SREGS_BYTES])
        memoryview(sregs)[abi.SREGS_CR3 : abi.SREGS_CR3 + 8] = root.to_bytes(8, "little")
        abi.request(self.fd, abi.SET_SREGS, bytes(sregs))

    @property
    def privilege(self) -> int:
        """CPL, as KVM left the processor."""
        return self.run[abi.RUN_SREGS + abi.SREGS_SS + 16]
