"""A guest's second vCPU: started, interrupted, stopped; and started wrongly."""

from __future__ import annotations

import pytest

from tests.guest.pvguest import NO_EXCEPTION, NX, PRESENT, RW, GuestCrashed, PvGuest
from tests.guest.second_vcpu import context, vcpu_op
from xenolith.abi.errno import EEXIST, EFAULT, EINVAL, ENOENT
from xenolith.abi.event_channel import EvtchnBindIpi, EVTCHNOP_bind_ipi, EVTCHNOP_send, EvtchnSend
from xenolith.abi.hypercalls import HYPERVISOR_event_channel_op, HYPERVISOR_vcpu_op
from xenolith.abi.vcpu import (
    VcpuGuestContext,
    VCPUOP_down,
    VCPUOP_initialise,
    VCPUOP_is_up,
    VCPUOP_register_vcpu_info,
    VCPUOP_send_nmi,
    VCPUOP_set_singleshot_timer,
    VCPUOP_up,
    VcpuRegisterVcpuInfo,
    VcpuSetSingleshotTimer,
)

WITHOUT_HELPER_TOO = True

UNDEFINED = 6
NON_CANONICAL = 0x8000_0000_0000


def test_second_vcpu_runs(running: PvGuest) -> None:
    assert running.call("nothing", vcpu=1).rax == 42
    assert running.call("undefined", vcpu=1).vector == UNDEFINED
    assert vcpu_op(running, VCPUOP_is_up) == 1
    assert running.call("nothing").rax == 42


def test_both_run_at_once(running: PvGuest) -> None:
    running.begin("spin", running.page(0), vcpu=1)
    for _ in range(3):
        assert running.call("nothing").rax == 42
    running.machine.run_for(0.03)
    assert running.word(running.page(0)) > 1000


def test_interrupt_between_vcpus(running: PvGuest) -> None:
    ipi = EvtchnBindIpi(vcpu=1)
    assert running.operation(HYPERVISOR_event_channel_op, EVTCHNOP_bind_ipi, ipi) == 0
    running.write(running.symbols["shared_info"] + 64 + 1, b"\0")  # its events are open
    assert running.events(vcpu=1) == 0
    assert running.operation(HYPERVISOR_event_channel_op, EVTCHNOP_send, EvtchnSend(port=ipi.port)) == 0
    running.machine.run(lambda: running.events(vcpu=1) == 1)
    assert running.events() == 0, "the first vCPU has nothing to do with it"


def test_vcpu_goes_down_and_up(running: PvGuest) -> None:
    assert vcpu_op(running, VCPUOP_down) == 0
    assert vcpu_op(running, VCPUOP_is_up) == 0
    assert running.call("nothing").rax == 42
    assert vcpu_op(running, VCPUOP_up) == 0
    running.machine.run(lambda: running.domain.vcpus[1].polling)
    assert running.call("nothing", vcpu=1).rax == 42


def test_last_vcpu_that_goes_down_ends_the_domain(running: PvGuest, bystander: PvGuest) -> None:
    assert vcpu_op(running, VCPUOP_down) == 0
    running._prepare(1, HYPERVISOR_vcpu_op, (VCPUOP_down, 0, 0), 0)
    running.machine.run(lambda: running.stopped)
    assert running.domain.shutdown_code == 0


def test_starting_twice_and_what_is_not_there(pair: PvGuest) -> None:
    assert vcpu_op(pair, VCPUOP_up) == -EINVAL, "it has no state"
    for vcpu in (2, 127, 128, (1 << 32) - 1):
        for command in (VCPUOP_initialise, VCPUOP_up, VCPUOP_down, VCPUOP_is_up, VCPUOP_send_nmi):
            assert vcpu_op(pair, command, vcpu) == -ENOENT
    assert vcpu_op(pair, VCPUOP_initialise) == -EFAULT
    assert vcpu_op(pair, VCPUOP_initialise, argument=context(pair).to_bytes()) == 0
    assert vcpu_op(pair, VCPUOP_initialise, argument=context(pair).to_bytes()) == -EEXIST
    assert vcpu_op(pair, VCPUOP_initialise, 0, argument=context(pair).to_bytes()) == -EEXIST


def test_contexts_that_cannot_be(pair: PvGuest, bystander: PvGuest) -> None:
    """Each is refused, and takes nothing."""
    other_root = bystander.domain.vcpus[0].kernel_root
    writable = pair.mfn(pair.page(0))
    changes: list[tuple[str, int | tuple[int, int]]] = [
        ("rip", NON_CANONICAL),
        ("event_callback_eip", NON_CANONICAL),
        ("failsafe_callback_eip", NON_CANONICAL),
        ("syscall_callback_eip", NON_CANONICAL),
        ("trap", NON_CANONICAL),
        ("cr3", 0),
        ("cr3", other_root),
        ("cr3", writable << 12),
        ("cr3", (1 << 52) - 4096),
        ("cr1", other_root),
        ("cr1", writable << 12),
        ("gdt", (512, writable)),
        ("gdt", (512, other_root >> 12)),
        ("gdt", (7169, 0)),
        ("gdt", ((1 << 32) - 1, 0)),
        ("gdt", ((1 << 64) - 1, 0)),
        ("ldt_ents", 8193),
        ("ldt_ents", (1 << 64) - 1),
        ("ldt_base", pair.page(0) + 8),
        ("fs_base", NON_CANONICAL),
        ("gs_base_kernel", NON_CANONICAL),
        ("gs_base_user", NON_CANONICAL),
    ]
    for field, value in changes:
        bad = context(pair)
        if field == "rip":
            bad.user_regs.rip = value
        elif field == "trap":
            bad.trap_ctxt[77].address = value
        elif field in ("cr1", "cr3"):
            bad.ctrlreg[int(field[2])] = value
        elif field == "gdt":
            assert isinstance(value, tuple)
            bad.gdt_ents, bad.gdt_frames[0] = value
        else:
            setattr(bad, field, value)
            if field == "ldt_base":
                bad.ldt_ents = 1
        assert vcpu_op(pair, VCPUOP_initialise, argument=bad.to_bytes()) == -EINVAL, (field, value)
        pair.machine.check()
        assert not pair.domain.vcpus[1].initialised
    assert vcpu_op(pair, VCPUOP_initialise, argument=context(pair).to_bytes()) == 0


