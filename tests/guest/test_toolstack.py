"""The toolstack on a real processor: guests made and ended by the hypercalls of a native domain leave nothing."""

from __future__ import annotations

import os
import time

import pytest

from tests.guest.assembler import TestImage
from tests.guest.census import census, resident, settle
from tests.guest.pvguest import TestMachine
from xenolith.errors import UserError
from xenolith.services.tasks import Future
from xenolith.toolstack.guest_config import Action, GuestConfig
from xenolith.toolstack.lifecycle import Guest

_MIB = 1 << 20
_MANY = int(os.environ.get("XENOLITH_TINY_GUESTS", "100"))


@pytest.fixture(autouse=True)
def _nobody(machine: TestMachine) -> None:
    """The toolstack has seen to what tests before have left."""
    settle(machine)
    assert not machine.toolstack.guests


def config(image: TestImage, name: str, memory: int = 4 * _MIB, **more: object) -> GuestConfig:
    return GuestConfig(name, kernel=str(image.kernel.path), memory=memory, **more)  # type: ignore[arg-type]


def create(machine: TestMachine, wanted: GuestConfig) -> Guest:
    """Make a guest and let it run until it waits for its first step."""
    guest = machine.do(machine.toolstack.create(wanted))
    domain = machine.hv.domains[guest.domid]
    machine.run(lambda: domain.vcpus[0].polling)
    return guest


def test_guests_come_and_go_and_leave_nothing(machine: TestMachine, image: TestImage) -> None:
    machine.do(machine.toolstack.destroy(create(machine, config(image, "first"))))
    settle(machine)
    before, at_first = census(machine), resident()
    for number in range(_MANY):
        guest = create(machine, config(image, f"tiny{number}"))
        machine.do(machine.toolstack.destroy(guest))
    del guest
    settle(machine)
    assert census(machine) == before
    assert resident() - at_first < 24 * _MIB
    machine.check()


def test_many_guests_at_once_take_little_of_our_own_memory(machine: TestMachine, image: TestImage) -> None:
    create(machine, config(image, "first"))
    at_first, ram = resident(), machine.hv.ram.resident_bytes()
    count = 6
    guests = [create(machine, config(image, f"many{number}")) for number in range(count)]
    ours = resident() - at_first - (machine.hv.ram.resident_bytes() - ram)
    assert ours / count < 5 * _MIB
    machine.check()
    for guest in guests:
        machine.do(machine.toolstack.destroy(guest))


def test_a_guest_that_cannot_be_made_leaves_nothing(machine: TestMachine, image: TestImage) -> None:
    settle(machine)
    before = census(machine)
    with pytest.raises(UserError, match="more than the machine has left"):
        machine.do(machine.toolstack.create(config(image, "big", memory=1 << 30)))
    with pytest.raises(UserError, match="too little"):
        machine.do(machine.toolstack.create(config(image, "small", memory=_MIB)))
    with pytest.raises(UserError, match="/missing/kernel"):
        machine.do(machine.toolstack.create(GuestConfig("none", kernel="/missing/kernel", memory=_MIB)))
    settle(machine)
    assert census(machine) == before


def test_what_a_guest_is_given_beside_memory(machine: TestMachine, image: TestImage) -> None:
    wanted = config(image, "given", weight=512, cap=50, rtc_timeoffset=-3600, affinity=(0b11,))
    guest = create(machine, wanted)
    domain = machine.hv.domains[guest.domid]
    assert (domain.weight, domain.cap, domain.time_offset_s) == (512, 50, -3600)
    assert domain.vcpus[0].hard_affinity == 0b11 & (1 << machine.hv.engine.processors) - 1
    machine.do(machine.toolstack.destroy(guest))
    with pytest.raises(UserError, match="CPUs that the machine does not have"):
        create(machine, config(image, "nowhere", affinity=(0b1, 1 << 8)))


def test_local_time(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(time.tzset)
    monkeypatch.setenv("TZ", "XXX-05:30")
    time.tzset()
    assert GuestConfig("local", localtime=True, rtc_timeoffset=60).time_offset_s == 5 * 3600 + 30 * 60 + 60
    assert GuestConfig("utc").time_offset_s == 0
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("reason", "key", "action", "stays"),
    [
        (0, "on_poweroff", Action.DESTROY, False),
        (0, "on_poweroff", Action.PRESERVE, True),
        (3, "on_crash", Action.PRESERVE, True),
        (3, "on_crash", Action.DESTROY, False),
        (4, "on_watchdog", Action.DESTROY, False),
        (1, "on_reboot", Action.RESTART, False),
    ],
)
def test_what_becomes_of_a_guest_that_has_stopped(
    machine: TestMachine,
    image: TestImage,
    reason: int,
    key: str,
    action: Action,
    stays: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that restarts itself in its first second is destroyed instead, as xl does."""
    guest = create(machine, config(image, "stops", **{key: action}))
    ended: list[int | None] = []
    monkeypatch.setattr(machine.toolstack, "ended", lambda each, info: ended.append(info.shutdown_reason))
    machine.hv.shutdown(machine.hv.domains[guest.domid], reason)
    settle(machine)
    assert ended == [reason]
    assert (guest.domid in machine.hv.domains) == stays
    if stays:
        machine.do(machine.toolstack.destroy(guest))
    assert not machine.toolstack.guests


def test_the_log_says_why_a_guest_is_gone(
    machine: TestMachine, image: TestImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(machine._machine, "log", told.append)
    for reason in (0, 3):
        guest = create(machine, config(image, "gone"))
        machine.hv.shutdown(machine.hv.domains[guest.domid], reason)
        settle(machine)
    assert told == [f"gone (domain {guest.domid}) has crashed; 'xenolith dmesg' may say more"]


def test_a_guest_is_started_again_under_its_name(
    machine: TestMachine, image: TestImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenolith.toolstack.lifecycle._RESTART_LIMIT_NS", 0)
    guest = create(machine, config(image, "phoenix"))
    machine.hv.shutdown(machine.hv.domains[guest.domid], 1)
    machine.run(lambda: any(each.ready for each in machine.toolstack.guests.values() if each is not guest))
    (again,) = machine.toolstack.guests.values()
    assert again.handle == guest.handle
    machine.do(machine.toolstack.destroy(again))


def test_a_guest_that_was_half_made_when_the_toolstack_was_killed_is_taken_away(
    machine: TestMachine, image: TestImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(machine, config(image, "whole"))
    settle(machine)
    before = census(machine)
    toolstack = machine.toolstack

    async def wait(domid: int, mfn: int, port: int) -> None:
        await Future[None]()

    monkeypatch.setattr(toolstack.store, "introduce", wait)
    machine.spawn(toolstack.create(config(image, "half")))
    machine.run(lambda: any(guest.name == "half" for guest in toolstack.guests.values()))
    machine.kill("services")
    machine.run(lambda: machine.toolstack is not toolstack and len(machine.toolstack.guests) == 1)
    settle(machine)
    after = census(machine)
    assert {key: after[key] for key in ("frames", "domains", "nodes")} == {
        key: before[key] for key in ("frames", "domains", "nodes")
    }
    machine.do(machine.toolstack.destroy(machine.toolstack.find("whole")))
