"""The store's service in a machine: domains introduced by request, domains that end, and code that is killed."""

from __future__ import annotations

import pytest

from tests.unit.services.bench import Services
from xenolith.abi.errno import EAGAIN, EINVAL, XenError
from xenolith.hypervisor.domain import Capability
from xenolith.services.service import Context
from xenolith.services.store import StoreService


@pytest.fixture
def machine() -> Services:
    return Services()


def service(machine: Services) -> StoreService:
    found = machine.supervisor.store.services[0]
    assert isinstance(found, StoreService)
    return found


def kill(machine: Services, name: str = "store") -> None:
    machine.supervisor.kill(name)
    machine.turn(1_000_000_000)
    assert machine.supervisor.running[name].is_up, machine.log


def test_domains_speak_over_their_rings_and_hear_of_each_other(machine: Services) -> None:
    one, other = machine.domain("one"), machine.domain("other")
    heard: list[str] = []
    machine.write("/shared", node="1")
    machine.do(
        machine.toolstack, machine.toolstack.store.set_permissions("/shared/node", ["n1", f"b{one.kernel.domid}"])
    )
    machine.do(one, one.store.watch("/shared/node", heard.append))
    machine.write("/shared", node="2")
    assert heard == ["/shared/node", "/shared/node"]
    with pytest.raises(XenError, match="EACCES"):
        machine.do(other, other.store.read("/shared/node"))


def test_a_killed_store_comes_back_with_all_that_it_knew(machine: Services) -> None:
    one = machine.domain("one")
    home = f"/local/domain/{one.kernel.domid}"
    machine.write(home, data="")
    machine.do(machine.toolstack, machine.toolstack.store.set_permissions(f"{home}/data", [f"n{one.kernel.domid}"]))
    heard: list[str] = []
    machine.do(one, one.store.watch(f"{home}/data", heard.append))
    for number in range(5):
        machine.do(one, one.store.write(f"{home}/data", str(number)))
        kill(machine)
        assert machine.do(one, one.store.read(f"{home}/data")) == str(number)
    assert heard == [f"{home}/data"] * 6
    assert not [line for line in machine.log if "lost" in line]


def test_a_request_that_was_made_while_there_was_no_store_is_answered_once(machine: Services) -> None:
    one = machine.domain("one")
    machine.supervisor.kill("store")
    asked = [one.tasks.spawn(one.store.names("/")) for _ in range(3)]
    for future in asked:
        future.on_done(lambda _: None)
    machine.turn(100_000_000)
    assert all(future.done for future in asked)
    with pytest.raises(XenError, match="EACCES"):
        asked[0].result()


def test_a_transaction_survives_or_is_asked_for_again(machine: Services) -> None:
    toolstack = machine.toolstack

    async def change(number: int) -> None:
        await toolstack.store.write("/a/b", "1", number)
        machine.supervisor.kill("store")
        await toolstack.store.write("/a/c", "2", number)

    future = toolstack.tasks.spawn(toolstack.store.transaction(change))
    future.on_done(lambda _: None)
    for _ in range(40):
        machine.turn(50_000_000)
    assert future.done
    try:
        future.result()
    except XenError as error:
        assert error.errno == EAGAIN  # noqa: PT017
    assert machine.read("/a/b") == "1"
    assert machine.read("/a/c") == "2"


def test_a_service_that_starts_again_is_introduced_again(machine: Services) -> None:
    watched: list[str] = []

    class Watching:
        def __init__(self, context: Context) -> None:
            self._context = context

        async def start(self) -> None:
            await self._context.store.watch("/thing", watched.append)

        def stop(self) -> None: ...

    machine.start("watching", Watching, Capability.CREATE)
    assert watched == ["/thing"]
    kill(machine, "watching")
    assert watched == ["/thing"] * 2
    machine.write("/thing", x="1")
    assert watched == ["/thing", "/thing", "/thing/x"]


def test_a_domain_that_ends_is_let_go_of_and_told_of(machine: Services) -> None:
    heard: list[str] = []
    machine.do(machine.toolstack, machine.toolstack.store.watch("@releaseDomain", heard.append))
    one = machine.domain("one")
    domid, frames = one.kernel.domid, machine.hv.frames.free_frames
    store = service(machine).store
    assert store.is_introduced(domid)
    machine.hv.destroy_domain(one.kernel.domain)
    machine.turn()
    assert not store.is_introduced(domid)
    assert heard == ["@releaseDomain"] * 2
    assert not machine.hv.frames.owned_by(domid)
    assert machine.hv.frames.free_frames > frames


def test_an_introduction_that_cannot_be_is_refused(machine: Services) -> None:
    one = machine.domain("one")
    with pytest.raises(XenError) as caught:
        machine.do(machine.toolstack, machine.toolstack.store.introduce(one.kernel.domid + 1, 1, 1))
    assert caught.value.errno == EINVAL
    with pytest.raises(XenError, match="EACCES"):
        machine.do(one, one.store.introduce(one.kernel.domid, 1, 1))
    assert service(machine).store.is_introduced(one.kernel.domid)
