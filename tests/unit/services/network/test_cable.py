"""Cards of the machine on their cables: on a switch together, and at an uplink that stalls, fails and comes back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.machine.devices.virtio_driver import DEVICE, Driver
from xenolith.backends.net import pcap
from xenolith.errors import UserError
from xenolith.machine.devices.virtio_net import MRG_RXBUF, VirtioNet
from xenolith.machine.offload import Offers
from xenolith.machine.packet import Packet
from xenolith.services.network.cable import Cable
from xenolith.services.network.networks import Networks
from xenolith.services.network.passt import UserNetwork
from xenolith.services.network.uplink import UplinkGone

RX, TX = range(2)
ALL = b"\xff" * 6
HEADER = bytes(12)


class Host:
    """Does what was posted or submitted when it is asked to, and knows which descriptors are watched."""

    def __init__(self) -> None:
        self.inbox: list[Callable[[], None]] = []
        self.posted = 0
        self.watched: dict[int, Callable[[], None]] = {}
        self.unwatch = self.watched.pop

    def post(self, action: Callable[[], None]) -> None:
        self.inbox.append(action)
        self.posted += 1

    def soon(self, action: Callable[[], None]) -> None:
        if action not in self.inbox:
            self.inbox.append(action)

    def watch_readable(self, fd: int, action: Callable[[], None]) -> None:
        assert fd not in self.watched
        self.watched[fd] = action

    watch_writable = watch_readable

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        def do() -> None:
            try:
                result = work()
            except UserError as error:
                done(None, error)
            else:
                done(result, None)

        self.inbox.append(do)

    def turn(self) -> None:
        inbox, self.inbox = self.inbox, []
        for action in inbox:
            action()


class Uplink:
    """Descriptors 100 and 101. It takes what is sent if `free`, gives what is `coming`, and fails if that is None."""

    offers = Offers()
    reading, writing = 100, 101

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.waiting: list[bytes] = []
        self.coming: list[Packet] | None = []
        self.free = True
        self.closed = False

    def send(self, packet: Packet) -> None:
        self.waiting.append(packet.data)

    def flush(self) -> bool:
        if self.free:
            self.sent += self.waiting
            self.waiting = []
        return bool(self.waiting)

    def receive(self) -> Sequence[Packet]:
        if self.coming is None:
            raise UplinkGone
        packets, self.coming = self.coming, []
        return packets

    def close(self) -> None:
        self.closed = True


class Card:
    """A virtio card and its driver, with buffers of 2000 bytes for what comes."""

    def __init__(self, cable: Cable, number: int) -> None:
        self.mac = bytes((0, 0x16, 0x3E, 0, 0, number))
        self.model = VirtioNet(self.mac, 1500, cable)
        self.driver = Driver(self.model, 16).start(MRG_RXBUF)
        self.places: list[int] = []

    def post(self, count: int) -> None:
        self.places += [self.driver.lend(RX, (), [2000])[0] for _ in range(count)]
        self.driver.kick(RX)

    def send(self, frame: bytes) -> None:
        self.driver.lend(TX, [HEADER + frame])
        self.driver.kick(TX)

    def received(self) -> list[bytes]:
        answers = self.driver.answers(RX)
        places, self.places = self.places[: len(answers)], self.places[len(answers) :]
        memory = self.driver.board.memory
        return [bytes(memory[at + 12 : at + length]) for at, (_, length) in zip(places, answers, strict=True)]


class Bench:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host, self.networks = Host(), Networks()
        self.log: list[str] = []
        self.uplinks: list[Uplink] = []
        self.fails = False
        monkeypatch.setattr(UserNetwork, "open", lambda network, progress: self.open_uplink())
        monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def open_uplink(self) -> Uplink:
        if self.fails:
            raise UserError("passt does not start")
        self.uplinks.append(Uplink())
        return self.uplinks[-1]

    def card(self, number: int, place: str | UserNetwork = "xenbr0", capture: Path | None = None) -> Card:
        cable = Cable(self.networks, str(number), place, capture, self.host, self.host.soon, lambda: 0, self.log.append)
        card = Card(cable, number)
        card.post(8)
        self.host.turn()
        return card


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def frame(to: bytes, source: Card) -> bytes:
    return to + source.mac + b"\x88\xb5" + os.urandom(50)


USER = UserNetwork(bytes(6), 1500)


def test_cards_on_one_switch_reach_each_other(bench: Bench, tmp_path: Path) -> None:
    a, b, other = bench.card(1), bench.card(2, capture=tmp_path / "b.pcap"), bench.card(3, "xenbr1")
    hello, answer = frame(ALL, a), frame(a.mac, b)
    a.send(hello)
    assert b.received() == [], "not before the guest's turn is over"
    bench.host.turn()
    b.send(answer)
    bench.host.turn()
    assert (a.received(), b.received(), other.received()) == ([answer], [hello], [])
    bench.networks.close()
    captured = (tmp_path / "b.pcap").read_bytes().removeprefix(pcap.HEADER)
    assert [captured[at + 16 : at + 80] for at in (0, 80)] == [hello, answer]


def test_a_card_reaches_the_host(bench: Bench) -> None:
    card = bench.card(1, USER)
    (uplink,) = bench.uplinks
    sent, came = frame(ALL, card), frame(card.mac, card)
    card.send(sent)
    bench.host.turn()
    assert uplink.sent == [sent]
    uplink.coming = [Packet(came)]
    bench.host.watched[100]()
    assert card.received() == [came]


def test_a_guest_that_sends_without_end_is_not_the_only_one(bench: Bench) -> None:
    card = bench.card(1, USER)
    for _ in range(16):
        card.send(frame(ALL, card))
    bench.host.turn()
    assert len(bench.uplinks[0].sent) == 16
    assert bench.host.posted == 1
    bench.host.turn()
    assert bench.host.posted == 1


def test_what_the_host_cannot_take_waits_for_it(bench: Bench) -> None:
    card = bench.card(1, USER)
    (uplink,) = bench.uplinks
    uplink.free = False
    card.send(frame(ALL, card))
    bench.host.turn()
    assert uplink.sent == []
    uplink.free = True
    bench.host.watched[101]()
    assert len(uplink.sent) == 1
    assert bench.host.watched.keys() == {100}


def test_the_host_waits_for_a_guest_that_gives_no_buffers(bench: Bench) -> None:
    card = bench.card(1, USER)
    (uplink,) = bench.uplinks
    for _ in range(100):
        if 100 not in bench.host.watched:
            break
        uplink.coming = [Packet(bytes(1500))] * 32
        bench.host.watched[100]()
    assert 100 not in bench.host.watched
    assert 1 << 20 <= card.model.backlog < 2 << 20
    assert card.model.waiting.lost == 0
    for _ in range(1000):
        card.received()
        card.post(8)
        bench.host.turn()
    assert card.model.backlog == 0
    assert 100 in bench.host.watched


def test_when_the_network_ends_the_link_goes_down_until_there_is_another(bench: Bench) -> None:
    card = bench.card(1, USER)
    (first,) = bench.uplinks
    first.coming = None
    bench.host.watched[100]()
    assert first.closed
    assert bench.log
    assert bench.host.watched == {}
    assert card.driver.read(DEVICE, 6, 2) == 0
    bench.host.turn()
    assert card.driver.read(DEVICE, 6, 2) == 1
    card.send(frame(ALL, card))
    bench.host.turn()
    assert len(bench.uplinks[1].sent) == 1
    assert bench.host.watched.keys() == {100}


def test_a_network_that_cannot_be_had_again_stays_away(bench: Bench) -> None:
    card = bench.card(1, USER)
    bench.fails = True
    bench.uplinks[0].coming = None
    bench.host.watched[100]()
    bench.host.turn()
    assert "passt does not start" in bench.log[-1]
    assert card.driver.read(DEVICE, 6, 2) == 0


def test_a_network_that_cannot_be_had_is_told_at_once(bench: Bench) -> None:
    bench.fails = True
    with pytest.raises(UserError, match="does not start"):
        bench.card(1, USER)
