"""Exits from guests: hypercalls, exceptions and I/O come in here, and here a vCPU's next state is made.

Guest kernel and guest user code both run at CPL 3; which of the two a vCPU is in is state that Xen keeps
(`Vcpu.kernel_mode`), with its own page table root and GS base. What is not the hypervisor's own business is bounced:
the guest's handler is entered with a frame on its kernel stack, as hardware would do for a native kernel.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import ENOSYS, XenError
from xenolith.abi.traps import (
    CALLBACKTYPE_event,
    CALLBACKTYPE_nmi,
    CALLBACKTYPE_syscall,
    CALLBACKTYPE_sysenter,
)
from xenolith.abi.vm_assist import VMASST_TYPE_architectural_iopl, VMASST_TYPE_writable_pagetables
from xenolith.cpu.registers import (
    AC,
    CS,
    DF,
    DR6_FIXED,
    FLAGS_ARITHMETIC,
    FLAGS_FIXED,
    IF,
    IOPL,
    MASK64,
    NT,
    R8,
    R9,
    R10,
    R11,
    RAX,
    RCX,
    RDI,
    RDX,
    RF,
    RIP,
    RSI,
    RSP,
    SS,
    TF,
    VM,
)
from xenolith.cpu.segments import attributes_of, segment_of
from xenolith.hypervisor import debug_registers, emulate, ioports, m2p, ptwr
from xenolith.hypervisor.descriptors import (
    FLAT_CODE64,
    FLAT_DATA,
    PERDOMAIN_START,
    XEN_CS64,
    XEN_SS,
)
from xenolith.hypervisor.frames import FLAG_EXECUTABLE
from xenolith.hypervisor.guest_memory import CANONICAL_LOW_END, HYPERVISOR_END, HYPERVISOR_START
from xenolith.hypervisor.hypercalls.table import HANDLERS, Continuation, Handler
from xenolith.hypervisor.vcpu import INFO_CR2, UPCALL_MASK, Vcpu

if TYPE_CHECKING:
    from xenolith.cpu.engine import Cpu
    from xenolith.hypervisor.machine import Hypervisor

DIVIDE: Final = 0
DEBUG: Final = 1
BREAKPOINT: Final = 3
INVALID_OPCODE: Final = 6
NO_DEVICE: Final = 7
GENERAL_PROTECTION: Final = 13
PAGE_FAULT: Final = 14
NAMES: Final = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP",
    12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM",
}  # fmt: skip
_WITH_ERROR_CODE: Final = frozenset((8, 10, 11, 12, 13, 14, 17))
_PF_PRESENT_WRITE: Final = 3
_PF_USER: Final = 4
_PF_WRITE_OR_FETCH: Final = 0x12
_VGCF_IN_SYSCALL: Final = 1 << 8
_CODE64_ATTRIBUTES: Final = attributes_of(FLAT_CODE64)
_DATA_ATTRIBUTES: Final = attributes_of(FLAT_DATA)
_SAVED_FLAGS: Final = ~(IF | IOPL)
_HANDLER_FLAGS: Final = ~(AC | VM | RF | NT | TF | IOPL)
_USER_FLAGS: Final = FLAGS_ARITHMETIC | TF | DF | NT | RF | AC | (1 << 21)

_ARGUMENTS: Final = (RDI, RSI, RDX, R10, R8, R9)
_LONGEST_STREAK: Final = 16
_BREATH_NS: Final = 50_000
"""Returns from event handlers that lead straight into the next one, and the time that a guest then gets to itself.

