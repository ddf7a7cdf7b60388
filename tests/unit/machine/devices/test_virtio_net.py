"""The network card of virtio: packets both ways, what is done for whom, and drivers that give nothing or nonsense."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.backends.net.frames import is_right, tcp, udp
from tests.unit.machine.devices.net import Network
from tests.unit.machine.devices.virtio_driver import DEVICE, Driver
from xenolith.machine.devices.virtio_net import (
    CSUM,
    GUEST_CSUM,
    GUEST_TSO4,
    HOST_TSO4,
    MAC,
    MRG_RXBUF,
    MTU,
    STATUS,
    VirtioNet,
)
from xenolith.machine.devices.virtio_pci import EVENT_IDX, INDIRECT_DESC, NEEDS_RESET
from xenolith.machine.network import QUEUE_BYTES, QUEUE_PACKETS
from xenolith.machine.offload import Offers, adapt
from xenolith.machine.packet import GSO_TCPV4, Packet

MAC_ADDRESS = bytes.fromhex("00163e123456")
RX, TX = range(2)
ALL = CSUM | GUEST_CSUM | GUEST_TSO4 | HOST_TSO4 | MAC | MRG_RXBUF | MTU | STATUS | EVENT_IDX | INDIRECT_DESC
HEADER = struct.Struct("<BBHHHHH")
PLAIN = HEADER.pack(0, 0, 0, 0, 0, 0, 0)
NEEDS_CSUM = 1


class Bench:
    def __init__(self, features: int = ALL, queue_size: int = 8) -> None:
        self.network = Network()
        self.card = VirtioNet(MAC_ADDRESS, 1500, self.network)
        self.driver = Driver(self.card, queue_size).start(features)

    def send(self, *pieces: bytes) -> list[Packet]:
        """What the network has got when the driver has sent these pieces, header and all."""
        self.driver.lend(TX, pieces)
        self.driver.kick(TX)
        self.network.turn()
        sent, self.network.sent = self.network.sent, []
        return sent

    def post(self, *sizes: int) -> list[int]:
        """Lend a buffer of each size for what comes; where they are."""
        places = [self.driver.lend(RX, (), [size])[0] for size in sizes]
        self.driver.kick(RX)
        self.network.turn()
        return places

    def received(self, places: list[int]) -> list[bytes]:
        answers = self.driver.answers(RX)
        memory = self.driver.board.memory
        return [bytes(memory[at : at + length]) for at, (_, length) in zip(places, answers, strict=False)]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_it_tells_its_address_its_link_and_its_mtu(bench: Bench) -> None:
    raw = b"".join(bench.driver.read(DEVICE, at, 1).to_bytes(1, "little") for at in range(12))
    assert raw == MAC_ADDRESS + b"\1\0" + bytes(2) + (1500).to_bytes(2, "little")
    bench.card.set_link(False)
    assert bench.driver.read(DEVICE, 6, 2) == 0
    assert bench.driver.board.take_messages() == [100]
    bench.card.set_link(True)
    assert bench.driver.read(DEVICE, 6, 2) == 1


# -- sending ----------------------------------------------------------------------------------------------------------


def test_a_packet_is_sent_as_it_is(bench: Bench) -> None:
    frame = os.urandom(60)
    assert bench.send(PLAIN, frame[:20], frame[20:]) == [Packet(frame)]
    assert bench.send(PLAIN[:5], PLAIN[5:] + frame) == [Packet(frame)]
    assert bench.driver.answers(TX) == [(0, 0), (3, 0)]


def test_packets_that_were_put_in_together_go_out_together(bench: Bench) -> None:
    frames = [os.urandom(60) for _ in range(4)]
    for frame in frames:
        bench.driver.lend(TX, [PLAIN + frame])
    bench.driver.kick(TX)
    bench.network.turn()
    assert [packet.data for packet in bench.network.sent] == frames
    assert bench.driver.board.take_messages() == [102]


def test_a_full_ring_is_sent_and_looked_at_again(bench: Bench) -> None:
    for _ in range(8):
        bench.driver.lend(TX, [PLAIN + bytes(60)])
    bench.driver.kick(TX)
    bench.network.turn()
    assert len(bench.network.sent) == 8
    assert bench.network.wakes


@pytest.mark.parametrize("make", [tcp, udp])
def test_a_checksum_may_be_left_to_others(bench: Bench, make: object) -> None:
    frame: bytes = make(b"payload")  # type: ignore[operator]
    offset = 16 if make is tcp else 6
    (packet,) = bench.send(HEADER.pack(NEEDS_CSUM, 0, 0, 0, 34, offset, 0), frame)
    assert packet == Packet(frame, blank=True, validated=True)
    (completed,) = adapt(packet, Offers())
    assert is_right(completed.data)


def test_a_sum_in_an_unknown_place_is_completed_by_the_card(bench: Bench) -> None:
    frame = bytes(12) + b"\x88\xb5" + bytes(range(40))
    (packet,) = bench.send(HEADER.pack(NEEDS_CSUM, 0, 0, 0, 20, 4, 0), frame)
    assert not packet.blank
    total = sum(struct.unpack(">17H", packet.data[20:54])) + int.from_bytes(frame[24:26], "big")
    assert total % 0xFFFF == 0
    assert bench.send(HEADER.pack(NEEDS_CSUM, 0, 0, 0, 20, 33, 0), frame) == []


def test_a_long_packet_stays_whole(bench: Bench) -> None:
    frame = tcp(bytes(9000))
    (packet,) = bench.send(HEADER.pack(NEEDS_CSUM, 1, 54, 1448, 34, 16, 0), frame)
    assert packet == Packet(frame, True, True, GSO_TCPV4, 1448)


@pytest.mark.parametrize(
    "pieces",
    [
        (PLAIN,),
        (PLAIN + bytes(13),),
        (PLAIN[:11],),
        (PLAIN + bytes(0xFFFF), b"x"),
        (HEADER.pack(0, 3, 0, 9, 0, 0, 0) + tcp(bytes(100)),),
        (HEADER.pack(1, 1, 0, 0, 34, 16, 0) + tcp(bytes(100)),),
        (HEADER.pack(1, 1, 0, 9, 34, 6, 0) + udp(bytes(100)),),
    ],
    ids=["nothing", "no header", "half a header", "too long", "unknown", "segments of nothing", "udp"],
)
def test_what_is_no_packet_is_taken_and_dropped(bench: Bench, pieces: tuple[bytes, ...]) -> None:
    assert bench.send(*pieces) == []
    assert len(bench.driver.answers(TX)) == 1
    assert not bench.driver.status & NEEDS_RESET


# -- receiving --------------------------------------------------------------------------------------------------------


def test_a_packet_comes_with_its_header(bench: Bench) -> None:
    places = bench.post(1600)
    frame = os.urandom(60)
    bench.network.give(Packet(frame))
    assert bench.received(places) == [HEADER.pack(0, 0, 0, 0, 0, 0, 1) + frame]
    assert bench.driver.board.take_messages() == [101]


def test_what_is_known_of_a_packet_is_in_its_header(bench: Bench) -> None:
    places = bench.post(4000, 4000, 4000)
    long = tcp(bytes(3000))
    bench.network.give(
        Packet(tcp(b"x"), validated=True), Packet(tcp(b"x"), True, True), Packet(long, True, True, GSO_TCPV4, 1448)
    )
    headers = [HEADER.unpack(data[:12]) for data in bench.received(places)]
    assert headers == [(2, 0, 0, 0, 0, 0, 1), (1, 0, 54, 0, 34, 16, 1), (1, 1, 54, 1448, 34, 16, 1)]


def test_the_driver_says_what_it_takes() -> None:
    assert Bench().card.offers == Offers(gso_v4=True, csum_v4=True, csum_v6=True)
    assert Bench(MAC | GUEST_TSO4).card.offers == Offers()


def test_a_long_packet_is_spread_over_merged_buffers(bench: Bench) -> None:
    places = bench.post(1000, 1000, 1000, 1000)
    frame = os.urandom(2500)
    bench.network.give(Packet(frame), Packet(frame[:10]))
    parts = bench.received(places)
    assert [len(part) for part in parts] == [1000, 1000, 512, 22]
    assert parts[0][:12] == HEADER.pack(0, 0, 0, 0, 0, 0, 3)
    assert b"".join(parts[:3])[12:] == frame


def test_a_packet_waits_for_all_the_buffers_that_it_needs(bench: Bench) -> None:
    places = bench.post(1000, 1000)
    frame = os.urandom(2500)
    bench.network.give(Packet(frame))
    assert bench.received(places) == []
    places += bench.post(1000)
    assert b"".join(bench.received(places))[12:] == frame


def test_without_merged_buffers_a_packet_must_fit_into_one() -> None:
    bench = Bench(MAC)
    places = bench.post(1000, 1000)
    bench.network.give(Packet(bytes(2000)), Packet(bytes(500)))
    assert [len(part) for part in bench.received(places)] == [512]
    assert bench.card.waiting.lost == 1


def test_a_packet_for_which_the_ring_is_too_small_is_lost(bench: Bench) -> None:
    places = bench.post(*[100] * 8)
    bench.network.give(Packet(bytes(1000)), Packet(bytes(50)))
    assert [len(part) for part in bench.received(places)] == [62]
    assert bench.card.waiting.lost == 1


def test_a_driver_that_gives_no_buffers_loses_packets(bench: Bench) -> None:
    for _ in range(QUEUE_PACKETS + 100):
        bench.network.give(Packet(bytes(2000)))
    assert bench.card.backlog <= QUEUE_BYTES + 2000
    assert bench.card.waiting.lost > 100
    bench.driver.set_status(0)
    assert bench.card.backlog == 0
    bench.network.give(Packet(bytes(60)))
    assert bench.card.backlog == 0


def test_a_buffer_without_room_breaks_the_queue(bench: Bench) -> None:
    bench.driver.lend(RX, [b"to be read"])
    bench.network.give(Packet(bytes(60)))
    assert bench.driver.status & NEEDS_RESET


@settings(deadline=None)
@given(st.data())
def test_random_rings_harm_nobody(data: st.DataObject) -> None:
    bench = Bench(ALL if data.draw(st.booleans()) else MAC)
    numbers = st.sampled_from((0, 1, 11, 12, 13, 60, 100, 0x1000, 0x20000, 1 << 20, 0xFFFFFFFF))
    for queue in (RX, TX):
        for index in range(8):
            draws = [data.draw(numbers), data.draw(numbers), data.draw(st.integers(0, 7)), data.draw(st.integers(0, 8))]
            bench.driver.describe(queue, index, *draws)
        for head in data.draw(st.lists(st.integers(0, 8), max_size=8)):
            bench.driver.offer(queue, head)
        bench.driver.kick(queue)
    bench.network.turn()
    bench.network.give(Packet(bytes(60)), Packet(tcp(bytes(3000)), True, True))
    for ring in (RX, TX):
        for at in bench.driver.rings(ring)[1:]:
            bench.driver.board.set_word(at, 4, 0)
    bench.driver.start(ALL)
    bench.network.sent.clear()
    frame = os.urandom(60)
    assert bench.send(PLAIN, frame) == [Packet(frame)]


@settings(deadline=None)
@given(st.binary(min_size=12, max_size=12), st.sampled_from((b"", tcp(bytes(50)), tcp(bytes(50), 6), udp(b"x"))))
def test_random_headers_harm_nobody(header: bytes, frame: bytes) -> None:
    bench = Bench()
    for packet in bench.send(header, frame):
        list(adapt(packet, Offers()))
    assert not bench.driver.status & NEEDS_RESET
