"""sched_op, set_timer_op and vcpu_op."""

from __future__ import annotations

import struct

import pytest

from tests.unit.hypervisor.support import Bench, Guest
from xenolith.abi.errno import EEXIST, EFAULT, EINVAL, ENOENT, ENOSYS, EPERM, ESRCH, ETIME
from xenolith.abi.event_channel import VIRQ_TIMER
from xenolith.abi.hypercalls import (
    HYPERVISOR_sched_op,
    HYPERVISOR_sched_op_compat,
    HYPERVISOR_set_timer_op,
    HYPERVISOR_vcpu_op,
)
from xenolith.abi.sched import (
    SCHEDOP_block,
    SCHEDOP_pin_override,
    SCHEDOP_poll,
    SCHEDOP_remote_shutdown,
    SCHEDOP_shutdown,
    SCHEDOP_shutdown_code,
    SCHEDOP_watchdog,
    SCHEDOP_yield,
    SchedPinOverride,
    SchedPoll,
    SchedRemoteShutdown,
    SchedShutdown,
    SchedWatchdog,
    SHUTDOWN_crash,
    SHUTDOWN_poweroff,
    SHUTDOWN_reboot,
    SHUTDOWN_watchdog,
)
from xenolith.abi.vcpu import (
    RUNSTATE_blocked,
    RUNSTATE_offline,
    RUNSTATE_running,
    VCPU_SSHOTTMR_future,
    VcpuGuestContext,
    VCPUOP_down,
    VCPUOP_get_physid,
    VCPUOP_get_runstate_info,
    VCPUOP_initialise,
    VCPUOP_is_up,
    VCPUOP_register_runstate_memory_area,
    VCPUOP_register_vcpu_info,
    VCPUOP_register_vcpu_time_memory_area,
    VCPUOP_send_nmi,
    VCPUOP_set_periodic_timer,
    VCPUOP_set_singleshot_timer,
    VCPUOP_stop_periodic_timer,
    VCPUOP_stop_singleshot_timer,
    VCPUOP_up,
    VcpuRegisterRunstateMemoryArea,
    VcpuRegisterTimeMemoryArea,
    VcpuRegisterVcpuInfo,
    VcpuSetPeriodicTimer,
    VcpuSetSingleshotTimer,
    VGCF_in_kernel,
    VGCF_online,
)
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.vcpu import INFO_TIME, PENDING_SEL, UPCALL_MASK, UPCALL_PENDING

MS = 1_000_000
S = 1_000_000_000


@pytest.fixture
def hv() -> Bench:
    return Bench()


@pytest.fixture
def guest(hv: Bench) -> Guest:
    return hv.guest(vcpus=3)


def sched(guest: Guest, command: int, argument: object = None) -> int:
    return guest.op(HYPERVISOR_sched_op, command, argument)  # type: ignore[arg-type]


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_block_waits_with_events_unmasked(hv: Bench, guest: Guest) -> None:
    hv.ram.bytes[guest.vcpu.info_maddr + UPCALL_MASK] = 1
    assert sched(guest, SCHEDOP_block) == 0
    assert guest.vcpu.blocked
    assert hv.ram.bytes[guest.vcpu.info_maddr + UPCALL_MASK] == 0
    hv.wake(guest.vcpu)
    assert guest.vcpu.runnable


def test_block_does_not_wait_while_an_event_is_pending(hv: Bench, guest: Guest) -> None:
    hv.ram.bytes[guest.vcpu.info_maddr + UPCALL_MASK] = 1
    hv.ram.bytes[guest.vcpu.info_maddr + UPCALL_PENDING] = 1
    assert sched(guest, SCHEDOP_block) == 0
    assert not guest.vcpu.blocked


def test_yield_lets_the_others_go_first(hv: Bench, guest: Guest) -> None:
    other = hv.guest()
    assert sched(guest, SCHEDOP_yield) == 0
    assert hv.reschedule
    assert hv.scheduler.pick() is other.vcpu


