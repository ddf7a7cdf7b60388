"""Packets for the tests, and an independent look at their checksums."""

from __future__ import annotations

import socket
import struct

A, B = bytes.fromhex("00163e000001"), bytes.fromhex("00163e000002")


def words_sum(data: bytes) -> int:
    """The sum of RFC 1071, word by word; 0xFFFF over what has a right checksum."""
    total = 0
    for (word,) in struct.iter_unpack(">H", data + b"\0" * (len(data) & 1)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def tcp(payload: bytes, version: int = 4, flags: int = 0x18, sequence: int = 1000, options: bytes = b"") -> bytes:
    """A TCP packet from A to B without a checksum."""
    doff = 5 + len(options) // 4
    segment = struct.pack(">HHIIBBHHH", 40000, 80, sequence, 7, doff << 4, flags, 512, 0, 0) + options + payload
    return ip(segment, 6, version)


def udp(payload: bytes, version: int = 4) -> bytes:
    return ip(struct.pack(">HHHH", 40000, 53, 8 + len(payload), 0) + payload, 17, version)


def ip(content: bytes, protocol: int, version: int) -> bytes:
    if version == 4:
        addresses = socket.inet_aton("10.0.0.1") + socket.inet_aton("10.0.0.2")
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(content), 77, 0x4000, 64, protocol, 0) + addresses
        value = 0xFFFF - words_sum(head)
        return B + A + b"\x08\x00" + head[:10] + value.to_bytes(2, "big") + head[12:] + content
    addresses = bytes(15) + b"\1" + bytes(15) + b"\2"
    return B + A + b"\x86\xdd" + struct.pack(">IHBB", 0x60000000, len(content), protocol, 64) + addresses + content


def is_right(frame: bytes) -> bool:
    """Whether the checksums of an IPv4 or IPv6 packet without options or extensions, with TCP or UDP, are right."""
    if frame[12:14] == b"\x08\x00":
        if words_sum(frame[14:34]) != 0xFFFF or struct.unpack_from(">H", frame, 16)[0] != len(frame) - 14:
            return False
        addresses, protocol, start = frame[26:34], frame[23], 34
    else:
        if struct.unpack_from(">H", frame, 18)[0] != len(frame) - 54:
            return False
        addresses, protocol, start = frame[22:54], frame[20], 54
    pseudo = addresses + struct.pack(">II", protocol, len(frame) - start)
    return words_sum(pseudo + frame[start:]) == 0xFFFF
