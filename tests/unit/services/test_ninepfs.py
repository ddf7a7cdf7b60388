"""The service of shared directories between a real store and a frontend that is a native domain: xenbus, rings, code
that is killed while it does something."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EEXIST
from pathlib import Path
from typing import Any

import pytest

from tests.unit.backends.ninepfs.client import ROOT, UID, Refused, message, payload
from tests.unit.services.bench import Services
from tests.unit.services.frontend import Frontend
from xenolith.abi.io.ninepfs import Xen9pfsDataIntf
from xenolith.abi.io.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitialised,
    XenbusStateInitialising,
    XenbusStateInitWait,
)
from xenolith.abi.types import PAGE_SIZE
from xenolith.backends.ninepfs import protocol
from xenolith.services.ninepfs import NinePfsService


class FrontRing:
    """One ring of two pages, and its port."""

    def __init__(self, guest: Guest) -> None:
        kernel, backend = guest.kernel, guest.backend_domid
        interface = kernel.allocate_page()
        pages = [kernel.allocate_page(), kernel.allocate_page()]
        self.page = Xen9pfsDataIntf.from_buffer(interface.view)
        self.page.ring_order = 1
        refs = interface.view[Xen9pfsDataIntf.sizeof() :].cast("I")
        for number, page in enumerate(pages):
            refs[number] = kernel.grant(page, backend)
        self.ref = kernel.grant(interface, backend)
        self.port = kernel.alloc_unbound(backend, lambda: None)
        self.in_, self.out = (page.view for page in pages)

    def send(self, data: bytes) -> None:
        for byte in data:
            self.out[self.page.out_prod % PAGE_SIZE] = byte
            self.page.out_prod += 1

    def receive(self) -> bytes | None:
        """The next answer."""
        if self.page.in_cons == self.page.in_prod:
            return None
        ring = bytes(self.in_) * 2
        at = self.page.in_cons % PAGE_SIZE
        size = int.from_bytes(ring[at : at + 4], "little")
        self.page.in_cons += size
        return ring[at : at + size]


class Guest(Frontend):
    """A domain with a share: its rings."""

    def __init__(self, services: Services, **back: str | int) -> None:
        super().__init__(services, "9p", "9pfs", 0, "guest")
        self.offer(back)

    def connect(self, rings: int = 2, **more: str | int) -> None:
        """What a frontend does when the back end waits for it."""
        self.rings = [FrontRing(self) for _ in range(rings)]
        for number, ring in enumerate(self.rings):
            self.says(**{f"ring_ref{number}": ring.ref, f"event_channel_{number}": ring.port})
        self.says(**{"version": "1", "num_rings": rings, **more})
        self.says(state=XenbusStateInitialised)

    def mount(self) -> None:
        self.connect()
        self.says(state=XenbusStateConnected)
        self.ask(protocol.Tversion, "Is", 4096, protocol.VERSION)
        self.ask(protocol.Tattach, "IIssI", ROOT, protocol.NOFID, b"root", b"", UID)

    def send(self, kind: int, layout: str, *fields: Any, ring: int = 0) -> None:
        self.rings[ring].send(message(kind, layout, *fields))
        self.kernel.notify(self.rings[ring].port)
        self.services.turn()

    def ask(self, kind: int, layout: str, *fields: Any, ring: int = 0) -> bytes:
        self.send(kind, layout, *fields, ring=ring)
        return self.answer(kind, ring)

    def answer(self, kind: int, ring: int = 0) -> bytes:
        answer = self.rings[ring].receive()
        assert answer is not None, "no answer has come"
        return payload(answer, kind)

    def make(self, name: bytes, ring: int = 0) -> None:
        self.ask(protocol.Tmkdir, "IsII", ROOT, name, 0o755, UID, ring=ring)

    def remove(self) -> None:
        self.services.do(self.services.toolstack, self.services.toolstack.store.remove(self.back))
        self.services.turn()


@pytest.fixture
def share(tmp_path: Path) -> Path:
    (tmp_path / "share").mkdir()
    return tmp_path / "share"


@pytest.fixture
def services() -> Iterator[Services]:
    services = Services()
    services.start("9p", NinePfsService)
    yield services
    assert services.supervisor.running["9p"].last_failure in ("", "killed")
    services.supervisor.close()


@pytest.fixture
def guest(services: Services, share: Path) -> Guest:
    return Guest(services, path=str(share), security_model="none")


def kill(services: Services) -> None:
    """Kill the service's code, and let it start again."""
    services.supervisor.kill("9p")
    start(services)


