"""The console service: a native domain at the other end of other domains' PV consoles."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xenolith.abi.grant_table import GNTTAB_RESERVED_CONSOLE
from xenolith.backends.console import ConsoleRing
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.native import take_pending

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor


class ConsoleService:
    """Serves consoles through the grants and event channels that their domains' builder gave to this domain."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self._rings: dict[int, ConsoleRing] = {}
        self._handles: dict[int, tuple[int, int]] = {}
        """The port and the grant handle of each domain that is served."""
        self.domain: Domain = hv.create_native_domain("console", Capability.CONSOLE, self._serve)

    def attach(self, guest: Domain, guest_port: int, sink: Callable[[bytes], None]) -> ConsoleRing:
        """Serve the console of `guest`, which granted its ring and allocated `guest_port` for this domain."""
        handle, mfn = self.domain.grants.map_frame(guest.domid, GNTTAB_RESERVED_CONSOLE)
        port = self.domain.events.bind_interdomain(guest, guest_port)
        ring = ConsoleRing(self._hv.ram.frame(mfn), sink, lambda: self.domain.events.send(port))
        self._rings[port] = ring
        self._handles[guest.domid] = port, handle
        return ring

    def detach(self, domid: int) -> None:
        """Let go of a domain that is gone: its ring, and the port for it."""
        if domid not in self._handles:
            return
        port, handle = self._handles.pop(domid)
        self._rings.pop(port).close()
        self.domain.events.close(port)
        self.domain.grants.unmap_frame(handle)

    def _serve(self) -> None:
        for port in take_pending(self._hv, self.domain):
            ring = self._rings.get(port)
            if ring is not None:
                ring.service()
