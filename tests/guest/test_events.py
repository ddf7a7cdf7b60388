"""Event channels and timers as a running guest meets them, and guests that wait for what never comes."""

from __future__ import annotations

import struct
import time

import pytest

from tests.guest.pvguest import NX, PAGE, PRESENT, RW, PvGuest, TestMachine
from xenolith.abi.errno import EEXIST, EINVAL, ENOENT, ENOSYS
from xenolith.abi.event_channel import (
    VIRQ_TIMER,
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EvtchnBindIpi,
    EvtchnBindVirq,
    EvtchnClose,
    EvtchnExpandArray,
    EvtchnInitControl,
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_expand_array,
    EVTCHNOP_init_control,
    EVTCHNOP_reset,
    EVTCHNOP_send,
    EVTCHNOP_set_priority,
    EVTCHNOP_status,
    EVTCHNOP_unmask,
    EvtchnReset,
    EvtchnSend,
    EvtchnSetPriority,
    EVTCHNSTAT_unbound,
    EvtchnStatus,
    EvtchnUnmask,
)
from xenolith.abi.hypercalls import (
    HYPERVISOR_event_channel_op,
    HYPERVISOR_platform_op,
    HYPERVISOR_sched_op,
    HYPERVISOR_set_timer_op,
    HYPERVISOR_vcpu_op,
)
from xenolith.abi.sched import SCHEDOP_poll, SCHEDOP_watchdog, SchedPoll, SchedWatchdog, SHUTDOWN_watchdog
from xenolith.abi.types import DOMID_SELF, Struct
from xenolith.abi.vcpu import (
    VCPUOP_set_periodic_timer,
    VCPUOP_set_singleshot_timer,
    VCPUOP_stop_periodic_timer,
    VcpuSetPeriodicTimer,
    VcpuSetSingleshotTimer,
)
from xenolith.hypervisor.domain import Capability

WITHOUT_HELPER_TOO = True

MS = 1_000_000
CLOSED_PORTS = (0, 5, 63, 64, 1 << 17, (1 << 32) - 1)


def evtchn(guest: PvGuest, command: int, argument: Struct) -> int:
    return guest.operation(HYPERVISOR_event_channel_op, command, argument)


def alloc(guest: PvGuest, remote: int = DOMID_SELF) -> int:
    argument = EvtchnAllocUnbound(dom=DOMID_SELF, remote_dom=remote)
    assert evtchn(guest, EVTCHNOP_alloc_unbound, argument) == 0
    return argument.port


def connect(guest: PvGuest, remote: PvGuest, port: int) -> int:
    argument = EvtchnBindInterdomain(remote_dom=remote.domid, remote_port=port)
    assert evtchn(guest, EVTCHNOP_bind_interdomain, argument) == 0
    return argument.local_port


def is_pending(guest: PvGuest, port: int) -> bool:
    return bool(guest.word(guest.symbols["shared_info"] + 2048 + 8 * (port >> 6)) >> (port & 63) & 1)


def clear(guest: PvGuest, port: int) -> None:
    """Take an event as a guest does: clear its bit and the selector."""
    at = guest.symbols["shared_info"] + 2048 + 8 * (port >> 6)
    guest.write_words(at, guest.word(at) & ~(1 << (port & 63)))
    guest.write_words(guest.symbols["shared_info"] + 8, 0)
    guest.write(guest.symbols["shared_info"], b"\0")


# -- ports ------------------------------------------------------------------------------------------------------------


def test_loopback(guest: PvGuest) -> None:
    one = alloc(guest)
    other = connect(guest, guest, one)
    assert is_pending(guest, other), "what was sent before it was bound is not lost"
    clear(guest, other)
    assert evtchn(guest, EVTCHNOP_send, EvtchnSend(port=one)) == 0
    assert is_pending(guest, other)
    assert not is_pending(guest, one)
    events = guest.events()
    guest.call("events_on")
    assert guest.events() == events + 1
    guest.call("events_off")


