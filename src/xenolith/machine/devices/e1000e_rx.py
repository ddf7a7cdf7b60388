"""What an 82574L receives: which packets pass its filters, and the descriptors in which they are given to software.

Source: Intel 82574 GbE Controller Family datasheet, 7.1 (receive functionality).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from xenolith.machine.devices.virtqueue import Memory
from xenolith.machine.packet import ETH_HLEN, IPPROTO_TCP, Packet, transport

UNIT: Final = 16
ADDRESSES: Final = 16
"""Receive addresses, each of two words."""
_ADDRESS_VALID: Final = 1 << 31
HASH_WORDS: Final = 128
_SHORTEST: Final = 60
_LONGEST: Final = 1518
"""With the check sequence, unless long packets are enabled; a VLAN tag may be in addition."""
_VLAN_BYTES: Final = 4
_CRC_BYTES: Final = 4

# The receive control register.
ENABLE: Final = 1 << 1
UNICAST_ALL: Final = 1 << 3
MULTICAST_ALL: Final = 1 << 4
LONG_PACKETS: Final = 1 << 5
PACKET_SPLIT: Final = 1 << 10
BROADCAST: Final = 1 << 15
VLAN_FILTER: Final = 1 << 18
SIZE_EXTENDED: Final = 1 << 25
STRIP_CRC: Final = 1 << 26
_HASH_SHIFTS: Final = (4, 3, 2, 0)
"""Bits of the fifth byte of an address that are not hashed, by the multicast offset."""

# Descriptors as they are written back.
_DONE: Final = 1 << 0
_END: Final = 1 << 1
_IGNORE_SUMS: Final = 1 << 2
_VLAN: Final = 1 << 3
_UDP_SUM: Final = 1 << 4
_TCP_SUM: Final = 1 << 5
_LEGACY: Final = struct.Struct("<HHBBH")
_EXTENDED: Final = struct.Struct("<QIHH")
_SPLIT: Final = struct.Struct("<QIHHHHHHQ")


@dataclass(slots=True)
class Filters:
    """The registers by which packets are chosen: addresses, hashes of multicast addresses, VLANs."""

    control: int = 0
    addresses: list[int] = field(default_factory=lambda: [0] * 2 * ADDRESSES)
    multicast: list[int] = field(default_factory=lambda: [0] * HASH_WORDS)
    vlans: list[int] = field(default_factory=lambda: [0] * HASH_WORDS)

    def passes(self, packet: Packet) -> bool:
        """Whether a packet is for this card."""
        return self._knows_vlan(packet.data) and self._knows(packet.destination)

    def _knows_vlan(self, data: bytes) -> bool:
        if not self.control & VLAN_FILTER or data[12:14] != b"\x81\x00":
            return True
        number = int.from_bytes(data[14:16], "big") & 0xFFF
        return bool(self.vlans[number >> 5] >> (number & 31) & 1)

    def _knows(self, address: bytes) -> bool:
        if address == b"\xff" * 6 and self.control & BROADCAST:
            return True
        if self.control & (MULTICAST_ALL if address[0] & 1 else UNICAST_ALL):
            return True
        low, high = int.from_bytes(address[:4], "little"), int.from_bytes(address[4:], "little") | _ADDRESS_VALID
        pairs = zip(self.addresses[::2], self.addresses[1::2], strict=True)
        if any(pair[0] == low and pair[1] & (_ADDRESS_VALID | 0xFFFF) == high for pair in pairs):
            return True
        if not address[0] & 1:
            return False
        bits = (address[4] | address[5] << 8) >> _HASH_SHIFTS[self.control >> 12 & 3] & 0xFFF
        return bool(self.multicast[bits >> 5] >> (bits & 31) & 1)


class _Form(NamedTuple):
    """How descriptors are now: their units, the bytes of each of their buffers, and where the card's answer begins."""

    units: int
    buffers: Sequence[int]
    answer_at: int