def test_yield_alone_changes_nothing(hv: Bench, guest: Guest) -> None:
    hv.reschedule = False
    assert sched(guest, SCHEDOP_yield) == 0
    assert not hv.reschedule
    assert hv.scheduler.pick() is guest.vcpu


def poll(guest: Guest, ports: list[int], timeout: int = 0) -> int:
    guest.put(guest.va(1), struct.pack(f"<{len(ports)}I", *ports))
    return sched(guest, SCHEDOP_poll, SchedPoll(guest.va(1), len(ports), timeout))


def test_poll_waits_for_a_port_even_with_events_masked(hv: Bench, guest: Guest) -> None:
    port = guest.domain.events.bind_ipi(0)
    other = guest.domain.events.bind_ipi(0)
    hv.ram.bytes[guest.vcpu.info_maddr + UPCALL_MASK] = 1
    assert poll(guest, [port]) == 0
    assert guest.vcpu.blocked
    guest.domain.events.send(other)
    guest.domain.events.send(port)
    assert not guest.vcpu.blocked
    assert poll(guest, [port]) == 0
    assert not guest.vcpu.blocked, "the port is pending already"


def test_poll_ends_in_time(hv: Bench, guest: Guest) -> None:
    assert poll(guest, [], hv.clock.ns + 5) == 0
    assert guest.vcpu.blocked
    hv.timekeeping.expire()
    assert guest.vcpu.blocked
    hv.clock.ns += 5
    hv.timekeeping.expire()
    assert not guest.vcpu.blocked
    assert (guest.vcpu.poll_ports, guest.vcpu.poll_deadline_ns) == ((), 0)


def test_poll_does_not_wait_for_a_time_that_is_over(hv: Bench, guest: Guest) -> None:
    assert poll(guest, [], hv.clock.ns) == 0
    assert not guest.vcpu.blocked


def test_poll_does_not_wait_while_any_event_can_be_delivered(hv: Bench, guest: Guest) -> None:
    port, other = guest.domain.events.bind_ipi(0), guest.domain.events.bind_ipi(0)
    hv.ram.bytes[guest.vcpu.info_maddr + UPCALL_MASK] = 0
    guest.domain.events.send(other)
    assert poll(guest, [port]) == 0
    assert not guest.vcpu.blocked


def test_poll_of_what_does_not_exist(guest: Guest) -> None:
    port = guest.domain.events.bind_ipi(0)
    assert poll(guest, [port, 1 << 31]) == -EINVAL
    assert poll(guest, [port] * 129) == -EINVAL
    assert sched(guest, SCHEDOP_poll, SchedPoll(guest.va(1), (1 << 32) - 1, 0)) == -EINVAL
    assert sched(guest, SCHEDOP_poll, SchedPoll(0, 1, 0)) == -EFAULT
    assert not guest.vcpu.blocked
    assert poll(guest, [port] * 128) == 0


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", range(6))
def test_shutdown_stops_the_domain_and_nobody_else(hv: Bench, guest: Guest, reason: int) -> None:
    other = hv.guest()
    assert sched(guest, SCHEDOP_shutdown, SchedShutdown(reason)) == 0
    assert guest.domain.shutdown_code == reason
    assert not any(vcpu.runnable for vcpu in guest.domain.vcpus)
    assert other.vcpu.runnable
    assert hv.power_action is None


@pytest.mark.parametrize(("argument", "reason"), [(0, 0), (3, 3), (0x4000_17FC, 0xFC), ((1 << 64) - 1, 0xFF)])
def test_the_older_form_of_a_shutdown_takes_the_lowest_byte_for_its_reason(
    guest: Guest, argument: int, reason: int
) -> None:
    assert guest.call(HYPERVISOR_sched_op_compat, 1 << 32 | SCHEDOP_shutdown, argument) == 0
    assert guest.domain.shutdown_code == reason
    assert not guest.vcpu.runnable


