"""The Unicorn engine: software emulation of one x86-64 processor, anywhere.

The library is called directly: a hook costs a third of a microsecond this way. Registers are not copied at an exit; the
processor state block inside the library is overlaid by a memoryview. Its place and layout are found and verified by
`_probe` when an engine starts, together with every workaround that correctness rests on.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from xenolith.cpu.breakpoints import Breakpoints
from xenolith.cpu.engine import Cpu, ExitHandler, gaps
from xenolith.cpu.hot_loops import HotLoops
from xenolith.cpu.native import page_of_code
from xenolith.cpu.registers import (
    CR0_AM,
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR0_WP,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_PAE,
    CS,
    DF,
    DR6_BS,
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    EFER_SCE,
    ES,
    FLAGS_ARITHMETIC,
    FLAGS_FIXED,
    FS,
    GS,
    IF,
    RAX,
    RBX,
    RCX,
    RDX,
    RF,
    RIP,
    RSI,
    SS,
    TF,
)
from xenolith.cpu.replacements import Library, load_library
from xenolith.cpu.shortcuts import Program, Shortcuts
from xenolith.errors import UserError
from xenolith.machine.ram import Ram

# unicorn/unicorn.h and unicorn/x86.h of 2.1.4
_ARCH_X86: Final = 4
_MODE_64: Final = 8
_PROT_ALL: Final = 7
_HOOK_INTR: Final = 1 << 0
_HOOK_INSN: Final = 1 << 1
_HOOK_BLOCK: Final = 1 << 3
_HOOK_INVALID: Final = 1 << 14
_INS_IN: Final = 218
_INS_OUT: Final = 500
_INS_CPUID: Final = 113
_INS_RDTSC: Final = 608
_INS_RDTSCP: Final = 609
_INS_SYSCALL: Final = 699
_INS_SYSENTER: Final = 700
_REG_CR0: Final = 50
_REG_CR3: Final = 53
_REG_CR4: Final = 54
_REG_DR0: Final = 66
_REG_RAX_TO_R15: Final = (35, 38, 40, 37, 44, 36, 43, 39, 106, 107, 108, 109, 110, 111, 112, 113)
_REG_RIP: Final = 41
_REG_RFLAGS: Final = 253
_REG_MSR: Final = 248
_MSR_EFER: Final = 0xC0000080
_CTL_WRITE: Final = 1 << 30
_CTL_ONE: Final = 1 << 26
_CTL_USE_EXITS: Final = 4
_CTL_CPU_MODEL: Final = 7
_CTL_TB_FLUSH: Final = 10
_CTL_TCG_BUFFER_SIZE: Final = 13
_CPU_MODEL_HASWELL: Final = 19

# Offsets in bytes inside the processor state block (CPUX86State), verified by _probe.
_EFLAGS: Final = 136
_CC_SRC: Final = 152
_CC_OP: Final = 168
_DF: Final = 172
_HFLAGS: Final = 176
_SEGMENTS: Final = 184
_SEGMENT_SIZE: Final = 24
_LDT: Final = 328
_GDT: Final = 376
_CR0: Final = 424
_CR2: Final = 440
_STATE_LAYOUT: Final = (_EFLAGS, _CC_SRC, _CC_OP, _DF, _HFLAGS, _SEGMENTS, _LDT, _GDT, _CR0)
"""Of STATE_FIELDS."""
_CC_OP_EFLAGS: Final = 1
_HF_TS: Final = 1 << 11
_HF_CS32: Final = 1 << 4
_HF_SS32: Final = 1 << 5
_HF_LMA: Final = 1 << 14
_HF_CS64: Final = 1 << 15
_HF_OSFXSR: Final = 1 << 22
_HF_IOBPT: Final = 1 << 24
# The same places as words of 64 or of 32 bits, for what is read and written at every exit.
_EFLAGS_WORD: Final = _EFLAGS // 8
_CC_SRC_WORD: Final = _CC_SRC // 8
_CC_OP_LONG: Final = _CC_OP // 4
_DF_LONG: Final = _DF // 4
_HFLAGS_LONG: Final = _HFLAGS // 4
_FS_BASE_WORD: Final = (_SEGMENTS + FS * _SEGMENT_SIZE + 8) // 8
_GS_BASE_WORD: Final = (_SEGMENTS + GS * _SEGMENT_SIZE + 8) // 8
_SELECTOR_LONGS: Final = tuple((_SEGMENTS + segment * _SEGMENT_SIZE) // 4 for segment in range(6))
_NOT_ARITHMETIC: Final = ~FLAGS_ARITHMETIC
_NOT_ARITHMETIC_NOR_DF: Final = ~(FLAGS_ARITHMETIC | DF)
# Relative to the debug registers.
_ERROR_CODE: Final = -16
_EXCEPTION_IS_INT: Final = -12
_OLD_EXCEPTION: Final = 96
# uc_struct: the byte that turns the exit check after each load and store off, as found in 2.1.4.
_NO_EXIT_REQUEST: Final = 2034
# Bytes of the processor object that are searched for its class, which is at its end.
_PROCESSOR_SIZE: Final = 0xA800

_ATTRIBUTE_LONG: Final = 1 << 21
_ATTRIBUTE_BIG: Final = 1 << 22
_CODE64: Final = 0x00A0FB00
_DATA: Final = 0x00C0F300
_TF_RF: Final = TF | RF
_STEP_CAUSES: Final = DR6_BS | 0xF
_INVALID_OPCODE: Final = 6
_GENERAL_PROTECTION: Final = 13
_BREAK_ON_PORT: Final = 2 << 16 | 1
"""DR7: an I/O breakpoint of one byte at DR0."""
_NOWHERE: Final = 0xFFFF_0000_FFFF_0000
"""A stop address that no guest can reach."""
_NO_ROOT: Final = 1
_UNLIMITED: Final = 1 << 62
_SPIN_ENTRIES: Final = 64
"""After so many PAUSEs in one run a processor is taken to wait for another one. Each takes about 2 µs."""
_COUNT_BLOCK: Final = bytes.fromhex("89d2 48015108 482911 7801 c3 488b4110 c70001000000 488b7918 ff6120")
"""A block hook (edx: bytes in the block; rcx: left, done, address of `_stopping`, processor, cpu_exit), because a call
into Python for each block would cost a hundred times more: mov edx, edx; add [rcx+8], rdx; sub [rcx], rdx; js +1; ret;
then what `stop` does: mov rax, [rcx+16]; mov dword [rax], 1; mov rdi, [rcx+24]; jmp [rcx+32]
"""
_EXCEPTION_PROOF: Final = bytes.fromhex("31c9 f7f1 f7f1 b830120000 8ed8 cd77 ebfe")
"""xor ecx, ecx; div ecx; div ecx; mov eax, 0x1230; mov ds, eax; int 0x77; jmp itself"""
_EXCEPTION_PROOF_LENGTHS: Final = (2, 2, 2, 2)
"""How far each of the faulting instructions reaches."""
_STOP_PROOF: Final = bytes.fromhex("ec 488b06 48ffc3 0fa2 eb00 48ffc3 f4")
"""in al, dx; mov rax, [rsi]; inc rbx; cpuid; jmp next; next: inc rbx; hlt"""

_SIGNATURE_TAG: Final = 0x5851_0000_0000_0000


def _load_library() -> Library:
    spec = importlib.util.find_spec("unicorn")
    if spec is None or spec.origin is None:
        raise UserError("the package unicorn is not installed", "pip install unicorn==2.1.4")
    folder = Path(spec.origin).parent / "lib"
    for name in ("libunicorn.so.2", "libunicorn.2.dylib"):
        if (folder / name).exists():
            return load_library(folder / name)
    raise UserError(f"no Unicorn library in {folder}", "pip install --force-reinstall unicorn==2.1.4")


_VOID = ctypes.CFUNCTYPE(None)
_ON_INTR = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32)
_ON_INVALID = ctypes.CFUNCTYPE(ctypes.c_bool)
_ON_SKIP = ctypes.CFUNCTYPE(ctypes.c_int)
_ON_IN = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int)
_ON_OUT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32)
_ON_ENTER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_ON_BLOCK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
_ON_MMIO_READ = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint)
_ON_MMIO_WRITE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint, ctypes.c_uint64)


class EngineUnusable(Exception):
    """The library is not laid out as this module expects."""


class UnicornCpu:
    """The state of one virtual processor: the library's own while it runs, else a copy of the same layout."""

    __slots__ = ("_engine", "_state", "longs", "regs")
    exits = 0
    memory: memoryview | None = None

    def __init__(self, engine: UnicornEngine, template: bytes) -> None:
        self._engine = engine
        self._state: bytearray | None = bytearray(template)
        self._bind(memoryview(self._state))

    def _bind(self, block: memoryview) -> None:
        self.regs = block[: self._engine.state_size & ~7].cast("Q")
        self.longs = block[: self._engine.state_size & ~7].cast("I")

    def leave(self, live: memoryview) -> None:
        """Copy the library's state out; lazily computed flags are computed first."""
        flags = self.flags
        self._state = bytearray(live)
        self._bind(memoryview(self._state))
        self.flags = flags

    def show(self, maddr: int) -> None:
        """Nobody is there to look."""

    def enter(self, live: memoryview) -> None:
        """Copy the state into the library and be an overlay of it from now on."""
        if self._state is not None:
            live[:] = self._state
        self._state = None
        self._bind(live)

    @property
    def flags(self) -> int:
        longs, regs = self.longs, self.regs
        if longs[_CC_OP_LONG] != _CC_OP_EFLAGS:
            return self._engine.read_flags()
        flags = (regs[_EFLAGS_WORD] & _NOT_ARITHMETIC) | regs[_CC_SRC_WORD] | FLAGS_FIXED
        return flags if longs[_DF_LONG] == 1 else flags | DF

    @flags.setter
    def flags(self, value: int) -> None:
        longs, regs = self.longs, self.regs
        regs[_EFLAGS_WORD] = (value & _NOT_ARITHMETIC_NOR_DF) | FLAGS_FIXED
        regs[_CC_SRC_WORD] = value & FLAGS_ARITHMETIC
        longs[_CC_OP_LONG] = _CC_OP_EFLAGS
        longs[_DF_LONG] = 0xFFFFFFFF if value & DF else 1

    @property
    def fs_base(self) -> int:
        return self.regs[_FS_BASE_WORD]

    @fs_base.setter
    def fs_base(self, value: int) -> None:
        self.regs[_FS_BASE_WORD] = value

    @property
    def gs_base(self) -> int:
        return self.regs[_GS_BASE_WORD]

    @gs_base.setter
    def gs_base(self, value: int) -> None:
        self.regs[_GS_BASE_WORD] = value

    @property
    def task_switched(self) -> bool:
        return bool(self.regs[_CR0 // 8] & CR0_TS)

    @task_switched.setter
    def task_switched(self, value: bool) -> None:
        if value:
            self.regs[_CR0 // 8] |= CR0_TS
            self.longs[_HFLAGS_LONG] |= _HF_TS
        else:
            self.regs[_CR0 // 8] &= ~CR0_TS
            self.longs[_HFLAGS_LONG] &= ~_HF_TS

    def selector(self, segment: int) -> int:
        return self.longs[_SELECTOR_LONGS[segment]] & 0xFFFF

    def load_segment(self, segment: int, selector: int, base: int, limit: int, attributes: int) -> None:
        longs = self.longs
        at = _SELECTOR_LONGS[segment]
        longs[at] = selector
        self.regs[(at >> 1) + 1] = base
        longs[at + 4] = limit
        longs[at + 5] = attributes
        if segment == CS:
            mode = _HF_CS32 if attributes & (_ATTRIBUTE_LONG | _ATTRIBUTE_BIG) else 0
            mode |= _HF_CS64 if attributes & _ATTRIBUTE_LONG else 0
            longs[_HFLAGS_LONG] = (longs[_HFLAGS_LONG] & ~(_HF_CS64 | _HF_CS32)) | mode
        elif segment == SS:
            mode = _HF_SS32 if attributes & _ATTRIBUTE_BIG else 0
            longs[_HFLAGS_LONG] = (longs[_HFLAGS_LONG] & ~_HF_SS32) | mode

    def set_descriptor_tables(self, gdt_base: int, gdt_limit: int, ldt_base: int, ldt_limit: int) -> None:
        self.regs[_GDT // 8 + 1] = gdt_base
        self.longs[_GDT // 4 + 4] = gdt_limit
        self.regs[_LDT // 8 + 1] = ldt_base
        self.longs[_LDT // 4 + 4] = ldt_limit

    def set_xcr0(self, value: int) -> None:
        raise NotImplementedError("there is no XSAVE")

    def debug_register(self, number: int) -> int:
        return self.regs[self._engine.debug_word + number]

    def set_debug_register(self, number: int, value: int) -> None:
        self.regs[self._engine.debug_word + number] = value
        if self._state is None:
            self._engine.debug_registers_changed()


class UnicornEngine:
    """One emulated physical processor over `ram`. Raises UserError where the library cannot be used."""

    name = "unicorn"
    processors = 1
    lacks: frozenset[str] = frozenset()
    entry_table = 0
    xcr0_mask = 0
    reserved = range(0)
    first_slot = 256
    tsc_khz: int | None = None
    forgets_code = True
    shadows_tables = False
    memory: memoryview | None = None
    works_in_ring0: bool | None = False

    def __init__(self, ram: Ram, ram_ranges: list[range] | None = None) -> None:
        library = _load_library()
        self._lib = library.unicorn
        self._uc = ctypes.c_void_p()
        self._keep: list[Any] = []
        self._check(self._lib.uc_open(_ARCH_X86, _MODE_64, ctypes.byref(self._uc)), "open")
        self._control(_CTL_CPU_MODEL, _CPU_MODEL_HASWELL)
        self._control(_CTL_USE_EXITS, 1)
        self._control(_CTL_TCG_BUFFER_SIZE, 72 << 20)
        self._mapped: list[range] = []
        self._ram_blocks: list[tuple[range, int]] = []
        for addresses in ram_ranges or [range(ram.size)]:
            self._map_ram(ram, addresses)
        self._reg_read = self._lib.uc_reg_read
        self._flags = ctypes.c_uint64()
        self._flags_ref = ctypes.byref(self._flags)
        self._reg_write = self._lib.uc_reg_write
        self._cr3 = ctypes.c_uint64()
        self._cr3_ref = ctypes.byref(self._cr3)
        self._locate_state()
        self._sees_all_writes = library.take_engine(self._uc)
        self._change_mode = library.change_mode()
        self._state = ctypes.addressof(ctypes.c_ubyte.from_buffer(self._live))
        self._breakpoints = Breakpoints(
            self._lib, self._cpu_pointer.value or 0, self._words, _EFLAGS_WORD, self.debug_word, page_of_code
        )
        self._current: UnicornCpu | None = None
        self._handler: ExitHandler | None = None
        self._stopping = ctypes.c_uint32()
        self._entries = 0
        self._emu_start = self._lib.uc_emu_start
        self._emu_start.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t]
        self._kicked = False
        self._hot_loops: HotLoops | None = None
        self._left_loop = False
        self._finishing = False
        self._goes_on_at: int | None = None
        self.preemptible = False
        self.preemptible = self._enable_safe_stop(ram, self._mapped[0].stop - 4096)
        self._prove_exceptions(ram, self._mapped[0].stop - 4096)
        self._set_modes()
        self._template = self._make_template()
        self._work: ctypes.Array[ctypes.c_int64] | None = None
        self._failure: BaseException | None = None
        self._denied: bytes | None = None
        self._stepped_syscall = False
        self._host_cpuid_cache: dict[tuple[int, int], tuple[int, int, int, int]] = {}
        if self.preemptible and _executable_pages():
            self._hot_loops = HotLoops(
                ram, self._mapped[:], page_of_code, self._watch_block, self._unwatch_block, self.invalidate_code
            )
            self._on_watched_block = _ON_BLOCK(self._enter_loop)

    @property
    def runs_loops(self) -> bool:
        """Whether the host's processor runs hot loops of guests."""
        return self._hot_loops is not None

    def _map_ram(self, ram: Ram, addresses: range) -> None:
        self._check(
            self._lib.uc_mem_map_ptr(
                self._uc,
                ctypes.c_uint64(addresses.start),
                ctypes.c_size_t(len(addresses)),
                _PROT_ALL,
                ctypes.c_void_p(ram.host_address + addresses.start),
            ),
            "map RAM",
        )
        # The library numbers RAM blocks one after the other in an address space of its own.
        self._ram_blocks.append((addresses, sum(len(earlier) for earlier in self._mapped)))
        self._mapped.append(addresses)

    # -- start-up: finding and verifying the state block ------------------------------------------------------------

    def _check(self, result: int, what: str) -> None:
        if result:
            hint = "use less memory, or reinstall unicorn==2.1.4"
            raise UserError(f"Unicorn failed to {what} (error {result})", hint)

    def _control(self, kind: int, value: int) -> None:
        control = ctypes.c_uint(kind | _CTL_ONE | _CTL_WRITE)
        self._check(self._lib.uc_ctl(self._uc, control, ctypes.c_uint(value)), "set up")

    def read_flags(self) -> int:
        """RFLAGS of the running processor through the library's own interface, which computes what it put off."""
        self._reg_read(self._uc, _REG_RFLAGS, self._flags_ref)
        return self._flags.value

    def _write_register(self, register: int, value: int) -> None:
        self._lib.uc_reg_write(self._uc, register, ctypes.byref(ctypes.c_uint64(value)))

    def _locate_state(self) -> None:
        """Find the processor state block by planting a pattern in the registers, and verify every offset used."""
        for number, register in enumerate(_REG_RAX_TO_R15):
            self._write_register(register, _SIGNATURE_TAG + number)
        pattern = b"".join((_SIGNATURE_TAG + n).to_bytes(8, "little") for n in range(16))
        with open("/proc/self/mem", "rb", 0) as memory:
            base, processor = self._search(memory.fileno(), pattern)
            block = os.pread(memory.fileno(), 1 << 16, base)
        for number in range(4):
            self._write_register(_REG_DR0 + number, _SIGNATURE_TAG + 0x100 + number)
        window = (ctypes.c_ubyte * len(block)).from_address(base)
        view = memoryview(window).cast("B")
        debug = bytes(view).find(b"".join((_SIGNATURE_TAG + 0x100 + n).to_bytes(8, "little") for n in range(4)))
        if debug < 0 or debug % 8:
            raise UserError("the Unicorn library has an unknown layout", "pip install unicorn==2.1.4")
        for number in range(4):
            self._write_register(_REG_DR0 + number, 0)
        self._cpu_pointer = ctypes.c_void_p(processor)
        self.debug_word = debug // 8
        self.state_size = debug + 64
        self._live = view[: self.state_size]
        self._extra = view[: self.state_size + 64].cast("B")
        self._longs = view[: (self.state_size + 64) & ~7].cast("i")
        self._words = view[: self.state_size].cast("Q")
        self._error_at = (debug + _ERROR_CODE) // 4
        self._is_int_at = (debug + _EXCEPTION_IS_INT) // 4
        self._old_at = (debug + _OLD_EXCEPTION) // 4

    def _search(self, fd: int, pattern: bytes) -> tuple[int, int]:
        """The address of the register block, and of the processor object before it, which points back to the block."""
        handle = os.pread(fd, 2600, self._uc.value or 0)
        pointers = {int.from_bytes(handle[at : at + 8], "little") for at in range(0, len(handle) - 7, 8)}
        for pointer in sorted(pointers, reverse=True):
            if pointer < 4096 or pointer >> 47:
                continue
            try:
                memory = os.pread(fd, 1 << 17, pointer)
            except OSError:
                continue
            found = memory.find(pattern)
            if found >= 0 and (pointer + found).to_bytes(8, "little") in memory[:found]:
                return pointer + found, pointer
        raise UserError("the Unicorn library hides its processor state", "pip install unicorn==2.1.4")

    def _set_modes(self) -> None:
        self._write_register(_REG_CR4, CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT)
        msr = (ctypes.c_uint64 * 2)(_MSR_EFER, EFER_SCE | EFER_LME | EFER_LMA | EFER_NX)
        self._lib.uc_reg_write(self._uc, _REG_MSR, msr)
        self._write_register(_REG_CR0, CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG)

    def _make_template(self) -> bytes:
        """The state every new processor starts from: long mode, CPL 3, flat segments, clear registers."""
        cpu = UnicornCpu(self, bytes(self._live))
        for word in range(17):
            cpu.regs[word] = 0
        cpu.load_segment(CS, 0x33, 0, 0xFFFFFFFF, _CODE64)
        cpu.load_segment(SS, 0x2B, 0, 0xFFFFFFFF, _DATA)
        for segment in (ES, 3, FS, GS):
            cpu.load_segment(segment, 0, 0, 0, 0)
        cpu.longs[_HFLAGS_LONG] |= 3 | _HF_LMA | _HF_OSFXSR | _HF_IOBPT
        cpu.flags = IF
        return bytes(cpu.regs.cast("B"))

    def _enable_safe_stop(self, ram: Ram, scratch: int) -> bool:
        """Make stops safe at any moment, and prove it. Returns whether they are.

        The library's own stop is not: it checks for one after each load and store, and runs the instruction again when
        the guest goes on; and while one is pending it passes over the hooks of CPUID and RDTSC. So that check is turned
        off, and the library is stopped only while it is between two blocks (`_watch_for_stops`). The proof: a stop
        asked for in an IN hook lets the rest of the block, a load, an increment and a hooked CPUID, run to the block's
        end and no further. Uses the frame at `scratch`, which is cleared again.
        """
        flag = ctypes.c_ubyte.from_address((self._uc.value or 0) + _NO_EXIT_REQUEST)
        before = flag.value
        if before not in (0, 1) or not self._watch_for_stops():
            return False
        flag.value = 1
        self.preemptible = True
        asked = []

        def stop(_uc: int, _port: int, _size: int) -> int:
            self.stop()
            return 0

        def cpuid() -> int:
            asked.append(True)
            return 1

        hooks = (self._hook(_HOOK_INSN, _ON_IN(stop), _INS_IN), self._hook(_HOOK_INSN, _ON_SKIP(cpuid), _INS_CPUID))
        self._words[RBX], self._words[RSI] = 0, scratch
        failed, state = self._try_out(ram, scratch, _STOP_PROOF, *hooks)
        proven = not failed and state[RBX] == 1 and bool(asked) and not self._stopping.value
        if not proven:
            flag.value = before
        return proven

    def _watch_for_stops(self) -> bool:
        """Be called whenever the library begins to execute, also after `cpu_exit` made it pause between two blocks, and
        after each PAUSE of the guest.

        The library calls a method of its processor class then; a pointer to it stands in the processor object.
        """
        processor = self._cpu_pointer.value or 0
        try:
            method = ctypes.cast(self._lib.x86_cpu_exec_enter_x86_64, ctypes.c_void_p).value or 0
        except AttributeError:
            return False
        at = ctypes.string_at(processor, _PROCESSOR_SIZE).find(method.to_bytes(8, "little"))
        if at < 0:
            return False
        begin = _ON_ENTER(method)

        def enter(processor: int) -> None:
            begin(processor)
            if self._breakpoints.alone:
                return
            if self._left_loop:
                self._leave_loop()
            elif not self._finishing:
                self._entries += 1
                if self._entries > _SPIN_ENTRIES:
                    self._spin()
            if self._finishing:
                self._finish()
            if self._stopping.value:
                self._stopping.value = 0
                self._lib.uc_emu_stop(self._uc)

        callback = _ON_ENTER(enter)
        self._keep.append(callback)
        ctypes.c_void_p.from_address(processor + at).value = ctypes.cast(callback, ctypes.c_void_p).value
        return True

    def _finish(self) -> None:
        self._finishing = False
        self._entries = 0
        if self._handler is None:
            return
        try:
            self._handler.on_instruction_finished()
        except BaseException as error:
            self._guard(error)

    def _spin(self) -> None:
        self._entries = 0
        if self._handler is None:
            return
        try:
            self._handler.on_spin()
        except BaseException as error:
            self._guard(error)

    def _prove_exceptions(self, ram: Ram, scratch: int) -> None:
        """Prove that faults can follow one another, and where their error codes are; else this library is unusable.

        Two divisions by zero would be a double fault if the first were not forgotten; then a bad selector, whose error
        code is known, and a software interrupt, which must be told from a fault.
        """
        seen: list[tuple[int, int, bool]] = []

        def note(_uc: int, vector: int) -> None:
            self._longs[self._old_at] = -1
            seen.append((vector, self._longs[self._error_at], self._longs[self._is_int_at] != 0))
            if len(seen) == len(_EXCEPTION_PROOF_LENGTHS):
                self.stop()
            else:
                self._words[RIP] += _EXCEPTION_PROOF_LENGTHS[len(seen) - 1]

        self._try_out(ram, scratch, _EXCEPTION_PROOF, self._hook(_HOOK_INTR, _ON_INTR(note)))
        vectors = [(vector, software) for vector, _, software in seen]
        if vectors != [(0, False), (0, False), (13, False), (0x77, True)] or seen[2][1] != 0x1230:
            raise UserError("this build of Unicorn reports exceptions in an unknown way", "pip install unicorn==2.1.4")

    def _try_out(self, ram: Ram, scratch: int, code: bytes, *hooks: int) -> tuple[int, list[int]]:
        """Run a few instructions before paging is on, and leave no trace. Returns the result and the registers."""
        saved = bytes(self._live)
        ram.bytes[scratch : scratch + len(code)] = code
        failed = self._emu_start(self._uc, scratch, _NOWHERE, 0, 0)
        state = self._words[:17].tolist()
        for hook in hooks:
            self._lib.uc_hook_del(self._uc, ctypes.c_size_t(hook))
        self._lib.uc_ctl(self._uc, ctypes.c_uint(_CTL_TB_FLUSH | _CTL_WRITE))
        ram.bytes[scratch : scratch + len(code)] = bytes(len(code))
        self._live[:] = saved
        return failed, state

    # -- processors ---------------------------------------------------------------------------------------------------

    def create_cpu(self) -> UnicornCpu:
        return UnicornCpu(self, self._template)

    def release_cpu(self, cpu: Cpu) -> None:
        """Processors are nothing but memory."""

    def switch_to(self, cpu: Cpu) -> None:
        assert isinstance(cpu, UnicornCpu)
        if self._current is cpu:
            return
        if self._current is not None:
            self._current.leave(self._live)
        cpu.enter(self._live)
        self._current = cpu
        self._cr3.value = _NO_ROOT
        self.debug_registers_changed()

    def debug_registers_changed(self) -> None:
        """Watch for what the current processor's debug registers say, if stops are safe enough for that."""
        if self.preemptible:
            self._breakpoints.update()

    def load_root(self, maddr: int) -> None:
        self._cr3.value = maddr
        self._reg_write(self._uc, _REG_CR3, self._cr3_ref)

    def change_mode(self, maddr: int, kernel_mode: bool) -> bool:
        if not self._change_mode(self._state, maddr, kernel_mode):
            return False
        self._cr3.value = maddr
        return True

    def still_has(self, maddr: int) -> bool:
        """As shipped the library does not see all writes to code, and has to look again at each page now and then."""
        return self._sees_all_writes and self._cr3.value == maddr

    def flush_all(self) -> None:
        self._lib.tlb_flush_x86_64(self._cpu_pointer)

    def flush_page(self, vaddr: int) -> None:
        self._lib.tlb_flush_page_x86_64(self._cpu_pointer, ctypes.c_uint64(vaddr))

    def invalidate_code(self, maddr: int, size: int) -> None:
        for addresses, offset in self._ram_blocks:
            if maddr in addresses:
                start = maddr - addresses.start + offset
                self._lib.tb_invalidate_phys_range_x86_64(
                    self._uc, ctypes.c_uint64(start), ctypes.c_uint64(start + size)
                )

    def mapping_removed(self, mfn: int) -> None:
        """The library walks the tables themselves."""

    def table_entry_changed(self, maddr: int) -> None:
        """Likewise."""

    def table_gone(self, mfn: int) -> None:
        """Likewise."""

    def read_tsc(self) -> int:
        raise NotImplementedError("each reading is asked of the handler")

    def unmapped(self, end: int) -> list[range]:
        return gaps(self._mapped, end)

    # -- running ------------------------------------------------------------------------------------------------------

    def attach(self, handler: ExitHandler, shortcuts: Shortcuts | None = None, program: Program | None = None) -> None:
        """Install the hooks; `handler` is told of every exit from now on that `shortcuts` do not take."""
        self._handler = handler
        words, longs = self._words, self._longs
        error_at, is_int_at, old_at = self._error_at, self._is_int_at, self._old_at
        cr2_at, flags_at, debug_status_at = _CR2 // 8, _EFLAGS_WORD, self.debug_word + 6
        guard = self._guard

        on_exception = handler.on_exception
        breakpoints = self._breakpoints

        def intr(_uc: int, vector: int) -> None:
            longs[old_at] = -1
            if self._denied is not None:
                self._undo_denied()
                vector, longs[error_at], longs[is_int_at] = _GENERAL_PROTECTION, 0, 0
            if self._stepped_syscall:
                self._stepped_syscall = False
                words[debug_status_at] &= ~_STEP_CAUSES
                return
            if breakpoints.armed and not self._finish_alone(vector):
                return
            at = words[RIP]
            try:
                on_exception(vector, longs[error_at] & 0xFFFFFFFF, words[cr2_at], longs[is_int_at] != 0)
            except BaseException as error:
                guard(error)
            if breakpoints.armed:
                if words[RIP] != at:
                    breakpoints.passed()
                elif not self._stopping.value:
                    breakpoints.resume()

        def invalid() -> bool:
            longs[old_at] = -1
            if breakpoints.armed:
                self._finish_alone(_INVALID_OPCODE)
            try:
                on_exception(_INVALID_OPCODE, 0, 0, False)
            except BaseException as error:
                guard(error)
            return True

        on_syscall = handler.on_syscall

        def syscall() -> None:
            words[RIP] += 2
            try:
                on_syscall()
            except BaseException as error:
                guard(error)
            if words[flags_at] & _TF_RF:
                self._resume_after_syscall()
            words[RIP] = (words[RIP] - 2) & 0xFFFFFFFFFFFFFFFF

        def sysenter() -> None:
            words[RIP] += 2
            try:
                handler.on_sysenter()
            except BaseException as error:
                guard(error)
            words[RIP] = (words[RIP] - 2) & 0xFFFFFFFFFFFFFFFF

        def port_in(_uc: int, port: int, size: int) -> int:
            try:
                value = handler.on_port_in(port, size)
                if value is not None:
                    return value
                self._deny(port)
            except BaseException as error:
                guard(error)
            return 0

        def port_out(_uc: int, port: int, size: int, value: int) -> None:
            try:
                if not handler.on_port_out(port, size, value):
                    self._deny(port)
            except BaseException as error:
                guard(error)

        def cpuid() -> int:
            try:
                handler.on_cpuid()
            except BaseException as error:
                guard(error)
            return 1

        def rdtsc() -> int:
            try:
                tsc = handler.on_rdtsc()
                words[RAX] = tsc & 0xFFFFFFFF
                words[RDX] = tsc >> 32
            except BaseException as error:
                guard(error)
            return 1

        def rdtscp() -> int:
            try:
                words[RCX] = handler.on_rdtscp()
            except BaseException as error:
                guard(error)
            return rdtsc()

        if shortcuts is None or not self._install(shortcuts, _VOID(syscall), _ON_INTR(intr)):
            self._hook(_HOOK_INTR, _ON_INTR(intr))
            self._hook(_HOOK_INSN, _VOID(syscall), _INS_SYSCALL)
        self._hook(_HOOK_INVALID, _ON_INVALID(invalid))
        self._hook(_HOOK_INSN, _VOID(sysenter), _INS_SYSENTER)
        self._hook(_HOOK_INSN, _ON_IN(port_in), _INS_IN)
        self._hook(_HOOK_INSN, _ON_OUT(port_out), _INS_OUT)
        self._hook(_HOOK_INSN, _ON_SKIP(cpuid), _INS_CPUID)
        self._hook(_HOOK_INSN, _ON_SKIP(rdtsc), _INS_RDTSC)
        self._hook(_HOOK_INSN, _ON_SKIP(rdtscp), _INS_RDTSCP)

    def _install(self, shortcuts: Shortcuts, syscall: Any, exception: Any) -> bool:
        """Have native code called for SYSCALL and exceptions, which calls these hooks where need be. Returns whether it
        fits this library."""
        if shortcuts.state_layout != _STATE_LAYOUT:
            return False
        try:
            arithmetic_flags, set_root = self._lib.cpu_cc_compute_all_x86_64, self._lib.cpu_x86_update_cr3_x86_64
        except AttributeError:
            return False
        processor, state = shortcuts.processor, self._state
        processor.state = state
        processor.debug = state + self.debug_word * 8
        processor.error_code = state + self._error_at * 4
        processor.is_software = state + self._is_int_at * 4
        processor.old_exception = state + self._old_at * 4
        processor.root = ctypes.addressof(self._cr3)
        processor.uncommon_flags = _TF_RF
        processor.arithmetic_flags = ctypes.cast(arithmetic_flags, ctypes.c_void_p)
        processor.set_root = ctypes.cast(set_root, ctypes.c_void_p)
        processor.change_mode = ctypes.cast(self._change_mode, ctypes.c_void_p)
        processor.processor = self._cpu_pointer
        processor.flush = ctypes.cast(self._lib.tlb_flush_x86_64, ctypes.c_void_p)
        processor.flush_page = ctypes.cast(self._lib.tlb_flush_page_x86_64, ctypes.c_void_p)
        processor.syscall = ctypes.cast(syscall, ctypes.c_void_p)
        processor.exception = ctypes.cast(exception, ctypes.c_void_p)
        self._keep += (shortcuts, syscall, exception)
        self._hook(_HOOK_INTR, ctypes.c_void_p(shortcuts.exception), user_data=shortcuts.context)
        self._hook(_HOOK_INSN, ctypes.c_void_p(shortcuts.syscall), _INS_SYSCALL, user_data=shortcuts.context)
        return True

    def _hook(
        self, kind: int, callback: Any, instruction: int = 0, user_data: int = 0, first: int = 1, last: int = 0
    ) -> int:
        """Have `callback` called; `first` and `last` limit where, if they are the first and last of addresses."""
        handle = ctypes.c_size_t()
        self._keep.append(callback)
        self._check(
            self._lib.uc_hook_add(
                self._uc,
                ctypes.byref(handle),
                kind,
                ctypes.cast(callback, ctypes.c_void_p),
                ctypes.c_void_p(user_data),
                ctypes.c_uint64(first),
                ctypes.c_uint64(last),
                instruction,
            ),
            "install a hook",
        )
        return handle.value

    def _guard(self, error: BaseException) -> None:
        """An exception must not pass through the library: keep it, stop, and raise it again from `run`."""
        if self._failure is None:
            self._failure = error
        self.stop()

    def settle(self) -> None:
        """There are never others."""

    def comes_first(self, cpu: Cpu) -> bool:
        return False

    def run(self, *beside: Cpu) -> None:
        """Execute the current processor until `stop` or `kick`. Raises what a handler raised."""
        if self._breakpoints.armed:
            self._breakpoints.resume()
        self._entries = 0
        if self._current is not None:  # the library takes all flags from here when it begins, and only then
            self._words[_EFLAGS_WORD] = self._current.flags
        result = self._emu_start(self._uc, self._words[RIP], _NOWHERE, 0, 0)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if self._kicked:
            self._kicked = False
            if self._hot_loops is not None:
                self._hot_loops.stopped_at(self._words[RIP], self._cr3.value)
        if result and self._handler is not None:
            self._handler.on_failure(f"the emulator cannot go on (Unicorn error {result})")

    def stop(self) -> None:
        if self.preemptible:
            self._stopping.value = 1
            self._lib.cpu_exit(self._cpu_pointer)
        else:
            self._lib.uc_emu_stop(self._uc)

    def finish_instruction(self) -> None:
        if self.preemptible:
            self._finishing = True
            self._lib.cpu_exit(self._cpu_pointer)
        else:
            self.stop()

    def _deny(self, port: int) -> None:
        """Let the IN or OUT that is being executed fault.

        The library does not check the right to use a port, but it does look for a breakpoint on it once the access is
        done, before the next instruction. So there is one now, and its #DB is made the #GP that should have been. (An
        INS has cleared its destination by then.)
        """
        self._denied = bytes(self._live)
        self._words[self.debug_word] = port
        self._words[self.debug_word + 7] = _BREAK_ON_PORT

    def _resume_after_syscall(self) -> None:
        """The library raises a single step's #DB right behind SYSCALL, before the guest has executed anything."""
        if self._breakpoints.armed and not self._stopping.value:
            self._breakpoints.resume()
        self._stepped_syscall = bool(self._words[_EFLAGS_WORD] & TF)

    def _finish_alone(self, vector: int) -> bool:
        """If an instruction had to run by itself: it has ended with `vector`. Returns whether that is the guest's."""
        if not self._breakpoints.alone:
            return True
        if self._stopping.value or self._finishing:  # which `alone` has put off
            self._lib.cpu_exit(self._cpu_pointer)
        return self._breakpoints.finish(vector)

    def _undo_denied(self) -> None:
        assert self._denied is not None
        self._live[:] = self._denied
        self._denied = None

    def kick(self) -> None:
        if self.preemptible:
            self._kicked = True
            self.stop()

    # -- hot loops ----------------------------------------------------------------------------------------------------

    def _watch_block(self, address: int, maddr: int) -> int:
        """Have `_enter_loop` called whenever a block of code begins at `address`."""
        hook = self._hook(_HOOK_BLOCK, self._on_watched_block, first=address, last=address)
        self.invalidate_code(maddr, 1)
        return hook

    def _unwatch_block(self, hook: int, address: int) -> None:
        self._lib.uc_hook_del(self._uc, ctypes.c_size_t(hook))

    def _enter_loop(self, _uc: int, address: int, _size: int, _data: int) -> None:
        """Run a loop natively, if nobody wants to see its single steps. RIP cannot be changed within a block, so the
        library has to pause (`_leave_loop`)."""
        loops, cpu = self._hot_loops, self._current
        if self._breakpoints.armed or self._words[_EFLAGS_WORD] & _TF_RF or self._stopping.value or self._finishing:
            return
        if loops is None or cpu is None or not self._longs[_HFLAGS_LONG] & _HF_CS64:
            return
        try:
            self._goes_on_at = loops.run(address, self._cr3.value, cpu, self._stopping)
            self._left_loop = self._goes_on_at is not None or loops.has_worthless
        except BaseException as error:
            self._guard(error)
        if self._left_loop:
            self._lib.cpu_exit(self._cpu_pointer)

    def _leave_loop(self) -> None:
        self._left_loop = False
        if self._goes_on_at is not None:
            self._words[RIP], self._goes_on_at = self._goes_on_at, None
        if self._hot_loops is not None:
            self._hot_loops.clean_up()

    def count_work(self) -> None:
        """Count executed code from now on. Must be called before anything runs: translated code does not change."""
        self._hot_loops = None  # whose iterations would not be counted
        self._work = (ctypes.c_int64 * 5)(
            _UNLIMITED,
            0,
            ctypes.addressof(self._stopping),
            self._cpu_pointer.value or 0,
            ctypes.cast(self._lib.cpu_exit, ctypes.c_void_p).value or 0,
        )
        try:
            page = page_of_code(_COUNT_BLOCK) if self.preemptible else None
        except (OSError, NotImplementedError):
            page = None
        if page is None:
            self._hook(_HOOK_BLOCK, _ON_BLOCK(self._count_block))
            return
        self._keep.append(page)
        entry = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        self._hook(_HOOK_BLOCK, entry, user_data=ctypes.addressof(self._work))

    def _count_block(self, _uc: int, _address: int, size: int, _data: int) -> None:
        """What the native counter does, where there is none."""
        assert self._work is not None
        self._work[1] += size
        self._work[0] -= size
        if self._work[0] < 0:
            self.stop()

    def set_work_limit(self, units: int | None) -> None:
        assert self._work is not None, "count_work comes first"
        self._work[0] = _UNLIMITED if units is None else units

    def work_done(self) -> int:
        return self._work[1] if self._work is not None else 0

    def map_mmio(
        self, maddr: int, size: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        def on_read(_uc: int, offset: int, width: int, _data: int = 0) -> int:
            return read(offset, width)

        def on_write(_uc: int, offset: int, width: int, value: int, _data: int = 0) -> None:
            write(offset, width, value)

        callbacks = (_ON_MMIO_READ(on_read), _ON_MMIO_WRITE(on_write))
        self._keep.extend(callbacks)
        self._check(
            self._lib.uc_mmio_map(
                self._uc,
                ctypes.c_uint64(maddr),
                ctypes.c_size_t(size),
                callbacks[0],
                None,
                callbacks[1],
                None,
            ),
            "map a device",
        )
        self._mapped.append(range(maddr, maddr + size))

    def host_cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """Runs CPUID on the emulated processor itself, through the library's own helper."""
        key = (leaf, subleaf)
        if key not in self._host_cpuid_cache:
            self._host_cpuid_cache[key] = self._ask_cpuid(leaf, subleaf)
        return self._host_cpuid_cache[key]

    def _ask_cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        out = [ctypes.c_uint32() for _ in range(4)]
        env = ctypes.addressof(ctypes.c_ubyte.from_buffer(self._live))
        self._lib.cpu_x86_cpuid_x86_64(ctypes.c_void_p(env), leaf, subleaf, *(ctypes.byref(o) for o in out))
        return (out[0].value, out[1].value, out[2].value, out[3].value)


def _executable_pages() -> bool:
    """Whether native code can be made."""
    try:
        page_of_code(b"").close()
    except (OSError, NotImplementedError):
        return False
    return True
