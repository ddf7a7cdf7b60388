"""Time as guests see it: clock records that a reader can trust, timers that come in time, and runstates."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.hypervisor.support import WALL_NS, Bench, Engine
from xenolith.abi.event_channel import VIRQ_TIMER
from xenolith.abi.shared_info import SharedInfo
from xenolith.abi.vcpu import (
    XEN_RUNSTATE_UPDATE,
    RUNSTATE_blocked,
    RUNSTATE_offline,
    RUNSTATE_runnable,
    RUNSTATE_running,
)
from xenolith.abi.vm_assist import VMASST_TYPE_runstate_update_flag
from xenolith.hypervisor.domain import Domain
from xenolith.hypervisor.timekeeping import tsc_scale
from xenolith.hypervisor.vcpu import INFO_TIME, Vcpu

MS, S = 1_000_000, 1_000_000_000


@pytest.fixture
def hv() -> Bench:
    return Bench()


def record(hv: Bench, vcpu: Vcpu) -> tuple[int, int, int, int, int, int]:
    """version, TSC, system time, multiplier, shift and flags of struct vcpu_time_info."""
    at = vcpu.info_maddr + INFO_TIME
    return struct.unpack("<IxxxxQQIbBxx", bytes(hv.ram.bytes[at : at + 32]))


def read_clock(hv: Bench, vcpu: Vcpu, tsc: int) -> int:
    """System time as a guest computes it from its record and the counter."""
    _, then, system_time, multiplier, shift, _ = record(hv, vcpu)
    delta = tsc - then
    delta = delta << shift if shift >= 0 else delta >> -shift
    return system_time + (delta * multiplier >> 32)


@settings(max_examples=100, deadline=None)
@given(now=st.integers(0, 1 << 60), later=st.integers(0, 1 << 40))
def test_a_guest_computes_the_system_time_from_its_record(now: int, later: int) -> None:
    hv = Bench()
    vcpu = hv.domain().vcpus[0]
    hv.clock.ns = now
    hv.timekeeping.update_vcpu_time(vcpu)
    hv.clock.ns += later
    assert read_clock(hv, vcpu, hv.tsc()) == hv.now_ns()


def test_the_record_says_that_the_counter_is_stable_and_its_version_is_even_and_grows(hv: Bench) -> None:
    vcpu = hv.domain().vcpus[0]
    versions = []
    for _ in range(3):
        hv.timekeeping.update_vcpu_time(vcpu)
        versions.append(record(hv, vcpu)[0])
    assert versions == sorted(set(versions))
    assert not any(version & 1 for version in versions)
    assert record(hv, vcpu)[5] & 1


def test_the_version_wraps(hv: Bench) -> None:
    vcpu = hv.domain().vcpus[0]
    vcpu.time_version = 0xFFFF_FFFE
    hv.timekeeping.update_vcpu_time(vcpu)
    assert record(hv, vcpu)[0] == 0


def wall(hv: Bench, domain: Domain) -> tuple[int, int, int]:
    """Version, nanoseconds since 1970 at system time zero, and the raw nanoseconds field."""
    at = (domain.shared_info_mfn << 12) + SharedInfo.wc_version.offset  # type: ignore[attr-defined]
    version, low, nanoseconds, high = struct.unpack("<IIII", bytes(hv.ram.bytes[at : at + 16]))
    return version, ((high << 32) + low) * S + nanoseconds, nanoseconds


def test_the_wall_clock_is_that_of_system_time_zero(hv: Bench) -> None:
    domain = hv.domain()
    version, base, nanoseconds = wall(hv, domain)
    assert base == WALL_NS
    assert 0 <= nanoseconds < S
    hv.timekeeping.update_wall_clock(domain)
    assert wall(hv, domain)[0] == version + 2


@pytest.mark.parametrize("seconds", [0, 1_800_000_000, (1 << 32) + 5, (1 << 40)])
def test_a_new_wall_clock_is_told_to_every_domain(hv: Bench, seconds: int) -> None:
    domains = [hv.domain(), hv.domain()]
    domains[1].time_offset_s = 3600
    hv.clock.ns += 77 * S
    hv.set_wall_clock(seconds, 123, hv.now_ns() - 7)
    for domain, offset in zip(domains, (0, 3600), strict=True):
        assert (wall(hv, domain)[1] + hv.now_ns() - (seconds + offset) * S - 123 - 7) % (1 << 64) == 0
    hv.clock.ns += 5 * S
    assert hv.wall_ns() == seconds * S + 123 + 7 + 5 * S


# -- timers ------------------------------------------------------------------------------------------------------------


def test_the_next_deadline_is_the_earliest_of_all_vcpus_that_wait(hv: Bench) -> None:
    first, second = hv.guest(vcpus=2), hv.guest()
    for vcpu in hv.all_vcpus():
        vcpu.periodic_ns, vcpu.blocked = 0, True
    assert hv.timekeeping.next_deadline() is None
    first.vcpu.singleshot_ns = 900
    second.vcpu.singleshot_ns = 700
    assert hv.timekeeping.next_deadline() == 700
    second.vcpu.polling, second.vcpu.poll_deadline_ns = True, 600
    assert hv.timekeeping.next_deadline() == 600
    first.vcpu.periodic_ns, first.vcpu.periodic_next_ns = 50, 500
    assert hv.timekeeping.next_deadline() == 500


def test_a_vcpu_whose_turn_it_is_not_has_no_deadline(hv: Bench) -> None:
    first, second = hv.guest(), hv.guest()
    first.vcpu.periodic_ns, second.vcpu.periodic_ns = 0, 0
    first.vcpu.singleshot_ns, second.vcpu.singleshot_ns = 900, 700
    hv.running = [first.vcpu]
    assert hv.timekeeping.next_deadline() == 900


def test_ticks_that_were_missed_are_one_tick(hv: Bench) -> None:
    guest = hv.guest()
    port = guest.domain.events.bind_virq(VIRQ_TIMER, 0)
    start = guest.vcpu.periodic_next_ns
    hv.clock.ns = start + 35 * MS
    hv.timekeeping.expire()
    assert guest.vcpu.periodic_next_ns == start + 40 * MS
    assert guest.domain.events.is_pending(port)


def test_a_timer_wakes_its_vcpu(hv: Bench) -> None:
    guest = hv.guest()
    guest.domain.events.bind_virq(VIRQ_TIMER, 0)
    guest.vcpu.blocked = True
    guest.vcpu.singleshot_ns = hv.clock.ns + 5
    hv.timekeeping.expire()
    assert guest.vcpu.blocked
    hv.clock.ns += 5
    hv.timekeeping.expire()
    assert not guest.vcpu.blocked
    assert guest.vcpu.singleshot_ns == 0


# -- runstates ---------------------------------------------------------------------------------------------------------


def test_time_in_all_states_adds_up(hv: Bench) -> None:
    vcpu = hv.guest().vcpu
    for state, spent in ((RUNSTATE_runnable, 3), (RUNSTATE_running, 5), (RUNSTATE_blocked, 7), (RUNSTATE_running, 11)):
        hv.timekeeping.set_runstate(vcpu, state)
        hv.clock.ns += spent
    state, entered, *times = hv.timekeeping.runstate_record(vcpu)
    assert (state, entered) == (RUNSTATE_running, hv.clock.ns - 11)
    assert times == [16, 3, 7, 0]


@pytest.mark.parametrize(
    ("attribute", "state"),
    [("blocked", RUNSTATE_blocked), ("down", RUNSTATE_offline), ("pause_count", RUNSTATE_offline)],
)
def test_a_vcpu_that_stops_running_is_in_the_state_that_says_why(hv: Bench, attribute: str, state: int) -> None:
    vcpu = hv.guest().vcpu
    hv.timekeeping.set_runstate(vcpu, RUNSTATE_running)
    hv.timekeeping.settle(vcpu)
    assert vcpu.runstate.state == RUNSTATE_runnable
    setattr(vcpu, attribute, 1)
    hv.timekeeping.settle(vcpu)
    assert vcpu.runstate.state == state


@pytest.mark.parametrize("flagged", [True, False])
def test_a_reader_of_the_runstate_can_tell_that_it_is_being_written(hv: Bench, flagged: bool) -> None:
    guest = hv.guest()
    guest.domain.vm_assist = flagged << VMASST_TYPE_runstate_update_flag
    guest.vcpu.runstate.area_vaddr = guest.va(1)
    seen: list[int] = []
    write = hv.memory.write_machine

    def watch(maddr: int, data: bytes | memoryview) -> None:
        write(maddr, data)
        seen.append(guest.word(guest.va(1, 8)))

    hv.memory.write_machine = watch  # type: ignore[method-assign]
    hv.timekeeping.publish_runstate(guest.vcpu)
    entered = guest.vcpu.runstate.entered_ns
    assert seen == ([entered | XEN_RUNSTATE_UPDATE, entered] if flagged else [entered])


def test_an_area_that_is_not_mapped_any_more_is_left_alone(hv: Bench) -> None:
    guest = hv.guest()
    for area in (0xFFFF_8000_0000_0000, guest.table_va(guest.l1), (1 << 64) - 8):
        guest.vcpu.runstate.area_vaddr = guest.vcpu.time_area_vaddr = area
        hv.timekeeping.publish_runstate(guest.vcpu)
        hv.timekeeping.update_vcpu_time(guest.vcpu)


# -- a processor's own counter ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("khz", [1_000_000, 2_596_144, 999_999, 1_800_000, 3_999_999, 400_000, 5_000_000])
def test_ticks_become_nanoseconds(khz: int) -> None:
    multiplier, shift = tsc_scale(khz)
    assert 1 << 31 <= multiplier < 1 << 32
    ticks = khz * 1000
    shifted = ticks << shift if shift >= 0 else ticks >> -shift
    assert abs((shifted * multiplier >> 32) - 1_000_000_000) < 10


def test_a_record_holds_readings_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two readings the host may be busy with others for milliseconds; such a pair is not believed."""
    monkeypatch.setattr(Engine, "tsc_khz", 1_000_000)
    hv = Bench()
    vcpu = hv.domain(1).vcpus[0]
    counter = iter([0, 5_000_000, 5_000_100, 5_000_110])
    monkeypatch.setattr(hv.engine, "read_tsc", lambda: next(counter), raising=False)
    hv.timekeeping.update_vcpu_time(vcpu)
    at = (vcpu.info_maddr + INFO_TIME) >> 3
    assert hv.ram.words[at + 1] == 5_000_105
    assert hv.ram.words[at + 2] == hv.clock.ns