def test_ipi_to_oneself(guest: PvGuest) -> None:
    argument = EvtchnBindIpi(vcpu=0)
    assert evtchn(guest, EVTCHNOP_bind_ipi, argument) == 0
    assert evtchn(guest, EVTCHNOP_send, EvtchnSend(port=argument.port)) == 0
    assert is_pending(guest, argument.port)
    for vcpu in (1, 127, (1 << 32) - 1):
        assert evtchn(guest, EVTCHNOP_bind_ipi, EvtchnBindIpi(vcpu=vcpu)) == -ENOENT


def test_event_between_domains(guest: PvGuest, bystander: PvGuest) -> None:
    port = alloc(guest, bystander.domid)
    local = connect(bystander, guest, port)
    clear(bystander, local)
    assert evtchn(guest, EVTCHNOP_send, EvtchnSend(port=port)) == 0
    assert is_pending(bystander, local)
    assert evtchn(guest, EVTCHNOP_close, EvtchnClose(port=port)) == 0
    status = EvtchnStatus(dom=DOMID_SELF, port=local)
    assert evtchn(bystander, EVTCHNOP_status, status) == 0
    assert status.status == EVTCHNSTAT_unbound
    assert evtchn(bystander, EVTCHNOP_send, EvtchnSend(port=local)) == 0, "into nothing"


def test_peer_that_dies_leaves_an_unbound_port(machine: TestMachine, guest: PvGuest) -> None:
    other = machine.start("other")
    port = alloc(guest, other.domid)
    local = connect(other, guest, port)
    assert local
    other.destroy()
    status = EvtchnStatus(dom=DOMID_SELF, port=port)
    assert evtchn(guest, EVTCHNOP_status, status) == 0
    assert status.status == EVTCHNSTAT_unbound


@pytest.mark.parametrize("port", CLOSED_PORTS)
def test_stale_ports(guest: PvGuest, port: int) -> None:
    assert evtchn(guest, EVTCHNOP_send, EvtchnSend(port=port)) == -EINVAL
    assert evtchn(guest, EVTCHNOP_close, EvtchnClose(port=port)) == -EINVAL
    assert evtchn(guest, EVTCHNOP_unmask, EvtchnUnmask(port=port)) in (0, -EINVAL)
    assert evtchn(guest, EVTCHNOP_set_priority, EvtchnSetPriority(port=port, priority=0)) < 0


def test_port_closed_twice(guest: PvGuest) -> None:
    port = alloc(guest)
    assert evtchn(guest, EVTCHNOP_close, EvtchnClose(port=port)) == 0
    assert evtchn(guest, EVTCHNOP_close, EvtchnClose(port=port)) == -EINVAL
    assert evtchn(guest, EVTCHNOP_send, EvtchnSend(port=port)) == -EINVAL


def test_reset_closes_everything(guest: PvGuest) -> None:
    ports = [alloc(guest) for _ in range(8)]
    connect(guest, guest, ports[0])
    assert evtchn(guest, EVTCHNOP_reset, EvtchnReset(dom=DOMID_SELF)) == 0
    for port in ports:
        assert evtchn(guest, EVTCHNOP_send, EvtchnSend(port=port)) == -EINVAL


@pytest.mark.parametrize("virq", [24, 255, (1 << 32) - 1])
def test_virqs_that_do_not_exist(guest: PvGuest, virq: int) -> None:
    assert evtchn(guest, EVTCHNOP_bind_virq, EvtchnBindVirq(virq=virq)) == -EINVAL


def test_virqs_that_are_not_for_everybody(guest: PvGuest) -> None:
    for virq in (2, 3, 8):
        assert evtchn(guest, EVTCHNOP_bind_virq, EvtchnBindVirq(virq=virq)) == -1


def test_all_ports_of_the_two_level_scheme(guest: PvGuest) -> None:
    argument = EvtchnAllocUnbound(dom=DOMID_SELF, remote_dom=DOMID_SELF)
    in_use = sum(1 for _ in guest.domain.events)
    vaddr = guest.arguments(argument.to_bytes())
    calls = struct.pack("<8Q", HYPERVISOR_event_channel_op, 0, EVTCHNOP_alloc_unbound, vaddr, 0, 0, 0, 0)
    guest.write(guest.page(0), calls * 1024)
    assert guest.hypercall(13, guest.page(0), 1024) == 0
    assert guest.hypercall(13, guest.page(0), 1024) == 0
    assert guest.hypercall(13, guest.page(0), 1024) == 0
    assert guest.hypercall(13, guest.page(0), 1023 - in_use) == 0
    assert guest.hypercall(HYPERVISOR_event_channel_op, EVTCHNOP_alloc_unbound, vaddr) == -28


