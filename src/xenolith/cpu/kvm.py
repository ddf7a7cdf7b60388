"""The KVM engine: guest code runs on the host's processor, at CPL 3, on the page tables that were validated for it.

One virtual machine holds the RAM; each virtual processor is one of KVM's. What a guest cannot do at CPL 3 arrives in
the engine's own pages (`kvm_entry`), leaves KVM from there, and is told to the handler. Where KVM keeps shadows of page
tables (it has neither EPT nor NPT, or is itself software), it does not see what we write into them: `shadows_tables`
says so, and the engine must be told of every change. What the host's KVM can do is tried out when an engine starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import platform
import signal
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from xenolith.cpu import kvm_abi as abi
from xenolith.cpu import native
from xenolith.cpu.engine import RING0_CODE_SELECTOR, Cpu, ExitHandler, gaps
from xenolith.cpu.kvm_cpu import CR2, CR3, KvmCpu
from xenolith.cpu.kvm_entry import (
    COMPAT_SYSCALL,
    DONE,
    ENTRY_WIDTH,
    LIST_ENTRIES,
    SOFTWARE_EXCEPTIONS,
    SOFTWARE_VECTORS,
    STOPPED,
    SYSCALL,
    SYSENTER,
    EntryPages,
    entry_written,
    table_gone,
)
from xenolith.cpu.kvm_loop import LAYOUT, NativeEngine, NativeLoop
from xenolith.cpu.kvm_proof import Proof, Unproven
from xenolith.cpu.kvm_thread import RunThread
from xenolith.cpu.paging import translate
from xenolith.cpu.registers import (
    CR0_AM,
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_PAE,
    CS,
    DF,
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    EFER_SCE,
    FLAGS_FIXED,
    IF,
    NT,
    RIP,
    SS,
    TF,
)
from xenolith.cpu.ring0 import MAY_HAVE
from xenolith.cpu.shortcuts import Program, Shortcuts
from xenolith.errors import UserError
from xenolith.machine.ram import PAGE_SIZE, Ram

_DEVICE: Final = "/dev/kvm"
_INSTEAD: Final = "use --engine unicorn"
_TOP: Final = 1 << 40
"""Physical addresses that a machine has, where the host's processor has as many."""
_VIRTUAL_PROCESSORS: Final = 1024
_MOST_PROCESSORS: Final = 8
"""Virtual processors that run at the same time. Each of them stops all others at its exits."""
_CR0: Final = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG
_CR4: Final = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT
_CR4_OSXSAVE: Final = 1 << 18
_HAS_XSAVE: Final = 1 << 26
_STATE_LEAF: Final = 0xD
_STATE_PARTS: Final = 0xE7
"""Of extended state: x87, SSE, AVX and AVX-512."""
_EFER: Final = EFER_SCE | EFER_LME | EFER_LMA | EFER_NX
_SYSCALL_CLEARS: Final = TF | IF | DF | NT | 0x40000
_RING0_FLAGS: Final = 2
_WITH_ERROR_CODE: Final = frozenset((8, 10, 11, 12, 13, 14, 17, 21, 29, 30))
_INVALID_OPCODE: Final = 6
_GENERAL_PROTECTION: Final = 13
_PAGE_FAULT: Final = 14
_FROM_TABLE: Final = 2
"""Error code of #GP: an entry of the interrupt table was at fault; its vector is in the bits above."""
_INT_N: Final = 0xCD
_KICKED_AGAIN_S: Final = 0.01
"""A kick while an exception is being delivered lets that happen first, and the processor may then go on."""
_MOST_RETRIES: Final = 1000
"""Exceptions in our own code, one after another, before we take it that it does not run."""


