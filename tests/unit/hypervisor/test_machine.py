"""Domains come and go, and take with them all that they had; the machine ends when it is over, not a moment later."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.hypervisor.support import KERNEL_BASE, RW, Bench, P
from xenolith.abi.errno import EINVAL, ENOMEM, ESRCH, XenError
from xenolith.abi.sched import SHUTDOWN_watchdog
from xenolith.abi.traps import CALLBACKTYPE_event
from xenolith.abi.types import DOMID_FIRST_RESERVED, DOMID_SELF
from xenolith.cpu.registers import RIP
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.lifecycle import MAX_VCPUS
from xenolith.hypervisor.shared_state import Callback
from xenolith.hypervisor.vcpu import UPCALL_MASK, UPCALL_PENDING


@pytest.fixture
def hv() -> Bench:
    return Bench()


def test_a_domain_that_goes_gives_everything_back(hv: Bench) -> None:
    free = hv.frames.free_frames
    guest = hv.guest(vcpus=3)
    hv.destroy_domain(guest.domain)
    assert hv.frames.free_frames == free
    assert guest.domain.tot_frames == 0
    assert hv.domains == {}
    assert [kind for kind, _ in hv.events if kind in ("create", "start", "destroy")] == ["create", "start", "destroy"]


@pytest.mark.parametrize("count", [0, -1, MAX_VCPUS + 1])
def test_an_impossible_number_of_vcpus(hv: Bench, count: int) -> None:
    with pytest.raises(XenError) as caught:
        hv.create_domain("x", 0, count, Capability.NONE)
    assert caught.value.errno == EINVAL
    assert hv.domains == {}


def test_domids_are_given_again_only_when_nothing_is_left_of_the_old_domain(hv: Bench) -> None:
    mapper, owner = hv.guest(), hv.guest()
    entry = mapper.l1 << 12 | 100 << 3
    hv.pagetables.update_l1(entry, owner.data[0] << 12 | P | RW, mapper.domain, owner.domain.domid)
    hv.destroy_domain(owner.domain)
    hv.lifecycle._next_domid = 0
    assert hv.domain().domid == 2
    hv.pagetables.update_l1(entry, 0, mapper.domain, mapper.domain.domid)
    hv.lifecycle._next_domid = DOMID_FIRST_RESERVED - 1
    assert [hv.domain().domid for _ in range(2)] == [DOMID_FIRST_RESERVED - 1, 1]


def test_all_domids_in_use(hv: Bench) -> None:
    hv.domains.update(dict.fromkeys(range(DOMID_FIRST_RESERVED), hv.domain()))
    with pytest.raises(XenError) as caught:
        hv.lifecycle._choose_domid(None)
    assert caught.value.errno == ENOMEM


def test_a_domid_means_its_domain_or_the_caller(hv: Bench) -> None:
    guest, other = hv.guest(), hv.guest()
    assert hv.domain_by_id(guest.vcpu, DOMID_SELF) is guest.domain
    assert hv.domain_by_id(guest.vcpu, other.domain.domid) is other.domain
    with pytest.raises(XenError) as caught:
        hv.domain_by_id(guest.vcpu, 99)
    assert caught.value.errno == ESRCH


def test_tables_that_break_a_rule_start_nothing(hv: Bench) -> None:
    domain = hv.domain(2)
    mfn = hv.frames.owned_by(domain.domid)[-1]
    hv.table(mfn, {0: 0x9000 << 12 | P})
    with pytest.raises(XenError):
        hv.start_domain(domain, 0, 0, 0, mfn)
    assert not domain.vcpus[0].runnable


# -- the end -----------------------------------------------------------------------------------------------------------


def idle(hv: Bench, capabilities: Capability = Capability.NONE) -> object:
    """A domain that waits for an event that never comes."""
    guest = hv.guest(capabilities=capabilities)
    guest.vcpu.blocked, guest.vcpu.periodic_ns = True, 0

    def never(deadline_ns: int | None) -> None:
        raise AssertionError("the machine waits although it is over")

    hv.host.wait = never  # type: ignore[method-assign]
    return guest


def over(hv: Bench) -> Callable[[], bool]:
    return lambda: all(domain.shutdown_code is not None for domain in hv.domains.values())


def test_a_word_from_outside_ends_an_idle_machine_at_once(hv: Bench) -> None:
    idle(hv)
    left: list[bool] = []
    hv.host.incoming.append(lambda: left.append(True))
    hv.run(lambda: bool(left))


def test_a_watchdog_ends_an_idle_machine_at_once(hv: Bench) -> None:
    idle(hv)
    domain = hv.domains[0]
    domain.watchdogs[0] = hv.clock.ns
    hv.run(over(hv))
    assert domain.shutdown_code == SHUTDOWN_watchdog


def test_a_watchdog_of_who_has_the_hardware_reboots_the_machine_at_once(hv: Bench) -> None:
    idle(hv, Capability.HARDWARE)
    hv.domains[0].watchdogs[1] = hv.clock.ns
    hv.run(lambda: False)
    assert hv.power_action == "reboot"


def test_a_native_domain_can_end_an_idle_machine(hv: Bench) -> None:
    idle(hv)
    native = hv.create_native_domain("service", Capability.CONTROL, lambda: hv.power("off"))
    hv.wake(native.vcpus[0])
    hv.run(lambda: False)
    assert hv.power_action == "off"


def test_a_mistake_of_ours_ends_the_domain_that_brought_it_out(hv: Bench) -> None:
    guest, other = hv.guest(), hv.guest()
    turns = 0

    def work() -> None:
        nonlocal turns
        turns += 1
        if hv.traps.current is guest.vcpu:
            raise ZeroDivisionError

    hv.engine.program = work
    hv.run(lambda: turns >= 4)
    assert "ZeroDivisionError" in guest.domain.bug
    assert guest.domain.shutdown_code is not None
    assert other.domain.shutdown_code is None


def test_what_is_to_be_done_soon_is_done_once_when_nobody_runs(hv: Bench) -> None:
    done: list[str] = []

    def action() -> None:
        done.append("done")

    def run() -> None:
        hv.soon(action)
        hv.soon(action)

    hv.guest()
    hv.engine.program = run
    hv.step()
    assert hv.reschedule
    hv.engine.program = lambda: None
    assert done == []
    hv.step()
    hv.step()
    assert done == ["done"]


def test_after_an_access_to_a_device_the_guest_gets_what_that_has_brought(hv: Bench) -> None:
    guest = hv.guest()
    info = guest.vcpu.info_maddr

    def access() -> tuple[int, int]:
        hv.traps.accessed_device()
        return hv.engine.count("finish"), hv.engine.count("stop")

    hv.ram.bytes[info + UPCALL_MASK] = 0
    assert access() == (0, 0)
    hv.ram.bytes[info + UPCALL_PENDING] = 1
    assert access() == (1, 0)
    hv.ram.bytes[info + UPCALL_MASK] = 1
    assert access() == (1, 0)
    hv.soon(lambda: None)
    assert access() == (1, 1)


def test_an_event_comes_when_an_access_to_a_device_is_over(hv: Bench) -> None:
    guest = hv.guest()
    info = guest.vcpu.info_maddr
    guest.vcpu.callbacks[CALLBACKTYPE_event] = Callback(KERNEL_BASE + 0x100)
    hv.ram.bytes[info + UPCALL_PENDING], hv.ram.bytes[info + UPCALL_MASK] = 1, 0
    hv.traps.on_instruction_finished()
    assert guest.cpu.regs[RIP] == KERNEL_BASE + 0x100
    assert hv.ram.bytes[info + UPCALL_MASK] == 1
