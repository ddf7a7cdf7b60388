"""Loading a whole vCPU state from struct vcpu_guest_context, and taking one: how vCPUs are started and inspected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EINVAL, XenError
from xenolith.abi.traps import CALLBACKTYPE_event, CALLBACKTYPE_failsafe, CALLBACKTYPE_syscall
from xenolith.abi.vcpu import (
    VcpuGuestContext,
    VGCF_failsafe_disables_events,
    VGCF_in_kernel,
    VGCF_online,
    VGCF_syscall_disables_events,
)
from xenolith.cpu.registers import CS, FLAGS_FIXED, IF, IOPL, IOPL_SHIFT, MASK64, NAMES, SS, VM
from xenolith.cpu.segments import attributes_of
from xenolith.hypervisor import debug_registers
from xenolith.hypervisor.descriptors import FLAT_CODE64, FLAT_DATA, XEN_CS64, XEN_SS
from xenolith.hypervisor.frames import TYPE_L4
from xenolith.hypervisor.msr import is_canonical
from xenolith.hypervisor.shared_state import Callback, Gate, clear
from xenolith.hypervisor.vcpu import Vcpu
from xenolith.hypervisor.vcpu_state import check_same_tables

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor

_ALLOWED_FLAGS: Final = MASK64 & ~(IOPL | VM)
_MAX_GDT_ENTRIES: Final = 7168


class Contexts:
    """Loads and stores vCPU states."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv

    def load(self, vcpu: Vcpu, context: VcpuGuestContext) -> None:
        """Make `vcpu` start from `context`. Raises XenError(EINVAL) and leaves it uninitialised."""
        _check(context)
        frames, domid = self._hv.frames, vcpu.domain.domid
        kernel_l4, user_l4 = context.ctrlreg[3] >> 12, context.ctrlreg[1] >> 12
        frames.get_page_and_type(kernel_l4, domid, TYPE_L4)
        try:
            if user_l4:
                frames.get_page_and_type(user_l4, domid, TYPE_L4)
            try:
                entries = context.gdt_ents
                self._hv.descriptors.set_gdt(vcpu, list(context.gdt_frames[: -(-entries // 512)]), entries)
                self._hv.descriptors.set_ldt(vcpu, context.ldt_base, context.ldt_ents)
            except XenError:
                if user_l4:
                    frames.put_page_and_type(user_l4)
                raise
        except XenError:
            frames.put_page_and_type(kernel_l4)
            raise
        vcpu.kernel_root, vcpu.user_root = kernel_l4 << 12, user_l4 << 12
        self._load_entry_points(vcpu, context)
        self._load_registers(vcpu, context)
        vcpu.initialised = True
        vcpu.periodic_next_ns = self._hv.now_ns() + vcpu.periodic_ns
        self._hv.scheduler.woken(vcpu)
        vcpu.down = not context.flags & VGCF_online

    def reload(self, vcpu: Vcpu, context: VcpuGuestContext) -> None:
        """Give a vCPU that was started another state. Its tables stay what they are.

        Raises XenError: EINVAL, EOPNOTSUPP for other tables, and changes nothing.
        """
        _check(context)
        check_same_tables(vcpu, context)
        self._load_entry_points(vcpu, context)
        self._load_registers(vcpu, context)
        vcpu.down = not context.flags & VGCF_online

    def _load_entry_points(self, vcpu: Vcpu, context: VcpuGuestContext) -> None:
        vcpu.kernel_ss, vcpu.kernel_sp = (context.kernel_ss & 0xFFFF) | 3, context.kernel_sp
        for vector, trap in enumerate(context.trap_ctxt):
            vcpu.traps[vector] = Gate(trap.address, trap.cs | 3, trap.flags & 3, bool(trap.flags & 4))
        clear(vcpu.callbacks)
        vcpu.callbacks[CALLBACKTYPE_event] = Callback(context.event_callback_eip, True)
        vcpu.callbacks[CALLBACKTYPE_failsafe] = Callback(
            context.failsafe_callback_eip, bool(context.flags & VGCF_failsafe_disables_events)
        )
        vcpu.callbacks[CALLBACKTYPE_syscall] = Callback(
            context.syscall_callback_eip, bool(context.flags & VGCF_syscall_disables_events)
        )
        vcpu.domain.vm_assist |= context.vm_assist & 0x3F

    def _load_registers(self, vcpu: Vcpu, context: VcpuGuestContext) -> None:
        cpu, user = vcpu.cpu, context.user_regs
        for number, name in enumerate(NAMES):
            cpu.regs[number] = getattr(user, name)
        cpu.flags = (user.rflags & _ALLOWED_FLAGS) | FLAGS_FIXED | IF
        cpu.load_segment(CS, XEN_CS64, 0, 0xFFFFFFFF, attributes_of(FLAT_CODE64))
        cpu.load_segment(SS, XEN_SS, 0, 0xFFFFFFFF, attributes_of(FLAT_DATA))
        vcpu.iopl = user.rflags >> IOPL_SHIFT & 3
        vcpu.show_iopl()
        vcpu.kernel_mode = bool(context.flags & VGCF_in_kernel)
        cpu.fs_base = context.fs_base
        cpu.gs_base, vcpu.other_gs_base = context.gs_base_kernel, context.gs_base_user
        if not vcpu.kernel_mode:
            cpu.gs_base, vcpu.other_gs_base = vcpu.other_gs_base, cpu.gs_base
        debug_registers.load(vcpu, list(context.debugreg))

    def start_of_day(self, vcpu: Vcpu, entry: int, stack_pointer: int, start_info: int, l4_mfn: int) -> None:
        """The state in which a domain's first vCPU enters its kernel (public/xen.h, "Start-of-day memory layout")."""
        context = VcpuGuestContext()
        context.flags = VGCF_in_kernel | VGCF_online
        context.user_regs.rip, context.user_regs.rsp = entry, stack_pointer
        context.user_regs.rsi, context.user_regs.rflags = start_info, IF
        context.kernel_ss, context.kernel_sp = XEN_SS, stack_pointer
        context.ctrlreg[3] = l4_mfn << 12
        self.load(vcpu, context)

    def store(self, vcpu: Vcpu) -> dict[str, int]:
        """The registers of `vcpu` by name, for reports."""
        registers = {name: vcpu.cpu.regs[number] for number, name in enumerate(NAMES)}
        registers["rflags"] = vcpu.cpu.flags
        for name, segment in (("es", 0), ("cs", CS), ("ss", SS), ("ds", 3), ("fs", 4), ("gs", 5)):
            registers[name] = vcpu.cpu.selector(segment)
        registers["fs_base"], registers["gs_base"] = vcpu.cpu.fs_base, vcpu.cpu.gs_base
        return registers


def _check(context: VcpuGuestContext) -> None:
    addresses = [
        context.user_regs.rip,
        context.event_callback_eip,
        context.failsafe_callback_eip,
        context.syscall_callback_eip,
        *(trap.address for trap in context.trap_ctxt),
        context.fs_base,
        context.gs_base_kernel,
        context.gs_base_user,
    ]
    for address in addresses:
        if not is_canonical(address):
            raise XenError(EINVAL, f"{address:#x} is not canonical")
    if context.gdt_ents > _MAX_GDT_ENTRIES:
        raise XenError(EINVAL, f"{context.gdt_ents} GDT entries")