def test_the_older_form_waits_and_gives_way(hv: Bench, guest: Guest) -> None:
    other = hv.guest()
    assert guest.call(HYPERVISOR_sched_op_compat, SCHEDOP_yield, 0) == 0
    assert hv.scheduler.pick() is other.vcpu
    assert guest.call(HYPERVISOR_sched_op_compat, SCHEDOP_block, 0) == 0
    assert guest.vcpu.blocked
    assert guest.call(HYPERVISOR_sched_op_compat, SCHEDOP_poll, 0) == -ENOSYS


@pytest.mark.parametrize("command", [SCHEDOP_shutdown, SCHEDOP_shutdown_code])
def test_a_reason_that_does_not_exist(guest: Guest, command: int) -> None:
    assert sched(guest, command, SchedShutdown(6)) == -EINVAL
    assert guest.domain.shutdown_code is None


def test_the_reason_that_was_announced_counts_unless_it_crashes(hv: Bench, guest: Guest) -> None:
    other = hv.guest()
    for domain, reason, result in (
        (guest, SHUTDOWN_poweroff, SHUTDOWN_reboot),
        (other, SHUTDOWN_crash, SHUTDOWN_crash),
    ):
        assert sched(domain, SCHEDOP_shutdown_code, SchedShutdown(SHUTDOWN_reboot)) == 0
        assert sched(domain, SCHEDOP_shutdown, SchedShutdown(reason)) == 0
        assert domain.domain.shutdown_code == result


@pytest.mark.parametrize(("reason", "action"), [(0, "off"), (1, "reboot"), (2, None), (3, "crash"), (4, "reboot")])
def test_who_has_the_hardware_takes_the_machine_with_it(hv: Bench, reason: int, action: str | None) -> None:
    driver = hv.guest(capabilities=Capability.HARDWARE)
    assert sched(driver, SCHEDOP_shutdown, SchedShutdown(reason)) == 0
    assert hv.power_action == action


def test_only_control_ends_others(hv: Bench, guest: Guest) -> None:
    victim = hv.guest().domain
    argument = SchedRemoteShutdown(victim.domid, SHUTDOWN_reboot)
    assert sched(guest, SCHEDOP_remote_shutdown, argument) == -EPERM
    assert victim.shutdown_code is None
    control = hv.guest(capabilities=Capability.CONTROL)
    assert sched(control, SCHEDOP_remote_shutdown, SchedRemoteShutdown(victim.domid, 6)) == -EINVAL
    assert sched(control, SCHEDOP_remote_shutdown, SchedRemoteShutdown(99, 0)) == -ESRCH
    assert sched(control, SCHEDOP_remote_shutdown, argument) == 0
    assert victim.shutdown_code == SHUTDOWN_reboot


def test_a_watchdog_bites_unless_it_is_fed(hv: Bench, guest: Guest) -> None:
    assert sched(guest, SCHEDOP_watchdog, SchedWatchdog(0, 10)) == 1
    assert sched(guest, SCHEDOP_watchdog, SchedWatchdog(0, 20)) == 2
    assert sched(guest, SCHEDOP_watchdog, SchedWatchdog(0, 20)) == -EEXIST
    hv.clock.ns += 9 * S
    assert sched(guest, SCHEDOP_watchdog, SchedWatchdog(1, 10)) == 0
    hv.clock.ns += 9 * S
    hv.step()
    assert guest.domain.shutdown_code is None
    hv.clock.ns += 2 * S
    hv.step()
    assert guest.domain.shutdown_code == SHUTDOWN_watchdog


def test_a_watchdog_is_called_off(hv: Bench, guest: Guest) -> None:
    assert sched(guest, SCHEDOP_watchdog, SchedWatchdog(0, 10)) == 1
    assert sched(guest, SCHEDOP_watchdog, SchedWatchdog(1, 0)) == 0
    assert sched(guest, SCHEDOP_watchdog, SchedWatchdog(1, 10)) == -EINVAL
    hv.clock.ns += 100 * S
    hv.step()
    assert guest.domain.shutdown_code is None


@pytest.mark.parametrize(("which", "timeout"), [(3, 1), (1 << 31, 1), (2, 1), (0, 0)])
def test_watchdogs_that_do_not_exist(guest: Guest, which: int, timeout: int) -> None:
    assert sched(guest, SCHEDOP_watchdog, SchedWatchdog(which, timeout)) == -EINVAL


