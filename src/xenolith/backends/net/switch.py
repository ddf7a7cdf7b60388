"""A switch between guests: frames go where their destination was last heard, or to everybody."""

from __future__ import annotations

from typing import Final, Protocol

from xenolith.machine.packet import Packet

ADDRESSES_PER_PORT: Final = 256
"""Addresses that are remembered of one port. More belong to a guest that makes them up, which costs only itself."""


class Port(Protocol):
    """What a switch sends to."""

    def deliver(self, packet: Packet) -> None: ...


class Switch:
    """Learns source addresses; nothing goes back to the port from which it came."""

    def __init__(self) -> None:
        self._ports: dict[Port, dict[bytes, None]] = {}
        self._places: dict[bytes, Port] = {}

    def attach(self, port: Port) -> None:
        self._ports.setdefault(port, {})

    def detach(self, port: Port) -> None:
        for address in self._ports.pop(port, ()):
            del self._places[address]

    @property
    def ports(self) -> int:
        return len(self._ports)

    def send(self, source: Port, packet: Packet) -> None:
        """A packet has come from `source`, which is attached."""
        if packet.data[6] & 1:
            return  # a group cannot be a sender
        self._learn(source, packet.source)
        place = None if packet.data[0] & 1 else self._places.get(packet.destination)
        if place is None:
            for port in list(self._ports):
                if port is not source:
                    port.deliver(packet)
        elif place is not source:
            place.deliver(packet)

    def _learn(self, port: Port, address: bytes) -> None:
        before = self._places.get(address)
        if before is port:
            return
        if before is not None:
            del self._ports[before][address]
        own = self._ports[port]
        if len(own) >= ADDRESSES_PER_PORT:
            oldest = next(iter(own))
            del own[oldest], self._places[oldest]
        own[address] = None
        self._places[address] = port
