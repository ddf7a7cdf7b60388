"""What a guest finds at the other end of its first two rings: a console and xenstore, each kept by a native domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenolith.abi.grant_table import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE
from xenolith.backends.console_domain import ConsoleService
from xenolith.backends.store_domain import StoreService
from xenolith.store.server import domain_path
from xenolith.store.tree import Path, Permission

if TYPE_CHECKING:
    from xenolith.backends.console import ConsoleRing
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.loader.pv import PvSpec, StartOfDay

_OWN_NODES: Final = (
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
    "device/suspend/event-channel",
)
"""What a guest may write to below its home, as xl gives it."""


class NativeServices:
    """The two native domains. For each guest: its ports first, then, when it is built, `attach`."""

    def __init__(self, hv: Hypervisor) -> None:
        self._consoles = ConsoleService(hv)
        self._stores = StoreService(hv)
        self._stores.released.append(self._consoles.detach)

    def console_port(self, domain: Domain) -> int:
        """A port of `domain` for its console."""
        return domain.events.alloc_unbound(self._consoles.domain.domid)

    def store_port(self, domain: Domain) -> int:
        """A port of `domain` for its store."""
        return domain.events.alloc_unbound(self._stores.domain.domid)

    def attach(self, domain: Domain, spec: PvSpec, day: StartOfDay, sink: Callable[[bytes], None]) -> ConsoleRing:
        """Grant the rings to the native domains, which serve them from now on; what `domain` prints goes to `sink`."""
        assert day.console_mfn is not None
        assert day.store_mfn is not None
        domain.grants.grant(GNTTAB_RESERVED_CONSOLE, self._consoles.domain.domid, day.console_mfn)
        domain.grants.grant(GNTTAB_RESERVED_XENSTORE, self._stores.domain.domid, day.store_mfn)
        self._describe(domain, spec, day)
        self._stores.attach(domain, spec.store_port)
        return self._consoles.attach(domain, spec.console_port, sink)

    def _describe(self, domain: Domain, spec: PvSpec, day: StartOfDay) -> None:
        """Write what the store says of a domain: as much of what xl writes as is true here."""
        store, home, vm = self._stores.store, domain_path(domain.domid), ("vm", str(domain.handle))
        readable = Permission("n", store.owner), Permission("r", domain.domid)
        writable = (Permission("n", domain.domid),)
        for path in (home, vm):
            store.make(path, readable)
        memory_kib = str(spec.memory_frames * 4)
        values = {
            "name": domain.name,
            "domid": str(domain.domid),
            "vm": _text(vm),
            "memory/static-max": memory_kib,
            "memory/target": memory_kib,
            "console/ring-ref": str(day.console_mfn),
            "console/port": str(spec.console_port),
            "store/ring-ref": str(day.store_mfn),
            "store/port": str(spec.store_port),
            "control/platform-feature-xs_reset_watches": "1",
        }
        values |= {f"cpu/{vcpu.vcpu_id}/availability": "online" for vcpu in domain.vcpus}
        for name, value in values.items():
            store.write((*home, *name.split("/")), value)
        for name in _OWN_NODES:
            store.make((*home, *name.split("/")), writable)
        store.write((*vm, "name"), domain.name)
        store.write((*vm, "uuid"), str(domain.handle))


def _text(path: Path) -> str:
    return "/" + "/".join(path)
