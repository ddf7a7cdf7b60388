"""A guest's second vCPU: what it starts with, and how the first starts it."""

from __future__ import annotations

from tests.guest.pvguest import PvGuest
from xenolith.abi.hypercalls import HYPERVISOR_vcpu_op
from xenolith.abi.vcpu import VcpuGuestContext, VCPUOP_initialise, VCPUOP_up, VGCF_in_kernel


def context(guest: PvGuest) -> VcpuGuestContext:
    """What a guest would let its second vCPU start with."""
    symbols, result = guest.symbols, VcpuGuestContext()
    result.flags = VGCF_in_kernel
    result.user_regs.rip, result.user_regs.rsp = symbols["secondary"], symbols["stack_top_1"]
    result.kernel_ss, result.kernel_sp = 0xE02B, symbols["stack_top_1"]
    result.ctrlreg[3] = guest.domain.vcpus[0].kernel_root
    result.event_callback_eip = symbols["upcall_1"]
    result.failsafe_callback_eip = symbols["failsafe_1"]
    result.syscall_callback_eip = symbols["user_syscall_1"]
    for vector in (3, 6, 13, 14):
        trap = result.trap_ctxt[vector]
        trap.vector, trap.cs, trap.address = vector, 0xE033, symbols[f"trap_{vector}_1"]
    return result


def vcpu_op(guest: PvGuest, command: int, vcpu: int = 1, argument: bytes = b"", caller: int = 0) -> int:
    vaddr = guest.arguments(argument) if argument else 0
    return guest.hypercall(HYPERVISOR_vcpu_op, command, vcpu, vaddr, vcpu=caller)


def start_second(guest: PvGuest) -> None:
    """Let it run until it waits for its first step."""
    assert vcpu_op(guest, VCPUOP_initialise, argument=context(guest).to_bytes()) == 0
    assert vcpu_op(guest, VCPUOP_up) == 0
    guest.machine.run(lambda: guest.domain.vcpus[1].polling)
