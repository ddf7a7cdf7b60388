"""What network hardware would do: completing checksums and segmenting TCP, for receivers that leave it to others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from xenolith.machine.packet import (
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    IPPROTO_TCP,
    IPPROTO_UDP,
    Packet,
    Transport,
    transport,
)

_GSO_VERSION: Final = {GSO_TCPV4: 4, GSO_TCPV6: 6}
MAX_SEGMENTS: Final = 1366
"""Of one packet: as many as it has with TCP's least segment (Linux's TCP_MIN_SND_MSS, 48 bytes)."""
_FIN_PSH: Final = 0x09
_CWR: Final = 0x80


class Offers(NamedTuple):
    """What a receiver can take: segmentation it does itself (TCP in IPv4 and IPv6), checksums that are blank."""

    gso_v4: bool = False
    gso_v6: bool = False
    csum_v4: bool = False
    csum_v6: bool = False


EVERYTHING: Final = Offers(True, True, True, True)


def is_sound(packet: Packet) -> bool:
    """Whether the headers are there that `blank` and `gso_type` speak of."""
    if not packet.blank and packet.gso_type == GSO_NONE:
        return True
    found = transport(packet.data)
    if found is None:
        return False
    if packet.gso_type == GSO_NONE:
        return True
    if found.protocol != IPPROTO_TCP or _GSO_VERSION.get(packet.gso_type) != found.version:
        return False
    payload = _payload_at(packet.data, found)
    length = found.end - payload
    return found.start + 20 <= payload and packet.gso_size > 0 and 0 <= length <= packet.gso_size * MAX_SEGMENTS


def adapt(packet: Packet, offers: Offers) -> Sequence[Packet]:
    """A sound packet as a receiver can take it: itself, or with a checksum, or in segments with checksums."""
    if packet.gso_type == GSO_NONE and not packet.blank:
        return (packet,)
    if packet.gso_type == GSO_TCPV4 and not offers.gso_v4:
        return list(segments(packet))
    if packet.gso_type == GSO_TCPV6 and not offers.gso_v6:
        return list(segments(packet))
    found = transport(packet.data)
    assert found is not None
    takes_blank = offers.csum_v4 if found.version == 4 else offers.csum_v6
    if takes_blank or not packet.blank:
        return (packet,)
    return (packet._replace(data=_completed(bytearray(packet.data), found), blank=False),)


def unfinished(data: bytes, start: int, at: int) -> Packet | None:
    """A packet whose sum, from byte `start` to its end, is still to be put at byte `at`; None if it has no such bytes.

    The sum of what is neither TCP nor UDP is completed here: nobody after us would know where it is.
    """
    found = transport(data)
    if found is not None and (found.start, found.checksum) == (start, at):
        return Packet(data, blank=True, validated=True)
    if not start <= at <= len(data) - 2:
        return None
    value = checksum(data[start:]) or 0xFFFF  # 0 would mean to UDP that there is none
    return Packet(data[:at] + value.to_bytes(2, "big") + data[at + 2 :], validated=True)


def segments(packet: Packet) -> Iterator[Packet]:
    """The TCP packets that a sound one with a `gso_type` stands for, as its sender would have sent them singly."""
    found = transport(packet.data)
    assert found is not None
    data, payload = packet.data, _payload_at(packet.data, found)
    for number, start in enumerate(range(payload, max(found.end, payload + 1), packet.gso_size)):
        end = min(start + packet.gso_size, found.end)
        segment = bytearray(data[:payload] + data[start:end])
        _adjust_ip(segment, found, number)
        _adjust_tcp(segment, found.start, start - payload, end == found.end)
        yield Packet(_completed(segment, found._replace(end=len(segment))), validated=packet.validated)


def _payload_at(data: bytes, found: Transport) -> int:
    return found.start + (data[found.start + 12] >> 4) * 4


def _adjust_ip(segment: bytearray, found: Transport, number: int) -> None:
    """The length, and in IPv4 the identification and the header's own checksum."""
    at = found.network
    if found.version == 6:
        segment[at + 4 : at + 6] = (len(segment) - at - 40).to_bytes(2, "big")
        return
    identification = int.from_bytes(segment[at + 4 : at + 6], "big") + number & 0xFFFF
    segment[at + 2 : at + 4] = (len(segment) - at).to_bytes(2, "big")
    segment[at + 4 : at + 6] = identification.to_bytes(2, "big")
    segment[at + 10 : at + 12] = b"\0\0"
    segment[at + 10 : at + 12] = checksum(segment[at : found.start]).to_bytes(2, "big")


def _adjust_tcp(segment: bytearray, at: int, done: int, last: bool) -> None:
    """The sequence number; FIN and PSH are the last segment's, CWR is the first one's."""
    sequence = int.from_bytes(segment[at + 4 : at + 8], "big") + done & 0xFFFF_FFFF
    segment[at + 4 : at + 8] = sequence.to_bytes(4, "big")
    if not last:
        segment[at + 13] &= ~_FIN_PSH & 0xFF
    if done:
        segment[at + 13] &= ~_CWR & 0xFF


def _completed(data: bytearray, found: Transport) -> bytes:
    """The packet with its TCP or UDP checksum."""
    at = found.checksum
    data[at : at + 2] = b"\0\0"
    value = checksum(_pseudo_header(data, found) + data[found.start : found.end])
    if not value and found.protocol == IPPROTO_UDP:
        value = 0xFFFF  # 0 would mean that there is none
    data[at : at + 2] = value.to_bytes(2, "big")
    return bytes(data)


def set_pseudo_sum(data: bytearray, found: Transport) -> None:
    """Put the sum of the pseudo-header where the checksum will be, as senders do who leave the rest to others."""
    value = 0xFFFF - checksum(_pseudo_header(data, found))
    data[found.checksum : found.checksum + 2] = value.to_bytes(2, "big")


def _pseudo_header(data: bytearray, found: Transport) -> bytes:
    """What TCP and UDP sum up before themselves: addresses, protocol, length (RFC 9293, 3.1; RFC 8200, 8.1)."""
    start, size = (12, 8) if found.version == 4 else (8, 32)
    addresses = data[found.network + start : found.network + start + size]
    return bytes(addresses) + found.protocol.to_bytes(4, "big") + (found.end - found.start).to_bytes(4, "big")


def checksum(data: bytes | bytearray) -> int:
    """The Internet checksum (RFC 1071). 2^16 is 1 modulo 2^16 - 1, so the sum of all words is one division's rest."""
    total = int.from_bytes(data, "big") << 8 * (len(data) & 1)
    rest = total % 0xFFFF
    return 0xFFFF if not total else 0xFFFF - rest if rest else 0
