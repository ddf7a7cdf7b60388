"""The network card of Intel: what drivers find, packets both ways in every kind of descriptor, and nonsense."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.backends.net.frames import is_right, tcp, udp, words_sum
from tests.unit.machine.devices.board import MEMORY_BYTES, Board
from tests.unit.machine.devices.net import Network
from xenolith.machine.devices import e1000e as card
from xenolith.machine.devices.e1000e import E1000e
from xenolith.machine.devices.e1000e_interrupts import LSC, MDAC, RXQ0, RXT0, TXDW, TXQ0
from xenolith.machine.devices.e1000e_rx import (
    BROADCAST,
    ENABLE,
    LONG_PACKETS,
    MULTICAST_ALL,
    PACKET_SPLIT,
    SIZE_EXTENDED,
    STRIP_CRC,
    UNICAST_ALL,
    VLAN_FILTER,
)
from xenolith.machine.network import QUEUE_BYTES
from xenolith.machine.offload import Offers, segments
from xenolith.machine.packet import GSO_TCPV4, GSO_TCPV6, Packet
from xenolith.machine.pci_device import MSI, MSIX

MAC = bytes.fromhex("00163e000002")
"""Where the packets of tests.unit.backends.net.frames go to."""
TX_RING, RX_RING, BUFFERS = 0x1000, 0x3000, 0x10000
TX_COUNT, RX_COUNT = 64, 32
EXTENDED = 1 << 29
DATA = EXTENDED | 1 << 20
END, CHECKSUM, SEGMENT, REPORT, VLAN = 1 << 24, 1 << 26, 1 << 26, 1 << 27, 1 << 30
IP_SUM, TCP_SUM = 1 << 8, 1 << 9
IPV4, TCP = 1 << 25, 1 << 24
DONE, LAST, IGNORE, TAGGED, UDP_CHECKED, TCP_CHECKED = 1, 2, 4, 8, 16, 32
CTRL_VLAN, CTRL_RESET = 1 << 30, 1 << 26


class Bench:
    """A driver of the card: rings of TX_COUNT and RX_COUNT units, and interrupts by the pin."""

    def __init__(self) -> None:
        self.network = Network()
        self.model = E1000e(MAC, 1500, self.network)
        self.board = Board(self.model)
        self.next_buffer = BUFFERS
        self.tail = 0
        self.posted: list[int] = []
        self.rx_tail = self.rx_next = 0

    def read(self, offset: int) -> int:
        return self.board.read(0, offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.board.write(0, offset, 4, value)

    def start(self, control: int = STRIP_CRC | BROADCAST, filters: int = 1 << 15) -> Bench:
        self.write(card.TDBAL, TX_RING)
        self.write(card.TDLEN, 16 * TX_COUNT)
        self.write(card.TCTL, 2)
        self.write(card.RDBAL, RX_RING)
        self.write(card.RDLEN, 16 * RX_COUNT)
        self.write(card.RFCTL, filters)
        self.write(card.RXCSUM, 1 << 9)
        self.write(card.RCTL, control | ENABLE)
        self.write(card.IMS, TXDW | RXT0 | LSC)
        return self

    def place(self, data: bytes) -> int:
        if self.next_buffer + len(data) > MEMORY_BYTES:
            self.next_buffer = BUFFERS
        at, self.next_buffer = self.next_buffer, self.next_buffer + len(data)
        self.board.put(at, data)
        return at

    # -- sending ------------------------------------------------------------------------------------------------------

    def describe(self, first: int, command: int, options: int = 0) -> None:
        """Put a descriptor of two words and an address into the ring."""
        self.board.put(TX_RING + 16 * self.tail, struct.pack("<QII", first, command, options))
        self.tail = (self.tail + 1) % TX_COUNT

    def context(
        self, start: int, at: int, command: int = 0, ip: tuple[int, int, int] = (0, 0, 0), segment: int = 0
    ) -> None:
        raw = struct.pack("<BBHBBHIBBH", *ip, start, at, 0, EXTENDED | command, 0, 54, segment)
        self.board.put(TX_RING + 16 * self.tail, raw)
        self.tail = (self.tail + 1) % TX_COUNT

    def packet(self, pieces: Sequence[bytes], command: int = 0, options: int = 0) -> None:
        for number, piece in enumerate(pieces):
            last = END | REPORT if number + 1 == len(pieces) else 0
            self.describe(self.place(piece), len(piece) | command | last, options)

    def sent(self) -> list[Packet]:
        """What the network has got of what is in the ring."""
        self.write(card.TDT, self.tail)
        self.network.turn()
        sent, self.network.sent = self.network.sent, []
        return sent

    # -- receiving ----------------------------------------------------------------------------------------------------

    def post(self, count: int, size: int = 2048) -> None:
        for _ in range(count):
            self.posted.append(self.place(bytes(size)))
            self.board.put(RX_RING + 16 * self.rx_tail, struct.pack("<QQ", self.posted[-1], 0))
            self.rx_tail = (self.rx_tail + 1) % RX_COUNT
        self.write(card.RDT, self.rx_tail)
        self.network.turn()

    def received(self) -> list[tuple[int, bytes, int]]:
        """Status, content and VLAN tag of each descriptor that was filled, extended ones."""
        found = []
        while self.posted:
            at = RX_RING + 16 * self.rx_next
            status, length, tag = struct.unpack("<IHH", self.board.memory[at + 8 : at + 16])
            if not status & DONE:
                break
            place = self.posted.pop(0)
            found.append((status, bytes(self.board.memory[place : place + length]), tag))
            self.rx_next = (self.rx_next + 1) % RX_COUNT
        return found


@pytest.fixture
def bench() -> Bench:
    return Bench().start()


def frame(to: bytes = MAC, size: int = 100) -> bytes:
    return to + os.urandom(6) + b"\x88\xb5" + os.urandom(size - 14)


# -- what drivers find ------------------------------------------------------------------------------------------------


def test_it_says_what_it_is() -> None:
    bench = Bench()
    assert bench.board.read_config(0, 4) == 0x10D3_8086
    assert bench.model.vectors == (1, 5)
    assert {MSI, MSIX} <= {number for number, _ in bench.board.capabilities()}
    assert bench.read(card.STATUS) & 3 == 3
    assert bench.read(card.EECD) & 0x300 == 0x300
    assert bench.read(card.RA) == int.from_bytes(MAC[:4], "little")
    assert bench.read(card.RA + 4) == int.from_bytes(MAC[4:], "little") | 1 << 31


def test_the_memory_and_the_phy_are_reached_by_registers() -> None:
    bench = Bench()
    bench.write(card.EERD, 1 << 2 | 1)
    assert bench.read(card.EERD) >> 16 == int.from_bytes(MAC[2:4], "little")
    bench.write(card.EEWR, 7 << 16 | 9 << 2 | 1)
    assert bench.read(card.EEWR) == 2
    bench.write(card.IMS, MDAC)
    bench.write(card.MDIC, 1 << 29 | 2 << 26 | 1 << 21 | 2 << 16)
    assert bench.read(card.MDIC) & 0x1000FFFF == 0x10000141
    assert bench.board.line
    assert bench.read(card.ICR) & MDAC


def test_masters_are_told_off() -> None:
    bench = Bench()
    assert bench.read(card.STATUS) & 1 << 19
    bench.write(card.CTRL, bench.read(card.CTRL) | 4)
    assert not bench.read(card.STATUS) & 1 << 19


def test_the_link_goes_with_the_cable(bench: Bench) -> None:
    bench.model.set_link(False)
    assert bench.board.line
    assert bench.read(card.ICR) & LSC
    assert not bench.board.line
    assert not bench.read(card.STATUS) & 2
    bench.packet([frame()])
    assert bench.sent() == []
    bench.model.set_link(True)
    assert bench.read(card.STATUS) & 2


def test_a_reset_forgets_everything_but_the_address(bench: Bench) -> None:
    bench.post(4)
    bench.write(card.RA, 0)
    bench.write(card.MTA, 5)
    bench.write(card.CTRL, bench.read(card.CTRL) | CTRL_RESET)
    assert not bench.read(card.CTRL) & CTRL_RESET
    for offset in (card.RCTL, card.TCTL, card.IMS, card.RDT, card.MTA, card.RDBAL):
        assert bench.read(offset) == 0
    assert bench.read(card.RA) == int.from_bytes(MAC[:4], "little")
    bench.network.give(Packet(frame()))
    assert bench.model.backlog == 0


@pytest.mark.parametrize(("offset", "size"), [(card.RCTL, 1), (card.RCTL, 2), (card.RCTL, 8), (card.RCTL + 2, 4)])
def test_only_whole_registers_are_there(bench: Bench, offset: int, size: int) -> None:
    before = bench.read(card.RCTL)
    bench.board.write(0, offset, size, 0)
    assert bench.read(card.RCTL) == before
    assert bench.board.read(0, offset, size) == 0


# -- sending ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [0, DATA], ids=["legacy", "data"])
def test_a_packet_is_sent_in_pieces(bench: Bench, command: int) -> None:
    data = frame(size=300)
    bench.packet([data[:14], data[14:200], data[200:]], command)
    assert bench.sent() == [Packet(data)]
    assert [bench.board.word(TX_RING + 16 * at + 12, 4) & DONE for at in range(3)] == [0, 0, DONE]
    assert bench.read(card.TDH) == 3
    assert bench.board.line
    assert bench.read(card.ICR) & (TXDW | TXQ0) == TXDW | TXQ0
    assert not bench.board.line


def test_nothing_is_sent_before_the_transmitter_is_on() -> None:
    bench = Bench().start()
    bench.write(card.TCTL, 0)
    bench.packet([frame()])
    assert bench.sent() == []


def test_a_long_ring_is_sent_in_turns() -> None:
    bench = Bench().start()
    bench.write(card.TDLEN, 16 * 2048)
    bench.board.put(TX_RING, struct.pack("<QII", BUFFERS, 60 | END, 0) * 2047)
    bench.tail = 2047
    assert len(bench.sent()) == 1024
    bench.network.turn()
    assert len(bench.network.sent) == 1023


@pytest.mark.parametrize("make", [tcp, udp])
def test_a_checksum_may_be_left_to_others(bench: Bench, make: object) -> None:
    data: bytes = make(b"payload")  # type: ignore[operator]
    bench.context(34, 50 if make is tcp else 40)
    bench.packet([data], DATA, TCP_SUM)
    assert bench.sent() == [Packet(data, blank=True, validated=True)]


def test_a_legacy_descriptor_says_itself_where_the_sum_goes(bench: Bench) -> None:
    data = tcp(b"payload")
    bench.describe(bench.place(data), len(data) | END | CHECKSUM | 50 << 16, 34 << 8)
    assert bench.sent() == [Packet(data, blank=True, validated=True)]
    odd = frame()
    bench.describe(bench.place(odd), len(odd) | END | CHECKSUM | 24 << 16, 20 << 8)
    (packet,) = bench.sent()
    assert (words_sum(packet.data[20:]) + int.from_bytes(odd[24:26], "big")) % 0xFFFF == 0
    bench.describe(bench.place(odd), len(odd) | END | CHECKSUM | 200 << 16, 20 << 8)
    assert bench.sent() == []


def test_the_sum_of_an_ip_header_is_put_in(bench: Bench) -> None:
    data = bytearray(udp(b"payload"))
    data[24:26] = b"\xff\xff"
    bench.context(34, 40, ip=(14, 24, 33))
    bench.packet([bytes(data)], DATA, IP_SUM)
    (packet,) = bench.sent()
    assert words_sum(packet.data[14:34]) == 0xFFFF
    assert not packet.blank


@pytest.mark.parametrize("version", [4, 6])
def test_a_long_packet_stays_whole_with_its_lengths_put_in(bench: Bench, version: int) -> None:
    whole = tcp(bytes(5000), version)
    data = bytearray(whole)
    if version == 4:
        data[16:18] = data[24:26] = b"\0\0"
        bench.context(34, 50, SEGMENT | TCP | IPV4, (14, 24, 33), 1448)
    else:
        data[18:20] = b"\0\0"
        bench.context(54, 70, SEGMENT | TCP, (14, 24, 0), 1448)
    bench.packet([bytes(data[:80]), bytes(data[80:])], DATA | SEGMENT, TCP_SUM | (IP_SUM if version == 4 else 0))
    (packet,) = bench.sent()
    assert packet[1:] == (True, True, GSO_TCPV4 if version == 4 else GSO_TCPV6, 1448)
    if version == 4:
        assert words_sum(packet.data[14:34]) == 0xFFFF
    assert packet.data[:24] + packet.data[26:50] == whole[:24] + whole[26:50]
    parts = list(segments(packet))
    assert len(parts) == 4
    assert all(is_right(part.data) for part in parts)


def test_a_vlan_tag_is_put_in(bench: Bench) -> None:
    data = frame()
    bench.packet([data], VLAN, 0x0123 << 16)
    assert bench.sent() == [Packet(data)]
    bench.write(card.CTRL, bench.read(card.CTRL) | CTRL_VLAN)
    bench.packet([data], VLAN, 0x0123 << 16)
    assert bench.sent() == [Packet(data[:12] + b"\x81\x00\x01\x23" + data[12:])]


def test_what_is_no_packet_is_dropped_and_reported(bench: Bench) -> None:
    bench.packet([b"too short"])
    bench.packet([bytes(0x8000), bytes(0x8000)])
    bench.describe(MEMORY_BYTES, 60 | END | REPORT)
    bench.context(54, 70, SEGMENT | IPV4, (14, 24, 33), 1448)
    bench.packet([tcp(bytes(3000))], DATA | SEGMENT)
    good = frame()
    bench.packet([good])
    assert bench.sent() == [Packet(good)]
    assert bench.read(card.TDH) == bench.tail


# -- receiving --------------------------------------------------------------------------------------------------------


def test_a_packet_comes_in_a_descriptor(bench: Bench) -> None:
    bench.post(4)
    data = frame()
    bench.network.give(Packet(data))
    assert bench.received() == [(DONE | LAST | IGNORE, data, 0)]
    assert bench.read(card.RDH) == 1
    assert bench.board.line
    assert bench.read(card.ICR) & (RXT0 | RXQ0) == RXT0 | RXQ0


def test_sums_that_are_right_are_told(bench: Bench) -> None:
    bench.post(4)
    bench.network.give(Packet(tcp(bytes(50)), validated=True), Packet(udp(bytes(50)), validated=True))
    assert [status for status, _, _ in bench.received()] == [DONE | LAST | TCP_CHECKED, DONE | LAST | UDP_CHECKED]
    assert bench.model.offers == Offers()


def test_packets_are_padded_and_have_their_check_sequence_if_it_is_wanted() -> None:
    bench = Bench().start(control=0)
    bench.post(2)
    data = frame(size=20)
    bench.network.give(Packet(data))
    padded = data + bytes(40)
    assert bench.received()[0][1] == padded + zlib.crc32(padded).to_bytes(4, "little")


def test_a_legacy_descriptor_keeps_its_address() -> None:
    bench = Bench().start(filters=0)
    bench.post(2)
    data = frame()
    bench.network.give(Packet(data))
    raw = struct.unpack("<QHHBBH", bench.board.memory[RX_RING : RX_RING + 16])
    assert raw == (bench.posted[0], 100, 0, DONE | LAST | IGNORE, 0, 0)
    assert bytes(bench.board.memory[bench.posted[0] : bench.posted[0] + 100]) == data


def test_a_packet_may_take_several_descriptors() -> None:
    bench = Bench().start(control=STRIP_CRC | LONG_PACKETS | 3 << 16)
    bench.post(3)
    data = frame(size=1000)
    bench.network.give(Packet(data))
    assert bench.received() == [], "four buffers of 256 bytes are needed"
    assert bench.model.backlog == 1000
    bench.post(4)
    parts = bench.received()
    assert [status & LAST for status, _, _ in parts] == [0, 0, 0, LAST]
    assert b"".join(part for _, part, _ in parts) == data


@pytest.mark.parametrize(("code", "size"), [(1, 16384), (2, 8192), (3, 4096)])
def test_large_buffers(code: int, size: int) -> None:
    bench = Bench().start(control=STRIP_CRC | LONG_PACKETS | SIZE_EXTENDED | code << 16)
    bench.post(8, size)
    data = frame(size=size + 10)
    bench.network.give(Packet(data))
    assert [len(part) for _, part, _ in bench.received()] == [size, 10]


def test_descriptors_with_several_buffers() -> None:
    bench = Bench().start(control=STRIP_CRC | LONG_PACKETS | PACKET_SPLIT)
    bench.write(card.PSRCTL, 1 | 1 << 8 | 2 << 16)
    places = [bench.place(bytes(2048)) for _ in range(8)]
    bench.board.put(RX_RING, struct.pack("<8Q", *places))
    data, short = frame(size=2000), frame(size=60)
    bench.network.give(Packet(data), Packet(short))
    bench.write(card.RDT, 4)
    bench.network.turn()
    raw = [struct.unpack("<QIHHHHHHQ", bench.board.memory[at : at + 32]) for at in (RX_RING, RX_RING + 32)]
    assert raw[0] == (0, DONE | LAST | IGNORE, 128, 0, 0, 1024, 848, 0, 0)
    assert raw[1][1:3] == (DONE | LAST | IGNORE, 60)
    found = [bytes(bench.board.memory[at : at + size]) for at, size in zip(places, (128, 1024, 848), strict=False)]
    assert b"".join(found) == data
    assert bench.read(card.RDH) == 4


def test_a_vlan_tag_is_taken_out_and_unknown_vlans_are_not_heard() -> None:
    bench = Bench().start(control=STRIP_CRC | VLAN_FILTER)
    bench.write(card.CTRL, bench.read(card.CTRL) | CTRL_VLAN)
    bench.post(4)
    data = frame()
    tagged = data[:12] + b"\x81\x00\x61\x23" + data[12:]
    bench.network.give(Packet(tagged))
    assert bench.received() == []
    bench.write(card.VFTA + 4 * (0x123 >> 5), 1 << (0x123 & 31))
    bench.network.give(Packet(tagged))
    assert bench.received() == [(DONE | LAST | IGNORE | TAGGED, data, 0x6123)]


@pytest.mark.parametrize(
    ("to", "control", "heard"),
    [
        (MAC, 0, True),
        (bytes.fromhex("00163e000003"), 0, False),
        (bytes.fromhex("00163e000003"), UNICAST_ALL, True),
        (b"\xff" * 6, 0, False),
        (b"\xff" * 6, BROADCAST, True),
        (bytes.fromhex("01005e000001"), 0, False),
        (bytes.fromhex("01005e000001"), UNICAST_ALL, False),
        (bytes.fromhex("01005e000001"), MULTICAST_ALL, True),
    ],
)
def test_the_card_hears_what_it_is_to_hear(to: bytes, control: int, heard: bool) -> None:
    bench = Bench().start(control=STRIP_CRC | control)
    bench.post(2)
    bench.network.give(Packet(frame(to)))
    assert len(bench.received()) == heard


def test_multicast_addresses_are_heard_by_their_hash(bench: Bench) -> None:
    bench.post(4)
    bits = (0x00 | 0x01 << 8) >> 4 & 0xFFF
    bench.write(card.MTA + 4 * (bits >> 5), 1 << (bits & 31))
    bench.network.give(Packet(frame(bytes.fromhex("01005e000001"))), Packet(frame(bytes.fromhex("01005e001001"))))
    assert len(bench.received()) == 1


def test_long_packets_are_heard_if_they_are_to_be() -> None:
    for control, size, heard in ((0, 1514, 1), (0, 1515, 0), (LONG_PACKETS, 1515, 1)):
        bench = Bench().start(control=STRIP_CRC | control)
        bench.post(2)
        bench.network.give(Packet(frame(size=size)))
        assert len(bench.received()) == heard
        assert bench.read(card.ROC) == 1 - heard


def test_counters_count_and_reading_clears_them(bench: Bench) -> None:
    bench.post(4)
    bench.network.give(Packet(frame()), Packet(frame(b"\xff" * 6)))
    bench.packet([frame(bytes.fromhex("01005e000001"))])
    bench.sent()
    assert [bench.read(at) for at in (card.GPRC, card.BPRC, card.GPTC, card.MPTC, card.TPR)] == [2, 1, 1, 1, 2]
    assert bench.read(card.GPRC) == 0
    assert (bench.read(card.GORC), bench.read(card.GORC + 4), bench.read(card.GORC)) == (208, 0, 0)


def test_a_driver_that_gives_no_buffers_loses_packets(bench: Bench) -> None:
    for _ in range(4200):
        bench.network.give(Packet(frame(size=1514)))
    assert bench.model.backlog <= QUEUE_BYTES + 1514
    assert bench.model.waiting.lost
    bench.write(card.RCTL, 0)
    assert bench.model.backlog == 0


def test_buffers_where_the_card_may_not_go_lose_packets(bench: Bench) -> None:
    bench.board.put(RX_RING, struct.pack("<QQ", MEMORY_BYTES, 0))
    bench.write(card.RDT, 1)
    bench.network.give(Packet(frame()))
    assert bench.model.backlog == 0
    assert bench.read(card.MPC) == 1
    assert bench.read(card.RDH) == 0


def test_rings_where_the_card_may_not_go_are_left_alone(bench: Bench) -> None:
    bench.write(card.TDBAH, 1)
    bench.write(card.RDBAH, 1)
    bench.packet([frame()])
    assert bench.sent() == []
    assert bench.read(card.TDH) == bench.tail
    bench.write(card.RDT, 4)
    bench.network.give(Packet(frame()))
    assert bench.read(card.MPC) == 1


REGISTERS = st.tuples(
    st.sampled_from(sorted({value for name, value in vars(card).items() if name.isupper() and isinstance(value, int)}))
    | st.integers(0, 0x7FFF).map(lambda word: 4 * word),
    st.integers(0, 0xFFFFFFFF) | st.sampled_from((0x1000, 0x3000, 64, 128, 0xFFFF)),
)


@settings(deadline=None)
@given(st.lists(REGISTERS, max_size=60), st.binary(min_size=64, max_size=256))
def test_random_registers_and_rings_harm_nobody(writes: list[tuple[int, int]], ring: bytes) -> None:
    bench = Bench().start()
    bench.board.put(0x1000, ring)
    bench.board.put(0x3000, ring)
    for offset, value in writes:
        bench.write(offset, value)
        bench.read(offset)
        bench.network.turn()
        bench.network.give(Packet(frame()), Packet(tcp(bytes(1000)), validated=True))
    bench.write(card.CTRL, CTRL_RESET)
    bench.network.sent.clear()
    bench.tail = 0
    bench.start().post(2)
    data = frame()
    bench.packet([data])
    assert bench.sent() == [Packet(data)] or not bench.read(card.STATUS) & 2


DESCRIPTORS = st.tuples(
    st.sampled_from((0, BUFFERS, MEMORY_BYTES - 10, MEMORY_BYTES, 1 << 60)),
    st.integers(0, 0xFFFFFFFF) | st.sampled_from((60 | END, DATA | 60 | END, DATA | SEGMENT | 0xFFFF, EXTENDED)),
    st.integers(0, 0xFFFFFFFF),
)


@settings(deadline=None)
@given(st.lists(DESCRIPTORS, max_size=40))
def test_random_descriptors_harm_nobody(descriptors: list[tuple[int, int, int]]) -> None:
    bench = Bench().start()
    bench.board.put(BUFFERS, tcp(bytes(1000)))
    for descriptor in descriptors:
        bench.describe(*descriptor)
    for packet in bench.sent():
        if packet.gso_type:
            list(segments(packet))
    bench.describe(0, END)
    data = frame()
    bench.packet([data])
    assert bench.sent()[-1:] == [Packet(data)]