# -- the FIFO scheme --------------------------------------------------------------------------------------------------


def test_fifo_frames_must_be_ones_own(guest: PvGuest, bystander: PvGuest) -> None:
    root = guest.domain.vcpus[0].kernel_root >> 12
    for mfn in (bystander.mfn(bystander.page(0)), root, 0, guest.hv.frames.total, (1 << 64) - 1):
        assert evtchn(guest, EVTCHNOP_init_control, EvtchnInitControl(control_gfn=mfn)) == -EINVAL
    own = guest.mfn(guest.page(0))
    for offset in (4, PAGE - 64, PAGE, (1 << 32) - 8):
        argument = EvtchnInitControl(control_gfn=own, offset=offset)
        assert evtchn(guest, EVTCHNOP_init_control, argument) == -EINVAL
    assert evtchn(guest, EVTCHNOP_init_control, EvtchnInitControl(control_gfn=own, vcpu=1)) == -ENOENT
    assert evtchn(guest, EVTCHNOP_expand_array, EvtchnExpandArray(array_gfn=own)) in (-ENOSYS, -95)


def test_fifo_with_words_that_lie(guest: PvGuest) -> None:
    """The guest may write what it likes into its event words and queue heads; it harms itself only."""
    control, array = guest.page(0), guest.page(1)
    assert evtchn(guest, EVTCHNOP_init_control, EvtchnInitControl(control_gfn=guest.mfn(control))) == 0
    assert guest.map(control, guest.mfn(control) << 12 | PRESENT | RW | NX) == 0
    assert evtchn(guest, EVTCHNOP_expand_array, EvtchnExpandArray(array_gfn=guest.mfn(array))) == 0
    port = alloc(guest)
    peer = connect(guest, guest, port)
    for filler in (b"\xff", b"\0", b"\x7f", b"\x20", b"\xdf"):
        guest.write(array, filler * PAGE)
        guest.write(control, filler * 72)
        for _ in range(3):
            assert evtchn(guest, EVTCHNOP_send, EvtchnSend(port=port)) == 0
            assert evtchn(guest, EVTCHNOP_unmask, EvtchnUnmask(port=peer)) == 0
            assert evtchn(guest, EVTCHNOP_set_priority, EvtchnSetPriority(port=peer, priority=3)) == 0
    assert evtchn(guest, EVTCHNOP_set_priority, EvtchnSetPriority(port=peer, priority=16)) == -EINVAL
    assert evtchn(guest, EVTCHNOP_reset, EvtchnReset(dom=DOMID_SELF)) == 0
    guest.table(1)
    assert guest.pin(1, guest.mfn(guest.page(1))) == 0, "the frame is the guest's again"


def test_fifo_event_is_delivered(guest: PvGuest) -> None:
    control, array = guest.page(0), guest.page(1)
    guest.write(array, struct.pack("<I", 0) * 1024)
    assert evtchn(guest, EVTCHNOP_init_control, EvtchnInitControl(control_gfn=guest.mfn(control))) == 0
    assert evtchn(guest, EVTCHNOP_expand_array, EvtchnExpandArray(array_gfn=guest.mfn(array))) == 0
    ipi = EvtchnBindIpi(vcpu=0)
    assert evtchn(guest, EVTCHNOP_bind_ipi, ipi) == 0
    assert evtchn(guest, EVTCHNOP_send, EvtchnSend(port=ipi.port)) == 0
    word = struct.unpack("<I", guest.read(array + 4 * ipi.port, 4))[0]
    assert word >> 29 & 5 == 5, "pending and linked"
    assert guest.read(control, 4) == struct.pack("<I", 1 << 7)
    events = guest.events()
    guest.call("events_on")
    assert guest.events() == events + 1


# -- time -------------------------------------------------------------------------------------------------------------