class KvmEngine:
    """The host's processors over `ram`, by way of /dev/kvm. Raises UserError where it cannot be used.

    Virtual processors run at the same time, in a thread each; but all that happens outside of `KVM_RUN` happens while
    none of them runs. The first that leaves the guest has the others leave it too.
    """

    name = "kvm"
    preemptible = True
    runs_loops = True
    forgets_code = False
    works_in_ring0: bool | None = None
    """Whether the hypervisor's program for ring 0 is executed; None to begin with: if that is faster here."""

    def __init__(self, ram: Ram, ram_ranges: list[range] | None = None) -> None:
        self._ram = ram
        self._words = ram.words
        self._kvm = _open()
        self._cpuid = abi.CpuidTable(self._kvm)
        self.host_cpuid = self._cpuid.query
        self._vm = abi.request(self._kvm, abi.CREATE_VM)
        weakref.finalize(self, _close, self._vm, self._kvm)
        self._run_size = abi.request(self._kvm, abi.GET_VCPU_MMAP_SIZE)
        processors = min(abi.request(self._kvm, abi.CHECK_EXTENSION, abi.CAP_MAX_VCPUS) or 1, _VIRTUAL_PROCESSORS)
        bits = self._cpuid.query(0x8000_0008, 0)[0] & 0xFF or 36
        self._numbers = iter(range(processors))
        self._pages = EntryPages(min(_TOP, 1 << bits), processors, ram.size)
        self.entry_table = self._pages.table
        self.memory: memoryview | None = self._pages.machine_memory
        self.reserved = range(self._pages.maddr, self._pages.maddr + self._pages.size)
        self.read_tsc = native.read_tsc
        self._slots = itertools.count()
        self._mapped: list[range] = []
        self._mmio: list[tuple[range, Callable[[int, int], int], Callable[[int, int, int], None]]] = []
        # What is shared with KVM is mapped a second time, so that forgetting pages of it costs nobody else anything.
        self._mirror = mmap.mmap(ram.share(), ram.size, mmap.MAP_SHARED)
        self._mirror_address = ctypes.addressof(ctypes.c_char.from_buffer(self._mirror))
        for addresses in ram_ranges or [range(ram.size)]:
            self._map(addresses, self._mirror_address + addresses.start)
        self._map(self.reserved, self._pages.host_address)
        self._spare: list[KvmCpu] = []
        self._current: KvmCpu | None = None
        self._running: list[KvmCpu] = []
        self._untold: list[KvmCpu] = []
        self.processors = min(len(os.sched_getaffinity(0)), _MOST_PROCESSORS)
        self._written: list[int] = []
        self._handler: ExitHandler
        self._native: NativeLoop | None = None
        self._stopping = False
        self._machine_thread = 0
        self._retries = 0
        self.shadows_tables = False
        self.tsc_khz: int | None = None
        _catch_kicks()
        self._try_out()

    def _map(self, addresses: range, host_address: int) -> None:
        region = (
            next(self._slots).to_bytes(4, "little")
            + bytes(4)
            + b"".join(value.to_bytes(8, "little") for value in (addresses.start, len(addresses), host_address))
        )
        try:
            abi.request(self._vm, abi.SET_USER_MEMORY_REGION, region)
        except OSError as error:
            raise UserError(f"KVM cannot map {len(addresses) >> 20} MiB: {error}", "use less memory") from None
        self._mapped.append(addresses)

    def _try_out(self) -> None:
        proof = Proof(self, self._ram, self._mapped[0].stop)
        try:
            found = proof.find()
            wanted = self.works_in_ring0
            self.works_in_ring0 = proof.ring0_is_fast() if wanted is None else wanted
        except (Unproven, OSError) as reason:
            raise UserError(f"this host's KVM cannot run PV guests: {reason}", _INSTEAD) from None
        finally:
            proof.clear()
        self.shadows_tables, self.first_slot, self.lacks = found
        if "cpuid" in self.lacks:
            self.host_cpuid = native.cpuid
        parts, _, _, more = self.host_cpuid(_STATE_LEAF, 0)
        self.xcr0_mask = (parts | more << 32) & _STATE_PARTS

    # -- processors ---------------------------------------------------------------------------------------------------

    def create_cpu(self) -> KvmCpu:
        if self._spare:
            cpu = self._spare.pop()
            cpu.reset()
            return cpu
        number = next(self._numbers, None)
        if number is None:
            raise UserError(f"KVM has but {_VIRTUAL_PROCESSORS} virtual processors", "start fewer guests, or vCPUs")
        fd = abi.request(self._vm, abi.CREATE_VCPU, number)
        abi.fcntl_large(fd, abi.SET_CPUID2, self._cpuid.raw)
        area = self._pages.make_area(number)
        self._set_msrs(fd, area.entry)
        _share_tsc(fd)
        self.tsc_khz = abi.request(fd, abi.GET_TSC_KHZ)
        return KvmCpu(self, fd, self._run_size, area)

    def release_cpu(self, cpu: Cpu) -> None:
        assert isinstance(cpu, KvmCpu)
        if self._current is cpu:
            self._current = None
        if cpu in self._running:
            self._running.remove(cpu)
        cpu.show(0)
        self._spare.append(cpu)

    def show(self, cpu: KvmCpu, mfn: int) -> None:
        """Let a processor's window be on frame `mfn`, or on nothing (0)."""
        self._pages.show(cpu.area, mfn)
        if self.shadows_tables and cpu.shown:
            self.mapping_removed(cpu.shown)
        cpu.shown = mfn
        cpu.flush = True

    def _set_msrs(self, fd: int, syscall: int) -> None:
        segments = RING0_CODE_SELECTOR << 32 | RING0_CODE_SELECTOR << 48
        for number, value in (
            (abi.MSR_STAR, segments),
            (abi.MSR_LSTAR, syscall),
            (abi.MSR_CSTAR, self._pages.compat_syscall),
            (abi.MSR_SYSCALL_MASK, _SYSCALL_CLEARS),
            (abi.MSR_SYSENTER_CS, RING0_CODE_SELECTOR),
            (abi.MSR_SYSENTER_EIP, self._pages.sysenter),
        ):
            if not abi.set_msr(fd, number, value):
                raise UserError(f"KVM refuses a value for register {number:#x}", _INSTEAD)
        abi.set_msr(fd, abi.MSR_MISC_FEATURES_ENABLES, abi.MISC_CPUID_FAULT)

    def set_modes(self, cpu: KvmCpu) -> None:
        """Control registers of a new processor, and where its exceptions go."""
        cpu.set_modes(
            _CR0, _CR4 | (_CR4_OSXSAVE if self._cpuid.query(1, 0)[2] & _HAS_XSAVE else 0), _EFER, self._pages.interrupts
        )
        cpu.set_descriptor_tables(self._pages.gdt, 0xFFFF, 0, 0)

    def switch_to(self, cpu: Cpu) -> None:
        assert isinstance(cpu, KvmCpu)
        self._current = cpu

    def attach(self, handler: ExitHandler, shortcuts: Shortcuts | None = None, program: Program | None = None) -> None:
        self._handler = handler
        if program is not None and self.works_in_ring0:
            self._pages.install(program)
        self._native = None
        if shortcuts is not None and shortcuts.kvm_layout == LAYOUT:
            common = NativeEngine(
                mirror=self._mirror_address,
                frames=self._ram.frames,
                has_program=self._pages.labels is not None,
                own_root=self._pages.own_root,
                shadows_tables=self.shadows_tables,
            )
            self._native = NativeLoop(shortcuts, common)

    # -- page tables --------------------------------------------------------------------------------------------------

    def load_root(self, maddr: int) -> None:
        cpu = self._current
        if cpu is not None:
            cpu.root = maddr
            cpu.flush = True

    def change_mode(self, maddr: int, kernel_mode: bool) -> bool:
        return False

    def still_has(self, maddr: int) -> bool:
        return False

    def flush_all(self) -> None:
        """Those that do not run now forget when their root is loaded."""
        for cpu in self._running:
            cpu.flush = True

    def flush_page(self, vaddr: int) -> None:
        self.flush_all()

    def invalidate_code(self, maddr: int, size: int) -> None:
        """Nothing is kept of code."""

    def mapping_removed(self, mfn: int) -> None:
        """Some L1 entry that mapped this frame maps it no more, or with fewer rights."""
        if mfn < self._ram.frames:
            self._mirror.madvise(mmap.MADV_DONTNEED, mfn << 12, PAGE_SIZE)

    def table_entry_changed(self, maddr: int) -> None:
        """The entry at `maddr` of a table above L1 was changed."""
        self._written.append(entry_written(maddr))

    def table_gone(self, mfn: int) -> None:
        """Frame `mfn` is no page table any more: it may be written to, and become one anew with other contents."""
        self._written.append(table_gone(mfn))

    def _replay(self, cpu: KvmCpu) -> None:
        """Have ring 0 write anew what was written, so that KVM sees it."""
        while self._written:
            part, self._written = self._written[:LIST_ENTRIES], self._written[LIST_ENTRIES:]
            registers = [0] * abi.REGS_WORDS
            registers[1], registers[2], registers[4] = 0, len(part), self._pages.put_list(part)
            registers[6], registers[16], registers[17] = cpu.area.stack_top - 256, self._pages.replay, _RING0_FLAGS
            cpu.words[CR3] = self._pages.own_root
            cpu.enter_ring0(registers)
            self._run_ring0(cpu)
        if self._stopping:
            cpu.run[abi.RUN_IMMEDIATE_EXIT] = 1

    def _run_ring0(self, cpu: KvmCpu) -> None:
        """Run our own code to its end, whatever comes in between."""
        for _ in range(_MOST_RETRIES):
            cpu.run[abi.RUN_IMMEDIATE_EXIT] = 0
            error = self._enter_kvm(cpu)
            if error == errno.EINTR:
                continue
            if error:
                break
            run = cpu.run
            if cpu.exit_reason == abi.EXIT_IO and run[abi.RUN_IO_SIZE] == ENTRY_WIDTH and cpu.port == DONE:
                return
            if not self._go_back(cpu):
                break
        raise Unproven("our own code does not run")

    def _forget_translations(self, cpu: KvmCpu) -> None:
        """KVM forgets all translations when CR3 changes; so it changes twice."""
        if cpu.flush:
            cpu.flush = False
            if not self.shadows_tables and cpu.words[CR3] == cpu.root:
                cpu.visit_root(self._pages.own_root)
        cpu.words[CR3] = cpu.root

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self, *beside: Cpu) -> None:
        """Execute processors until `stop` or `kick`. Raises what a handler raised."""
        cpu = self._current
        assert cpu is not None
        self._running = [cpu, *(other for other in beside if isinstance(other, KvmCpu))]
        self._machine_thread = threading.get_ident()
        self._stopping = False
        if beside:
            self._run_together()
        elif cpu.thread is None:
            self._run_alone(cpu)
        else:
            self._have_done([(cpu.thread, partial(self._run_alone, cpu))])

    def _run_alone(self, cpu: KvmCpu) -> None:
        cpu.run[abi.RUN_IMMEDIATE_EXIT] = 0
        while not self._stopping:
            if self._written:
                self._replay(cpu)
            self._forget_translations(cpu)
            cpu.enter()
            self._take_over(cpu, self._enter_natively(cpu) if self._native is not None else self._enter_kvm(cpu))

    def _run_together(self) -> None:
        """Let all run until the first has an exit; then tell of each one's exits while none runs."""
        while True:
            if self._written:
                self._replay(self._running[0])
            for cpu in self._running:
                cpu.run[abi.RUN_IMMEDIATE_EXIT] = 0
            if self._stopping:
                return
            for cpu in self._running:
                self._forget_translations(cpu)
                cpu.enter()
            self._run_until_an_exit()
            self._untold = sorted(self._running, key=lambda cpu: not cpu.error)  # first those that were only stopped
            self.settle()
            if not self._handler.on_all_stopped():
                return

    def settle(self) -> None:
        while self._untold:
            cpu = self._current = self._untold[0]
            try:
                if self._handler.on_processor(cpu):
                    self._take_over(cpu, cpu.error)
            finally:
                self._untold.remove(cpu)

    def _run_until_an_exit(self) -> None:
        """One of them may run in this thread, if it always does; each other one has its own."""
        own = next((cpu for cpu in self._running if cpu.thread is None), None)
        work = [(cpu.own_thread(), partial(self._run_beside, cpu)) for cpu in self._running if cpu is not own]
        self._have_done(work, partial(self._run_beside, own) if own is not None else None)

    def _run_beside(self, cpu: KvmCpu) -> None:
        """Run until something happens, which ends the running of all others."""
        self._note_error(cpu)
        for other in self._running:
            if other is not cpu:
                self._oust(other)

    def _note_error(self, cpu: KvmCpu) -> None:
        cpu.error = self._enter_kvm(cpu)

    def _have_done(
        self, work: Sequence[tuple[RunThread, Callable[[], None]]], own: Callable[[], None] | None = None
    ) -> None:
        """Do all of this at the same time, `own` in this thread. A signal's exception comes when all have stopped."""
        busy: list[RunThread] = []
        try:
            for thread, task in work:
                thread.start(task)
                busy.append(thread)
            if own is not None:
                own()
            while busy:
                busy[-1].wait()
                busy.pop()
        except BaseException:
            for thread in busy:
                self.kick()
                while not thread.wait(_KICKED_AGAIN_S):
                    self.kick()
            raise
        for thread, _ in work:
            thread.check()

    def _enter_kvm(self, cpu: KvmCpu) -> int:
        """Run a processor in the thread that it belongs to. Returns 0, or what KVM says (errno)."""
        thread = cpu.thread
        if thread is not None and thread.ident != threading.get_ident():
            self._have_done([(thread, partial(self._note_error, cpu))])
            return cpu.error
        cpu.inside = True
        try:
            fcntl.ioctl(cpu.fd, abi.RUN, 0)
        except OSError as error:
            return error.errno or errno.EIO
        finally:
            cpu.inside = False
        return 0

    def _enter_natively(self, cpu: KvmCpu) -> int:
        """The same, in the thread that runs it alone, until there is an exit that is not handled natively."""
        assert self._native is not None
        cpu.inside = True
        try:
            return self._native.run(cpu)
        finally:
            cpu.inside = False

    def _oust(self, cpu: KvmCpu) -> None:
        """Have a processor leave the guest, or not enter it."""
        cpu.run[abi.RUN_IMMEDIATE_EXIT] = 1
        if cpu.inside:
            signal.pthread_kill(cpu.thread.ident if cpu.thread is not None else self._machine_thread, _KICK)

    def _take_over(self, cpu: KvmCpu, error: int) -> None:
        """From KVM's return to the handling of what it was for; nothing of the guest's runs any more after it."""
        self._retries = 0
        while not self._ended(cpu, error):
            error = self._enter_kvm(cpu)

    def _ended(self, cpu: KvmCpu, error: int) -> bool:
        """False if KVM has to go on before the processor's state is the guest's."""
        if error == errno.EINTR:
            return self._stopped_in_guest(cpu)
        if error == errno.EFAULT:
            self._fail("the guest uses memory that the host does not have")
            return True
        if error:
            raise OSError(error, os.strerror(error))
        cpu.exits += 1
        reason = cpu.exit_reason
        if reason == abi.EXIT_IO:
            return self._arrived(cpu)
        if reason == abi.EXIT_MMIO:
            self._access_device(cpu)
            return False
        self._fail(_words_for(reason, cpu))
        return True

    def _stopped_in_guest(self, cpu: KvmCpu) -> bool:
        """After a kick. False where an exception is on its way or is arriving: that comes first."""
        cpu.run[abi.RUN_IMMEDIATE_EXIT] = 0
        is_in_guest, has_event = cpu.privilege == 3, cpu.has_event()
        if is_in_guest and not has_event:
            cpu.leave_in_place()
            return True
        labels = self._pages.labels
        if labels is not None:
            v = cpu.shared_registers()
            if not is_in_guest and not has_event and labels["decided"] <= v[16] <= labels["last"]:
                self._leave_at_the_end(cpu, v)
                return True
            cpu.area.words.stop = True
        return False

    def _leave_at_the_end(self, cpu: KvmCpu, v: list[int]) -> None:
        """Of what was done in ring 0: the guest goes on where that leads to."""
        words = cpu.area.words
        cpu.leave(v, words.frame_rip, words.frame_rsp, words.frame_flags)

    def _arrived(self, cpu: KvmCpu) -> bool:
        """The guest left by an OUT of our own pages. False if it was not the guest's doing, and goes on."""
        v = cpu.shared_registers()
        port = cpu.port
        if cpu.run[abi.RUN_IO_SIZE] == ENTRY_WIDTH:
            looked_at = port == SYSCALL and self._pages.labels is not None
            self._entered(cpu, v, port, cpu.area.words.saved_rsp if looked_at else v[6])
            return True
        frame = self._pages.frame_words(v[6])
        if frame is None:
            self._fail(f"exception {port} arrived in an unknown place")
            return True
        error_code = frame.pop(0) if port in _WITH_ERROR_CODE else 0
        rip, code, flags, rsp, stack = frame[:5]
        if code & 3 != 3:
            return not self._go_back(cpu)
        if port == _PAGE_FAULT and (entry := self._entry_at(cpu, rip)) is not None:
            # A software KVM enters by SYSCALL without leaving CPL 3, and so cannot fetch the code there. Or the guest
            # went there by itself, and has made up its flags.
            v[11] = v[11] & MAY_HAVE | FLAGS_FIXED
            self._entered(cpu, v, entry, rsp)
            return True
        cpu.leave(v, rip, rsp, flags)
        if code != cpu.code_selector:
            self._reload(cpu, CS, code)
        if stack != cpu.stack_selector:
            self._reload(cpu, SS, stack)
        self._raise(cpu, port, error_code)
        return True

    def _entry_at(self, cpu: KvmCpu, rip: int) -> int | None:
        """The port of the entry at an address."""
        entries = {cpu.area.entry: SYSCALL, self._pages.sysenter: SYSENTER, self._pages.compat_syscall: COMPAT_SYSCALL}
        return entries.get(rip)

    def _entered(self, cpu: KvmCpu, v: list[int], port: int, rsp: int) -> None:
        """By SYSCALL or SYSENTER, or by what was done in ring 0 when the engine wanted the processor."""
        if port == STOPPED:
            self._leave_at_the_end(cpu, v)
            return
        if port == SYSENTER:
            cpu.leave(v, 0, 0, v[17] | IF)
            self._handler.on_sysenter()
            return
        cpu.leave(v, v[2], rsp, v[11])
        if port in (SYSCALL, COMPAT_SYSCALL):
            self._handler.on_syscall()
        else:
            self._fail(f"entry {port} is unknown")

    def _raise(self, cpu: KvmCpu, vector: int, error_code: int) -> None:
        """Tell the handler of an exception."""
        if vector in SOFTWARE_EXCEPTIONS:
            cpu.forget_event()
        software = vector in SOFTWARE_VECTORS
        if vector == _GENERAL_PROTECTION and error_code & 3 == _FROM_TABLE and error_code >> 3 < 256:
            vector, error_code, software = error_code >> 3, 0, True
            cpu.regs[RIP] += 2
        elif vector == _INVALID_OPCODE and (number := self._int_n(cpu)) is not None:
            vector, software = number, True
            cpu.regs[RIP] += 2
        address = cpu.words[CR2] if vector == _PAGE_FAULT else 0
        self._handler.on_exception(vector, error_code, address, software)

    def _int_n(self, cpu: KvmCpu) -> int | None:
        """The vector of an INT n at RIP, which a software KVM does not know; None if there is none."""
        code = self._fetch(cpu, cpu.regs[RIP], 2)
        return code[1] if len(code) == 2 and code[0] == _INT_N else None

    def _fetch(self, cpu: KvmCpu, vaddr: int, size: int) -> bytes:
        found = bytearray()
        for at in range(vaddr, vaddr + size):
            maddr = translate(self._words, cpu.root, at)
            if maddr is None or maddr >= self._ram.size:
                break
            found.append(self._ram.bytes[maddr])
        return bytes(found)

    def _go_back(self, cpu: KvmCpu) -> bool:
        """An exception in our own code. False after many.

        Where it was on memory of the guest's, give up what was to be done in ring 0. Else a software KVM has raised it
        for no reason: try once more.
        """
        v = cpu.shared_registers()
        frame = self._pages.frame_words(v[6])
        self._retries += 1
        if frame is None or self._retries > _MOST_RETRIES:
            self._fail("exceptions arrive one in another")
            return False
        if cpu.port in _WITH_ERROR_CODE:
            frame.pop(0)
        v[16], v[6], v[17] = frame[0], frame[3], frame[2]
        labels = self._pages.labels
        if labels is not None and labels["arrive"] <= v[16]:
            if cpu.area.words.undoable:
                v[16], v[6], v[17] = labels["give_up"], cpu.area.frame, _RING0_FLAGS
            elif labels["go_on"] <= v[16] <= labels["last"]:
                v[16] = labels["go_on"]
        cpu.enter_ring0(v)
        return True

    def _reload(self, cpu: KvmCpu, segment: int, selector: int) -> None:
        """The guest has loaded another code or stack segment by itself: find its descriptor."""
        base = cpu.table_base(local=bool(selector & 4))
        maddr = translate(self._words, cpu.root, base + (selector & 0xFFF8))
        descriptor = self._words[maddr >> 3] if selector & 0xFFF8 and maddr is not None else 0
        cpu.load_descriptor(segment, selector, descriptor)

    def _access_device(self, cpu: KvmCpu) -> None:
        """An access to what is no RAM; KVM finishes the instruction when it runs again."""
        run = cpu.run
        address = cpu.words[abi.RUN_MMIO_ADDRESS // 8]
        length = int.from_bytes(run[abi.RUN_MMIO_LENGTH : abi.RUN_MMIO_LENGTH + 4], "little")
        data = slice(abi.RUN_MMIO_DATA, abi.RUN_MMIO_DATA + length)
        for addresses, read, write in self._mmio:
            if address in addresses:
                if run[abi.RUN_MMIO_IS_WRITE]:
                    write(address - addresses.start, length, int.from_bytes(run[data], "little"))
                else:
                    value = read(address - addresses.start, length)
                    run[data] = (value & (1 << 8 * length) - 1).to_bytes(length, "little")
                break
        else:
            run[data] = b"\xff" * length
        if self._stopping or len(self._running) > 1:
            run[abi.RUN_IMMEDIATE_EXIT] = 1

    def _fail(self, reason: str) -> None:
        self._stopping = True
        self._handler.on_failure(reason)

    def stop(self) -> None:
        self._stopping = True

    def finish_instruction(self) -> None:
        self.stop()

    def kick(self) -> None:
        self._stopping = True
        for cpu in list(self._running):
            self._oust(cpu)

    def comes_first(self, cpu: Cpu) -> bool:
        if cpu is self._current or cpu not in self._untold:
            return False
        if self._current in self._running:
            self._running.remove(self._current)
            self._running.append(self._current)
        return True

    # -- the rest of the machine --------------------------------------------------------------------------------------

    def count_work(self) -> None:
        raise UserError("KVM cannot count what a guest executes", "use --engine unicorn for a virtual clock")

    def set_work_limit(self, units: int | None) -> None:
        """Nothing counts work."""

    def work_done(self) -> int:
        return 0

    def map_mmio(
        self, maddr: int, size: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        self._mmio.append((range(maddr, maddr + size), read, write))
        self._mapped.append(range(maddr, maddr + size))

    def unmapped(self, end: int) -> list[range]:
        return gaps(self._mapped, end)


_KICK: Final = signal.SIGRTMIN + 1


def _catch_kicks() -> None:
    """Have the signal of a kick end a system call and do nothing else, and not even wake Python."""
    libc = ctypes.CDLL(None)
    libc.signal(_KICK, ctypes.cast(libc.abs, ctypes.c_void_p))


def _share_tsc(vcpu: int) -> None:
    """Let the guest's time stamp counter be the host's. (A software KVM has no other, and refuses.)"""
    offset = (ctypes.c_uint64 * 1)(0)
    attribute = b"".join(
        (bytes(4), abi.TSC_OFFSET_GROUP.to_bytes(4, "little"), bytes(8), ctypes.addressof(offset).to_bytes(8, "little"))
    )
    with contextlib.suppress(OSError):
        abi.request(vcpu, abi.SET_DEVICE_ATTR, attribute)


def _open() -> int:
    """/dev/kvm, if it can do what is needed. Raises UserError."""
    if platform.machine() != "x86_64":
        raise UserError(f"KVM runs x86-64 guests on x86-64 hosts, and this is {platform.machine()}", _INSTEAD)
    try:
        kvm = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{_DEVICE} cannot be opened: {error.strerror}", _INSTEAD) from None
    lacking = abi.request(kvm, abi.CHECK_EXTENSION, abi.CAP_SYNC_REGS) & 3 != 3 or not abi.request(
        kvm, abi.CHECK_EXTENSION, abi.CAP_IMMEDIATE_EXIT
    )
    if abi.request(kvm, abi.GET_API_VERSION) != abi.API_VERSION or lacking:
        os.close(kvm)
        raise UserError("this host's KVM is too old (Linux 4.17 or newer is needed)", _INSTEAD)
    return kvm


def _close(vm: int, kvm: int) -> None:
    os.close(vm)
    os.close(kvm)


def _words_for(reason: int, cpu: KvmCpu) -> str:
    if reason == abi.EXIT_SHUTDOWN:
        return "the processor has shut down: an exception could not be delivered"
    if reason == abi.EXIT_FAIL_ENTRY:
        return f"KVM cannot enter the guest (hardware reason {cpu.words[4]:#x})"
    if reason == abi.EXIT_INTERNAL_ERROR:
        return f"KVM cannot execute what the guest asks for (internal error {cpu.words[4] & 0xFFFFFFFF})"
    return f"KVM stopped for an unknown reason ({reason})"
