"""Hypercalls about the calling vCPU's own state: traps, callbacks, stack, FPU, segment bases, iret, multicall."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EFAULT, EINVAL, ENOSYS, XenError
from xenolith.abi.hypercalls import (
    HYPERVISOR_callback_op,
    HYPERVISOR_fpu_taskswitch,
    HYPERVISOR_iret,
    HYPERVISOR_multicall,
    HYPERVISOR_set_callbacks,
    HYPERVISOR_set_segment_base,
    HYPERVISOR_set_trap_table,
    HYPERVISOR_stack_switch,
)
from xenolith.abi.traps import (
    CALLBACKF_mask_events,
    CALLBACKOP_register,
    CALLBACKOP_unregister,
    CallbackRegister,
    CALLBACKTYPE_event,
    CALLBACKTYPE_failsafe,
    CALLBACKTYPE_nmi,
    CALLBACKTYPE_syscall,
    CALLBACKTYPE_syscall32,
    CALLBACKTYPE_sysenter,
    CallbackUnregister,
)
from xenolith.abi.x86_64 import SEGBASE_FS, SEGBASE_GS_KERNEL, SEGBASE_GS_USER, SEGBASE_GS_USER_SEL
from xenolith.cpu.registers import MASK64, RAX, RDI, RSI
from xenolith.cpu.segments import base_of
from xenolith.hypervisor.hypercalls.mmu import update_va_mappings
from xenolith.hypervisor.hypercalls.table import HANDLERS, Continuation, hypercall, operation, run_operation
from xenolith.hypervisor.msr import is_canonical
from xenolith.hypervisor.shared_state import Callback, Gate, clear
from xenolith.hypervisor.vcpu import Vcpu

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor

_TRAP_BYTES: Final = 16
_MULTICALL_BYTES: Final = 64
_WORTHWHILE: Final = 8
"""Entries of a multicall from which on it pays to look whether they can be carried out together."""
_PART: Final = 1024
"""Calls that one part of a multicall makes, and entries of a trap table that one part of that call takes."""
_KNOWN_CALLBACKS: Final = frozenset(
    (
        CALLBACKTYPE_event,
        CALLBACKTYPE_failsafe,
        CALLBACKTYPE_nmi,
        CALLBACKTYPE_syscall,
        CALLBACKTYPE_syscall32,
        CALLBACKTYPE_sysenter,
    )
)


def check_address(address: int) -> None:
    """Raise XenError(EINVAL) for an entry point that is not canonical. One that is not the guest's faults when used."""
    if not is_canonical(address):
        raise XenError(EINVAL, f"{address:#x} is not canonical")


@hypercall(HYPERVISOR_set_trap_table)
def set_trap_table(hv: Hypervisor, vcpu: Vcpu, traps: int) -> int:
    """Install handlers from a list of struct trap_info that ends with address 0; a null list removes all.

    A list may be of any length, and set a handler more than once.
    """
    if not traps:
        clear(vcpu.traps)
        return 0
    for _ in range(_PART):
        entry = hv.memory.read(vcpu, traps, _TRAP_BYTES)
        address = int.from_bytes(entry[8:16], "little")
        if not address:
            return 0
        check_address(address)
        flags = entry[1]
        selector = int.from_bytes(entry[2:4], "little") | 3
        vcpu.traps[entry[0]] = Gate(address, selector, flags & 3, bool(flags & 4))
        traps += _TRAP_BYTES
    raise Continuation(traps)


@hypercall(HYPERVISOR_set_callbacks)
def set_callbacks(hv: Hypervisor, vcpu: Vcpu, event: int, failsafe: int, syscall: int) -> int:
    """The older way to register the three entry points; the failsafe one enters with events masked."""
    for address in (event, failsafe, syscall):
        check_address(address)
    vcpu.callbacks[CALLBACKTYPE_event] = Callback(event, True)
    vcpu.callbacks[CALLBACKTYPE_failsafe] = Callback(failsafe, True)
    vcpu.callbacks[CALLBACKTYPE_syscall] = Callback(syscall, False)
    return 0


@hypercall(HYPERVISOR_callback_op)
def callback_op(hv: Hypervisor, vcpu: Vcpu, command: int, vaddr: int) -> int:
    return run_operation(hv, vcpu, HYPERVISOR_callback_op, command & 0xFFFF_FFFF, vaddr)


@operation(HYPERVISOR_callback_op, CALLBACKOP_register)
def callback_register(hv: Hypervisor, vcpu: Vcpu, argument: CallbackRegister) -> int:
    """Raises XenError: ENOSYS for a type that does not exist for 64-bit PV, EINVAL for a bad address."""
    if argument.type not in _KNOWN_CALLBACKS:
        raise XenError(ENOSYS, f"callback type {argument.type}")
    check_address(argument.address)
    masks = argument.type in (CALLBACKTYPE_event, CALLBACKTYPE_failsafe) or bool(argument.flags & CALLBACKF_mask_events)
    vcpu.callbacks[argument.type] = Callback(argument.address, masks)
    return 0


@operation(HYPERVISOR_callback_op, CALLBACKOP_unregister)
def callback_unregister(hv: Hypervisor, vcpu: Vcpu, argument: CallbackUnregister) -> int:
    """Only an NMI callback can be given up. Raises XenError(EINVAL or ENOSYS)."""
    if argument.type not in _KNOWN_CALLBACKS:
        raise XenError(ENOSYS, f"callback type {argument.type}")
    if argument.type != CALLBACKTYPE_nmi:
        raise XenError(EINVAL, f"callback type {argument.type} cannot be unregistered")
    vcpu.callbacks[CALLBACKTYPE_nmi] = Callback()
    return 0


