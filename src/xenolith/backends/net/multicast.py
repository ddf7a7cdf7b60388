"""Which multicast a guest wants to hear: "feature-multicast-control" of io/netif.h."""

from __future__ import annotations

from typing import Final

from xenolith.machine.packet import Packet

MAX_ADDRESSES: Final = 64
"""As many as Linux's netback keeps for a device (XEN_NETBK_MCAST_MAX)."""
_BROADCAST: Final = b"\xff" * 6


class MulticastFilter:
    """The addresses that a guest has asked for; they count only while `active`."""

    def __init__(self) -> None:
        self.active = False
        self._addresses: set[bytes] = set()

    def add(self, address: bytes) -> bool:
        """False if there is no room for one more."""
        if address not in self._addresses and len(self._addresses) >= MAX_ADDRESSES:
            return False
        self._addresses.add(address)
        return True

    def remove(self, address: bytes) -> None:
        self._addresses.discard(address)

    def passes(self, packet: Packet) -> bool:
        """Whether the guest is to get a packet."""
        to = packet.destination
        return not self.active or not to[0] & 1 or to == _BROADCAST or to in self._addresses