def start(services: Services) -> None:
    services.turn(20_000_000)
    services.turn()
    assert services.supervisor.running["9p"].is_up


def test_a_guest_uses_a_directory(guest: Guest, share: Path) -> None:
    assert guest.back_state == XenbusStateInitWait
    told = {name: guest.back_node(name) for name in ("versions", "max-rings", "max-ring-page-order")}
    assert told == {"versions": "1", "max-rings": "4", "max-ring-page-order": "7"}
    guest.mount()
    assert guest.back_state == XenbusStateConnected
    guest.make(b"d", ring=1)
    assert (share / "d").is_dir()
    with pytest.raises(Refused) as refused:
        guest.make(b"d", ring=0)
    assert refused.value.errno == EEXIST


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"version": "2"}, "wants version '2'"),
        ({"num_rings": 5}, "has 5 rings"),
        ({"num_rings": 0}, "has 0 rings"),
        ({"ring_ref1": 9999}, "grants of domain"),
        ({"ring_ref1": ""}, "gives '' for ring-ref1"),
        ({"event_channel_1": 999}, "port 999 is not valid"),
    ],
)
def test_what_a_frontend_gets_wrong(said: dict[str, str | int], complaint: str, guest: Guest) -> None:
    guest.connect(**said)
    assert complaint in guest.back_node("error")
    assert guest.back_state == XenbusStateClosing


@pytest.mark.parametrize("order", [0, 8, 0xFFFF_FFFF])
def test_rings_that_cannot_be(order: int, guest: Guest) -> None:
    ring = FrontRing(guest)
    ring.page.ring_order = order
    guest.connect(num_rings=1, ring_ref0=ring.ref)
    assert guest.back_node("error") == f"the guest has a ring of 2^{order} pages"
    assert guest.back_state == XenbusStateClosing


@pytest.mark.parametrize(
    ("back", "complaint"),
    [({"path": "/none/such"}, "/none/such cannot be shared"), ({"path": "/", "security_model": "mapped"}, "'mapped'")],
)
def test_what_cannot_be_shared(back: dict[str, str | int], complaint: str, services: Services) -> None:
    guest = Guest(services, **back)
    assert complaint in guest.back_node("error")


def test_a_guest_that_breaks_a_ring_loses_the_share(guest: Guest, share: Path, services: Services) -> None:
    guest.mount()
    guest.rings[1].page.out_prod = 5000
    guest.kernel.notify(guest.rings[1].port)
    services.turn()
    assert guest.back_node("error") == "the guest has broken a ring: 5000 bytes in a ring of 4096"
    assert guest.back_state == XenbusStateClosing
    assert services.supervisor.running["9p"].kernel.kept == {}
    guest.says(state=XenbusStateClosed)
    guest.says(state=XenbusStateInitialising)
    guest.mount()
    guest.make(b"again")


def test_a_flush_is_answered_after_what_it_is_about(guest: Guest, services: Services) -> None:
    guest.mount()
    guest.make(b"d", ring=1)
    services.outside.at_once = False
    guest.send(protocol.Tmkdir, "IsII", ROOT, b"x", 0o755, UID, ring=0)
    guest.send(protocol.Tmkdir, "IsII", ROOT, b"y", 0o755, UID, ring=1)
    guest.send(protocol.Tflush, "H", 7, ring=0)
    services.outside.work()
    services.turn()
    guest.answer(protocol.Tmkdir, ring=0)
    assert guest.rings[0].receive() is None
    services.outside.work()
    services.turn()
    guest.answer(protocol.Tmkdir, ring=1)
    services.outside.work()
    services.turn()
    guest.answer(protocol.Tflush, ring=0)


# -- code that is dropped ----------------------------------------------------------------------------------------------


