"""Which code a native domain gets for the services that its description names, and what it needs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenolith.hypervisor.domain import Capability, Domain
from xenolith.services.console import ConsoleService, Terminals
from xenolith.services.service import Context, Factory, Service
from xenolith.services.store import StoreService
from xenolith.services.supervisor import Role, Supervisor
from xenolith.services.tasks import Tasks
from xenolith.toolstack.builder import Built
from xenolith.toolstack.config import DomainConfig
from xenolith.toolstack.devices import Devices
from xenolith.toolstack.guest_config import GuestConfig
from xenolith.toolstack.lifecycle import Toolstack

if TYPE_CHECKING:
    from xenolith.services.network.networks import Networks

_IMPLIED_MEMORY: Final = 1 << 20
NEEDED_SERVICES: Final = {
    "store": Capability.STORE,
    "console": Capability.NONE,
    "builder": Capability.CREATE,
}
"""What every guest needs, and what a domain must be able to do for it."""
_BUILDER_TABLES: Final = 160
"""L1 tables for what a builder maps of a new guest at once: 320 MiB."""
_BLOCK_TABLES: Final = 32
"""L1 tables for the pages of all guests' disks that are mapped at once: 64 MiB."""
_SHARE_TABLES: Final = 16
"""L1 tables for the rings of all guests' shared directories: 32 MiB."""
_TABLES: Final = 4
_PAGES: Final = 32
_NET_PAGES: Final = 512
"""Pages of its own for a domain that copies many packets at once."""
_TABLES_OF: Final = {"builder": _BUILDER_TABLES, "block": _BLOCK_TABLES, "9p": _SHARE_TABLES}


def implied_services(names: tuple[str, ...]) -> DomainConfig:
    """A domain for services that every guest needs and that no domain of a description has."""
    capabilities = Capability.NONE
    for name in names:
        capabilities |= NEEDED_SERVICES[name]
    return DomainConfig("services", memory=_IMPLIED_MEMORY, capabilities=capabilities, services=names)


class Roles:
    """Makes the roles of one machine, and knows which domain has which service. `networks` gives the machine's."""

    def __init__(
        self, supervisor: Supervisor, terminals: Terminals, repeatable: bool, networks: Callable[[], Networks]
    ) -> None:
        self._supervisor = supervisor
        self._terminals = terminals
        self._repeatable = repeatable
        self._networks = networks
        self._owners: dict[str, str] = {}
        self.toolstack: Toolstack | None = None
        self._own_tasks = Tasks(lambda error: supervisor.log(f"a command failed: {error!r}"))
        self._devices = Devices(self.domid_of_service, self._domid_of, self._is_native)
        self.require = self._devices.required
        self._needed: dict[str, Factory] = {
            "store": StoreService,
            "console": lambda context: ConsoleService(context, self._terminals),
            "builder": self._toolstack,
        }

    def role(self, config: DomainConfig) -> Role:
        """The role of a native domain."""
        self._owners |= dict.fromkeys(config.services, config.name)
        services = tuple(self._factory(name) for name in sorted(config.services, key=_store_first))
        tables = max((_TABLES_OF.get(name, _TABLES) for name in config.services), default=_TABLES)
        pages = _NET_PAGES if "net" in config.services else _PAGES
        return Role(config.name, config.capabilities, services, page_count=pages, window_tables=tables)

    def _factory(self, name: str) -> Factory:
        """The code of a service, imported when it is wanted: most machines have no networks or shares."""
        if name == "block":
            from xenolith.services.block import BlockService

            return BlockService
        if name == "net":
            return self._net()
        if name == "9p":
            from xenolith.services.ninepfs import NinePfsService

            return NinePfsService
        if name == "hardware":
            from xenolith.services.hardware import HardwareService

            return HardwareService
        return self._needed[name]

    def _net(self) -> Factory:
        from xenolith.services.net import NetService

        networks = self._networks()
        return lambda context: NetService(context, networks)

    def domid_of_service(self, name: str) -> int | None:
        """The domid of the domain that has a service."""
        owner = self._owners.get(name)
        running = self._supervisor.running.get(owner) if owner is not None else None
        return running.kernel.domid if running is not None else None

    def _domid_of(self, name: str) -> int | None:
        running = self._supervisor.running.get(name)
        if running is not None:
            return running.kernel.domid
        guests = self.toolstack.guests.values() if self.toolstack is not None else ()
        return next((guest.domid for guest in guests if guest.name == name), None)

    def _is_native(self, domid: int) -> bool:
        return any(running.kernel.domid == domid for running in self._supervisor.running.values())

    def _toolstack(self, context: Context) -> Service:
        self.toolstack = Toolstack(context, self._devices, self._terminals, self._repeatable)
        return self.toolstack

    def builder_tasks(self) -> Tasks | None:
        """The coroutines of the domain that makes guests; of none in particular if there is no such domain."""
        owner = self._owners.get("builder")
        return self._supervisor.running[owner].tasks if owner is not None else self._own_tasks

    def adopt(self, config: GuestConfig, domain: Domain, built: Built) -> None:
        """Have the toolstack take on a guest that was made at power-on: it may do with it as if it had made it."""
        toolstack, builder = self.toolstack, self._supervisor.running[self._owners["builder"]]
        assert toolstack is not None
        assert builder.tasks is not None
        domain.creator = builder.kernel.domid
        builder.tasks.spawn(toolstack.adopt(config, built))


def _store_first(name: str) -> bool:
    return name != "store"
