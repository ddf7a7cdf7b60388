"""Where a switch sends packets."""

from __future__ import annotations

from tests.unit.backends.net.frames import A, B
from xenolith.backends.net.credit import Credit, parse_rate
from xenolith.backends.net.multicast import MAX_ADDRESSES, MulticastFilter
from xenolith.backends.net.switch import ADDRESSES_PER_PORT, Switch
from xenolith.machine.packet import Packet

C = bytes.fromhex("00163e000003")
ALL = b"\xff" * 6
GROUP = bytes.fromhex("01005e000001")


class Port:
    def __init__(self, switch: Switch) -> None:
        self.got: list[Packet] = []
        switch.attach(self)

    def deliver(self, packet: Packet) -> None:
        self.got.append(packet)

    def take(self) -> int:
        count = len(self.got)
        self.got.clear()
        return count


def frame(to: bytes, source: bytes) -> Packet:
    return Packet(to + source + b"\x08\x00" + bytes(46))


def test_what_is_not_known_goes_to_all_others_and_what_is_known_to_one() -> None:
    switch = Switch()
    a, b, c = Port(switch), Port(switch), Port(switch)
    switch.send(a, frame(B, A))
    assert [port.take() for port in (a, b, c)] == [0, 1, 1], "nobody knows yet where B is"
    switch.send(b, frame(A, B))
    assert [port.take() for port in (a, b, c)] == [1, 0, 0]
    switch.send(a, frame(B, A))
    assert [port.take() for port in (a, b, c)] == [0, 1, 0]
    for to in (ALL, GROUP):
        switch.send(b, frame(to, B))
        assert [port.take() for port in (a, b, c)] == [1, 0, 1]


def test_nothing_goes_back_to_where_it_came_from() -> None:
    switch = Switch()
    a, b = Port(switch), Port(switch)
    switch.send(a, frame(ALL, A))
    switch.send(a, frame(ALL, C))
    b.take()
    switch.send(a, frame(C, A))
    assert [a.take(), b.take()] == [0, 0], "C is behind the same port"
    switch.send(a, frame(ALL, GROUP))
    assert [a.take(), b.take()] == [0, 0], "no group is a sender"


def test_an_address_that_moves_is_found_again_and_one_that_is_gone_is_forgotten() -> None:
    switch = Switch()
    a, b, c = Port(switch), Port(switch), Port(switch)
    switch.send(a, frame(ALL, C))
    switch.send(b, frame(ALL, C))
    for port in (a, b, c):
        port.take()
    switch.send(a, frame(C, A))
    assert [port.take() for port in (a, b, c)] == [0, 1, 0]
    switch.detach(b)
    switch.send(a, frame(C, A))
    assert [port.take() for port in (a, b, c)] == [0, 0, 1]
    switch.detach(a)
    switch.detach(c)
    assert not switch.ports
    assert not switch._places


def test_a_guest_that_makes_up_addresses_costs_nobody_else_theirs() -> None:
    switch = Switch()
    a, b, c = Port(switch), Port(switch), Port(switch)
    switch.send(a, frame(ALL, A))
    for number in range(2000):
        switch.send(b, frame(ALL, b"\x02\0\0\0" + number.to_bytes(2, "big")))
    for port in (a, b, c):
        port.take()
    switch.send(c, frame(A, C))
    assert [port.take() for port in (a, b, c)] == [1, 0, 0]
    assert len(switch._places) == ADDRESSES_PER_PORT + 2


def test_a_filter_counts_only_when_it_was_asked_for_and_never_for_broadcast() -> None:
    chosen = MulticastFilter()
    assert chosen.passes(frame(GROUP, A))
    chosen.active = True
    assert not chosen.passes(frame(GROUP, A))
    assert chosen.passes(frame(ALL, A))
    assert chosen.passes(frame(B, A))
    assert chosen.add(GROUP)
    assert chosen.passes(frame(GROUP, A))
    added = [chosen.add(bytes((1, 2, 3, 4, 5, number))) for number in range(MAX_ADDRESSES)]
    assert added == [True] * (MAX_ADDRESSES - 1) + [False]
    assert chosen.add(GROUP), "which is there already"
    chosen.remove(GROUP)
    assert not chosen.passes(frame(GROUP, A))


def test_credit_is_given_in_intervals_and_saved_up_to_a_limit() -> None:
    credit = parse_rate("200000,1000", 0)
    assert credit is not None
    assert credit.take(150000, 0)
    assert not credit.take(60000, 999_999)
    assert credit.next_ns == 1_000_000
    assert credit.take(200000, 1_000_000)
    assert credit.take(150000, 50_500_000)
    assert not credit.take(50001, 50_500_000), "no more is saved up than is given at once"
    assert credit.next_ns == 51_000_000


def test_a_packet_longer_than_all_credit_passes_in_the_end() -> None:
    credit = Credit(100, 1000, 0)
    now = 0
    while not credit.take(65535, now):
        now = credit.next_ns
    assert now == 655_000


def test_a_rate_without_meaning_is_none() -> None:
    assert [parse_rate(text, 0) for text in ("", "x", "10", "0,50", "50,0", "-1,5", "5,5,5")] == [None] * 7