def test_what_was_done_when_the_code_was_killed_is_not_done_again(
    guest: Guest, services: Services, share: Path
) -> None:
    guest.mount()
    services.outside.at_once = False
    guest.send(protocol.Tmkdir, "IsII", ROOT, b"d", 0o755, UID)
    guest.rings[0].send(message(protocol.Tmkdir, "IsII", ROOT, b"e", 0o755, UID))
    services.outside.work(tell=False)  # the directory is made in its thread, and the service does not hear of it
    services.outside.at_once = True
    assert os.listdir(share) == ["d"]
    kill(services)
    assert guest.back_state == XenbusStateConnected
    guest.answer(protocol.Tmkdir)
    guest.answer(protocol.Tmkdir)
    assert sorted(os.listdir(share)) == ["d", "e"]
    guest.ask(protocol.Tunlinkat, "IsI", ROOT, b"d", protocol.AT_REMOVEDIR)
    guest.make(b"d")


def test_an_answer_for_which_there_is_no_room_is_kept(guest: Guest, services: Services, share: Path) -> None:
    guest.mount()
    ring = guest.rings[0]
    ring.page.in_cons = ring.page.in_prod - PAGE_SIZE & 0xFFFF_FFFF
    guest.send(protocol.Tmkdir, "IsII", ROOT, b"d", 0o755, UID)
    assert (share / "d").is_dir()
    kill(services)
    kill(services)
    ring.page.in_cons = ring.page.in_prod
    guest.kernel.notify(ring.port)
    services.turn()
    guest.answer(protocol.Tmkdir)


def test_open_files_outlive_the_code(guest: Guest, services: Services, share: Path) -> None:
    guest.mount()
    guest.ask(protocol.Twalk, "IIH", ROOT, 2, 0)
    guest.ask(protocol.Tlcreate, "IsIII", 2, b"f", 2, 0o600, UID)
    guest.ask(protocol.Twrite, "IQId", 2, 0, 5, b"01234")
    (share / "f").unlink()
    files = len(os.listdir("/proc/self/fd"))
    kill(services)
    guest.ask(protocol.Twrite, "IQId", 2, 5, 3, b"567", ring=1)
    assert guest.ask(protocol.Tread, "IQI", 2, 3, 100)[4:] == b"34567"
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_frontend_that_comes_back_begins_anew(guest: Guest, services: Services, share: Path) -> None:
    guest.mount()
    guest.ask(protocol.Twalk, "IIH", ROOT, 2, 0)
    guest.ask(protocol.Tlcreate, "IsIII", 2, b"f", 2, 0o600, UID)
    files = len(os.listdir("/proc/self/fd"))
    guest.says(state=XenbusStateClosing)
    guest.says(state=XenbusStateClosed)
    assert len(os.listdir("/proc/self/fd")) == files - 1
    assert services.supervisor.running["9p"].kernel.kept == {}
    guest.says(state=XenbusStateInitialising)
    assert guest.back_state == XenbusStateInitWait
    guest.mount()
    guest.make(b"d")


def test_a_share_that_is_closed_while_something_is_done(guest: Guest, services: Services, share: Path) -> None:
    guest.mount()
    services.outside.at_once = False
    guest.send(protocol.Tlcreate, "IsIII", ROOT, b"f", 2, 0o600, UID)
    guest.remove()
    assert services.supervisor.running["9p"].kernel.kept != {}
    services.outside.work()
    services.turn()
    assert services.supervisor.running["9p"].kernel.kept == {}
    assert os.listdir(share) == ["f"]


@pytest.mark.parametrize("is_up", [True, False])
def test_a_guest_that_is_gone_leaves_nothing(is_up: bool, guest: Guest, services: Services) -> None:
    """Whether the code was there when the device was taken away, or not."""
    files = len(os.listdir("/proc/self/fd"))
    guest.mount()
    guest.ask(protocol.Tlcreate, "IsIII", ROOT, b"f", 2, 0o600, UID)
    if not is_up:
        services.supervisor.kill("9p")
    guest.remove()
    start(services)
    assert services.supervisor.running["9p"].kernel.kept == {}
    assert len(os.listdir("/proc/self/fd")) == files - 1
    backend = services.hv.domains[guest.backend_domid]
    assert not [m for m in backend.grants._mappings.values() if m.granter.domain.domid == guest.kernel.domid]
