"""What a card's cable leads to, for the tests."""

from __future__ import annotations

from xenolith.machine.network import Card
from xenolith.machine.packet import Packet


class Network:
    """Remembers what is sent; `wake` lets the card work at once."""

    def __init__(self) -> None:
        self.sent: list[Packet] = []
        self.card: Card | None = None
        self.wakes = 0

    def connect(self, card: Card) -> None:
        self.card = card

    def wake(self) -> None:
        self.wakes += 1

    def send(self, packet: Packet) -> None:
        self.sent.append(packet)

    def turn(self) -> None:
        """The card works if it wants to."""
        assert self.card is not None
        if self.wakes:
            self.wakes = 0
            self.card.work()

    def give(self, *packets: Packet) -> None:
        """Packets come for the card."""
        assert self.card is not None
        for packet in packets:
            self.card.deliver(packet)
        self.card.work()
