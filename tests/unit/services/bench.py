"""A machine of native domains only: a store, the services under test, and others that play toolstack and guests."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tests.unit.hypervisor.support import Bench
from xenolith.hypervisor.domain import Capability
from xenolith.services.service import Context, Factory
from xenolith.services.store import StoreService
from xenolith.services.supervisor import Role, Running, Supervisor

T = TypeVar("T")


class Outside:
    """The host: what is submitted is done at once, or when the test says so by `work`."""

    def __init__(self, hv: Bench) -> None:
        self._hv = hv
        self.at_once = True
        self.submitted: list[Callable[[bool], None]] = []

    def post(self, action: Callable[[], None]) -> None:
        self._hv.host.incoming.append(action)

    def watch_readable(self, fd: int, action: Callable[[], None]) -> None: ...

    def watch_writable(self, fd: int, action: Callable[[], None]) -> None: ...

    def unwatch(self, fd: int) -> None: ...

    def submit(self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        def do(tell: bool = True) -> None:
            result: T | None = None
            error: Exception | None = None
            try:
                result = work()
            except Exception as raised:
                error = raised
            if tell:
                done(result, error)

        if self.at_once:
            do()
        else:
            self.submitted.append(do)

    def work(self, tell: bool = True) -> None:
        """Do what was submitted; without `tell` nobody hears of it any more."""
        submitted, self.submitted = self.submitted, []
        for do in submitted:
            do(tell)


class _Idle:
    """The code of a domain that a test drives: its context."""

    def __init__(self, context: Context) -> None:
        self.context = context

    async def start(self) -> None: ...

    def stop(self) -> None: ...


class Services:
    """The machine. `toolstack` is privileged in the store."""

    def __init__(self, frames: int = 4096) -> None:
        self.hv = Bench(frames)
        self.outside = Outside(self.hv)
        self.log: list[str] = []
        self.supervisor = Supervisor(self.hv, self.outside, None, self.log.append)
        self.start("store", StoreService, Capability.STORE)
        self.toolstack = self.domain("toolstack", Capability.CREATE)

    def start(
        self, name: str, factory: Factory, capabilities: Capability = Capability.NONE, tables: int = 4
    ) -> Running:
        """Start a service in a domain of its own."""
        running = self.supervisor.start(Role(name, capabilities, (factory,), window_tables=tables))
        self.turn()
        return running

    def domain(self, name: str, capabilities: Capability = Capability.NONE) -> Context:
        """A domain that the test drives."""
        service = self.supervisor.start(Role(name, capabilities, (_Idle,))).services[0]
        self.turn()
        assert isinstance(service, _Idle)
        return service.context

    def turn(self, nanoseconds: int = 0) -> None:
        """Let time pass, and everything happen that can."""
        self.hv.clock.ns += nanoseconds
        for _ in range(30):
            self.hv.step()

    def do(self, context: Context, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a domain's coroutine comes to."""
        future = context.tasks.spawn(coroutine)
        future.on_done(lambda _: None)
        self.turn()
        assert future.done, "it waits for something that does not come"
        return future.result()

    def write(self, path: str, **values: str | int) -> None:
        """As the toolstack."""

        async def write() -> None:
            for name, value in values.items():
                await self.toolstack.store.write(f"{path}/{name.replace('_', '-')}", value)

        self.do(self.toolstack, write())
        self.turn()

    def read(self, path: str) -> str:
        """As the toolstack; "" if there is no such node."""
        return self.do(self.toolstack, self.toolstack.store.read_or(path, ""))
