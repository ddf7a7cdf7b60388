"""The toolstack on a real processor: guests made and ended by the hypercalls of a native domain leave nothing."""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.guest.assembler import TestImage
from tests.guest.pvguest import TestMachine, is_native
from xenolith.errors import UserError
from xenolith.hypervisor.domain import Domain
from xenolith.services.tasks import Future
from xenolith.toolstack.guest_config import Action, GuestConfig
from xenolith.toolstack.lifecycle import Guest

_MIB = 1 << 20
_MANY = 60


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


def settle(machine: TestMachine) -> None:
    """Let everything happen that can."""
    for _ in range(100):
        machine.turn()


def census(machine: TestMachine) -> dict[str, object]:
    """All that a guest could leave behind."""
    natives = [domain for domain in machine.hv.domains.values() if is_native(domain)]
    nodes = machine.do(_nodes(machine))
    gc.collect()
    return {
        "frames": machine.hv.frames.free_frames,
        "domains": sorted(machine.hv.domains),
        "ports": [len(list(domain.events)) for domain in natives],
        "mappings": [len(domain.grants._mappings) for domain in natives],
        "nodes": nodes,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "objects": Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, Domain | Guest)),
    }


async def _nodes(machine: TestMachine) -> int:
    return len([row async for row in machine.toolstack.walk("/")])


def test_guests_come_and_go_and_leave_nothing(machine: TestMachine, image: TestImage) -> None:
    machine.do(machine.toolstack.destroy(create(machine, config(image, "first"))))
    settle(machine)
    before, resident = census(machine), _resident()
    for number in range(_MANY):
        guest = create(machine, config(image, f"tiny{number}"))
        machine.do(machine.toolstack.destroy(guest))
    del guest
    settle(machine)
    assert census(machine) == before
    assert _resident() - resident < 24 * _MIB
    machine.check()


def test_many_guests_at_once_take_little_of_our_own_memory(machine: TestMachine, image: TestImage) -> None:
    create(machine, config(image, "first"))
    resident, ram = _resident(), machine.hv.ram.resident_bytes()
    count = 6
    guests = [create(machine, config(image, f"many{number}")) for number in range(count)]
    ours = _resident() - resident - (machine.hv.ram.resident_bytes() - ram)
    assert ours / count < 5 * _MIB
    machine.check()
    for guest in guests:
        machine.do(machine.toolstack.destroy(guest))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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
    machine: TestMachine, image: TestImage, reason: int, key: str, action: Action, stays: bool
) -> None:
    """One that restarts itself in its first second is destroyed instead, as xl does."""
    guest = create(machine, config(image, "stops", **{key: action}))
    ended: list[int | None] = []
    machine.toolstack.ended = lambda each, info: ended.append(info.shutdown_reason)
    machine.hv.shutdown(machine.hv.domains[guest.domid], reason)
    settle(machine)
    assert ended == [reason]
    assert (guest.domid in machine.hv.domains) == stays
    if stays:
        machine.do(machine.toolstack.destroy(guest))
    assert not machine.toolstack.guests


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