def test_context_of_all_ones(pair: PvGuest) -> None:
    assert vcpu_op(pair, VCPUOP_initialise, argument=b"\xff" * VcpuGuestContext.sizeof()) == -EINVAL


def test_second_vcpu_that_starts_into_nothing(pair: PvGuest, bystander: PvGuest) -> None:
    bad = context(pair)
    bad.user_regs.rip = 0x7000_0000_0000
    bad.trap_ctxt[14].address = 0
    assert vcpu_op(pair, VCPUOP_initialise, argument=bad.to_bytes()) == 0
    pair._prepare(1, HYPERVISOR_vcpu_op, (VCPUOP_up, 1, 0), 0)
    pair.machine.run(lambda: pair.stopped)
    assert pair.domain.crash_report is not None
    assert pair.domain.crash_report.vcpu.endswith("v1")


def test_second_vcpu_that_starts_in_user_mode_without_a_user_root(pair: PvGuest, bystander: PvGuest) -> None:
    bad = context(pair)
    bad.flags = 0
    result = vcpu_op(pair, VCPUOP_initialise, argument=bad.to_bytes())
    if result == 0:
        pair._prepare(1, HYPERVISOR_vcpu_op, (VCPUOP_up, 1, 0), 0)
        pair.machine.run_for(0.05)
    assert pair.hv.ram.frame(0) is not None


def test_flags_of_a_context_give_no_privilege(pair: PvGuest) -> None:
    bold = context(pair)
    bold.user_regs.rflags = 0x3000 | 1 << 17 | 1 << 9
    bold.user_regs.rip = pair.symbols["undefined"]
    assert vcpu_op(pair, VCPUOP_initialise, argument=bold.to_bytes()) == 0
    assert vcpu_op(pair, VCPUOP_up) == 0
    step = pair.symbols["step_1"]
    pair.machine.run(lambda: pair.word(step) == 2)
    assert pair.word(step + 80) == UNDEFINED
    assert pair.word(step + 112) & 1 << 17 == 0


def test_vcpu_info_of_ones_own(pair: PvGuest, bystander: PvGuest) -> None:
    root = pair.domain.vcpus[0].kernel_root >> 12
    frames = pair.hv.frames
    for mfn in (bystander.mfn(bystander.page(0)), root, 0, frames.total, pair.hv.dummy_vcpu_info_maddr >> 12):
        argument = VcpuRegisterVcpuInfo(mfn=mfn)
        assert vcpu_op(pair, VCPUOP_register_vcpu_info, 0, argument.to_bytes()) == -EINVAL, hex(mfn)
    own = pair.mfn(pair.page(0))
    for offset in (4033, 4090, 4096, (1 << 32) - 64):
        argument = VcpuRegisterVcpuInfo(mfn=own, offset=offset)
        assert vcpu_op(pair, VCPUOP_register_vcpu_info, 0, argument.to_bytes()) == -EINVAL, offset
    argument = VcpuRegisterVcpuInfo(mfn=own, offset=128)
    assert vcpu_op(pair, VCPUOP_register_vcpu_info, 1, argument.to_bytes()) == 0
    assert vcpu_op(pair, VCPUOP_register_vcpu_info, 1, argument.to_bytes()) == -EINVAL, "once only"
    assert pair.hv.ram.bytes[own << 12 | 128] == 1, "something may be pending"
    pair.protect(pair.page(0))
    assert pair.pin(1, own) == -EINVAL, "the hypervisor writes there"


def test_timers_of_others(running: PvGuest) -> None:
    argument = VcpuSetSingleshotTimer(timeout_abs_ns=1).to_bytes()
    assert vcpu_op(running, VCPUOP_set_singleshot_timer, 1, argument) == -EINVAL
    assert vcpu_op(running, VCPUOP_set_singleshot_timer, 1, argument, caller=1) == 0


def test_table_in_use_by_the_other_vcpu(running: PvGuest) -> None:
    """What one vCPU runs on stays a table, whatever the other one does."""
    root = running.domain.vcpus[1].kernel_root >> 12
    assert running.mmuext(4, root) in (0, -EINVAL)  # unpin
    assert running.map(running.page(0), root << 12 | PRESENT | RW | NX) == -EINVAL
    assert running.call("nothing", vcpu=1).vector == NO_EXCEPTION


def test_crash_of_one_vcpu_ends_the_domain(running: PvGuest, bystander: PvGuest) -> None:
    with pytest.raises(GuestCrashed):
        running.call("fault_with_stack", 64, vcpu=1)
    assert running.stopped
