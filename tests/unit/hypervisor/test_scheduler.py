"""Who runs next: processor time by weight, nobody left out, and no debt or credit for time that was slept through."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.hypervisor.support import Bench, Guest
from xenolith.hypervisor.scheduler import SLICE_NS
from xenolith.hypervisor.vcpu import Vcpu

MS = 1_000_000


def run(hv: Bench, turns: int, slice_ns: int = SLICE_NS) -> Counter[Vcpu]:
    """Processor time of each vCPU when each runs for a slice at a time."""
    times: Counter[Vcpu] = Counter()
    for _ in range(turns):
        vcpu = hv.scheduler.pick()
        assert vcpu is not None
        hv.scheduler.account(vcpu, slice_ns)
        times[vcpu] += slice_ns
    return times


@pytest.fixture
def hv() -> Bench:
    return Bench()


def test_nobody_runs_where_nobody_can(hv: Bench) -> None:
    assert hv.scheduler.pick() is None
    guest = hv.guest(vcpus=2)
    assert hv.scheduler.pick() is guest.vcpu
    assert not hv.scheduler.others_wait(guest.vcpu), "the second is not started"
    for attribute in ("down", "blocked"):
        setattr(guest.vcpu, attribute, True)
        assert hv.scheduler.pick() is None
        setattr(guest.vcpu, attribute, False)
    guest.domain.pause_count = 1
    assert hv.scheduler.pick() is None


@settings(max_examples=50, deadline=None)
@given(weights=st.lists(st.sampled_from([1, 64, 256, 300, 1024, 65535]), min_size=2, max_size=5))
def test_time_is_shared_by_weight(weights: list[int]) -> None:
    hv = Bench()
    guests = [hv.guest() for _ in weights]
    for guest, weight in zip(guests, weights, strict=True):
        guest.domain.weight = weight
    turns = 2000
    times = run(hv, turns)
    for guest, weight in zip(guests, weights, strict=True):
        fair = turns * SLICE_NS * weight / sum(weights)
        assert abs(times[guest.vcpu] - fair) <= 2 * SLICE_NS * (1 + weight / min(weights))


def test_everybody_comes_in_turn(hv: Bench) -> None:
    guests = [hv.guest() for _ in range(4)]
    order = []
    for _ in range(8):
        vcpu = hv.scheduler.pick()
        assert vcpu is not None
        hv.scheduler.account(vcpu, SLICE_NS)
        order.append(vcpu)
    assert set(order[:4]) == set(order[4:]) == {guest.vcpu for guest in guests}


def block(hv: Bench, guest: Guest) -> None:
    guest.vcpu.blocked = True


def test_who_wakes_goes_first_and_is_not_repaid_for_its_sleep(hv: Bench) -> None:
    sleeper, worker = hv.guest(), hv.guest()
    run(hv, 10)
    sleeper.vcpu.blocked = True
    run(hv, 1000)
    hv.wake(sleeper.vcpu)
    assert hv.scheduler.pick() is sleeper.vcpu
    times = run(hv, 20)
    assert times[worker.vcpu] >= 9 * SLICE_NS


def test_who_is_new_is_not_repaid_for_the_time_before(hv: Bench) -> None:
    worker = hv.guest()
    run(hv, 1000)
    newcomer = hv.guest()
    times = run(hv, 20)
    assert times[worker.vcpu] >= 9 * SLICE_NS
    assert times[newcomer.vcpu] >= 9 * SLICE_NS


def test_who_yields_goes_after_all_others_that_want_to_run(hv: Bench) -> None:
    first, second, third = hv.guest(), hv.guest(), hv.guest()
    run(hv, 3)
    third.vcpu.blocked = True
    hv.scheduler.yielded(first.vcpu)
    assert hv.scheduler.pick() is second.vcpu
    hv.scheduler.account(second.vcpu, MS)
    assert hv.scheduler.pick() is first.vcpu


# -- the machine's turns -----------------------------------------------------------------------------------------------


def test_a_vcpu_runs_until_its_slice_ends_only_if_others_wait(hv: Bench) -> None:
    first = hv.guest()
    first.vcpu.periodic_ns = 0
    hv.step()
    assert hv.host.armed[-1] is None
    second = hv.guest()
    second.vcpu.periodic_ns = 0
    hv.step()
    assert hv.host.armed[-1] == hv.clock.ns + SLICE_NS


def test_time_that_a_vcpu_ran_is_accounted(hv: Bench) -> None:
    guest = hv.guest()
    guest.domain.weight = 512

    def work() -> None:
        hv.clock.ns += 3 * MS

    hv.engine.program = work
    hv.step()
    assert guest.vcpu.vruntime_ns == 3 * MS // 2
    assert hv.timekeeping.runstate_record(guest.vcpu)[2] == 3 * MS


def test_an_idle_machine_waits_for_the_next_deadline(hv: Bench) -> None:
    guest = hv.guest()
    guest.vcpu.blocked = True
    hv.step()
    assert hv.host.waited == [guest.vcpu.periodic_next_ns]
    assert not hv.engine.count("run")


def test_the_root_of_the_mode_is_loaded(hv: Bench) -> None:
    guest = hv.guest()
    guest.vcpu.user_root = 0x5000
    for kernel_mode, root in ((True, guest.vcpu.kernel_root), (False, 0x5000)):
        guest.vcpu.kernel_mode = kernel_mode
        hv.engine.calls.clear()
        hv.step()
        assert ("root", root) in hv.engine.calls
    guest.vcpu.user_root = 0


def test_native_domains_are_served_before_guests_run(hv: Bench) -> None:
    from xenolith.hypervisor.domain import Capability

    log: list[str] = []
    native = hv.create_native_domain("service", Capability.NONE, lambda: log.append("native"))
    hv.guest()
    hv.engine.program = lambda: log.append("guest")
    hv.wake(native.vcpus[0])
    hv.step()
    hv.step()
    assert log == ["native", "guest", "guest"]


def test_the_machine_runs_until_its_power_goes(hv: Bench) -> None:
    hv.guest()
    turns = 0

    def work() -> None:
        nonlocal turns
        turns += 1
        if turns == 3:
            hv.power("off")
            hv.power("reboot")

    hv.engine.program = work
    hv.run(lambda: False)
    assert (turns, hv.power_action) == (3, "off")
