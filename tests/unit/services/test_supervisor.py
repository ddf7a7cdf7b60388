"""Native domains whose code is dropped at any moment: it is started again, and what it kept is there."""

from __future__ import annotations

import pytest

from tests.unit.services.bench import Services
from xenolith.abi.errno import EACCES, EINVAL, ENOENT, XenError
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.native import NativeKernel
from xenolith.services.service import Context
from xenolith.services.store import StoreService
from xenolith.services.store_client import StoreClient
from xenolith.services.tasks import Tasks

_SECOND = 1_000_000_000


class Counter:
    """Counts its starts in its domain's kept memory, and fails when it is told to."""

    def __init__(self, context: Context) -> None:
        self.context = context
        kept = context.kernel.kept.setdefault("starts", bytearray(1))
        kept[0] += 1
        self.page = context.kernel.allocate_page()
        self.stopped = False

    async def start(self) -> None:
        await self.context.store.watch("told", self._told)

    def _told(self, path: str) -> None:
        self.context.tasks.spawn(self._look())

    async def _look(self) -> None:
        first = self.context.kernel.kept["starts"][0] == 1
        if first and await self.context.store.read_or("told", "") == "fail":
            raise ZeroDivisionError("as told")

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def services() -> Services:
    return Services()


def test_code_that_fails_is_started_again_in_its_domain(services: Services) -> None:
    running = services.start("counter", Counter)
    domid, first = running.kernel.domid, running.services[0]
    services.write(f"/local/domain/{domid}", told="fail")
    services.turn(_SECOND)
    assert running.is_up
    assert (running.starts, running.failures) == (2, 1)
    assert "ZeroDivisionError: as told" in running.last_failure
    assert running.kernel.domid == domid
    assert running.kernel.kept["starts"] == b"\2"
    assert isinstance(first, Counter)
    assert first.stopped
    assert any("counter failed" in line for line in services.log)


def test_killing_again_and_again_loses_no_page_port_or_grant(services: Services) -> None:
    running = services.start("counter", Counter)
    services.supervisor.kill("counter")
    services.turn(_SECOND)
    free = services.hv.frames.free_frames
    kernel = running.kernel
    before = len(kernel._free_pages), len(kernel._free_grefs), len(list(kernel.domain.events))
    for _ in range(20):
        services.supervisor.kill("counter")
        services.turn(_SECOND)
    assert running.is_up
    assert running.starts == 22
    assert (len(kernel._free_pages), len(kernel._free_grefs), len(list(kernel.domain.events))) == before
    assert services.hv.frames.free_frames == free


def test_it_is_back_within_a_second_however_often_it_fails(services: Services) -> None:
    running = services.start("counter", Counter)
    for _ in range(10):
        services.supervisor.kill("counter")
        assert not running.is_up
        services.turn(_SECOND)
        assert running.is_up


def test_others_do_not_notice_that_the_store_was_killed(services: Services) -> None:
    domain = services.domain("other")
    home = f"/local/domain/{domain.kernel.domid}"
    seen: list[str] = []
    services.write(home, a="1")
    allow = services.toolstack.store.set_permissions(f"{home}/a", [f"n{domain.kernel.domid}"])
    services.do(services.toolstack, allow)
    services.do(domain, domain.store.watch(f"{home}/a", seen.append))
    for number in range(5):
        answer = domain.tasks.spawn(domain.store.read(f"{home}/a"))
        answer.on_done(lambda _: None)
        services.supervisor.kill("store")
        services.turn(_SECOND)
        assert answer.result() == (str(number) if number else "1")
        services.do(domain, domain.store.write(f"{home}/a", str(number + 1)))
    assert len(seen) == 6, "the first event, and one for each write"


def test_what_a_domain_may_not_it_may_not_after_the_store_was_killed(services: Services) -> None:
    domain = services.domain("other")
    services.do(services.toolstack, services.toolstack.store.write("/secret/a", "1"))
    services.supervisor.kill("store")
    services.turn(_SECOND)
    with pytest.raises(XenError) as caught:
        services.do(domain, domain.store.write("/secret/a", "2"))
    assert caught.value.errno == EACCES


def test_a_transaction_is_done_again_when_somebody_else_was_first(services: Services) -> None:
    domain = services.toolstack
    tries = 0

    async def change(transaction: int) -> None:
        nonlocal tries
        tries += 1
        value = await domain.store.read_or("/count", "0", transaction)
        if tries == 1:
            await domain.store.write("/count", "10")
        await domain.store.write("/count", int(value) + 1, transaction)

    services.do(domain, domain.store.transaction(change))
    assert tries == 2
    assert services.read("/count") == "11"


def test_many_requests_at_once(services: Services) -> None:
    """More than the ring takes, in their order; an error is told when all the others are done."""
    toolstack, store = services.toolstack, services.toolstack.store
    names = [f"/many/{number:04}-{'x' * 40}" for number in range(200)]
    services.do(toolstack, store.make_all([("/many", ("n0", "r1")), ("/many/more", ("n0",))]))
    services.do(toolstack, store.write_all([(name, number) for number, name in enumerate(names)]))
    assert services.do(toolstack, store.permissions("/many")) == ["n0", "r1"]
    assert services.do(toolstack, store.read_each([*names, "/many/nothing"])) == [*map(str, range(200)), ""]
    assert services.do(toolstack, store.names("/many")) == ["more", *(name[6:] for name in names)]
    with pytest.raises(XenError) as caught:
        services.do(toolstack, store.write_all([("/first", "1"), ("no path", "2"), ("/last", "3")]))
    assert caught.value.errno == EINVAL
    assert services.read("/last") == "3"


def test_code_that_is_started_again_goes_on_with_a_ring_that_is_remembered(services: Services) -> None:
    """A store that is told nothing goes on to serve it; what the code before watched is forgotten."""
    (keeper,) = (running for running in services.supervisor.running.values() if running.role.name == "store")
    kernel, (store,) = NativeKernel(services.hv, "driver", Capability.NONE), keeper.services
    assert isinstance(store, StoreService)
    seen: list[str] = []

    def ask(client: StoreClient, name: str) -> None:
        spawned = Tasks(lambda error: pytest.fail(str(error))).spawn(client.watch(name, seen.append))
        services.turn()
        assert spawned.done

    before = StoreClient(kernel, keeper.kernel.domid)
    store.introduce(kernel.domid, before.page.mfn, before.port, False)
    home = f"/local/domain/{kernel.domid}"
    services.do(services.toolstack, services.toolstack.store.make_all([(home, ("n0", f"r{kernel.domid}"))]))
    services.write(home, a=1, b=1)
    ask(before, "a")
    before.remember()
    kernel.reset()
    after = StoreClient(kernel, keeper.kernel.domid)
    assert after.page.mfn == before.page.mfn
    ask(after, "b")
    seen.clear()
    services.write(home, a=2, b=2)
    assert seen == ["b"]


def test_errors_and_absences(services: Services) -> None:
    store = services.toolstack.store
    with pytest.raises(XenError) as caught:
        services.do(services.toolstack, store.read("/nothing"))
    assert caught.value.errno == ENOENT
    assert services.do(services.toolstack, store.names("/nothing")) == []
    services.do(services.toolstack, store.remove("/nothing"))


def test_a_value_longer_than_the_ring(services: Services) -> None:
    value = "x" * 1900
    services.do(services.toolstack, services.toolstack.store.write("/long", value))
    assert services.read("/long") == value
