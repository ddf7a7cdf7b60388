"""Between a network card and what its cable leads to: what each must be able to do for the other."""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from xenolith.machine.offload import Offers
from xenolith.machine.packet import Packet

QUEUE_BYTES: Final = 4 << 20
QUEUE_PACKETS: Final = 4096
"""What waits for a guest that has no room; more is lost, as on a wire."""


class Network(Protocol):
    """What a card's cable leads to."""

    def connect(self, card: Card) -> None:
        """A card is at the other end from now on."""

    def wake(self) -> None:
        """Have the card's `work` called soon, when no guest runs: what there is to do together is done together.

        In `work` itself: once more, when others have had their turn.
        """

    def send(self, packet: Packet) -> None:
        """The card sends a sound packet (`offload.is_sound`), with whatever offloads. To be called in `work` only."""


class Card(Protocol):
    """A network card."""

    @property
    def offers(self) -> Offers:
        """What packets its driver takes now."""

    @property
    def backlog(self) -> int:
        """Bytes that wait for the driver to give room for them. A network that can wait does so if they are many."""

    def deliver(self, packet: Packet) -> None:
        """A packet that suits `offers` has come; the driver gets it by the next `work`. It is lost if there is no
        driver, or too much waits."""

    def work(self) -> None:
        """Send what the driver has for sending, and give it what has come."""

    def set_link(self, up: bool) -> None:
        """The cable leads somewhere, or no more."""


class PacketQueue:
    """Packets that wait for a guest that has no room for them, up to QUEUE_BYTES and QUEUE_PACKETS."""

    def __init__(self) -> None:
        self._packets: deque[Packet] = deque()
        self.bytes = 0
        self.lost = 0
        """How many there was no room for."""

    def __len__(self) -> int:
        return len(self._packets)

    @property
    def first(self) -> Packet:
        return self._packets[0]

    def put(self, packet: Packet) -> None:
        """Let a packet wait, or lose it."""
        if self.bytes >= QUEUE_BYTES or len(self._packets) >= QUEUE_PACKETS:
            self.lost += 1
            return
        self._packets.append(packet)
        self.bytes += len(packet.data)

    def take(self) -> Packet:
        """The packet that has waited longest."""
        packet = self._packets.popleft()
        self.bytes -= len(packet.data)
        return packet

    def clear(self) -> None:
        self._packets.clear()
        self.bytes = 0
