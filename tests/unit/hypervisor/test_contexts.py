"""Starting a vCPU from struct vcpu_guest_context: all of it or nothing, and never with more than a guest may have."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.support import KERNEL_BASE, Bench, Cpu, Guest, snapshot
from xenolith.abi.errno import EINVAL, XenError
from xenolith.abi.traps import CALLBACKTYPE_event, CALLBACKTYPE_failsafe, CALLBACKTYPE_syscall
from xenolith.abi.vcpu import (
    VcpuGuestContext,
    VGCF_failsafe_disables_events,
    VGCF_in_kernel,
    VGCF_online,
    VGCF_syscall_disables_events,
)
from xenolith.cpu.registers import CS, IF, IOPL, NAMES, RIP, RSI, RSP, SS, VM
from xenolith.hypervisor.descriptors import FLAT_DATA, XEN_CS64, XEN_SS
from xenolith.hypervisor.shared_state import Callback, Gate
from xenolith.hypervisor.vcpu import Vcpu


@pytest.fixture
def hv() -> Bench:
    return Bench()


@pytest.fixture
def guest(hv: Bench) -> Guest:
    return hv.guest(vcpus=2)


@pytest.fixture
def second(guest: Guest) -> Vcpu:
    return guest.domain.vcpus[1]


@pytest.fixture
def context(guest: Guest) -> VcpuGuestContext:
    """The least that starts a vCPU."""
    context = VcpuGuestContext()
    context.flags = VGCF_in_kernel | VGCF_online
    context.ctrlreg[3] = guest.l4 << 12
    return context


def cpu(vcpu: Vcpu) -> Cpu:
    assert isinstance(vcpu.cpu, Cpu)
    return vcpu.cpu


def test_the_first_vcpu_enters_the_kernel_as_the_header_says(hv: Bench) -> None:
    guest = hv.guest()
    vcpu = guest.vcpu
    assert vcpu.cpu.regs[RIP] == KERNEL_BASE + 0x1000
    assert vcpu.cpu.regs[RSP] == vcpu.kernel_sp == guest.va(1) + 4096
    assert vcpu.cpu.regs[RSI] == 0
    assert (cpu(vcpu).selector(CS), cpu(vcpu).selector(SS)) == (XEN_CS64, XEN_SS)
    assert vcpu.cpu.flags & IF
    assert vcpu.kernel_mode
    assert vcpu.runnable
    assert vcpu.kernel_root == guest.l4 << 12
    assert hv.ram.bytes[vcpu.info_maddr + 1] == 1, "with events masked"


def test_every_register_is_loaded(hv: Bench, second: Vcpu, context: VcpuGuestContext) -> None:
    for number, name in enumerate(NAMES):
        setattr(context.user_regs, name, 0x1000 + number)
    context.fs_base, context.gs_base_kernel, context.gs_base_user = 0x10, 0x20, 0x30
    context.kernel_ss, context.kernel_sp = 0xE028, 0x7000
    context.debugreg[7] = 0x455
    hv.contexts.load(second, context)
    assert [second.cpu.regs[number] for number in range(len(NAMES))] == [0x1000 + n for n in range(len(NAMES))]
    assert (second.cpu.fs_base, second.cpu.gs_base, second.other_gs_base) == (0x10, 0x20, 0x30)
    assert (second.kernel_ss, second.kernel_sp) == (0xE02B, 0x7000)
    assert second.debug[7] == 0x455
    assert hv.contexts.store(second)["r9"] == 0x1009


def test_user_mode_has_the_users_gs_and_needs_a_user_root(
    hv: Bench, guest: Guest, second: Vcpu, context: VcpuGuestContext
) -> None:
    context.flags = VGCF_online
    context.ctrlreg[1] = guest.l4 << 12
    context.gs_base_kernel, context.gs_base_user = 0x20, 0x30
    hv.contexts.load(second, context)
    assert not second.kernel_mode
    assert (second.cpu.gs_base, second.other_gs_base) == (0x30, 0x20)
    assert second.user_root == guest.l4 << 12


def test_flags_do_not_raise_privilege(hv: Bench, second: Vcpu, context: VcpuGuestContext) -> None:
    context.user_regs.rflags = (1 << 64) - 1
    hv.contexts.load(second, context)
    assert not second.cpu.flags & (IOPL | VM)
    assert second.cpu.flags & IF
    assert second.cpu.flags & 2


def test_entry_points(hv: Bench, second: Vcpu, context: VcpuGuestContext) -> None:
    trap = context.trap_ctxt[14]
    trap.vector, trap.flags, trap.cs, trap.address = 14, 3 | 4, 0x10, 0x5000
    context.event_callback_eip, context.failsafe_callback_eip, context.syscall_callback_eip = 1, 2, 3
    context.flags |= VGCF_failsafe_disables_events | VGCF_syscall_disables_events
    hv.contexts.load(second, context)
    assert second.traps[14] == Gate(0x5000, 0x13, 3, True)
    assert not second.traps[13].address
    registered = {kind: callback for kind, callback in enumerate(second.callbacks) if callback.address}
    assert registered == {
        CALLBACKTYPE_event: Callback(1, True),
        CALLBACKTYPE_failsafe: Callback(2, True),
        CALLBACKTYPE_syscall: Callback(3, True),
    }


def test_descriptor_tables(hv: Bench, guest: Guest, second: Vcpu, context: VcpuGuestContext) -> None:
    mfns = hv.give(guest.domain, 2)
    hv.table(mfns[1], {0: FLAT_DATA})
    context.gdt_frames[0], context.gdt_frames[1], context.gdt_ents = mfns[0], mfns[1], 513
    context.ldt_base, context.ldt_ents = guest.va(3), 4
    hv.contexts.load(second, context)
    assert second.gdt_mfns == mfns
    assert hv.descriptors.lookup(second, 512 * 8) == FLAT_DATA
    assert (second.ldt_base, second.ldt_entries) == (guest.va(3), 4)


@pytest.mark.parametrize("online", [True, False])
def test_a_vcpu_is_up_if_its_context_says_so(hv: Bench, second: Vcpu, context: VcpuGuestContext, online: bool) -> None:
    context.flags = VGCF_in_kernel | (VGCF_online if online else 0)
    hv.contexts.load(second, context)
    assert second.initialised
    assert second.runnable is online


BAD = {
    "rip": lambda context, guest: setattr(context.user_regs, "rip", 0x8000_0000_0000),
    "event callback": lambda context, guest: setattr(context, "event_callback_eip", 1 << 63),
    "failsafe callback": lambda context, guest: setattr(context, "failsafe_callback_eip", 1 << 63),
    "syscall callback": lambda context, guest: setattr(context, "syscall_callback_eip", 1 << 63),
    "trap": lambda context, guest: setattr(context.trap_ctxt[255], "address", 1 << 63),
    "fs": lambda context, guest: setattr(context, "fs_base", 1 << 63),
    "kernel gs": lambda context, guest: setattr(context, "gs_base_kernel", 1 << 63),
    "user gs": lambda context, guest: setattr(context, "gs_base_user", 1 << 63),
    "no root": lambda context, guest: context.ctrlreg.__setitem__(3, 0),
    "root of data": lambda context, guest: context.ctrlreg.__setitem__(3, guest.data[0] << 12),
    "root beyond memory": lambda context, guest: context.ctrlreg.__setitem__(3, (1 << 64) - 1),
    "user root of data": lambda context, guest: context.ctrlreg.__setitem__(1, guest.data[0] << 12),
    "long gdt": lambda context, guest: setattr(context, "gdt_ents", 7169),
    "endless gdt": lambda context, guest: setattr(context, "gdt_ents", (1 << 64) - 1),
    "gdt of nobody": lambda context, guest: setattr(context, "gdt_ents", 1),
    "long ldt": lambda context, guest: setattr(context, "ldt_ents", 8193),
    "crooked ldt": lambda context, guest: setattr(context, "ldt_base", 8),
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_a_bad_context_takes_nothing(
    hv: Bench, guest: Guest, second: Vcpu, context: VcpuGuestContext, change: object
) -> None:
    context.ctrlreg[1] = guest.l4 << 12
    change(context, guest)  # type: ignore[operator]
    before = snapshot(hv)
    with pytest.raises(XenError) as caught:
        hv.contexts.load(second, context)
    assert caught.value.errno == EINVAL
    assert snapshot(hv) == before
    assert not second.initialised
    assert not second.runnable
    assert second.kernel_root == second.user_root == 0
