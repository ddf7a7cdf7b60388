"""A virtio disk.

Source: Virtual I/O Device (VIRTIO) 1.2, 5.2 (block device).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from xenolith.machine.devices.disk_work import DiskWork, Done, Extent, Outcome, Submit, serial_number
from xenolith.machine.devices.virtio_pci import VirtioDevice
from xenolith.machine.devices.virtqueue import Chain, QueueBroken, Virtqueue, parts
from xenolith.machine.disk import SECTOR_SIZE, Image

_KIND: Final = 2
_CLASS: Final = 0x010000
_QUEUES: Final = 4
QUEUE_SIZE: Final = 256
_MAX_RUNNING: Final = 256
"""Requests that are taken and not answered yet."""

# Features (5.2.3).
SIZE_MAX: Final = 1 << 1
SEG_MAX: Final = 1 << 2
READONLY: Final = 1 << 5
BLK_SIZE: Final = 1 << 6
FLUSH: Final = 1 << 9
TOPOLOGY: Final = 1 << 10
CONFIG_WCE: Final = 1 << 11
MULTIQUEUE: Final = 1 << 12
DISCARD: Final = 1 << 13
WRITE_ZEROES: Final = 1 << 14

_CONFIGURATION: Final = struct.Struct("<QIIHBBIBBHIBxHIIIIIBxxx")
"""struct virtio_blk_config (5.2.4), up to the limits of write zeroes."""
WRITEBACK_AT: Final = 32
_SEGMENT_BYTES: Final = 1 << 16
_SEGMENTS: Final = 254
MAX_BYTES: Final = _SEGMENT_BYTES * _SEGMENTS
MAX_DISCARDS: Final = 64
_MAX_DISCARD: Final = 1 << 22
"""How many extents can be discarded at once, and how many sectors each may have."""
MAX_ZEROES: Final = 1 << 16
"""How many sectors can be zeroed at once, in one extent."""

_HEADER: Final = struct.Struct("<IIQ")
_EXTENT: Final = struct.Struct("<QII")
_UNMAP: Final = 1
_NAME_BYTES: Final = 20


class Request(IntEnum):
    """Types of requests."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class Status(IntEnum):
    """How a request ended."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


class _Refused(Exception):
    """The request ends with `status`, and nothing is done for it."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


