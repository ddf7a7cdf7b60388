"""What an 82574L sends: packets out of the transmit ring, in legacy, context and data descriptors.

Source: Intel 82574 GbE Controller Family datasheet, 7.2 (transmit functionality).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from xenolith.machine.devices.virtqueue import Memory
from xenolith.machine.offload import checksum, is_sound, set_pseudo_sum, unfinished
from xenolith.machine.packet import ETH_HLEN, GSO_TCPV4, GSO_TCPV6, MAX_PACKET, Packet, transport
from xenolith.machine.pci import DmaFault

DESCRIPTOR_BYTES: Final = 16
AT_ONCE: Final = 1024
"""Descriptors that are looked at before others have their turn."""
_DESCRIPTOR: Final = struct.Struct("<QII")
_CONTEXT: Final = struct.Struct("<BBHBBHIBBH")
_STATUS_AT: Final = 12
_DONE: Final = 1

_IP_BYTES: Final = 20

# The second word of a descriptor: its kind, and commands.
_EXTENDED: Final = 1 << 29
_KIND: Final = 0xF << 20
_DATA: Final = 1 << 20
_DATA_LENGTH: Final = 0xFFFFF
_LEGACY_LENGTH: Final = 0xFFFF
_END: Final = 1 << 24
_INSERT_CHECKSUM: Final = 1 << 26
_SEGMENT: Final = 1 << 26
_REPORT: Final = 1 << 27
_INSERT_VLAN: Final = 1 << 30
_CONTEXT_TCP: Final = 1 << 24
_CONTEXT_IPV4: Final = 1 << 25
# Options of data descriptors, in the third word.
_IP_CHECKSUM: Final = 1 << 8
_TCP_CHECKSUM: Final = 1 << 9


class _Context(NamedTuple):
    """What a context descriptor says: where sums begin, go and end, and how to cut."""

    ip_start: int = 0
    ip_sum: int = 0
    ip_end: int = 0
    start: int = 0
    sum: int = 0
    end: int = 0
    command: int = 0
    status: int = 0
    headers: int = 0
    segment: int = 0


class Transmitter:
    """The ring at `base` of `count` descriptors, of which those from `head` to before `tail` are to be sent.

    `send` gets each packet. `vlan_type` is the Ethernet type of VLAN tags that are inserted, 0 while none are.
    """

    def __init__(self, memory: Memory, send: Callable[[Packet], None]) -> None:
        self._memory = memory
        self._send_packet = send
        self.reset()

    def reset(self) -> None:
        self.base = self.count = self.head = self.tail = 0
        self.vlan_type = 0
        self._context = _Context()
        self._begin()

    def _begin(self) -> None:
        """The next descriptor begins a packet."""
        self._pieces: list[bytes] = []
        self._length = 0
        self._lost = False
        self._first: tuple[int, int] | None = None

    def work(self) -> bool:
        """Send what there is, AT_ONCE descriptors at most. Returns whether software wants to know of that.

        A ring that cannot be, or where the card may not go, is not looked at until software gives it another tail.
        """
        reports = False
        for _ in range(AT_ONCE):
            if self.head == self.tail:
                break
            if self.head >= self.count or self.tail >= self.count:
                self.head = self.tail
                break
            try:
                reports = self._take() or reports
            except DmaFault:
                self.head = self.tail
                self._begin()
                break
            self.head = (self.head + 1) % self.count
        return reports

    @property
    def has_work(self) -> bool:
        return self.head != self.tail

    def _take(self) -> bool:
        """Look at one descriptor. Returns whether software wants to know of that. Raises DmaFault if it is nowhere."""
        place = self.base + self.head * DESCRIPTOR_BYTES
        raw = bytes(self._memory(place, DESCRIPTOR_BYTES))
        maddr, command, options = _DESCRIPTOR.unpack(raw)
        if command & (_EXTENDED | _KIND) == _EXTENDED:
            self._context = _Context(*_CONTEXT.unpack(raw))
        else:
            self._add(maddr, command, options)
        if not command & _REPORT:
            return False
        self._memory(place + _STATUS_AT, 4, write=True)[:] = (options | _DONE).to_bytes(4, "little")
        return True

    def _add(self, maddr: int, command: int, options: int) -> None:
        if self._first is None:
            self._first = command, options
        size = command & (_DATA_LENGTH if command & _EXTENDED else _LEGACY_LENGTH)
        self._length += size
        if self._length > MAX_PACKET:
            self._lost = True
        if not self._lost and size:
            try:
                self._pieces.append(bytes(self._memory(maddr, size)))
            except DmaFault:
                self._lost = True
        if command & _END:
            packet = None if self._lost or self._length < ETH_HLEN else self._finished(command, options)
            self._begin()
            if packet is not None and is_sound(packet):
                self._send_packet(packet)

    # -- what is to be done to a packet -------------------------------------------------------------------------------

    def _finished(self, command: int, options: int) -> Packet | None:
        """The packet whose pieces are all there; None if it cannot be made."""
        assert self._first is not None
        first, first_options = self._first
        data = b"".join(self._pieces)
        packet: Packet | None = Packet(data)
        if not first & _EXTENDED:
            if command & _INSERT_CHECKSUM:
                packet = unfinished(data, options >> 8 & 0xFF, command >> 16 & 0xFF)
        elif first & _SEGMENT:
            packet = self._to_be_cut(bytearray(data))
        else:
            if first_options & _IP_CHECKSUM:
                data = self._with_ip_sum(data)
            packet = Packet(data)
            if first_options & _TCP_CHECKSUM:
                packet = unfinished(data, self._context.start, self._context.sum)
        if packet is not None and command & _INSERT_VLAN and self.vlan_type:
            tag = self.vlan_type.to_bytes(2, "big") + (options >> 16).to_bytes(2, "big")
            packet = packet._replace(data=packet.data[:12] + tag + packet.data[12:])
        return packet

    def _with_ip_sum(self, data: bytes) -> bytes:
        """The packet with the checksum of its IPv4 header, where the context says."""
        at, end = self._context.ip_sum, self._context.ip_end + 1
        if not self._context.ip_start <= at <= end - 2 <= len(data) - 2:
            return data
        blank = data[:at] + b"\0\0" + data[at + 2 :]
        value = checksum(blank[self._context.ip_start : end])
        return data[:at] + value.to_bytes(2, "big") + data[at + 2 :]

    def _to_be_cut(self, data: bytearray) -> Packet | None:
        """A long TCP packet: its headers are the first segment's, but for lengths and sums, which are not there yet."""
        at, context = self._context.ip_start, self._context
        if not context.command & _CONTEXT_TCP or len(data) < at + _IP_BYTES:
            return None
        if context.command & _CONTEXT_IPV4:
            kind = GSO_TCPV4
            data[at + 2 : at + 4] = (len(data) - at & 0xFFFF).to_bytes(2, "big")
            data = bytearray(self._with_ip_sum(bytes(data)))
        else:
            kind = GSO_TCPV6
            data[at + 4 : at + 6] = (len(data) - at - 40 & 0xFFFF).to_bytes(2, "big")
        found = transport(bytes(data))
        if found is None or found.start != context.start:
            return None
        set_pseudo_sum(data, found)
        return Packet(bytes(data), True, True, kind, context.segment)
