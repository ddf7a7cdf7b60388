"""The store service: a native domain that keeps xenstore for the domains that have no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from xenolith.abi.event_channel import VIRQ_DOM_EXC
from xenolith.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from xenolith.backends.store import StoreRing, positions
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.native import take_pending
from xenolith.store.server import Store

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor


class _Client(NamedTuple):
    """A domain that is served: its ring, the port for it, and the handle of the ring's grant."""

    domain: Domain
    ring: StoreRing
    port: int
    handle: int


class StoreService:
    """Serves xenstore through the grants and event channels that the domains' builder gave to this domain.

    It hears of domains that are gone by VIRQ_DOM_EXC, lets go of them, and calls `released` with their domids.
    """

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self._clients: dict[int, _Client] = {}
        self.released: list[Callable[[int], None]] = []
        self.domain: Domain = hv.create_native_domain("store", Capability.STORE, self._serve)
        self.store = Store(self.domain.domid)
        self.domain.events.bind_virq(VIRQ_DOM_EXC, 0)

    def attach(self, guest: Domain, guest_port: int) -> None:
        """Introduce `guest`, which granted its ring and allocated `guest_port` for this domain."""
        handle, mfn = self.domain.grants.map_frame(guest.domid, GNTTAB_RESERVED_XENSTORE)
        port = self.domain.events.bind_interdomain(guest, guest_port)
        page = self._hv.ram.frame(mfn)
        connection = self.store.introduce(guest.domid, (int(mfn), guest_port), positions(page))
        ring = StoreRing(page, self.store, connection, lambda: self.domain.events.send(port))
        self._clients[guest.domid] = _Client(guest, ring, port, handle)

    def detach(self, domid: int) -> None:
        """Let go of a domain that is gone: its ring, the port for it, its watches and transactions."""
        client = self._clients.pop(domid)
        self.store.gone(domid)
        self.domain.events.close(client.port)
        self.domain.grants.unmap_frame(client.handle)

    def _serve(self) -> None:
        take_pending(self._hv, self.domain)
        for domid in [domid for domid, client in self._clients.items() if client.domain.is_dying]:
            self.detach(domid)
            for tell in self.released:
                tell(domid)
        while self._serve_all():  # what one domain writes, others watch
            pass

    def _serve_all(self) -> bool:
        served = [client.ring.service() for client in self._clients.values()]
        return any(served)