class VirtioBlk(VirtioDevice):
    """`image` as a virtio disk; `submit` has work done in other threads."""

    def __init__(self, image: Image, submit: Submit) -> None:
        features = SIZE_MAX | SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY | CONFIG_WCE | MULTIQUEUE | WRITE_ZEROES
        features |= (READONLY if image.readonly else 0) | (DISCARD if image.discard_granularity else 0)
        super().__init__(_KIND, _CLASS, features, [QUEUE_SIZE] * _QUEUES, _configuration(image))
        self._image = image
        self._work = DiskWork(image, self.memory, submit)
        self._running = 0
        self._taking = False
        self._starved: set[Virtqueue] = set()
        """Queues in which something was left because too many requests ran."""
        self._handlers: Final[dict[int, Callable[[Chain, int, Done], None]]] = {
            Request.IN: self._read,
            Request.OUT: self._write,
            Request.FLUSH: lambda chain, sector, done: self._work.flush(done),
            Request.GET_ID: self._name,
            Request.DISCARD: self._discard,
            Request.WRITE_ZEROES: self._write_zeroes,
        }

    # -- VirtioDevice -------------------------------------------------------------------------------------------------

    def stopped(self) -> None:
        self._work.cancel()
        self._running = 0
        self._starved.clear()
        self.registers[WRITEBACK_AT] = 1

    def write_registers(self, offset: int, size: int, value: int) -> None:
        if (offset, size) == (WRITEBACK_AT, 1) and self.has(CONFIG_WCE):
            self.registers[WRITEBACK_AT] = value & 1

    def notified(self, queue: Virtqueue) -> None:
        self._taking = True
        try:
            while self.running and not self._is_full(queue) and (chain := queue.take()) is not None:
                self._running += 1
                self._begin(queue, chain)
        finally:
            self._taking = False
        self.flush(queue)

    def _is_full(self, queue: Virtqueue) -> bool:
        if self._running < _MAX_RUNNING:
            return False
        self._starved.add(queue)
        return True

    # -- requests -----------------------------------------------------------------------------------------------------

    def _begin(self, queue: Virtqueue, chain: Chain) -> None:
        if not chain.writable_bytes:
            raise QueueBroken(f"queue {queue.index}: a request without room for its status")
        header = chain.read(0, _HEADER.size)
        if len(header) < _HEADER.size:
            raise QueueBroken(f"queue {queue.index}: a request of {len(header)} bytes")
        kind, _, sector = _HEADER.unpack(header)

        def done(outcome: Outcome) -> None:
            status = Status.OK if outcome is Outcome.DONE else Status.IOERR
            self.attempt(lambda: self._answer(queue, chain, status))

        try:
            handler = self._handlers.get(kind)
            if handler is None:
                raise _Refused(Status.UNSUPP)
            handler(chain, sector, done)
        except _Refused as refused:
            self._answer(queue, chain, refused.status)

    def _answer(self, queue: Virtqueue, chain: Chain, status: Status) -> None:
        self._running -= 1
        room = chain.writable_bytes
        chain.write(room - 1, bytes((status,)))
        queue.put(chain, room if status is Status.OK else 0)
        if not self._taking:
            self.flush(queue)
            starved, self._starved = self._starved, set()
            for other in starved:
                self.notified(other)

    def _read(self, chain: Chain, sector: int, done: Done) -> None:
        extent = self._transfer(sector, chain.writable_bytes - 1)
        self._work.read(extent.offset, list(parts(chain.writable, 0, extent.length)), done)

    def _write(self, chain: Chain, sector: int, done: Done) -> None:
        extent = self._transfer(sector, chain.readable_bytes - _HEADER.size)
        self._check_writable()
        segments = list(parts(chain.readable, _HEADER.size, extent.length))
        self._work.write(extent.offset, segments, done, safe=self._is_safe)

    def _name(self, chain: Chain, sector: int, done: Done) -> None:
        name = serial_number(self.where).encode().ljust(_NAME_BYTES, b"\0")
        chain.write(0, name[: chain.writable_bytes - 1])
        done(Outcome.DONE)

    def _discard(self, chain: Chain, sector: int, done: Done) -> None:
        self._check_writable()
        if not self._image.discard_granularity:
            raise _Refused(Status.UNSUPP)
        self._work.discard(self._extents(chain, MAX_DISCARDS, _MAX_DISCARD, allowed=0), done)

    def _write_zeroes(self, chain: Chain, sector: int, done: Done) -> None:
        self._check_writable()
        self._work.zero(self._extents(chain, 1, MAX_ZEROES, allowed=_UNMAP), done, safe=self._is_safe)

    # -- checks -------------------------------------------------------------------------------------------------------

    @property
    def _is_safe(self) -> bool:
        """Whether writes must survive a loss of power: the driver cannot flush, or does not want to have to."""
        return not self.has(FLUSH) or not self.registers[WRITEBACK_AT]

    def _transfer(self, sector: int, length: int) -> Extent:
        if length % SECTOR_SIZE or not 0 < length <= MAX_BYTES:
            raise _Refused(Status.IOERR)
        return self._checked(sector, length // SECTOR_SIZE)

    def _checked(self, sector: int, sectors: int) -> Extent:
        if sector + sectors > self._image.size // SECTOR_SIZE:
            raise _Refused(Status.IOERR)
        return Extent(sector * SECTOR_SIZE, sectors * SECTOR_SIZE)

    def _check_writable(self) -> None:
        if self._image.readonly:
            raise _Refused(Status.IOERR)

    def _extents(self, chain: Chain, count: int, most: int, allowed: int) -> list[Extent]:
        length = chain.readable_bytes - _HEADER.size
        if length % _EXTENT.size or not 0 < length <= count * _EXTENT.size:
            raise _Refused(Status.IOERR)
        found = list(_EXTENT.iter_unpack(chain.read(_HEADER.size, length)))
        if any(flags & ~allowed for _, _, flags in found):
            raise _Refused(Status.UNSUPP)
        if any(sectors > most for _, sectors, _ in found):
            raise _Refused(Status.IOERR)
        return [self._checked(sector, sectors) for sector, sectors, _ in found if sectors]


def _configuration(image: Image) -> bytes:
    physical = image.physical_sector_size // SECTOR_SIZE
    discard = max(image.discard_granularity // SECTOR_SIZE, 1)
    return _CONFIGURATION.pack(
        image.size // SECTOR_SIZE,
        _SEGMENT_BYTES,
        _SEGMENTS,
        *(0, 0, 0),  # cylinders, heads, sectors
        SECTOR_SIZE,
        *(physical.bit_length() - 1, 0, physical, 0),  # physical sector, its alignment, least and best size of accesses
        *(1, _QUEUES),
        *(_MAX_DISCARD, MAX_DISCARDS, discard),
        *(MAX_ZEROES, 1, 0),
    )
