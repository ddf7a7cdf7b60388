"""The header of packets in virtio, which Linux's tap devices have, too: what is still to be done to a packet.

Source: VIRTIO 1.2, 5.1.6 (struct virtio_net_hdr); Linux, include/uapi/linux/virtio_net.h.
"""

from __future__ import annotations

import struct
from typing import Final

from xenolith.machine.offload import unfinished
from xenolith.machine.packet import GSO_NONE, GSO_TCPV4, GSO_TCPV6, IPPROTO_TCP, Packet, transport

_HEADER: Final = struct.Struct("<BBHHHH")
"""Flags, GSO type, length of all headers, GSO size, where to begin the sum, and where to put it from there."""
HEADER_BYTES: Final = _HEADER.size
_NEEDS_CSUM: Final = 1
_DATA_VALID: Final = 2
_GSO_TYPES: Final = {GSO_NONE: 0, GSO_TCPV4: 1, GSO_TCPV6: 4}
_PACKET_TYPES: Final = {number: kind for kind, number in _GSO_TYPES.items()}
_GSO_ECN: Final = 0x80


def header_of(packet: Packet) -> bytes:
    """The header of a sound packet."""
    flags = _DATA_VALID if packet.validated else 0
    start = offset = length = 0
    found = transport(packet.data) if packet.blank else None
    if found is not None:
        flags, start, offset = _NEEDS_CSUM, found.start, found.checksum - found.start
        if found.protocol == IPPROTO_TCP:
            length = start + (packet.data[start + 12] >> 4) * 4
    return _HEADER.pack(flags, _GSO_TYPES[packet.gso_type], length, packet.gso_size, start, offset)


def packet_of(header: bytes, data: bytes) -> Packet | None:
    """The packet that a header and what follows it stand for, which may not be sound; None for one that cannot be."""
    flags, kind, _, size, start, offset = _HEADER.unpack(header)
    gso_type = _PACKET_TYPES.get(kind & ~_GSO_ECN)
    if gso_type is None:
        return None
    blank = bool(flags & _NEEDS_CSUM)
    if blank and gso_type == GSO_NONE:
        return unfinished(data, start, start + offset)
    return Packet(data, blank, blank or bool(flags & _DATA_VALID), gso_type, size)
