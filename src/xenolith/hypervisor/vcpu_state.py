"""The whole state of a vCPU as others see it: taking it, putting another in its place, and clearing it.

Facts are those of Xen 4.17's arch_get_info_guest, arch_set_info_guest and arch_vcpu_reset (xen/arch/x86/domain.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EOPNOTSUPP, XenError
from xenolith.abi.traps import CALLBACKTYPE_event, CALLBACKTYPE_failsafe, CALLBACKTYPE_syscall
from xenolith.abi.vcpu import (
    VcpuGuestContext,
    VGCF_failsafe_disables_events,
    VGCF_in_kernel,
    VGCF_online,
    VGCF_syscall_disables_events,
)
from xenolith.cpu.registers import CR0_TS, IF, IOPL, IOPL_SHIFT, NAMES
from xenolith.hypervisor.vcpu import UPCALL_MASK, Vcpu

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor

_SEGMENTS: Final = (("es", 0), ("cs", 1), ("ss", 2), ("ds", 3), ("fs", 4), ("gs", 5))
_MASKS_EVENTS: Final = 4
"""Of struct trap_info's flags."""


def save(hv: Hypervisor, vcpu: Vcpu) -> VcpuGuestContext:
    """The state of a vCPU that does not run, without that of its FPU."""
    context = VcpuGuestContext()
    _save_registers(hv, vcpu, context)
    _save_entry_points(vcpu, context)
    context.ldt_base, context.ldt_ents = vcpu.ldt_base, vcpu.ldt_entries
    context.gdt_ents = vcpu.gdt_entries
    for slot, mfn in enumerate(vcpu.gdt_mfns):
        context.gdt_frames[slot] = mfn
    context.ctrlreg[0] = CR0_TS if vcpu.cpu.task_switched else 0
    context.ctrlreg[1], context.ctrlreg[3] = vcpu.user_root, vcpu.kernel_root
    context.ctrlreg[4] = vcpu.cr4
    for number, value in enumerate(vcpu.debug):
        context.debugreg[number] = value
    context.vm_assist = vcpu.domain.vm_assist
    if not vcpu.down:
        context.flags |= VGCF_online
    return context


def _save_registers(hv: Hypervisor, vcpu: Vcpu, context: VcpuGuestContext) -> None:
    """A PV kernel's interrupt flag is the mask of its events, and its I/O privilege is kept by the hypervisor."""
    cpu, user = vcpu.cpu, context.user_regs
    for number, name in enumerate(NAMES):
        setattr(user, name, cpu.regs[number])
    for name, segment in _SEGMENTS:
        setattr(user, name, cpu.selector(segment))
    masked = hv.ram.bytes[vcpu.info_maddr + UPCALL_MASK]
    user.rflags = cpu.flags & ~(IF | IOPL) | vcpu.iopl << IOPL_SHIFT | (0 if masked else IF)
    user.saved_upcall_mask = masked
    context.fs_base = cpu.fs_base
    if vcpu.kernel_mode:
        context.flags |= VGCF_in_kernel
        context.gs_base_kernel, context.gs_base_user = cpu.gs_base, vcpu.other_gs_base
    else:
        context.gs_base_kernel, context.gs_base_user = vcpu.other_gs_base, cpu.gs_base


def _save_entry_points(vcpu: Vcpu, context: VcpuGuestContext) -> None:
    for vector, gate in enumerate(vcpu.traps):
        trap = context.trap_ctxt[vector]
        trap.vector, trap.cs, trap.address = vector, gate.selector, gate.address
        trap.flags = gate.dpl | (_MASKS_EVENTS if gate.masks_events else 0)
    context.kernel_ss, context.kernel_sp = vcpu.kernel_ss, vcpu.kernel_sp
    event, failsafe, syscall = (
        vcpu.callbacks[kind] for kind in (CALLBACKTYPE_event, CALLBACKTYPE_failsafe, CALLBACKTYPE_syscall)
    )
    context.event_callback_eip = event.address
    context.failsafe_callback_eip, context.syscall_callback_eip = failsafe.address, syscall.address
    context.flags |= VGCF_failsafe_disables_events if failsafe.masks_events else 0
    context.flags |= VGCF_syscall_disables_events if syscall.masks_events else 0


def check_same_tables(vcpu: Vcpu, context: VcpuGuestContext) -> None:
    """Raise XenError(EOPNOTSUPP) if a context has other roots or descriptor tables than the vCPU, which was started."""
    frames = -(-vcpu.gdt_entries // 512)
    same = (
        context.ctrlreg[3] == vcpu.kernel_root
        and context.ctrlreg[1] == vcpu.user_root
        and (vcpu.user_root or context.flags & VGCF_in_kernel)
        and context.gdt_ents == vcpu.gdt_entries
        and list(context.gdt_frames[:frames]) == vcpu.gdt_mfns[:frames]
        and (context.ldt_base, context.ldt_ents) == (vcpu.ldt_base, vcpu.ldt_entries)
    )
    if not same:
        raise XenError(EOPNOTSUPP, f"{vcpu!r} was started with other tables")


def reset(hv: Hypervisor, vcpu: Vcpu) -> None:
    """Make a vCPU as if it had never been started: it holds no tables and is down."""
    hv.descriptors.release(vcpu)
    for root in (vcpu.kernel_root, vcpu.user_root):
        if root:
            hv.frames.put_page_and_type(root >> 12)
    vcpu.kernel_root = vcpu.user_root = 0
    vcpu.initialised = vcpu.blocked = vcpu.polling = vcpu.nmi_pending = False
    vcpu.down = True
    hv.timekeeping.settle(vcpu)