Linux's real-time kernels can send themselves an IPI at the end of every handler until they have scheduled once; without
any progress between the handlers they never do (they hang so on other hypervisors).
"""


class Traps:
    """The hypervisor's side of every exit; one for the machine. `current` is the vCPU whose exit it is.

    Where the native helper runs (exits.c), it does the same in the simple cases, and only the others come here.
    """

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self._words = hv.ram.words
        self._bytes = hv.ram.bytes
        self._memory = hv.memory
        self._frame_flags = hv.frames.flags
        self._m2p_is_elsewhere = hv.xenspace.is_elsewhere
        self._current: Vcpu = None  # type: ignore[assignment]

    @property
    def current(self) -> Vcpu:
        return self._current

    @current.setter
    def current(self, vcpu: Vcpu) -> None:
        self._current = vcpu
        self._hv.state.current = ctypes.addressof(vcpu)

    # -- the engine's calls -------------------------------------------------------------------------------------------

    def on_processor(self, cpu: Cpu) -> bool:
        """What a handler did a moment ago for another vCPU may have been the end of this one's domain."""
        self.current = next(vcpu for vcpu in self._hv.running if vcpu.cpu is cpu)
        return not self.current.domain.is_dying

    def on_all_stopped(self) -> bool:
        return self._hv.go_on_together()

    def on_syscall(self) -> None:
        vcpu = self._current
        if not vcpu.kernel_mode:
            self._user_syscall(vcpu)
        else:
            regs = vcpu.cpu.regs
            number = regs[RAX]
            arguments = (regs[RDI], regs[RSI], regs[RDX], regs[R10])
            vcpu.last_hypercalls.append(number, arguments)
            handler = HANDLERS.get(number)
            hv = self._hv
            hv.hypercall_counts[number if number < 64 else 63] += 1
            try:
                if handler is None:
                    hv.count_unimplemented(number, -1)
                    raise XenError(ENOSYS)
                result = call(handler, hv, vcpu, hv.argument_counts[number], arguments)
                if result is not None:
                    regs[RAX] = result & MASK64
            except XenError as error:
                regs[RAX] = -error.errno & MASK64
                hv.note_refusal(vcpu, number, error)
            except Continuation as rest:
                for register, argument in zip(_ARGUMENTS, rest.arguments, strict=False):
                    regs[register] = argument
                regs[RIP] -= 2
        self.resume(vcpu)

    def on_sysenter(self) -> None:
        vcpu = self._current
        callback = vcpu.callbacks[CALLBACKTYPE_sysenter]
        if vcpu.kernel_mode or not callback.address:
            vcpu.cpu.regs[RIP] -= 2
            self.inject(vcpu, GENERAL_PROTECTION, 0)
        else:
            regs = vcpu.cpu.regs
            regs[RIP] = regs[RSP] = 0
            vcpu.cpu.load_segment(CS, 3, 0, 0xFFFFFFFF, _CODE64_ATTRIBUTES)
            vcpu.cpu.load_segment(SS, XEN_SS, 0, 0xFFFFFFFF, _DATA_ATTRIBUTES)
            self.bounce(vcpu, callback.address, callback.masks_events)
        self.resume(vcpu)

    def on_exception(self, vector: int, error_code: int, address: int, software: bool) -> None:
        vcpu = self._current
        if software:
            self._software_interrupt(vcpu, vector)
        elif vector == PAGE_FAULT:
            self._page_fault(vcpu, error_code, address)
        elif vector == GENERAL_PROTECTION and not error_code:
            self._try(vcpu, emulate.privileged, vector)
        elif vector == INVALID_OPCODE:
            self._try(vcpu, emulate.invalid_opcode, vector)
        elif vector == NO_DEVICE:
            vcpu.cpu.task_switched = False
            self.inject(vcpu, vector)
        elif vector == DEBUG:
            self._debug(vcpu)
        else:
            self.inject(vcpu, vector, error_code)
        self.resume(vcpu)

    def on_port_in(self, port: int, size: int) -> int | None:
        vcpu = self._current
        if not ioports.permitted(self._hv, vcpu, port, size):
            self._deny_io(vcpu, port)
            return None
        return ioports.read(self._hv, vcpu, port, size)

    def on_port_out(self, port: int, size: int, value: int) -> bool:
        vcpu = self._current
        if not ioports.permitted(self._hv, vcpu, port, size):
            self._deny_io(vcpu, port)
            return False
        ioports.write(self._hv, vcpu, port, size, value)
        if not vcpu.runnable:
            self._hv.engine.stop()
        return True

    def on_cpuid(self) -> None:
        emulate.cpuid(self._hv, self._current)

    def on_rdtsc(self) -> int:
        return self._hv.tsc()

    def on_rdtscp(self) -> int:
        return self._current.tsc_aux

    def on_spin(self) -> None:
        """A vCPU that waits for another one, busily, does so in vain while the other cannot run."""
        self._hv.scheduler.yielded(self._current)
        if self._hv.reschedule:
            self._hv.engine.stop()

    def on_failure(self, reason: str) -> None:
        self._hv.crash(self._current, reason)

    # -- going back ---------------------------------------------------------------------------------------------------

    def resume(self, vcpu: Vcpu) -> None:
        """Deliver what is pending, and stop the engine if the vCPU cannot or should not go on."""
        info = vcpu.info_maddr
        if self._bytes[info] and not self._bytes[info + UPCALL_MASK]:
            if vcpu.upcall_streak < _LONGEST_STREAK:
                self._deliver_event(vcpu)
            else:
                vcpu.upcall_streak = 0
                self._hv.run_at_most(_BREATH_NS)
        elif vcpu.nmi_pending:
            self._deliver_nmi(vcpu)
        if self._hv.reschedule or not vcpu.runnable:
            self._hv.engine.stop()

    def accessed_device(self) -> None:
        """A guest has accessed a device's memory, in the middle of an instruction. What that has brought comes when
        the instruction is over.
        """
        info = self._current.info_maddr
        if self._hv.reschedule:
            self._hv.engine.stop()
        elif self._bytes[info] and not self._bytes[info + UPCALL_MASK]:
            self._hv.engine.finish_instruction()

    def on_instruction_finished(self) -> None:
        self.resume(self._current)

    def _deliver_event(self, vcpu: Vcpu) -> None:
        if vcpu.runnable:
            self.bounce(vcpu, vcpu.callbacks[CALLBACKTYPE_event].address, True)

    def _deliver_nmi(self, vcpu: Vcpu) -> None:
        address = vcpu.callbacks[CALLBACKTYPE_nmi].address
        if address:
            vcpu.nmi_pending = False
            self.bounce(vcpu, address, True)

    # -- mode switching -----------------------------------------------------------------------------------------------

    def enter_kernel(self, vcpu: Vcpu) -> None:
        vcpu.kernel_mode = True
        cpu = vcpu.cpu
        cpu.gs_base, vcpu.other_gs_base = vcpu.other_gs_base, cpu.gs_base
        self._hv.change_mode(vcpu)

    def enter_user(self, vcpu: Vcpu) -> None:
        vcpu.kernel_mode = False
        cpu = vcpu.cpu
        cpu.gs_base, vcpu.other_gs_base = vcpu.other_gs_base, cpu.gs_base
        self._hv.change_mode(vcpu)

    def bounce(
        self, vcpu: Vcpu, address: int, masks_events: bool, error_code: int | None = None, flags: int | None = None
    ) -> None:
        """Enter the guest kernel at `address` with an exception frame on its stack.

        `flags` are RFLAGS, if they are known. A guest without a handler, or without a usable stack, is crashed
        (xen/arch/x86/x86_64/entry.S).
        """
        cpu = vcpu.cpu
        regs = cpu.regs
        if not address:
            self._hv.crash(vcpu, "the guest has no handler for what it must handle")
            return
        mask_at = vcpu.info_maddr + UPCALL_MASK
        masked = self._bytes[mask_at]
        code = cpu.selector(CS)
        stack_selector, old_rsp = cpu.selector(SS), regs[RSP]
        if vcpu.kernel_mode:
            sp, code = old_rsp, code & ~3
        else:
            self.enter_kernel(vcpu)
            sp = vcpu.kernel_sp
        if flags is None:
            flags = cpu.flags
        saved = flags & _SAVED_FLAGS
        if not masked:
            saved |= IF
        saved |= vcpu.shown_iopl
        frame = [regs[RCX], regs[R11]]
        if error_code is not None:
            frame.append(error_code)
        frame += (regs[RIP], code | masked << 32, saved, old_rsp, stack_selector)
        sp = ((sp & ~15) - 8 * len(frame)) & MASK64
        try:
            self._push(vcpu, sp, frame)
        except XenError:
            self._hv.crash(vcpu, f"the kernel stack at {sp:#x} cannot take an exception frame")
            return
        if masks_events:
            self._bytes[mask_at] = 1
        regs[RSP] = sp
        regs[RIP] = address
        cpu.flags = (flags & _HANDLER_FLAGS) | IF
        if cpu.selector(CS) != XEN_CS64:
            cpu.load_segment(CS, XEN_CS64, 0, 0xFFFFFFFF, _CODE64_ATTRIBUTES)
        if stack_selector != XEN_SS:
            cpu.load_segment(SS, XEN_SS, 0, 0xFFFFFFFF, _DATA_ATTRIBUTES)

    def _push(self, vcpu: Vcpu, sp: int, frame: list[int]) -> None:
        memory = self._memory
        if (sp & 0xFFF) + 8 * len(frame) <= 4096:
            maddr = memory.walk(vcpu.kernel_root, sp, 3)
            for at, word in enumerate(frame, maddr >> 3):
                self._words[at] = word
            if self._frame_flags[maddr >> 12] & FLAG_EXECUTABLE:
                self._hv.frames.invalidate_code(maddr, 8 * len(frame))
        else:
            memory.write(vcpu, sp, b"".join(word.to_bytes(8, "little") for word in frame))

    # -- hypercall 23 -------------------------------------------------------------------------------------------------

    def iret(self, vcpu: Vcpu) -> None:
        """Return from an exception frame that the guest built (struct iret_context at its stack pointer)."""
        cpu = vcpu.cpu
        regs = cpu.regs
        try:
            frame = self._memory.read_words(vcpu, regs[RSP], 9)
        except XenError:
            self._hv.crash(vcpu, f"iret: the frame at {regs[RSP]:#x} cannot be read")
            return
        rax, r11, rcx, how, rip, code, flags, rsp, stack = frame
        if code & 3 == 3:
            if not vcpu.user_root:
                self._hv.crash(vcpu, "iret to user mode without a user base pointer")
                return
            self.enter_user(vcpu)
        self._bytes[vcpu.info_maddr + UPCALL_MASK] = 0 if flags & IF else 1
        vcpu.upcall_streak = vcpu.upcall_streak + 1 if flags & IF and self._bytes[vcpu.info_maddr] else 0
        regs[RAX] = rax
        if not how & _VGCF_IN_SYSCALL:
            regs[R11], regs[RCX] = r11, rcx
        regs[RIP], regs[RSP] = rip, rsp
        cpu.flags = (flags & _USER_FLAGS) | FLAGS_FIXED | IF
        self._load_code_and_stack(vcpu, (code & 0xFFFF) | 3, (stack & 0xFFFF) | 3)

    def _load_code_and_stack(self, vcpu: Vcpu, code: int, stack: int) -> None:
        """Load CS and SS as IRET would; a bad one is the guest's #GP at the place that it returns to."""
        cpu = vcpu.cpu
        lookup = self._hv.descriptors.lookup
        if code == XEN_CS64 and cpu.selector(CS) == code:
            pass
        else:
            segment = segment_of(lookup(vcpu, code))
            if not segment.is_code:
                self.inject(vcpu, GENERAL_PROTECTION, code & 0xFFFC)
                return
            cpu.load_segment(CS, code, 0, segment.limit, segment.attributes)
        if stack == cpu.selector(SS):
            return
        if stack == 3:
            cpu.load_segment(SS, stack, 0, 0xFFFFFFFF, _DATA_ATTRIBUTES)
            return
        segment = segment_of(lookup(vcpu, stack))
        if not segment.is_writable_data:
            self.inject(vcpu, GENERAL_PROTECTION, stack & 0xFFFC)
            return
        cpu.load_segment(SS, stack, segment.base, segment.limit, segment.attributes)

    # -- exceptions ---------------------------------------------------------------------------------------------------

    def inject(self, vcpu: Vcpu, vector: int, error_code: int = 0) -> None:
        """Bounce an exception to the guest's trap table."""
        gate = vcpu.traps[vector]
        if not gate.address:
            where = "kernel" if vcpu.kernel_mode else "user"
            name = NAMES.get(vector, f"vector {vector}")
            extra = f" at address {self._hv.cr2_of(vcpu):#x}" if vector == PAGE_FAULT else ""
            self._hv.crash(vcpu, f"unhandled {name} (error code {error_code:#x}) in {where} mode{extra}")
            return
        self.bounce(vcpu, gate.address, gate.masks_events, error_code if vector in _WITH_ERROR_CODE else None)

    def _user_syscall(self, vcpu: Vcpu) -> None:
        cpu = vcpu.cpu
        regs = cpu.regs
        if cpu.selector(CS) != XEN_CS64 and not cpu_in_long_mode(self._hv, vcpu):
            regs[RIP] -= 2
            self.inject(vcpu, INVALID_OPCODE)
            return
        callback = vcpu.callbacks[CALLBACKTYPE_syscall]
        flags = cpu.flags
        regs[RCX] = regs[RIP]
        regs[R11] = flags | IF
        if cpu.selector(CS) != XEN_CS64:
            cpu.load_segment(CS, XEN_CS64, 0, 0xFFFFFFFF, _CODE64_ATTRIBUTES)
        if cpu.selector(SS) != XEN_SS:
            cpu.load_segment(SS, XEN_SS, 0, 0xFFFFFFFF, _DATA_ATTRIBUTES)
        self.bounce(vcpu, callback.address, callback.masks_events, None, flags)

    def _software_interrupt(self, vcpu: Vcpu, vector: int) -> None:
        gate = vcpu.traps[vector]
        limit = (0 if vcpu.domain.vm_assist >> VMASST_TYPE_architectural_iopl & 1 else 1) if vcpu.kernel_mode else 3
        if vector not in (3, 4) and (gate.dpl < limit or not gate.address):
            vcpu.cpu.regs[RIP] -= 2
            self.inject(vcpu, GENERAL_PROTECTION, vector * 8 + 2)
            return
        if not gate.address:
            self.inject(vcpu, vector)
            return
        self.bounce(vcpu, gate.address, gate.masks_events)

    def _page_fault(self, vcpu: Vcpu, error_code: int, address: int) -> None:
        hv = self._hv
        if HYPERVISOR_START <= address < HYPERVISOR_END and not error_code & _PF_USER:
            if address < PERDOMAIN_START:
                self.inject(vcpu, GENERAL_PROTECTION, 0)
                return
            guest_address = hv.descriptors.ldt_fault(vcpu, address)
            if guest_address is None:
                return
            if guest_address < 0:
                self.inject(vcpu, GENERAL_PROTECTION, address & 0xFFFC)
                return
            address = guest_address
        elif (
            error_code & _PF_PRESENT_WRITE == _PF_PRESENT_WRITE
            and vcpu.kernel_mode
            and vcpu.domain.vm_assist >> VMASST_TYPE_writable_pagetables & 1
            and not CANONICAL_LOW_END <= address < HYPERVISOR_END
            and ptwr.emulate_write(hv, vcpu, address)
        ) or (
            self._m2p_is_elsewhere
            and not error_code & _PF_WRITE_OR_FETCH
            and HYPERVISOR_START <= address < PERDOMAIN_START
            and m2p.emulate_read(hv, vcpu, address)
        ):
            return
        self.inject_page_fault(vcpu, error_code, address)

    def inject_page_fault(self, vcpu: Vcpu, error_code: int, address: int) -> None:
        """The guest's own page fault; its user bit follows the guest's mode, not the CPL."""
        self._words[(vcpu.info_maddr + INFO_CR2) >> 3] = address
        error_code = error_code & ~_PF_USER if vcpu.kernel_mode else error_code | _PF_USER
        self.inject(vcpu, PAGE_FAULT, error_code)

    def _try(self, vcpu: Vcpu, attempt: emulate.Attempt, vector: int) -> None:
        try:
            done = attempt(self._hv, vcpu)
        except emulate.GuestFault as fault:
            if fault.vector == PAGE_FAULT:
                self.inject_page_fault(vcpu, fault.error_code, fault.address)
            else:
                self.inject(vcpu, fault.vector, fault.error_code)
            return
        if not done:
            self.inject(vcpu, vector, 0)

    def _debug(self, vcpu: Vcpu) -> None:
        """#DB: its cause is kept where the guest can look for it; past a breakpoint on code the guest goes with RF."""
        cpu = vcpu.cpu
        status = cpu.debug_register(6)
        vcpu.debug[6] |= status
        if debug_registers.stopped_at_code(vcpu, status):
            cpu.flags |= RF
        cpu.set_debug_register(6, DR6_FIXED)
        self.inject(vcpu, DEBUG)

    def _deny_io(self, vcpu: Vcpu, port: int) -> None:
        self._hv.publish("io-denied", domid=vcpu.domain.domid, vcpu=vcpu.vcpu_id, port=port)


def call(handler: Handler, hv: Hypervisor, vcpu: Vcpu, count: int, four: tuple[int, int, int, int]) -> int | None:
    """Run a hypercall handler with the first `count` register arguments, of which `four` are the first four."""
    if count == 4:
        return handler(hv, vcpu, *four)
    if count < 4:
        return handler(hv, vcpu, *four[:count])
    regs = vcpu.cpu.regs
    return handler(hv, vcpu, *four, regs[R8], *((regs[R9],) if count == 6 else ()))


def cpu_in_long_mode(hv: Hypervisor, vcpu: Vcpu) -> bool:
    """Whether the code segment is a 64-bit one."""
    return bool(hv.descriptors.lookup(vcpu, vcpu.cpu.selector(CS)) >> 53 & 1)