def timer_port(guest: PvGuest) -> int:
    argument = EvtchnBindVirq(virq=VIRQ_TIMER)
    assert evtchn(guest, EVTCHNOP_bind_virq, argument) == 0
    assert evtchn(guest, EVTCHNOP_bind_virq, EvtchnBindVirq(virq=VIRQ_TIMER)) == -EEXIST
    assert guest.hypercall(HYPERVISOR_vcpu_op, VCPUOP_stop_periodic_timer, 0, 0) == 0
    clear(guest, argument.port)
    return argument.port


@pytest.mark.parametrize("routine", ["wait_for_event", "spin_until_event"])
def test_single_shot_timer_comes_in_time(guest: PvGuest, routine: str) -> None:
    timer_port(guest)
    started = guest.hv.now_ns()
    assert guest.hypercall(HYPERVISOR_set_timer_op, started + 30 * MS) == 0
    guest.call(routine)
    assert 30 * MS <= guest.hv.now_ns() - started < 130 * MS


def test_single_shot_timer_of_the_vcpu(guest: PvGuest) -> None:
    port = timer_port(guest)
    started = guest.hv.now_ns()
    argument = VcpuSetSingleshotTimer(timeout_abs_ns=started + 20 * MS)
    vaddr = guest.arguments(argument.to_bytes())
    assert guest.hypercall(HYPERVISOR_vcpu_op, VCPUOP_set_singleshot_timer, 0, vaddr) == 0
    guest.call("wait_for_event")
    assert is_pending(guest, port)
    assert 20 * MS <= guest.hv.now_ns() - started < 120 * MS


def test_periodic_timer(guest: PvGuest) -> None:
    port = timer_port(guest)
    vaddr = guest.arguments(VcpuSetPeriodicTimer(period_ns=2 * MS).to_bytes())
    assert guest.hypercall(HYPERVISOR_vcpu_op, VCPUOP_set_periodic_timer, 0, vaddr) == 0
    started = guest.hv.now_ns()
    for _ in range(5):
        guest.call("wait_for_event")
        clear(guest, port)
    assert guest.hv.now_ns() - started >= 8 * MS
    for period in (0, 1, MS - 1, 1 << 63, (1 << 64) - 1):
        vaddr = guest.arguments(VcpuSetPeriodicTimer(period_ns=period).to_bytes())
        assert guest.hypercall(HYPERVISOR_vcpu_op, VCPUOP_set_periodic_timer, 0, vaddr) == -EINVAL


def test_time_passes_for_the_guest(guest: PvGuest) -> None:
    first = guest.call("read_time").rax
    assert abs(first - guest.hv.now_ns()) < 50 * MS
    assert guest.call("read_time").rax > first


@pytest.mark.parametrize("timeout", [1 << 51, 1 << 62, 1 << 63, (1 << 64) - 1])
def test_timers_at_the_end_of_time(machine: TestMachine, guest: PvGuest, bystander: PvGuest, timeout: int) -> None:
    """A deadline that the host cannot even wait for neither breaks the waiting nor the preemption of others."""
    timer_port(guest)
    bystander.hypercall(HYPERVISOR_vcpu_op, VCPUOP_stop_periodic_timer, 0, 0)
    argument = VcpuSetSingleshotTimer(timeout_abs_ns=timeout)
    vaddr = guest.arguments(argument.to_bytes())
    assert guest.hypercall(HYPERVISOR_vcpu_op, VCPUOP_set_singleshot_timer, 0, vaddr) == 0
    threads_die_slowly = time.monotonic() + 0.02
    machine.run(lambda: time.monotonic() > threads_die_slowly or _wake_later(machine))
    guest.begin("spin", guest.page(0))
    assert bystander.call("nothing").rax == 42
    assert bystander.call("nothing").rax == 42


def _wake_later(machine: TestMachine) -> bool:
    """Something comes from outside, so that waiting ends."""
    machine.post_later(0.01)
    return False


@pytest.mark.parametrize("timeout", [1 << 62, (1 << 63) - 1, (1 << 64) - 1])
def test_poll_until_the_end_of_time(machine: TestMachine, guest: PvGuest, bystander: PvGuest, timeout: int) -> None:
    port = alloc(guest)
    guest.write(guest.page(0), struct.pack("<I", port))
    vaddr = guest.arguments(SchedPoll(ports=guest.page(0), nr_ports=1, timeout=timeout).to_bytes())
    guest._prepare(1, HYPERVISOR_sched_op, (SCHEDOP_poll, vaddr), 0)
    assert bystander.call("nothing").rax == 42
    guest.domain.events.set_pending(port)
    assert guest.finish().rax == 0


