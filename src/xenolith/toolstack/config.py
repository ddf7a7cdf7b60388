"""What a machine shall be: its domains, and the order in which they are started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.release import DEFAULT_RELEASE
from xenolith.toolstack.guest_config import GuestConfig

if TYPE_CHECKING:
    from xenolith.toolstack.machine_devices import MachineDevice

DEFAULT_CONTROL_MEMORY: Final = 512 << 20
DEFAULT_SERVICE_MEMORY: Final = 4 << 20
SERVICES: Final = ("builder", "store", "console", "block", "net", "hardware", "9p")


@dataclass(frozen=True, slots=True)
class DomainConfig(GuestConfig):
    """A domain that exists at power-on: a guest, or with `services` a native domain. It starts after its `depends`."""

    services: tuple[str, ...] = ()
    depends: tuple[str, ...] = ()


@dataclass(slots=True)
class MachineConfig:
    """A machine: what it is, and the domains that exist at power-on, in the order in which they are described.

    `memory` is all that the machine has; None for what its domains need and `spare_memory` more.
    """

    name: str = "default"
    clock: str = "host"
    engine: str = "auto"
    cpu: str = "host"
    xen_version: str = DEFAULT_RELEASE
    memory: int | None = None
    spare_memory: int = 0
    serial: Path | None = None
    """What the first serial port is connected to: a file to write to, or a FIFO or terminal for both ways."""
    preset: str | None = None
    devices: tuple[MachineDevice, ...] = ()
    domains: list[DomainConfig] = field(default_factory=list)

    def start_order(self) -> list[DomainConfig]:
        """The domains, each after those that it depends on, otherwise as described. There must be no cycles."""
        needs = _needs(self.domains)
        waiting = list(self.domains)
        order: dict[str, DomainConfig] = {}
        while waiting:
            ready = next(domain for domain in waiting if order.keys() >= needs[domain.name])
            waiting.remove(ready)
            order[ready.name] = ready
        return list(order.values())


def control_domain() -> DomainConfig:
    """The control domain of a machine that is not described otherwise."""
    return DomainConfig("dom0", memory=DEFAULT_CONTROL_MEMORY, capabilities=Capability.ALL)


# -- the order of starting --------------------------------------------------------------------------------------------


def named(domain: DomainConfig) -> Iterator[tuple[str, str]]:
    """The domains that a domain's keys name: (key, name)."""
    yield from (("depends", name) for name in domain.depends)
    yield from (("capabilities", name) for name in domain.targets or ())
    for key, devices in (("disk", domain.disks), ("vif", domain.nics), ("p9", domain.shares)):
        yield from ((key, device.backend) for device in devices if device.backend is not None)


def explicit_needs(domain: DomainConfig) -> set[str]:
    return {name for key, name in named(domain) if key != "capabilities"}


def _needs(domains: list[DomainConfig]) -> dict[str, set[str]]:
    """For each domain, which must be there before: those that it names, and, where that makes no cycle, its services.

    The store comes before the other services, and all services before the guests, but for one that keeps the store.
    """
    needs = {domain.name: explicit_needs(domain) for domain in domains}
    services = [domain for domain in domains if domain.services]
    keeper = store_keeper(domains)
    if keeper is not None:
        for service in services:
            if service.name not in reachable(needs, keeper.name):
                needs[service.name].add(keeper.name)
    for domain in domains:
        for service in services:
            is_needed = not domain.services or "store" in service.services
            if is_needed and domain.name not in reachable(needs, service.name) | {service.name}:
                needs[domain.name].add(service.name)
    return needs


def store_keeper(domains: list[DomainConfig]) -> DomainConfig | None:
    """The guest that keeps the store, as Xen's dom0 does: where no native domain does, the first that can."""
    if any("store" in domain.services for domain in domains):
        return None
    can = (domain for domain in domains if not domain.services and Capability.STORE in domain.capabilities)
    return next(can, None)


def reachable(needs: Mapping[str, set[str]], name: str) -> set[str]:
    """The domains that must be there before a domain, itself among them if there is a cycle."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for needed in needs[waiting.pop()]:
            if needed not in found:
                found.add(needed)
                waiting.append(needed)
    return found
