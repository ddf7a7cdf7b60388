"""A packet on its way between guests and the host, and where its headers are."""

from __future__ import annotations

from typing import Final, NamedTuple

ETH_HLEN: Final = 14
ETH_ALEN: Final = 6
IPPROTO_TCP: Final = 6
IPPROTO_UDP: Final = 17
MAX_PACKET: Final = 0xFFFF
"""Bytes of the longest packet, with its Ethernet header (XEN_NETIF_MAX_TX_SIZE of public/io/netif.h)."""
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 2
"""What a packet is to be cut into, by the numbers of XEN_NETIF_GSO_TYPE_*."""


_ETH_P_IP: Final = 0x0800
_ETH_P_IPV6: Final = 0x86DD
_ETH_P_8021Q: Final = 0x8100
_VLAN_HLEN: Final = 4
_IPV4_HLEN: Final = 20
_IPV6_HLEN: Final = 40
_IPV4_FRAGMENT: Final = 0x3FFF
"""More-fragments and the fragment's offset, in the word at byte 6 of the header."""
_IPV6_EXTENSIONS: Final = (0, 43, 60)
"""Hop-by-hop options, routing, destination options: each leads to the next header, 8 bytes times (length + 1) on."""
_CHECKSUM_AT: Final = {IPPROTO_TCP: 16, IPPROTO_UDP: 6}
_TRANSPORT_HLEN: Final = {IPPROTO_TCP: 20, IPPROTO_UDP: 8}


class Packet(NamedTuple):
    """An Ethernet frame without its check sequence.

    `blank`: the TCP or UDP checksum is still to be completed. `validated`: it was looked at, or needs no look, because
    the packet never was on a wire. `gso_type` other than GSO_NONE: a TCP packet that stands for several with at most
    `gso_size` bytes of payload each.
    """

    data: bytes
    blank: bool = False
    validated: bool = False
    gso_type: int = GSO_NONE
    gso_size: int = 0

    @property
    def destination(self) -> bytes:
        return self.data[:ETH_ALEN]

    @property
    def source(self) -> bytes:
        return self.data[ETH_ALEN : 2 * ETH_ALEN]


class Transport(NamedTuple):
    """Where the headers of a TCP or UDP packet are, in bytes from its start."""

    version: int
    """4 or 6."""
    network: int
    start: int
    protocol: int
    end: int
    """The end of the transport's payload by the IP header; Ethernet may have padded behind it."""

    @property
    def checksum(self) -> int:
        """Where the transport's checksum is."""
        return self.start + _CHECKSUM_AT[self.protocol]


def transport(data: bytes) -> Transport | None:
    """The TCP or UDP headers of a frame; None if there are none, or not whole, or of a fragment."""
    kind, at = int.from_bytes(data[12:14], "big"), ETH_HLEN
    if kind == _ETH_P_8021Q:
        kind, at = int.from_bytes(data[16:18], "big"), at + _VLAN_HLEN
    if kind == _ETH_P_IP:
        found = _ipv4(data, at)
    elif kind == _ETH_P_IPV6:
        found = _ipv6(data, at)
    else:
        return None
    if found is None or found.protocol not in _CHECKSUM_AT:
        return None
    whole = found.start + _TRANSPORT_HLEN[found.protocol] <= found.end <= len(data)
    return found if whole else None


def _ipv4(data: bytes, at: int) -> Transport | None:
    if len(data) < at + _IPV4_HLEN or data[at] >> 4 != 4 or (data[at] & 15) * 4 < _IPV4_HLEN:
        return None
    if int.from_bytes(data[at + 6 : at + 8], "big") & _IPV4_FRAGMENT:
        return None
    end = at + int.from_bytes(data[at + 2 : at + 4], "big")
    return Transport(4, at, at + (data[at] & 15) * 4, data[at + 9], end)


def _ipv6(data: bytes, at: int) -> Transport | None:
    if len(data) < at + _IPV6_HLEN or data[at] >> 4 != 6:
        return None
    end = at + _IPV6_HLEN + int.from_bytes(data[at + 4 : at + 6], "big")
    protocol, start = data[at + 6], at + _IPV6_HLEN
    while protocol in _IPV6_EXTENSIONS:
        if start + 2 > len(data):
            return None
        protocol, start = data[start], start + (data[start + 1] + 1) * 8
    return Transport(6, at, start, protocol, end)


def flow(data: bytes) -> bytes:
    """What packets of one connection have in common, and those of others most likely not."""
    found = transport(data)
    if found is None:
        return data[: 2 * ETH_ALEN]
    addresses = data[found.network + 12 : found.network + 20] if found.version == 4 else data[22:54]
    return addresses + data[found.start : found.start + 4]
