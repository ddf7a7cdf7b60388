"""Starts the native domains of a machine, and starts their code again when it has failed or was killed.

What is started again is the code, not the domain: its domid, its memory and what it kept stay, its ports are closed and
its grants unmapped. To a guest that is a pause.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.native import NativeKernel
from xenolith.services.service import Access, Context, Factory, Outside, Service
from xenolith.services.store import StoreService
from xenolith.services.store_client import StoreClient
from xenolith.services.tasks import Tasks
from xenolith.store.tree import Permission

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor

_FIRST_PAUSE_NS: Final = 10_000_000
_LONGEST_PAUSE_NS: Final = 500_000_000
_CALM_NS: Final = 5_000_000_000
"""Code that ran for so long before it failed is started again as quickly as at first."""


class Role(NamedTuple):
    """A native domain as the machine description has it: what it may do, and the services that are its code."""

    name: str
    capabilities: Capability
    services: tuple[Factory, ...]
    targets: frozenset[str] | None = None
    page_count: int = 32
    window_tables: int = 4


@dataclass(slots=True, eq=False)
class Running:
    """A native domain and its code as it is now."""

    role: Role
    kernel: NativeKernel
    starts: int = 0
    failures: int = 0
    last_failure: str = ""
    started_ns: int = 0
    pause_ns: int = _FIRST_PAUSE_NS
    services: list[Service] = field(default_factory=list)
    tasks: Tasks | None = None
    host: Access | None = None

    @property
    def is_up(self) -> bool:
        return self.tasks is not None


class Supervisor:
    """Start the role that has the store before all others, or say first which guest keeps it (`store_keeper`). `log` is
    told what happens to services."""

    def __init__(self, hv: Hypervisor, outside: Outside, directory: Path | None, log: Callable[[str], None]) -> None:
        self._hv = hv
        self._outside = outside
        self._directory = directory
        self.log = log
        self.running: dict[str, Running] = {}
        self.store_keeper: int | None = None

    @property
    def store(self) -> Running | None:
        """The native domain that keeps the store, if it is one."""
        return next((each for each in self.running.values() if StoreService in each.role.services), None)

    def start(self, role: Role) -> Running:
        """Make a domain and start its code. Raises XenError where there is not enough memory."""
        kernel = NativeKernel(self._hv, role.name, role.capabilities, role.page_count, role.window_tables)
        running = self.running[role.name] = Running(role, kernel)
        kernel.on_failure = lambda error: self._failed(running, error)
        self._start_code(running)
        return running

    def _start_code(self, running: Running) -> None:
        def failed(error: Exception) -> None:
            self._failed(running, error)

        kernel = running.kernel
        running.tasks, running.host = Tasks(failed), Access(self._outside, failed)
        running.starts += 1
        running.started_ns = self._hv.now_ns()
        store = self.store
        keeper = store.kernel.domid if store is not None else self.store_keeper
        assert keeper is not None
        client = StoreClient(kernel, keeper)
        context = Context(kernel, running.tasks, client, running.host, self.log, self._directory)
        running.services = [factory(context) for factory in running.role.services]
        for service in running.services:
            if not running.is_up:
                return  # the one before it has failed already
            running.tasks.spawn(service.start())
        if store is not None:
            self._introduce(store, running, client)
        elif running.tasks is not None:
            running.tasks.spawn(self._say_name(running.role.name, client))

    async def _say_name(self, name: str, client: StoreClient) -> None:
        """Tell a store that is kept by a guest who this is: what introduces the domain there knows its number only."""
        await client.write("name", name)
        client.remember()

    def _introduce(self, store: Running, running: Running, client: StoreClient) -> None:
        """Tell the store of a native domain's ring, as a machine's firmware would, and give the domain a home in which
        it may read what others write there for it, as xl gives every domain."""
        domid = running.kernel.domid
        privileged = bool(running.role.capabilities & (Capability.CREATE | Capability.STORE))
        for service in store.services:
            if isinstance(service, StoreService):
                owner = Permission("n", store.kernel.domid)
                service.store.make(("local", "domain", str(domid)), (owner, Permission("r", domid)))
                service.introduce(domid, client.page.mfn, client.port, privileged)

    def kill(self, name: str) -> None:
        """Drop the code of a domain, wherever it is, as if it had failed; it is started again."""
        self._failed(self.running[name], None)

    def _failed(self, running: Running, error: Exception | None) -> None:
        if not running.is_up:
            return
        now = self._hv.now_ns()
        if now - running.started_ns > _CALM_NS:
            running.pause_ns = _FIRST_PAUSE_NS
        running.failures += 1
        running.last_failure = "killed" if error is None else "".join(traceback.format_exception(error))
        reason = "killed" if error is None else f"failed: {error!r}"
        self.log(f"service {running.role.name} {reason}; it is started again")
        self._hv.publish("service", name=running.role.name, domid=running.kernel.domid, reason=reason)
        self._drop_code(running)
        running.kernel.at(now + running.pause_ns, lambda: self._start_code(running))
        running.pause_ns = min(2 * running.pause_ns, _LONGEST_PAUSE_NS)

    def _drop_code(self, running: Running) -> None:
        assert running.tasks is not None
        assert running.host is not None
        running.tasks.close()
        running.host.close()
        for service in running.services:
            with contextlib.suppress(Exception):  # it has failed once already
                service.stop()
        running.tasks, running.services = None, []
        running.kernel.reset()

    def close(self) -> None:
        """The machine is switched off: let all services give back what they have of the host."""
        for running in reversed(self.running.values()):
            if running.is_up:
                self._drop_code(running)