def test_vcpus_are_pinned_to_the_one_processor(hv: Bench, guest: Guest) -> None:
    assert sched(guest, SCHEDOP_pin_override, SchedPinOverride(0)) == -EPERM
    driver = hv.guest(capabilities=Capability.HARDWARE)
    assert sched(driver, SCHEDOP_pin_override, SchedPinOverride(0)) == 0
    assert sched(driver, SCHEDOP_pin_override, SchedPinOverride(-1)) == 0
    assert sched(driver, SCHEDOP_pin_override, SchedPinOverride(1)) == -EINVAL


def test_operations_that_do_not_exist(hv: Bench, guest: Guest) -> None:
    assert sched(guest, 77) == -ENOSYS
    assert hv.unimplemented[HYPERVISOR_sched_op, 77] == 1


# -- timers ------------------------------------------------------------------------------------------------------------


def ticks(guest: Guest) -> int:
    """How often a bound VIRQ_TIMER comes while time passes in steps of a millisecond for 40 of them."""
    port = guest.domain.events.bind_virq(VIRQ_TIMER, 0)
    count = 0
    for _ in range(40):
        guest.hv.clock.ns += MS
        guest.hv.timekeeping.expire()
        if guest.domain.events.is_pending(port):
            count += 1
            channel = guest.domain.events._channel(port)
            guest.domain.events.signalling.clear_pending(channel)
    guest.domain.events.close(port)
    return count


def test_a_vcpu_starts_with_a_tick_of_10_ms(guest: Guest) -> None:
    assert ticks(guest) == 4
    assert guest.call(HYPERVISOR_vcpu_op, VCPUOP_stop_periodic_timer, 0, 0) == 0
    assert ticks(guest) == 0


@pytest.mark.parametrize(("timeout", "after"), [(1, 0), (5 * MS, 5 * MS), (1 << 50, 1 << 50)])
def test_a_timer_comes_once(hv: Bench, guest: Guest, timeout: int, after: int) -> None:
    guest.vcpu.periodic_ns = 0
    now = hv.clock.ns
    assert guest.call(HYPERVISOR_set_timer_op, now + timeout if after else 1) == 0
    assert hv.timekeeping.next_deadline() == (now + after if after else 1)
    hv.clock.ns += after
    hv.timekeeping.expire()
    assert hv.timekeeping.next_deadline() is None