class Receiver:
    """The ring at `base` of `count` units of 16 bytes; those from `head` to before `tail` are the card's to fill.

    A descriptor is one unit, or two where it has several buffers. `extended` and `split_sizes` are what the registers
    RFCTL and PSRCTL say. With `checks_sums` software is told of sums of TCP and UDP that are right; `vlan_type` is the
    Ethernet type of VLAN tags that are taken out, 0 while none are.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.reset()

    def reset(self) -> None:
        self.filters = Filters()
        self.base = self.count = self.head = self.tail = 0
        self.extended = self.checks_sums = False
        self.split_sizes = 0
        self.vlan_type = 0

    @property
    def is_on(self) -> bool:
        return bool(self.filters.control & ENABLE)

    @property
    def _form(self) -> _Form:
        control = self.filters.control
        if self.extended and control & PACKET_SPLIT:
            sizes = self.split_sizes
            buffers = ((sizes & 0x7F) << 7, *((sizes >> shift & 0x3F) << 10 for shift in (8, 16, 24)))
            return _Form(2, buffers, 0)
        size = 2048 >> (control >> 16 & 3)
        buffer = 16 * size if control & SIZE_EXTENDED and size < 2048 else size
        return _Form(1, (buffer,), 0 if self.extended else 8)

    def takes(self, packet: Packet) -> bool:
        """Whether a packet is for this card, and not too long for it."""
        if len(packet.data) < ETH_HLEN or not self.filters.passes(packet):
            return False
        longest = _LONGEST - _CRC_BYTES + (_VLAN_BYTES if packet.data[12:14] == b"\x81\x00" else 0)
        return bool(self.filters.control & LONG_PACKETS) or len(packet.data) <= longest

    def put(self, packet: Packet) -> bool | None:
        """Give software a packet. False if there are not enough descriptors yet, None if there never will be.

        Raises DmaFault where the card may not go; then software does not see the packet.
        """
        form, content, status, vlan = self._form, *self._content(packet)
        count, room = self.count, sum(form.buffers)
        needed = -(-len(content) // room) * form.units if room else count
        if needed >= count or self.head >= count or self.tail >= count:
            return None
        if (self.tail - self.head) % count < needed:
            return False
        written = []
        for start in range(0, len(content), room):
            place = self.base + self._after(start // room * form.units) * UNIT
            sizes = self._fill(place, form, content[start : start + room])
            ending = (status | _END, vlan) if start + room >= len(content) else (_DONE, 0)
            written.append((place + form.answer_at, self._answer(form, sizes, *ending)))
        for place, answer in written:
            self._memory(place, len(answer), write=True)[:] = answer
        self.head = self._after(needed)
        return True

    def _after(self, units: int) -> int:
        return (self.head + units) % self.count

    def _fill(self, place: int, form: _Form, part: memoryview) -> list[int]:
        """Write a part of a packet into the buffers of one descriptor; how much went into each."""
        raw = bytes(self._memory(place, 8 * len(form.buffers)))
        sizes = []
        for number, room in enumerate(form.buffers):
            piece, part = part[:room], part[room:]
            if piece:
                maddr = int.from_bytes(raw[8 * number : 8 * number + 8], "little")
                self._memory(maddr, len(piece), write=True)[:] = piece
            sizes.append(len(piece))
        return sizes

    def _content(self, packet: Packet) -> tuple[memoryview, int, int]:
        """The bytes that software gets, the status with them, and the VLAN tag that was taken out."""
        data, status, vlan = packet.data, _DONE, 0
        if self.vlan_type and data[12:14] == self.vlan_type.to_bytes(2, "big") and len(data) >= ETH_HLEN + _VLAN_BYTES:
            vlan, data, status = int.from_bytes(data[14:16], "big"), data[:12] + data[16:], status | _VLAN
        data = data.ljust(_SHORTEST, b"\0")
        found = transport(packet.data) if self.checks_sums and packet.validated else None
        if found is None:
            status |= _IGNORE_SUMS
        else:
            status |= _TCP_SUM if found.protocol == IPPROTO_TCP else _UDP_SUM
        if not self.filters.control & STRIP_CRC:
            data += zlib.crc32(data).to_bytes(_CRC_BYTES, "little")
        return memoryview(data), status, vlan

    def _answer(self, form: _Form, sizes: Sequence[int], status: int, vlan: int) -> bytes:
        """A descriptor as software finds it, but for the address that a legacy one keeps before it."""
        if len(form.buffers) > 1:
            return _SPLIT.pack(0, status, sizes[0], vlan, 0, *sizes[1:], 0)
        if self.extended:
            return _EXTENDED.pack(0, status, sizes[0], vlan)
        return _LEGACY.pack(sizes[0], 0, status & 0xFF, 0, vlan)
