"""The store service: a native domain that keeps xenstore for the domains that have no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenolith.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from xenolith.backends.store import StoreRing
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.native import take_pending
from xenolith.store.server import Store

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor


class StoreService:
    """Serves xenstore through the grants and event channels that the domains' builder gave to this domain."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self._rings: dict[int, StoreRing] = {}
        self.domain: Domain = hv.create_native_domain("store", Capability.STORE, self._serve)
        self.store = Store(self.domain.domid)

    def attach(self, guest: Domain, guest_port: int) -> None:
        """Introduce `guest`, which granted its ring and allocated `guest_port` for this domain."""
        _handle, mfn = self.domain.grants.map_frame(guest.domid, GNTTAB_RESERVED_XENSTORE)
        port = self.domain.events.bind_interdomain(guest, guest_port)
        connection = self.store.connect(guest.domid)
        self._rings[port] = StoreRing(self._hv.ram.frame(mfn), connection, lambda: self.domain.events.send(port))

    def _serve(self) -> None:
        take_pending(self._hv, self.domain)
        while self._serve_all():  # what one domain writes, others watch
            pass

    def _serve_all(self) -> bool:
        served = [ring.service() for ring in self._rings.values()]
        return any(served)
