"""The network service between a real store and frontends that are native domains: xenbus, rings, switch, restarts."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.backends.net.frames import is_right, tcp
from tests.unit.backends.net.frontend import HEAD, Slot
from tests.unit.services.bench import Services
from tests.unit.services.frontend import Frontend
from xenolith.abi.io.netif import XEN_NETIF_GSO_TYPE_TCPV4, NETTXF_csum_blank, NETTXF_extra_info, NETTXF_more_data
from xenolith.abi.io.ring import Sring
from xenolith.abi.io.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitialising,
    XenbusStateInitWait,
)
from xenolith.hypervisor.native import Page
from xenolith.services.net import NetService
from xenolith.services.network.networks import Networks

ALL = b"\xff" * 6
OFFERS = {"feature_sg": 1, "feature_gso_tcpv4": 1, "feature_gso_tcpv6": 1, "feature_ipv6_csum_offload": 1}


class Half:
    """One of the two rings of a queue."""

    def __init__(self, guest: Guest, slot_bytes: int) -> None:
        self.page = guest.kernel.allocate_page()
        self.head = Sring.from_buffer(self.page.view)
        self.head.req_event = self.head.rsp_event = 1
        self.gref = guest.kernel.grant(self.page, guest.backend_domid)
        self.slot_bytes, self.done = slot_bytes, 0

    def put(self, request: bytes) -> None:
        at = HEAD + self.head.req_prod % 256 * self.slot_bytes
        self.page.view[at : at + len(request)] = request
        self.head.req_prod += 1

    def answers(self, form: str) -> list[tuple[int, ...]]:
        found = []
        while self.done != self.head.rsp_prod:
            found.append(struct.unpack_from(form, self.page.view, HEAD + self.done % 256 * self.slot_bytes))
            self.done += 1
        self.head.rsp_event = self.done + 1
        return found


class Guest(Frontend):
    """A domain with a network device."""

    def __init__(self, services: Services, name: str, **back: str | int) -> None:
        super().__init__(services, "net", "vif", 0, name)
        self.mac = bytes((0, 0x16, 0x3E, 0, 0, self.kernel.domid))
        self.events = 0
        self.pages: list[Page] = []
        given = {name.replace("__", "/"): value for name, value in back.items()}
        self.offer({"bridge": "xenbr0", "mac": self.mac.hex(":"), "mtu": 1500, **given})

    def connect(self, pages: int = 6, split: bool = True, **more: str | int) -> None:
        self.tx, self.rx = Half(self, 12), Half(self, 8)
        self.ports = [self.kernel.alloc_unbound(self.backend_domid, self._event) for _ in range(1 + split)]
        ports = {"event_channel_tx": self.ports[0], "event_channel_rx": self.ports[-1]}
        self.says(**(ports if split else {"event_channel": self.ports[0]}))
        self.says(tx_ring_ref=self.tx.gref, rx_ring_ref=self.rx.gref, request_rx_copy=1, **{**OFFERS, **more})
        self.post(pages)
        self.says(state=XenbusStateConnected)

    def post(self, count: int) -> None:
        """Give pages for what comes; the id of each is its number."""
        for _ in range(count):
            self.pages.append(self.kernel.allocate_page())
            gref = self.kernel.grant(self.pages[-1], self.backend_domid)
            self.rx.put(struct.pack("<HHI", len(self.pages) - 1, 0, gref))

    def _event(self) -> None:
        self.events += 1

    def send(self, data: bytes, flags: int = 0, *extras: bytes, turn: bool = True) -> None:
        """Send a packet, in pages of its own, and signal."""
        parts = [data[at : at + 4096] for at in range(0, len(data), 4096)]
        for number, part in enumerate(parts):
            page = self.kernel.allocate_page()
            page.view[: len(part)] = part
            gref = self.kernel.grant(page, self.backend_domid)
            more = NETTXF_more_data if number + 1 < len(parts) else 0
            size = len(part) if number else len(data)
            self.tx.put(Slot(gref, 0, more | (0 if number else flags), number, size).pack())
            for extra in () if number else extras:
                self.tx.put(extra)
        self.kernel.notify(self.ports[0])
        if turn:
            self.services.turn()

    def received(self) -> list[bytes]:
        """The content of each slot that was filled."""
        return [bytes(self.pages[i].view[:status]) for i, _, _, status in self.rx.answers("<HHHh")]

    def frame(self, to: bytes, size: int = 60) -> bytes:
        return to + self.mac + b"\x88\xb5" + os.urandom(size - 14)


@pytest.fixture
def services() -> Iterator[Services]:
    services = Services()
    networks = Networks()
    services.start("net", lambda context: NetService(context, networks))
    yield services
    assert services.supervisor.running["net"].last_failure in ("", "killed")
    networks.close()


def pair(services: Services) -> tuple[Guest, Guest]:
    guests = Guest(services, "a"), Guest(services, "b")
    for guest in guests:
        guest.connect()
    return guests


def test_guests_on_one_switch_reach_each_other(services: Services) -> None:
    a = Guest(services, "a")
    assert a.back_state == XenbusStateInitWait
    assert a.back_node("feature-sg") == "1"
    b, other = Guest(services, "b"), Guest(services, "c", bridge="xenbr1")
    for guest in (a, b, other):
        guest.connect()
        assert guest.back_state == XenbusStateConnected
    hello = a.frame(ALL)
    a.send(hello)
    assert (a.received(), b.received(), other.received()) == ([], [hello], [])
    assert a.tx.answers("<Hh") == [(0, 0)]
    assert a.events
    assert b.events
    answer = b.frame(a.mac, 9000)
    b.send(answer)
    assert b"".join(a.received()) == answer


def test_what_the_receiver_cannot_do_is_done_for_it(services: Services) -> None:
    a, b = Guest(services, "a"), Guest(services, "b")
    a.connect()
    b.connect(feature_gso_tcpv4=0, feature_no_csum_offload=1)
    frame = ALL + a.mac + tcp(bytes(3000))[12:]
    a.send(frame, NETTXF_csum_blank | NETTXF_extra_info, struct.pack("<BBHBBHI", 1, 0, 1400, 1, 0, 0, 0))
    segments = b.received()
    assert [len(segment) - 54 for segment in segments] == [1400, 1400, 200]
    assert all(is_right(segment) for segment in segments)


def test_large_packets_pass_as_they_are_between_guests_that_take_them(services: Services) -> None:
    a, b = pair(services)
    frame = ALL + a.mac + tcp(bytes(3000))[12:]
    a.send(frame, NETTXF_csum_blank | NETTXF_extra_info, struct.pack("<BBHBBHI", 1, 0, 1400, 1, 0, 0, 0))
    first, extra = b.rx.answers("<HHHh")
    assert first[2:] == (0b1011, len(frame)), "validated, blank, with extra information"
    assert struct.pack("<HHHh", *extra) == struct.pack("<BBHBBH", 1, 0, 1400, XEN_NETIF_GSO_TYPE_TCPV4, 0, 0)


def test_a_service_that_is_started_again_goes_on_where_it_was(services: Services) -> None:
    a, b = pair(services)
    a.send(a.frame(ALL))
    assert len(b.received()) == 1
    for _ in range(2):
        services.supervisor.kill("net")
        a.send(a.frame(ALL), turn=False)  # nobody hears it now
        services.turn(1_000_000_000)
        assert a.back_state == XenbusStateConnected
        assert a.tx.head.rsp_prod == a.tx.head.req_prod, "the ring has kept it"
        b.received()  # if it was there again as early as the other
        again = a.frame(ALL)
        a.send(again)
        assert b.received() == [again]
    assert len(a.tx.answers("<Hh")) == 5


def test_two_queues(services: Services) -> None:
    guest, peer = Guest(services, "a"), Guest(services, "b")
    peer.connect()
    halves = [(Half(guest, 12), Half(guest, 8)) for _ in range(2)]
    for number, (tx, rx) in enumerate(halves):
        guest.tx, guest.rx = tx, rx
        guest.post(4)
        guest.ports = [guest.kernel.alloc_unbound(guest.backend_domid, lambda: None)]
        guest.says(f"queue-{number}/", tx_ring_ref=tx.gref, rx_ring_ref=rx.gref, event_channel=guest.ports[0])
    guest.says(multi_queue_num_queues=2, request_rx_copy=1, **OFFERS)
    guest.says(state=XenbusStateConnected)
    assert guest.back_state == XenbusStateConnected
    guest.send(guest.frame(ALL))
    assert len(peer.received()) == 1
    for port in range(12):
        frame = bytearray(ALL + peer.mac + tcp(b"x")[12:])
        frame[34:36] = port.to_bytes(2, "big")
        peer.send(bytes(frame))
    assert all(rx.answers("<HHHh") for _, rx in halves), "connections are spread over the queues"


@pytest.mark.parametrize(
    "wrong", [{"request_rx_copy": 0}, {"tx_ring_ref": 9999}, {"multi_queue_num_queues": 5}, {"rx_ring_ref": "-1"}]
)
def test_a_frontend_that_asks_for_what_cannot_be_is_refused(services: Services, wrong: dict[str, str | int]) -> None:
    guest = Guest(services, "a")
    guest.tx, guest.rx = Half(guest, 12), Half(guest, 8)
    port = guest.kernel.alloc_unbound(guest.backend_domid, lambda: None)
    guest.says(**{
        "tx_ring_ref": guest.tx.gref, "rx_ring_ref": guest.rx.gref, "event_channel": port, "request_rx_copy": 1, **wrong
    })  # fmt: skip
    guest.says(state=XenbusStateConnected)
    assert guest.back_state == XenbusStateClosing
    assert guest.back_node("error")


def test_a_broken_ring_closes_the_device_and_no_other(services: Services) -> None:
    a, b = pair(services)
    a.tx.head.req_prod = 1000
    a.kernel.notify(a.ports[0])
    services.turn()
    assert a.back_state == XenbusStateClosing
    assert "ring" in a.back_node("error")
    assert b.back_state == XenbusStateConnected
    a.says(state=XenbusStateClosed)
    a.says(state=XenbusStateInitialising)
    a.connect()
    b.send(b.frame(ALL))
    assert len(a.received()) == 1, "a new driver can have it again"


def test_what_exceeds_a_rate_waits(services: Services) -> None:
    a, b = Guest(services, "a", rate="1000,50000"), Guest(services, "b")
    a.connect()
    b.connect()
    for _ in range(3):
        a.send(a.frame(ALL, 900))
    assert len(b.received()) == 1
    for _ in range(2):
        services.turn(50_000_000)
        assert len(b.received()) == 1


def test_captures_have_both_directions_and_outlive_the_code(services: Services, tmp_path: Path) -> None:
    path = tmp_path / "packets.pcap"
    a, b = Guest(services, "a", xenolith__pcap=str(path)), Guest(services, "b")
    a.connect()
    b.connect()
    out, back = a.frame(ALL), b.frame(ALL, 80)
    a.send(out)
    services.supervisor.kill("net")
    services.turn(1_000_000_000)
    b.send(back)
    content = path.read_bytes()
    assert content[:4] == b"\x4d\x3c\xb2\xa1"
    assert content[24 + 8 : 24 + 16] == struct.pack("<II", 60, 60)
    assert content[24 + 16 : 24 + 76] == out
    assert content[-80:] == back


def test_a_device_that_is_taken_away_gives_back_what_it_had(services: Services) -> None:
    a, b = pair(services)
    a.send(a.frame(ALL))
    b.received()
    a.says(state=XenbusStateClosed)
    services.do(services.toolstack, services.toolstack.store.remove(a.back))
    services.turn()
    assert not services.supervisor.running["net"].kernel.domain.grants._mappings.keys() - {
        handle for handle, mapping in services.supervisor.running["net"].kernel.domain.grants._mappings.items()
        if mapping.granter.domain is b.kernel.domain
    }  # fmt: skip
    b.send(b.frame(ALL))
    assert b.tx.answers("<Hh") == [(0, 0)]
