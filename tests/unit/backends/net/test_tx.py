"""What a guest may put into its transmit ring, how it is answered, and what ends the ring."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.backends.net.frames import tcp
from tests.unit.backends.net.frontend import MASK, Grants, Ring, Slot
from xenolith.abi.io.netif import (
    NETIF_RSP_ERROR,
    NETIF_RSP_NULL,
    NETIF_RSP_OKAY,
    XEN_NETIF_EXTRA_FLAG_MORE,
    XEN_NETIF_EXTRA_TYPE_GSO,
    XEN_NETIF_EXTRA_TYPE_HASH,
    XEN_NETIF_EXTRA_TYPE_MCAST_ADD,
    XEN_NETIF_EXTRA_TYPE_MCAST_DEL,
    XEN_NETIF_GSO_TYPE_TCPV4,
    NETTXF_csum_blank,
    NETTXF_data_validated,
    NETTXF_extra_info,
    NETTXF_more_data,
)
from xenolith.backends.net.multicast import MulticastFilter
from xenolith.backends.net.tx import FATAL_SLOTS, TxRing
from xenolith.machine.packet import Packet

GROUP = bytes.fromhex("01005e000001")


class Sender:
    """A guest that sends, and what came of it."""

    def __init__(self, first: int = 0) -> None:
        self.grants = Grants()
        self.ring = Ring(12, first=first)
        self.packets: list[Packet] = []
        self.multicast = MulticastFilter()
        self.allowance = 1 << 30
        self.tx = self.attach()

    def attach(self) -> TxRing:
        return TxRing(memoryview(self.ring.page), self.grants.gather, self.packets.append, self.multicast, self._admit)

    def _admit(self, size: int) -> bool:
        if size > self.allowance:
            return False
        self.allowance -= size
        return True

    def send(self, *requests: bytes) -> list[tuple[int, ...]]:
        self.ring.put(*requests)
        self.tx.service()
        return self.ring.answers("<Hh")

    def slot(self, content: bytes, identifier: int, flags: int = 0, size: int | None = None, offset: int = 0) -> bytes:
        gref = self.grants.page(bytes(offset) + content)
        return Slot(gref, offset, flags, identifier, len(content) if size is None else size).pack()


def extra(kind: int, content: bytes, flags: int = 0) -> bytes:
    return struct.pack("<BB6s4x", kind, flags, content)


def gso(size: int, kind: int = XEN_NETIF_GSO_TYPE_TCPV4, flags: int = 0) -> bytes:
    return extra(XEN_NETIF_EXTRA_TYPE_GSO, struct.pack("<HBBH", size, kind, 0, 0), flags)


def test_a_packet_in_pieces_arrives_whole_and_each_slot_is_answered() -> None:
    guest = Sender()
    data = bytes(range(256)) * 20
    answers = guest.send(
        guest.slot(data[:100], 5, NETTXF_more_data, len(data), offset=3996),
        guest.slot(data[100:4000], 6, NETTXF_more_data),
        guest.slot(data[4000:], 7),
    )
    assert answers == [(5, NETIF_RSP_OKAY), (6, NETIF_RSP_OKAY), (7, NETIF_RSP_OKAY)]
    assert guest.packets == [Packet(data)]


def test_a_batch_is_copied_at_once_and_answered_in_order() -> None:
    guest = Sender()
    frames = [bytes(60) + bytes((number,)) for number in range(100)]
    answers = guest.send(*(guest.slot(frame, number) for number, frame in enumerate(frames)))
    assert answers == [(number, NETIF_RSP_OKAY) for number in range(100)]
    assert [packet.data for packet in guest.packets] == frames
    assert guest.grants.copied == [100]


def test_what_is_said_of_checksums_and_segments_goes_with_the_packet() -> None:
    guest = Sender()
    frame = tcp(bytes(3000))
    guest.send(guest.slot(tcp(b"hello"), 0, NETTXF_csum_blank), guest.slot(bytes(60), 1, NETTXF_data_validated))
    assert [(packet.blank, packet.validated) for packet in guest.packets] == [(True, True), (False, True)]
    answers = guest.send(guest.slot(frame, 2, NETTXF_csum_blank | NETTXF_extra_info), gso(1448))
    assert answers == [(2, NETIF_RSP_OKAY), (0, NETIF_RSP_NULL)]
    assert guest.packets[-1] == Packet(frame, True, True, XEN_NETIF_GSO_TYPE_TCPV4, 1448)
    guest.send(guest.slot(frame, 3, NETTXF_extra_info), gso(1448))
    assert guest.packets[-1].blank, "what is to be segmented needs new checksums, whatever was said"


def test_extra_information_stands_before_the_other_pieces() -> None:
    guest = Sender()
    frame = tcp(bytes(5000))
    answers = guest.send(
        guest.slot(frame[:66], 1, NETTXF_csum_blank | NETTXF_extra_info | NETTXF_more_data, len(frame)),
        gso(1448, flags=XEN_NETIF_EXTRA_FLAG_MORE),
        extra(XEN_NETIF_EXTRA_TYPE_HASH, b"\1\1abcd"),
        guest.slot(frame[66:4000], 2, NETTXF_more_data),
        guest.slot(frame[4000:], 3),
    )
    assert answers == [(1, 0), (0, NETIF_RSP_NULL), (0, NETIF_RSP_NULL), (2, 0), (3, 0)]
    assert guest.packets[0].data == frame


def test_multicast_is_changed_by_requests_that_are_no_packets() -> None:
    guest = Sender()
    group = [bytes((1, 0, 94, 0, 0, number)) for number in range(66)]
    for number in range(66):
        answers = guest.send(
            Slot(0, 0, NETTXF_extra_info, number, 0).pack(), extra(XEN_NETIF_EXTRA_TYPE_MCAST_ADD, group[number])
        )
        assert answers == [(number, NETIF_RSP_OKAY if number < 64 else NETIF_RSP_ERROR), (0, NETIF_RSP_NULL)]
    guest.multicast.active = True
    assert guest.multicast.passes(Packet(group[0] + bytes(60)))
    guest.send(Slot(0, 0, NETTXF_extra_info, 0, 0).pack(), extra(XEN_NETIF_EXTRA_TYPE_MCAST_DEL, group[0]))
    assert not guest.multicast.passes(Packet(group[0] + bytes(60)))
    assert not guest.packets


def test_a_bad_packet_is_answered_with_an_error_and_the_next_one_passes() -> None:
    guest = Sender()
    pages = [guest.slot(bytes(10), number, NETTXF_more_data) for number in range(1, 18)]
    bad = [
        [guest.slot(bytes(13), 0)],
        [Slot(4000, 0, 0, 0, 60).pack()],
        [guest.slot(bytes(60), 0, NETTXF_more_data, 1000), Slot(4000, 0, 0, 1, 940).pack()],
        [guest.slot(bytes(60), 0, NETTXF_more_data, 100), guest.slot(bytes(101), 1)],
        [guest.slot(bytes(60), 0, NETTXF_more_data, 1000), *pages, guest.slot(bytes(10), 18)],
    ]
    for requests in bad:
        answers = guest.send(*requests)
        assert answers == [(number, NETIF_RSP_ERROR) for number in range(len(requests))]
    assert not guest.packets
    assert guest.send(guest.slot(bytes(60), 9)) == [(9, NETIF_RSP_OKAY)]
    assert not guest.tx.broken
    most = guest.send(guest.slot(bytes(60), 0, NETTXF_more_data, 230), *pages[:16], guest.slot(bytes(10), 17))
    assert most == [(number, NETIF_RSP_OKAY) for number in range(18)], "as many slots as the header promises"


def test_headers_that_are_not_what_was_said_are_dropped_without_an_error() -> None:
    guest = Sender()
    assert guest.send(guest.slot(b"\xff" * 60, 1, NETTXF_csum_blank)) == [(1, NETIF_RSP_OKAY)]
    assert not guest.packets


@pytest.mark.parametrize(
    "requests",
    [
        [Slot(8, 4000, 0, 0, 200).pack()],
        [Slot(8, 0, NETTXF_more_data, 0, 200).pack()],
        [Slot(8, 0, NETTXF_more_data, 0, 200).pack(), Slot(8, 4000, 0, 1, 100).pack()],
        [Slot(8, 0, NETTXF_extra_info, 0, 200).pack()],
        [Slot(8, 0, NETTXF_extra_info, 0, 200).pack(), extra(0, b"")],
        [Slot(8, 0, NETTXF_extra_info, 0, 200).pack(), extra(5, b"")],
        [Slot(8, 0, NETTXF_extra_info, 0, 200).pack(), gso(0)],
        [Slot(8, 0, NETTXF_extra_info, 0, 200).pack(), gso(1448, 3)],
        [Slot(8, 0, NETTXF_more_data, number, 200).pack() for number in range(FATAL_SLOTS + 1)],
    ],
)
def test_what_netback_takes_for_an_attack_ends_the_ring(requests: list[bytes]) -> None:
    guest = Sender()
    guest.grants.page()
    before = guest.slot(bytes(60), 77)
    assert guest.send(before, *requests) == [(77, NETIF_RSP_OKAY)], "what was right before it is answered"
    assert guest.tx.broken
    assert guest.send(guest.slot(bytes(60), 1)) == [], "and nothing after"


def test_a_ring_that_jumps_is_broken() -> None:
    guest = Sender()
    guest.ring.head.req_prod = 257
    guest.tx.service()
    assert guest.tx.broken
    assert not guest.packets


def test_code_that_is_started_again_goes_on_where_the_answers_end() -> None:
    guest = Sender(first=MASK - 2)
    assert guest.send(*(guest.slot(bytes(60), number) for number in range(5))) == [(n, 0) for n in range(5)]
    guest.ring.put(guest.slot(bytes(61), 7))
    guest.tx = guest.attach()
    guest.tx.service()
    assert guest.ring.answers("<Hh") == [(7, NETIF_RSP_OKAY)]
    assert len(guest.packets[-1].data) == 61


def test_what_exceeds_the_credit_waits_and_is_not_lost() -> None:
    guest = Sender()
    guest.allowance = 130
    frames = [guest.slot(bytes(60), number) for number in range(4)]
    assert guest.send(*frames) == [(0, 0), (1, 0)]
    assert guest.tx.held_back
    guest.allowance = 1000
    guest.tx.service()
    assert guest.ring.answers("<Hh") == [(2, 0), (3, 0)]
    assert not guest.tx.held_back


def test_the_guest_is_asked_to_signal_what_comes_and_signalled_when_it_wants_that() -> None:
    guest = Sender()
    guest.ring.head.rsp_event = 2
    guest.ring.put(guest.slot(bytes(60), 0))
    assert not guest.tx.service()
    assert guest.ring.head.req_event == 2
    guest.ring.put(guest.slot(bytes(60), 1))
    assert guest.tx.service()


@given(st.lists(st.binary(min_size=12, max_size=12), max_size=40), st.integers(0, MASK), st.integers(0, MASK))
def test_no_ring_does_harm(slots: list[bytes], first: int, jump: int) -> None:
    guest = Sender(first=first)
    guest.grants.page(b"\x08\0" * 2000)
    # Most of what is random names no page; these name the one that there is.
    guest.send(*(b"\x08\0\0\0" + slot[4:] if number % 2 else slot for number, slot in enumerate(slots)))
    done = (guest.ring.head.rsp_prod - first) & MASK
    assert done <= len(slots)
    assert done == len(slots) or guest.tx.broken
    assert all(14 <= len(packet.data) <= 0xFFFF for packet in guest.packets)
    guest.ring.head.req_prod = jump
    guest.tx.service()