@pytest.mark.parametrize("timeout", [1 << 52, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_time_that_makes_no_sense_comes_after_100_ms(hv: Bench, guest: Guest, timeout: int) -> None:
    guest.vcpu.periodic_ns = 0
    assert guest.call(HYPERVISOR_set_timer_op, timeout) == 0
    assert hv.timekeeping.next_deadline() == hv.clock.ns + 100 * MS


def test_a_timer_is_called_off(hv: Bench, guest: Guest) -> None:
    guest.vcpu.periodic_ns = 0
    guest.call(HYPERVISOR_set_timer_op, hv.clock.ns + 5)
    assert guest.call(HYPERVISOR_set_timer_op, 0) == 0
    assert hv.timekeeping.next_deadline() is None


def test_a_new_deadline_is_told_to_the_host(hv: Bench, guest: Guest) -> None:
    guest.vcpu.periodic_ns = 0
    guest.call(HYPERVISOR_set_timer_op, hv.clock.ns + 500)
    assert hv.host.armed[-1] == hv.clock.ns + 500


def vcpu_op(guest: Guest, command: int, argument: object = None, which: int = 0) -> int:
    if argument is None:
        return guest.call(HYPERVISOR_vcpu_op, command, which, 0)
    guest.put(guest.va(0), argument)  # type: ignore[arg-type]
    return guest.call(HYPERVISOR_vcpu_op, command, which, guest.va(0))


def test_single_shot_timers(hv: Bench, guest: Guest) -> None:
    guest.vcpu.periodic_ns = 0
    now = hv.clock.ns
    assert vcpu_op(guest, VCPUOP_set_singleshot_timer, VcpuSetSingleshotTimer(now + 7, VCPU_SSHOTTMR_future)) == 0
    assert hv.timekeeping.next_deadline() == now + 7
    assert vcpu_op(guest, VCPUOP_stop_singleshot_timer) == 0
    assert hv.timekeeping.next_deadline() is None
    assert vcpu_op(guest, VCPUOP_set_singleshot_timer, VcpuSetSingleshotTimer(now - 1, VCPU_SSHOTTMR_future)) == -ETIME
    assert hv.timekeeping.next_deadline() is None
    for past in (now - 1, 0):
        assert vcpu_op(guest, VCPUOP_set_singleshot_timer, VcpuSetSingleshotTimer(past, 0)) == 0
        assert guest.vcpu.singleshot_ns
        hv.timekeeping.expire()
        assert not guest.vcpu.singleshot_ns


@pytest.mark.parametrize("command", [VCPUOP_set_singleshot_timer, VCPUOP_stop_singleshot_timer])
def test_a_single_shot_timer_is_its_own_vcpus(guest: Guest, command: int) -> None:
    assert vcpu_op(guest, command, VcpuSetSingleshotTimer(1, 0), which=1) == -EINVAL


def test_periodic_timers(hv: Bench, guest: Guest) -> None:
    assert vcpu_op(guest, VCPUOP_set_periodic_timer, VcpuSetPeriodicTimer(5 * MS)) == 0
    assert ticks(guest) == 8
    for period in (0, MS - 1, 1 << 63, (1 << 64) - 1):
        assert vcpu_op(guest, VCPUOP_set_periodic_timer, VcpuSetPeriodicTimer(period)) == -EINVAL
    assert guest.vcpu.periodic_ns == 5 * MS


def test_a_vcpu_that_is_started_later_ticks_and_has_its_single_shot_timer(hv: Bench, guest: Guest) -> None:
    guest.vcpu.periodic_ns = 0
    start_second(guest)
    second = guest.domain.vcpus[1]
    second.blocked = True
    assert hv.timekeeping.next_deadline() == hv.clock.ns + 10 * MS
    argument = VcpuSetSingleshotTimer(hv.clock.ns + MS, 0)
    guest.put(guest.va(0), argument)
    assert guest.call(HYPERVISOR_vcpu_op, VCPUOP_set_singleshot_timer, 1, guest.va(0), vcpu=second) == 0
    assert hv.timekeeping.next_deadline() == hv.clock.ns + MS


# -- vCPUs -------------------------------------------------------------------------------------------------------------


def start_second(guest: Guest) -> int:
    context = VcpuGuestContext()
    context.flags = VGCF_in_kernel | VGCF_online
    context.ctrlreg[3] = guest.l4 << 12
    context.user_regs.rip = guest.va(0)
    return initialise(guest, context)


def initialise(guest: Guest, context: VcpuGuestContext, which: int = 1) -> int:
    guest.put(guest.va(0), context)
    return guest.call(HYPERVISOR_vcpu_op, VCPUOP_initialise, which, guest.va(0))


def test_a_vcpu_is_initialised_and_goes_up_and_down(hv: Bench, guest: Guest) -> None:
    second = guest.domain.vcpus[1]
    assert vcpu_op(guest, VCPUOP_is_up) == 1
    assert vcpu_op(guest, VCPUOP_is_up, which=1) == 0
    assert vcpu_op(guest, VCPUOP_up, which=1) == -EINVAL, "it has no state yet"
    context = VcpuGuestContext()
    context.flags = VGCF_in_kernel
    context.ctrlreg[3] = guest.l4 << 12
    assert initialise(guest, context) == 0
    assert not second.runnable
    assert initialise(guest, context) == -EEXIST
    assert vcpu_op(guest, VCPUOP_up, which=1) == 0
    assert second.runnable
    assert vcpu_op(guest, VCPUOP_is_up, which=1) == 1
    assert vcpu_op(guest, VCPUOP_down, which=1) == 0
    assert not second.runnable
    assert guest.domain.shutdown_code is None


def test_the_last_vcpu_that_goes_down_powers_off(guest: Guest) -> None:
    assert vcpu_op(guest, VCPUOP_down) == 0
    assert guest.domain.shutdown_code == SHUTDOWN_poweroff


def test_a_context_that_is_refused_leaves_the_vcpu_as_it_was(guest: Guest) -> None:
    context = VcpuGuestContext()
    context.ctrlreg[3] = guest.data[0] << 12
    assert initialise(guest, context) == -EINVAL
    assert guest.call(HYPERVISOR_vcpu_op, VCPUOP_initialise, 1, 0) == -EFAULT
    assert not guest.domain.vcpus[1].initialised


@pytest.mark.parametrize("which", [3, 127, 1 << 31, (1 << 32) - 1])
def test_a_vcpu_that_does_not_exist(guest: Guest, which: int) -> None:
    for command in range(14):
        assert guest.call(HYPERVISOR_vcpu_op, command, which, 0) == -ENOENT


def test_vcpu_operations_that_are_not_there(hv: Bench, guest: Guest) -> None:
    assert vcpu_op(guest, 50) == -ENOSYS
    assert vcpu_op(guest, VCPUOP_get_physid) == -EINVAL
    assert hv.unimplemented[HYPERVISOR_vcpu_op, 50] == 1


def test_an_nmi_is_sent_to_any_vcpu(guest: Guest) -> None:
    guest.domain.vcpus[2].blocked = True
    assert vcpu_op(guest, VCPUOP_send_nmi, which=2) == 0
    assert guest.domain.vcpus[2].nmi_pending
    assert not guest.domain.vcpus[2].blocked


# -- runstates ---------------------------------------------------------------------------------------------------------


def test_runstates_say_how_long_a_vcpu_was_in_which_state(hv: Bench, guest: Guest) -> None:
    hv.timekeeping.set_runstate(guest.vcpu, RUNSTATE_running)
    hv.clock.ns += 30
    hv.timekeeping.set_runstate(guest.vcpu, RUNSTATE_blocked)
    hv.clock.ns += 12
    assert guest.call(HYPERVISOR_vcpu_op, VCPUOP_get_runstate_info, 0, guest.va(1)) == 0
    state, entered, running, runnable, blocked, offline = (guest.word(guest.va(1, 8 * word)) for word in range(6))
    assert state & 0xFFFF_FFFF == RUNSTATE_blocked
    assert entered == hv.clock.ns - 12
    assert (running, runnable, blocked) == (30, 0, 12)
    assert running + blocked + offline == hv.clock.ns - 1_000_000_000  # since it was made
    assert guest.call(HYPERVISOR_vcpu_op, VCPUOP_get_runstate_info, 0, guest.table_va(guest.l1)) == -EFAULT


def test_a_runstate_area_is_kept(hv: Bench, guest: Guest) -> None:
    area = VcpuRegisterRunstateMemoryArea()
    area.addr.v = guest.va(2, 8)
    assert vcpu_op(guest, VCPUOP_register_runstate_memory_area, area) == 0
    hv.timekeeping.set_runstate(guest.vcpu, RUNSTATE_running)
    hv.timekeeping.publish_runstate(guest.vcpu)
    assert guest.word(guest.va(2, 8)) == RUNSTATE_running
    area.addr.v = guest.table_va(guest.l1)
    assert vcpu_op(guest, VCPUOP_register_runstate_memory_area, area) == -EFAULT
    assert guest.vcpu.runstate.area_vaddr == guest.va(2, 8)
    assert guest.domain.vcpus[1].runstate.state == RUNSTATE_offline


def test_a_second_clock_record_is_kept(hv: Bench, guest: Guest) -> None:
    area = VcpuRegisterTimeMemoryArea()
    area.addr.v = guest.va(2, 16)
    assert vcpu_op(guest, VCPUOP_register_vcpu_time_memory_area, area) == 0
    for _ in range(2):
        hv.clock.ns += 1000
        hv.timekeeping.update_vcpu_time(guest.vcpu)
        first = (guest.vcpu.info_maddr + INFO_TIME) >> 3
        record = [hv.ram.words[first + word] for word in range(4)]
        assert [guest.word(guest.va(2, 16 + 8 * word)) for word in range(4)] == record
        assert record[2] == hv.clock.ns
    area.addr.v = guest.table_va(guest.l1)
    assert vcpu_op(guest, VCPUOP_register_vcpu_time_memory_area, area) == -EFAULT
    assert guest.vcpu.time_area_vaddr
    hv.pagetables.update_l1(guest.l1 << 12 | 3 << 3, 0, guest.domain, guest.domain.domid)
    hv.timekeeping.update_vcpu_time(guest.vcpu)
    assert guest.domain.shutdown_code is None
    assert vcpu_op(guest, VCPUOP_register_vcpu_time_memory_area, VcpuRegisterTimeMemoryArea()) == 0
    assert not guest.vcpu.time_area_vaddr


# -- vcpu_info ---------------------------------------------------------------------------------------------------------


def register(guest: Guest, mfn: int, offset: int, which: int = 0) -> int:
    return vcpu_op(guest, VCPUOP_register_vcpu_info, VcpuRegisterVcpuInfo(mfn, offset), which)


def test_vcpu_info_moves_with_all_that_is_in_it(hv: Bench, guest: Guest) -> None:
    old = guest.vcpu.info_maddr
    hv.ram.bytes[old + UPCALL_MASK] = 1
    hv.ram.words[(old + 16) >> 3] = 0xC0FFEE
    assert register(guest, guest.data[3], 0x140) == 0
    new = guest.maddr(3, 0x140)
    assert guest.vcpu.info_maddr == new
    assert hv.ram.bytes[new + UPCALL_MASK] == 1
    assert hv.ram.words[(new + 16) >> 3] == 0xC0FFEE
    assert hv.ram.bytes[new + UPCALL_PENDING] == 1, "everything is pending, so that nothing is lost"
    assert hv.ram.words[(new + PENDING_SEL) >> 3] == (1 << 64) - 1
    assert hv.ram.words[(new + INFO_TIME + 16) >> 3] == hv.clock.ns
    assert hv.frames.type_count[guest.data[3]] == 2
    assert register(guest, guest.data[4], 0) == -EINVAL, "only once"


def test_vcpu_info_of_another_moves_while_that_is_down(guest: Guest) -> None:
    assert register(guest, guest.data[3], 0, which=1) == 0
    assert start_second(guest) == 0
    assert register(guest, guest.data[3], 64, which=2) == 0
    guest.domain.vcpus[2].info_registered = False
    guest.domain.vcpus[2].down = False
    assert register(guest, guest.data[3], 64, which=2) == -EINVAL


@pytest.mark.parametrize("offset", [4096 - 63, 4096, 4, 1 << 31])
def test_vcpu_info_stays_within_a_page(guest: Guest, offset: int) -> None:
    assert register(guest, guest.data[3], offset) == -EINVAL


def test_vcpu_info_lies_in_ordinary_memory_of_the_domain(hv: Bench, guest: Guest) -> None:
    other = hv.guest()
    for mfn in (other.data[0], guest.l1, 0, hv.frames.total, (1 << 64) - 1, hv.xenspace.m2p_chunks()[0]):
        assert register(guest, mfn, 0) == -EINVAL
    assert not guest.vcpu.info_registered


def test_a_vcpu_beyond_the_shared_page_needs_its_own_info_first(hv: Bench) -> None:
    guest = hv.guest(vcpus=34)
    context = VcpuGuestContext()
    context.flags = VGCF_in_kernel
    context.ctrlreg[3] = guest.l4 << 12
    assert initialise(guest, context, which=33) == -EINVAL
    assert register(guest, guest.data[3], 0, which=33) == 0
    assert hv.ram.bytes[guest.maddr(3, UPCALL_MASK)] == 1
    assert initialise(guest, context, which=33) == 0
