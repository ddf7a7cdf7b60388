"""What the native domains hold of a guest that is gone: nothing, once they were told."""

from __future__ import annotations

from tests.unit.hypervisor.support import Bench
from xenolith.abi.grant_table import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE
from xenolith.backends.console_domain import ConsoleService
from xenolith.backends.store_domain import StoreService


def test_the_frames_of_a_destroyed_guest_are_free_when_its_services_have_let_go() -> None:
    hv = Bench()
    consoles, stores = ConsoleService(hv), StoreService(hv)
    stores.released.append(consoles.detach)
    free = hv.frames.free_frames
    ports = len(_open_ports(stores)), len(_open_ports(consoles))
    guest = hv.guest()
    domain = guest.domain
    ring_frames = guest.data[:2]
    domain.grants.grant(GNTTAB_RESERVED_CONSOLE, consoles.domain.domid, ring_frames[0])
    domain.grants.grant(GNTTAB_RESERVED_XENSTORE, stores.domain.domid, ring_frames[1])
    stores.attach(domain, domain.events.alloc_unbound(stores.domain.domid))
    console = consoles.attach(domain, domain.events.alloc_unbound(consoles.domain.domid), bytearray().extend)
    hv.step()
    assert stores.store.is_introduced(domain.domid)

    hv.destroy_domain(domain)
    assert hv.frames.owned_by(domain.domid), "the rings are still mapped"
    hv.step()
    assert not hv.frames.owned_by(domain.domid)
    assert hv.frames.free_frames == free
    assert not stores.store.is_introduced(domain.domid)
    assert (len(_open_ports(stores)), len(_open_ports(consoles))) == ports

    console.type(b"for nobody")
    assert not any(hv.ram.frame(ring_frames[0])), "the frame may be somebody else's by now"


def test_a_guest_that_has_only_shut_down_keeps_its_services() -> None:
    hv = Bench()
    stores = StoreService(hv)
    guest = hv.guest()
    guest.domain.grants.grant(GNTTAB_RESERVED_XENSTORE, stores.domain.domid, guest.data[0])
    stores.attach(guest.domain, guest.domain.events.alloc_unbound(stores.domain.domid))
    hv.shutdown(guest.domain, 0)
    hv.step()
    assert stores.store.is_introduced(guest.domain.domid)


def _open_ports(service: ConsoleService | StoreService) -> list[int]:
    events = service.domain.events
    return [channel.port for channel in events._channels if channel.state]
