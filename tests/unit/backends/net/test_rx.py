"""How packets come into the pages that a guest has put into its receive ring."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.backends.net.frontend import MASK, Grants, Ring
from xenolith.abi.io.netif import (
    NETIF_RSP_ERROR,
    XEN_NETIF_EXTRA_TYPE_GSO,
    XEN_NETIF_GSO_TYPE_TCPV6,
    NETRXF_csum_blank,
    NETRXF_data_validated,
    NETRXF_extra_info,
    NETRXF_more_data,
)
from xenolith.backends.net.rx import RxRing
from xenolith.machine.network import QUEUE_BYTES, QUEUE_PACKETS
from xenolith.machine.packet import Packet


class Receiver:
    """A guest that gives pages, each with its own index as its id."""

    def __init__(self, first: int = 0, scatter_gather: bool = True) -> None:
        self.grants = Grants()
        self.ring = Ring(8, first=first)
        self.rx = RxRing(memoryview(self.ring.page), self.grants.scatter, scatter_gather)
        self.posted: dict[int, int] = {}

    def post(self, count: int, granted: bool = True) -> None:
        for _ in range(count):
            gref = self.grants.page() if granted else 9999
            identifier = self.ring.head.req_prod & 255
            self.posted[identifier] = gref
            self.ring.put(struct.pack("<HHI", identifier, 0, gref))

    def get(self, *packets: Packet) -> list[tuple[int, ...]]:
        for packet in packets:
            self.rx.queue(packet)
        self.rx.service()
        return self.ring.answers("<HHHh")

    def content(self, answers: list[tuple[int, ...]]) -> bytes:
        return b"".join(bytes(self.grants.pages[self.posted[answer[0]]][: answer[3]]) for answer in answers)


def test_a_packet_of_several_pages() -> None:
    guest = Receiver()
    guest.post(4)
    data = bytes(range(250)) * 36
    answers = guest.get(Packet(data, blank=True, validated=True))
    first = NETRXF_csum_blank | NETRXF_data_validated | NETRXF_more_data
    assert answers == [(0, 0, first, 4096), (1, 0, NETRXF_more_data, 4096), (2, 0, 0, 808)]
    assert guest.content(answers) == data
    assert guest.get(Packet(bytes(60))) == [(3, 0, 0, 60)]


def test_what_stands_for_several_says_so_in_a_slot_of_its_own() -> None:
    guest = Receiver()
    guest.post(8)
    data = bytes(range(251)) * 20
    raw = guest.get(Packet(data, True, True, XEN_NETIF_GSO_TYPE_TCPV6, 1428))
    extra = struct.unpack("<BBHBBH", struct.pack("<HHHh", *raw.pop(1)))
    assert extra == (XEN_NETIF_EXTRA_TYPE_GSO, 0, 1428, XEN_NETIF_GSO_TYPE_TCPV6, 0, 0)
    assert [answer[0] for answer in raw] == [0, 2], "the page in the slot of the extra information stays unused"
    assert raw[0][2] & NETRXF_extra_info
    assert not raw[1][2]
    assert guest.content(raw) == data
    assert not any(guest.grants.pages[guest.posted[1]])


def test_packets_wait_for_pages_and_the_guest_is_asked_to_tell_when_there_are_enough() -> None:
    guest = Receiver()
    guest.post(2)
    assert guest.get(Packet(bytes(9000))) == []
    assert guest.ring.head.req_event == 3
    assert guest.rx.waiting.bytes == 9000
    guest.post(1)
    guest.rx.service()
    assert [answer[3] for answer in guest.ring.answers("<HHHh")] == [4096, 4096, 808]
    assert not guest.rx.waiting.bytes


def test_a_batch_is_copied_at_once() -> None:
    guest = Receiver()
    guest.post(100)
    assert len(guest.get(*(Packet(bytes(60)) for _ in range(100)))) == 100
    assert guest.grants.copied == [100]


def test_a_page_that_is_not_granted_is_an_error_in_its_slot() -> None:
    guest = Receiver()
    guest.post(1)
    guest.post(1, granted=False)
    assert [answer[3] for answer in guest.get(Packet(bytes(5000)))] == [4096, NETIF_RSP_ERROR]
    assert not guest.rx.broken


def test_what_a_guest_cannot_take_is_lost_and_no_more_waits_than_there_is_room_for() -> None:
    guest = Receiver(scatter_gather=False)
    guest.post(9)
    assert guest.get(Packet(bytes(4097)), Packet(bytes(4096))) == [(0, 0, 0, 4096)]
    assert guest.rx.waiting.lost == 1
    other = Receiver()
    for _ in range(QUEUE_PACKETS + 10):
        other.rx.queue(Packet(bytes(60)))
    assert other.rx.waiting.lost == 10
    long = Receiver()
    for _ in range(200):
        long.rx.queue(Packet(bytes(60000)))
    assert long.rx.waiting.bytes < QUEUE_BYTES + 60000


def test_a_ring_that_jumps_is_broken() -> None:
    guest = Receiver()
    guest.ring.head.req_prod = 300 + 256
    assert guest.get(Packet(bytes(60))) == []
    assert guest.rx.broken


@given(
    st.lists(st.tuples(st.integers(14, 65535), st.booleans()), max_size=12),
    st.lists(st.integers(0, 40), max_size=12),
    st.integers(0, MASK),
)
def test_packets_arrive_in_order_and_whole_however_pages_come(
    packets: list[tuple[int, bool]], posts: list[int], first: int
) -> None:
    guest = Receiver(first)
    sent = []
    for number, (size, large) in enumerate(packets):
        kind = XEN_NETIF_GSO_TYPE_TCPV6 if large else 0
        sent.append(Packet(bytes((number,)) * size, gso_type=kind, gso_size=kind and 1400))
        guest.rx.queue(sent[-1])
    got: list[bytes] = []
    more, extra = False, False
    for count in [*posts, *([40] * 30)]:
        guest.post(min(count, 256 - (guest.ring.head.req_prod - guest.ring.head.rsp_prod & MASK)))
        guest.rx.service()
        for answer in guest.ring.answers("<HHHh"):
            if extra:
                extra = False
                continue
            part = guest.content([answer])
            got[-1:] = [got[-1] + part] if more else [*got[-1:], part]
            more, extra = bool(answer[2] & NETRXF_more_data), bool(answer[2] & NETRXF_extra_info)
    assert got == [packet.data for packet in sent]
    assert not guest.rx.broken


@given(st.integers(0, MASK), st.integers(0, MASK), st.lists(st.integers(14, 20000), min_size=1, max_size=5))
def test_no_index_does_harm(first: int, producer: int, sizes: list[int]) -> None:
    guest = Receiver(first)
    guest.ring.head.req_prod = producer
    guest.get(*(Packet(bytes(size)) for size in sizes))
    assert (guest.ring.head.rsp_prod - first) & MASK <= 256