@hypercall(HYPERVISOR_stack_switch)
def stack_switch(hv: Hypervisor, vcpu: Vcpu, selector: int, pointer: int) -> int:
    """Where the kernel's stack is when the vCPU next enters it from user mode."""
    vcpu.kernel_ss = (selector & 0xFFFF) | 3
    vcpu.kernel_sp = pointer
    return 0


@hypercall(HYPERVISOR_fpu_taskswitch)
def fpu_taskswitch(hv: Hypervisor, vcpu: Vcpu, set_flag: int) -> int:
    """Set or clear CR0.TS: the next FPU instruction raises #NM."""
    vcpu.cpu.task_switched = bool(set_flag & 0xFFFF_FFFF)
    return 0


@hypercall(HYPERVISOR_set_segment_base)
def set_segment_base(hv: Hypervisor, vcpu: Vcpu, which: int, base: int) -> int:
    """Set the base of FS, of the user's GS or of the kernel's GS, or load the user's GS selector."""
    which &= 0xFFFF_FFFF
    if which == SEGBASE_GS_USER_SEL:
        selector = base & 0xFFFF
        descriptor = hv.descriptors.lookup(vcpu, selector) if selector > 3 else 0
        if selector > 3 and not descriptor >> 47 & 1:
            raise XenError(EFAULT, f"GS selector {selector:#x} cannot be loaded")
        vcpu.other_gs_base = base_of(descriptor)
        return 0
    if which not in (SEGBASE_FS, SEGBASE_GS_USER, SEGBASE_GS_KERNEL):
        raise XenError(EINVAL, f"segment {which}")
    if not is_canonical(base):
        raise XenError(EINVAL, f"base {base:#x} is not canonical")
    if which == SEGBASE_FS:
        vcpu.cpu.fs_base = base
    elif which == SEGBASE_GS_USER:
        vcpu.other_gs_base = base
    else:
        vcpu.cpu.gs_base = base
    return 0


@hypercall(HYPERVISOR_iret)
def iret(hv: Hypervisor, vcpu: Vcpu) -> None:
    """Leave the kernel's exception handler; all registers come from the guest's frame."""
    hv.traps.iret(vcpu)


@hypercall(HYPERVISOR_multicall)
def multicall(hv: Hypervisor, vcpu: Vcpu, calls: int, count: int) -> int | None:
    """Run a list of hypercalls (struct multicall_entry) and put each result into its entry.

    An iret ends the list: the guest is elsewhere then (pv_do_multicall_call in xen/arch/x86/pv/hypercall.c).
    """
    if hv.in_multicall:
        raise XenError(EINVAL, "a multicall within a multicall")
    count &= 0xFFFF_FFFF
    part = min(count, _PART)
    worthwhile = part + 1 if hv.tracing.enabled else _WORTHWHILE
    hv.in_multicall = True
    done = 0
    try:
        while done < part:
            if part - done >= worthwhile and (not done or not calls & 0xFFF):
                together = update_va_mappings(hv, vcpu, calls, part - done)
                calls += together * _MULTICALL_BYTES
                done += together
                if together:
                    continue
            entry = _entry(hv, vcpu, calls)
            if entry[0] == HYPERVISOR_iret:
                _leave(hv, vcpu, calls)
                return None
            try:
                result = _run_one(hv, vcpu, entry[0], entry[2:8])
            except Continuation as rest:
                packed = b"".join(argument.to_bytes(8, "little") for argument in rest.arguments)
                hv.memory.write(vcpu, calls + 16, packed)
                raise Continuation(calls, count - done) from None
            hv.memory.write_u64(vcpu, calls + 8, result & MASK64)
            calls += _MULTICALL_BYTES
            done += 1
            if vcpu.domain.shutdown_code is not None:
                return 0
    finally:
        hv.in_multicall = False
        _restore_list(hv, vcpu)
    if part < count:
        raise Continuation(calls, count - part)
    return 0


def _restore_list(hv: Hypervisor, vcpu: Vcpu) -> None:
    """Native code may have run the first part of a list; the guest does not see that."""
    rest = hv.state.processor.rest
    if rest.count:
        vcpu.cpu.regs[RDI], vcpu.cpu.regs[RSI] = rest.calls, rest.count
        rest.count = 0


def _entry(hv: Hypervisor, vcpu: Vcpu, vaddr: int) -> list[int]:
    """The eight words of one entry: number, result, six arguments."""
    if vaddr & 0xFFF <= 4096 - _MULTICALL_BYTES and not vaddr & 7:
        at = hv.memory.walk(vcpu.kernel_root, vaddr) >> 3
        words: list[int] = hv.ram.words[at : at + 8].tolist()
        return words
    return memoryview(hv.memory.read(vcpu, vaddr, _MULTICALL_BYTES)).cast("Q").tolist()


def _leave(hv: Hypervisor, vcpu: Vcpu, vaddr: int) -> None:
    """The iret at `vaddr` of a list. Its result is the RAX that it loads, where the entry can still be written."""
    hv.hypercall_counts[HYPERVISOR_iret] += 1
    HANDLERS[HYPERVISOR_iret](hv, vcpu)
    with suppress(XenError):
        hv.memory.write_u64(vcpu, vaddr + 8, vcpu.cpu.regs[RAX])


def _run_one(hv: Hypervisor, vcpu: Vcpu, number: int, arguments: list[int]) -> int:
    handler = HANDLERS.get(number)
    hv.hypercall_counts[min(number, 63)] += 1
    if handler is None:
        hv.count_unimplemented(number, -1)
        return -ENOSYS
    try:
        return handler(hv, vcpu, *arguments[: hv.argument_counts[number]])
    except XenError as error:
        hv.note_refusal(vcpu, number, error)
        return -error.errno
