"""Who runs next: processor time by weight, nobody left out, and no debt or credit for time that was slept through."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.hypervisor.support import Bench, Guest
from xenolith.hypervisor.scheduler import PERIOD_NS, SLICE_NS
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
    assert hv.scheduler.slice_end([guest.vcpu]) is None, "the second is not started"
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
    hv.scheduler.account(second.vcpu, SLICE_NS)
    assert hv.scheduler.pick() is first.vcpu


def test_within_its_slice_a_vcpu_goes_on_whatever_has_stopped_it(hv: Bench) -> None:
    first, second = hv.guest(), hv.guest()
    assert hv.scheduler.pick() is first.vcpu
    hv.scheduler.account(first.vcpu, SLICE_NS - MS)
    assert hv.scheduler.pick() is first.vcpu
    hv.scheduler.account(first.vcpu, MS)
    assert hv.scheduler.pick() is second.vcpu


def test_within_a_slice_one_that_wakes_goes_before_unless_it_has_had_more(hv: Bench) -> None:
    first, sleeper, other = hv.guest(), hv.guest(), hv.guest()
    sleeper.vcpu.blocked = True
    sleeper.vcpu.vruntime_ns = 3 * MS
    for ran, goes_on in ((2 * MS, first), (2 * MS, sleeper)):
        assert hv.scheduler.pick() is first.vcpu
        hv.scheduler.account(first.vcpu, ran)
        hv.wake(sleeper.vcpu)
        assert hv.scheduler.pick() is goes_on.vcpu
        sleeper.vcpu.blocked = True
    assert other.vcpu.vruntime_ns == 0


def test_an_event_for_a_vcpu_whose_turn_it_is_not_stops_nobody(hv: Bench) -> None:
    first, second = hv.guest(), hv.guest()
    hv.traps.current, hv.running = first.vcpu, [first.vcpu]
    hv.wake(second.vcpu)
    assert not hv.reschedule
    second.vcpu.blocked = True
    hv.wake(second.vcpu)
    assert hv.reschedule


# -- at the same time --------------------------------------------------------------------------------------------------


def ran(hv: Bench, guest: Guest, ms: int, exits: int) -> None:
    guest.cpu.exits += exits
    hv.scheduler.account(guest.vcpu, ms * MS)


def test_calm_ones_run_beside_each_other_as_far_as_there_are_processors(hv: Bench) -> None:
    guests = [hv.guest() for _ in range(4)]
    for number, guest in enumerate(guests):
        assert hv.scheduler.beside(guest.vcpu) == [], "nobody has shown yet that it is calm"
        ran(hv, guest, 10 + number, 1)
    assert hv.scheduler.beside(guests[0].vcpu) == [], "there is one processor"
    hv.engine.processors = 3
    assert hv.scheduler.beside(guests[0].vcpu) == [guests[1].vcpu, guests[2].vcpu]
    assert hv.scheduler.beside(guests[3].vcpu) == [guests[0].vcpu, guests[1].vcpu]
    guests[1].vcpu.blocked = True
    assert hv.scheduler.beside(guests[0].vcpu) == [guests[2].vcpu, guests[3].vcpu]


def test_each_runs_where_it_may(hv: Bench) -> None:
    hv.engine.processors = 3
    free, first, second, other = guests = [hv.guest() for _ in range(4)]
    for number, guest in enumerate(guests):
        ran(hv, guest, 10 + number, 0)
    first.vcpu.hard_affinity = second.vcpu.hard_affinity = 0b001
    assert hv.scheduler.beside(free.vcpu) == [first.vcpu, other.vcpu], "the second must wait for processor 0"
    assert first.vcpu.processor == 0
    assert {free.vcpu.processor, other.vcpu.processor} == {1, 2}
    free.vcpu.soft_affinity = 0b010
    other.vcpu.hard_affinity = 0b110
    assert hv.scheduler.beside(second.vcpu) == [free.vcpu, other.vcpu]
    assert [guest.vcpu.processor for guest in (second, free, other)] == [0, 1, 2]


def test_one_that_runs_alone_has_a_processor_too(hv: Bench) -> None:
    hv.engine.processors = 4
    guest = hv.guest()
    guest.vcpu.hard_affinity = 0b1100
    assert hv.scheduler.beside(guest.vcpu) == []
    assert guest.vcpu.processor == 2
    guest.vcpu.soft_affinity = 0b1000
    assert hv.scheduler.beside(guest.vcpu) == []
    assert guest.vcpu.processor == 3


def test_who_has_many_exits_takes_turns_until_it_has_few(hv: Bench) -> None:
    hv.engine.processors = 2
    calm, restless = hv.guest(), hv.guest()
    ran(hv, calm, 10, 5)
    ran(hv, restless, 10, 100)
    assert hv.scheduler.beside(calm.vcpu) == hv.scheduler.beside(restless.vcpu) == []
    for _ in range(10):
        ran(hv, restless, 10, 5)
    assert hv.scheduler.beside(calm.vcpu) == [restless.vcpu]
    assert hv.scheduler.beside(restless.vcpu) == [calm.vcpu]
    ran(hv, restless, 1, 100)
    assert hv.scheduler.beside(calm.vcpu) == []


def test_a_cap_is_for_all_vcpus_of_a_domain_together(hv: Bench) -> None:
    guest, other = hv.guest(vcpus=2), hv.guest()
    hv.scheduler.set_cap(guest.domain, 100)
    assert hv.scheduler.budget_end([other.vcpu]) is None
    assert hv.scheduler.budget_end([other.vcpu, *guest.domain.vcpus]) == hv.clock.ns + PERIOD_NS // 2


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


@pytest.mark.parametrize(("guests", "slices"), [(1, 1), (2, 4), (7, 49), (20, 25)])
def test_slices_are_longer_the_more_take_turns_where_the_engine_forgets_code(
    hv: Bench, monkeypatch: pytest.MonkeyPatch, guests: int, slices: int
) -> None:
    monkeypatch.setattr(hv.engine, "forgets_code", True)
    for _ in range(guests + 1):
        hv.guest().vcpu.periodic_ns = 0
    next(hv.all_vcpus()).blocked = True
    hv.step()
    assert hv.host.armed == [hv.clock.ns + slices * SLICE_NS if guests > 1 else None]


def test_a_slice_does_not_grow_when_a_timer_is_set(hv: Bench) -> None:
    first, second = hv.guest(), hv.guest()
    first.vcpu.periodic_ns = second.vcpu.periodic_ns = 0
    end = hv.clock.ns + SLICE_NS

    def work() -> None:
        hv.clock.ns += MS
        hv.timers_changed()

    hv.engine.program = work
    hv.step()
    assert hv.host.armed == [end, end]


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


@pytest.fixture
def both(hv: Bench) -> list[Guest]:
    """Two calm guests on two processors."""
    hv.engine.processors = 2
    guests = [hv.guest(), hv.guest()]
    for guest in guests:
        guest.vcpu.periodic_ns = 0
        ran(hv, guest, 10, 0)
    hv.engine.calls.clear()
    return guests


def test_two_run_in_one_turn(hv: Bench, both: list[Guest]) -> None:
    def work() -> None:
        assert hv.running == [guest.vcpu for guest in both]
        assert hv.traps.current is both[0].vcpu
        hv.clock.ns += 3 * MS

    before = [guest.vcpu.vruntime_ns for guest in both]
    hv.engine.program = work
    hv.step()
    assert ("run", both[1].cpu) in hv.engine.calls
    assert [call[1] for call in hv.engine.calls if call[0] == "root"] == [guest.vcpu.kernel_root for guest in both]
    assert [guest.vcpu.vruntime_ns - old for guest, old in zip(both, before, strict=True)] == [3 * MS] * 2
    assert hv.host.armed[-1] is None, "nobody waits"


def test_old_translations_of_one_are_not_forgotten_with_those_of_another(hv: Bench, both: list[Guest]) -> None:
    epochs: list[int] = []

    def work() -> None:
        epochs.append(hv.frames.epoch)
        hv.load_root(both[0].vcpu.kernel_root)
        epochs.append(hv.frames.epoch)
        hv.flush_all()
        epochs.append(hv.frames.epoch)

    hv.engine.program = work
    hv.step()
    assert epochs[0] == epochs[1] < epochs[2]


def test_they_do_not_go_on_together_when_one_cannot(hv: Bench, both: list[Guest]) -> None:
    found: list[bool] = []

    def work() -> None:
        found.append(hv.traps.on_all_stopped())
        both[1].domain.pause_count = 1
        found.append(hv.traps.on_all_stopped())
        both[1].domain.pause_count = 0
        hv.reschedule = True
        found.append(hv.traps.on_all_stopped())

    hv.engine.program = work
    hv.step()
    assert found == [True, False, False]


def test_they_are_looked_at_anew_after_a_few_exits(hv: Bench, both: list[Guest]) -> None:
    rounds: list[bool] = []
    hv.engine.program = lambda: rounds.extend(hv.traps.on_all_stopped() for _ in range(100))
    hv.step()
    assert 5 < rounds.count(True) < 50
    assert rounds == sorted(rounds, reverse=True)


def test_an_exit_is_nobodys_when_its_domain_is_dying(hv: Bench, both: list[Guest]) -> None:
    def work() -> None:
        assert hv.traps.on_processor(both[1].cpu)
        assert hv.traps.current is both[1].vcpu
        both[0].domain.is_dying = True
        assert not hv.traps.on_processor(both[0].cpu)

    hv.engine.program = work
    hv.step()
    assert both[0].domain.bug == both[1].domain.bug == ""


def test_a_mistake_for_one_of_two_ends_its_domain_after_the_other_was_dealt_with(hv: Bench, both: list[Guest]) -> None:
    def work() -> None:
        hv.traps.on_processor(both[1].cpu)
        raise ZeroDivisionError

    hv.engine.program = work
    hv.step()
    assert "ZeroDivisionError" in both[1].domain.bug
    assert both[0].domain.shutdown_code is None
    assert hv.engine.count("settle") == 1