def test_poll_ends_in_time(guest: PvGuest) -> None:
    port = alloc(guest)
    guest.write(guest.page(0), struct.pack("<I", port))
    started = guest.hv.now_ns()
    poll = SchedPoll(ports=guest.page(0), nr_ports=1, timeout=started + 20 * MS)
    assert guest.operation(HYPERVISOR_sched_op, SCHEDOP_poll, poll) == 0
    assert 20 * MS <= guest.hv.now_ns() - started < 120 * MS


def test_watchdog_bites(machine: TestMachine, guest: PvGuest, bystander: PvGuest) -> None:
    assert guest.operation(HYPERVISOR_sched_op, SCHEDOP_watchdog, SchedWatchdog(id=3)) == -EINVAL
    assert guest.operation(HYPERVISOR_sched_op, SCHEDOP_watchdog, SchedWatchdog(id=1, timeout=1)) == -EINVAL
    long = SchedWatchdog(timeout=(1 << 32) - 1)
    assert guest.operation(HYPERVISOR_sched_op, SCHEDOP_watchdog, long) == 1
    assert bystander.call("nothing").rax == 42
    assert guest.operation(HYPERVISOR_sched_op, SCHEDOP_watchdog, SchedWatchdog(timeout=1)) == 2
    guest.domain.watchdogs[1] = guest.hv.now_ns()
    machine.run(lambda: guest.stopped)
    assert guest.domain.shutdown_code == SHUTDOWN_watchdog


@pytest.mark.parametrize("seconds", [0, 1, 1 << 32, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("nanoseconds", [0, 999_999_999, (1 << 32) - 1])
def test_wall_clock_in_odd_times(machine: TestMachine, guest: PvGuest, seconds: int, nanoseconds: int) -> None:
    """settime64 of a control domain: whatever it says, everybody's shared page takes it."""
    control = machine.start("control", Capability.CONTROL | Capability.HARDWARE)
    for system_time in (0, (1 << 64) - 1):
        operation = struct.pack("<IIQIIQ", 62, 0x03000001, seconds, nanoseconds, 0, system_time)
        vaddr = control.arguments(operation + bytes(112))
        assert control.hypercall(HYPERVISOR_platform_op, vaddr) in (0, -1, -EINVAL)
    operation = struct.pack("<IIQIIQ", 62, 0x03000001, int(time.time()), 0, 0, machine.hv.now_ns())
    control.hypercall(HYPERVISOR_platform_op, control.arguments(operation + bytes(112)))


# -- sharing the processor --------------------------------------------------------------------------------------------


def test_spinning_guests_share_the_processor(machine: TestMachine, guest: PvGuest, bystander: PvGuest) -> None:
    other = machine.start("other")
    guest.begin("spin", guest.page(0))
    other.begin("spin", other.page(0))
    machine.run_for(0.8)
    ran = [each.domain.vcpus[0].vruntime_ns for each in (guest, other)]
    assert guest.word(guest.page(0)) > 1000
    assert other.word(other.page(0)) > 1000
    assert min(ran) > max(ran) // 3
    assert bystander.call("nothing").rax == 42


def test_guest_that_only_makes_hypercalls_shares_too(machine: TestMachine, guest: PvGuest, bystander: PvGuest) -> None:
    guest.begin("hypercall_for_ever")
    machine.run(lambda: guest.word(guest.page(0)) > 100)
    for _ in range(5):
        assert bystander.call("nothing").rax == 42


def test_user_code_that_spins_is_preempted(machine: TestMachine, guest: PvGuest, bystander: PvGuest) -> None:
    guest.make_user_space(40)
    guest._prepare(3, 0x400000 + guest.symbols["user_spin"] - guest.symbols["user_text"], (), 0)
    machine.run_for(0.05)
    for _ in range(5):
        assert bystander.call("nothing").rax == 42
