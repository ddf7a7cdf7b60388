"""What a network device of a guest leads to on the host, if it is no switch: a descriptor with packets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from xenolith.machine.offload import Offers
from xenolith.machine.packet import Packet


class UplinkGone(Exception):
    """What was behind the descriptor is there no more."""


class Uplink(Protocol):
    """It outlives the service that uses it. Nothing in it blocks."""

    @property
    def offers(self) -> Offers:
        """What packets it takes."""

    @property
    def reading(self) -> int:
        """The descriptor that can be read when there are packets."""

    @property
    def writing(self) -> int:
        """Another one for the same, that can be written when `flush` has something to do."""

    def send(self, packet: Packet) -> None:
        """Send a packet after those before it, or lose it where too much waits."""

    def flush(self) -> bool:
        """Go on with what waits; returns whether something still does. Raises UplinkGone."""

    def receive(self) -> Sequence[Packet]:
        """Some of the packets that are there; none if there are none. Raises UplinkGone."""

    def close(self) -> None:
        """End what is behind it."""
