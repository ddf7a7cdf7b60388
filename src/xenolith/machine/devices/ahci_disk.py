"""An ATA disk with queued commands, as it is at the other end of a serial ATA cable.

Source: ATA8-ACS (T13/1699-D) and ACS-2 (T13/2015-D), chapter 7 (commands), 7.16 (IDENTIFY DEVICE), annex A (logs).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from xenolith import __version__
from xenolith.machine.devices.ahci_fis import ERROR, FAULT, READ_QUEUED, WRITE_QUEUED, Task
from xenolith.machine.devices.disk_work import DiskWork, Done, Extent, Outcome, Segments, serial_number
from xenolith.machine.disk import SECTOR_SIZE, Image

QUEUE_DEPTH: Final = 32
MODEL: Final = "Xenolith disk"
_TRIM_BLOCKS: Final = 8
"""Sectors of ranges that one command may trim."""
_RANGE: Final = struct.Struct("<Q")
_LBA48: Final = (1 << 48) - 1
_LBA28: Final = (1 << 28) - 1
_DEVICE_SAFE: Final = 1 << 7
"""Force unit access, in the device register of a queued write."""

# The error register.
ABORTED: Final = 0x04
NOT_FOUND: Final = 0x10
UNCORRECTABLE: Final = 0x40
DIAGNOSED: Final = 0x01

# Commands.
DATA_SET_MANAGEMENT: Final = 0x06
READ_SECTORS: Final = 0x20
READ_SECTORS_EXT: Final = 0x24
READ_DMA_EXT: Final = 0x25
READ_LOG_EXT: Final = 0x2F
WRITE_SECTORS: Final = 0x30
WRITE_SECTORS_EXT: Final = 0x34
WRITE_DMA_EXT: Final = 0x35
WRITE_DMA_FUA_EXT: Final = 0x3D
VERIFY: Final = 0x40
VERIFY_EXT: Final = 0x42
DIAGNOSE: Final = 0x90
READ_DMA: Final = 0xC8
WRITE_DMA: Final = 0xCA
STANDBY_NOW: Final = 0xE0
IDLE_NOW: Final = 0xE1
STANDBY: Final = 0xE2
IDLE: Final = 0xE3
CHECK_POWER: Final = 0xE5
FLUSH: Final = 0xE7
FLUSH_EXT: Final = 0xEA
IDENTIFY: Final = 0xEC
SET_FEATURES: Final = 0xEF

_SHORT: Final = (READ_SECTORS, WRITE_SECTORS, VERIFY, READ_DMA, WRITE_DMA)
"""Commands with 28 bits of address and 8 bits of count."""
_PIO_IN: Final = (READ_SECTORS, READ_SECTORS_EXT, READ_LOG_EXT, IDENTIFY)
_TRIM: Final = 1
_LOG_DIRECTORY: Final = 0x00
_LOG_QUEUED_ERROR: Final = 0x10
_ACTIVE: Final = 0xFF

# Subcommands of SET FEATURES.
CACHE_ON: Final = 0x02
CACHE_OFF: Final = 0x82
AHEAD_ON: Final = 0xAA
AHEAD_OFF: Final = 0x55
TRANSFER_MODE: Final = 0x03


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: the error register, what the status has beside being ready, the bytes that it moved."""

    error: int = 0
    status: int = 0
    moved: int = 0
    count: int | None = None
    """What the count register says afterwards, if the command changes it."""
    is_faulted: bool = False
    """The memory that was named may not be used."""

    @property
    def has_failed(self) -> bool:
        return bool(self.status & ERROR)


class Aborted(Exception):
    """The command ends with `error`, and nothing is done for it."""

    def __init__(self, error: int = ABORTED) -> None:
        super().__init__(f"error {error:#x}")
        self.ended = Ended(error, ERROR)


class Transfer(Protocol):
    """The memory of one command."""

    def segments(self, length: int) -> Segments:
        """Its first `length` bytes. Raises Aborted if there are not so many, and DmaFault."""

    def read(self, length: int) -> bytes:
        """What is in them."""

    def write(self, data: bytes) -> None:
        """Put `data` there."""


Reply = Callable[[Ended], None]


class AtaDisk:
    """Executes commands on `image`. It is at the device that `where` tells, which gives it its serial number."""

    def __init__(self, image: Image, work: DiskWork, where: Callable[[], int]) -> None:
        self._image = image
        self._work = work
        self._where = where
        self._handlers: Final[dict[int, Callable[[Task, Transfer, Reply], None]]] = {
            **dict.fromkeys((READ_SECTORS, READ_SECTORS_EXT, READ_DMA, READ_DMA_EXT, READ_QUEUED), self._read),
            **dict.fromkeys((WRITE_SECTORS, WRITE_SECTORS_EXT, WRITE_DMA, WRITE_DMA_EXT), self._write),
            **dict.fromkeys((WRITE_DMA_FUA_EXT, WRITE_QUEUED), self._write),
            **dict.fromkeys((VERIFY, VERIFY_EXT), self._verify),
            **dict.fromkeys((FLUSH, FLUSH_EXT, STANDBY, STANDBY_NOW), self._flush),
            **dict.fromkeys((IDLE, IDLE_NOW), self._do_nothing),
            DATA_SET_MANAGEMENT: self._trim,
            READ_LOG_EXT: self._read_log,
            DIAGNOSE: self._diagnose,
            CHECK_POWER: self._check_power,
            IDENTIFY: self._identify,
            SET_FEATURES: self._set_features,
        }
        self.reset()

    def reset(self) -> None:
        """Be as when power came on."""
        self._write_cache = self._look_ahead = True
        self._transfer_mode = 6
        self._queued_error = bytes(SECTOR_SIZE)

    @staticmethod
    def is_pio_in(task: Task) -> bool:
        """Whether the host is told of data before it comes."""
        return task.command in _PIO_IN

    def execute(self, task: Task, transfer: Transfer, reply: Reply) -> None:
        """Start a command; `reply` is called when it is done. Raises Aborted, or DmaFault, when nothing was started."""
        handler = self._handlers.get(task.command)
        if handler is None:
            raise Aborted
        handler(task, transfer, reply)

    def remember_error(self, task: Task, tag: int, status: int, error: int) -> None:
        """A queued command has failed: the log that tells which."""
        lba = task.lba.to_bytes(6, "little")
        head = bytes((tag, 0, status, error)) + lba[:3] + bytes((task.device,)) + lba[3:]
        page = head.ljust(SECTOR_SIZE - 1, b"\0")
        self._queued_error = page + bytes((-sum(page) & 0xFF,))

    # -- data ---------------------------------------------------------------------------------------------------------

    def _read(self, task: Task, transfer: Transfer, reply: Reply) -> None:
        extent = self._extent(task)
        ending = _ending(reply, UNCORRECTABLE, moved=extent.length)
        self._work.read(extent.offset, transfer.segments(extent.length), ending)

    def _write(self, task: Task, transfer: Transfer, reply: Reply) -> None:
        extent = self._extent(task)
        asked = task.device & _DEVICE_SAFE if task.is_queued else task.command == WRITE_DMA_FUA_EXT
        ending = _ending(reply, ABORTED, ERROR | FAULT, moved=extent.length)
        safe = bool(asked) or not self._write_cache
        self._work.write(extent.offset, transfer.segments(extent.length), ending, safe=safe)

    def _verify(self, task: Task, transfer: Transfer, reply: Reply) -> None:
        self._work.verify(self._extent(task), _ending(reply, UNCORRECTABLE))

    def _flush(self, task: Task, transfer: Transfer, reply: Reply) -> None:
        self._work.flush(_ending(reply, ABORTED, ERROR | FAULT))

    def _trim(self, task: Task, transfer: Transfer, reply: Reply) -> None:
        if task.features & 0xFF != _TRIM or not 0 < task.count <= _TRIM_BLOCKS or not self._image.discard_granularity:
            raise Aborted
        ranges = transfer.read(task.count * SECTOR_SIZE)
        entries = [entry for (entry,) in _RANGE.iter_unpack(ranges) if entry >> 48]
        extents = [self._checked(entry & _LBA48, entry >> 48) for entry in entries]
        self._work.discard(extents, _ending(reply, ABORTED, ERROR | FAULT, moved=len(ranges)))

    def _extent(self, task: Task) -> Extent:
        if task.is_queued:
            return self._checked(task.lba, task.features or 1 << 16)
        if task.command in _SHORT:
            lba = task.lba & 0xFFFFFF | (task.device & 0x0F) << 24
            return self._checked(lba, task.count & 0xFF or 1 << 8)
        return self._checked(task.lba, task.count or 1 << 16)

    def _checked(self, lba: int, sectors: int) -> Extent:
        if lba + sectors > self._image.size // SECTOR_SIZE:
            raise Aborted(NOT_FOUND)
        return Extent(lba * SECTOR_SIZE, sectors * SECTOR_SIZE)

    # -- what it is ---------------------------------------------------------------------------------------------------

    def _do_nothing(self, task: Task, transfer: Transfer, reply: Reply) -> None:
        reply(Ended())

    def _diagnose(self, task: Task, transfer: Transfer, reply: Reply) -> None:
        reply(Ended(DIAGNOSED))

    def _check_power(self, task: Task, transfer: Transfer, reply: Reply) -> None:
        reply(Ended(count=_ACTIVE))

    def _read_log(self, task: Task, transfer: Transfer, reply: Reply) -> None:
        log, page = task.lba & 0xFF, task.lba >> 8 & 0xFF | task.lba >> 24 & 0xFF00
        if task.count != 1 or page or log not in (_LOG_DIRECTORY, _LOG_QUEUED_ERROR):
            raise Aborted
        directory = {0: 1, _LOG_QUEUED_ERROR: 1}
        transfer.write(self._queued_error if log else _words(directory))
        reply(Ended(moved=SECTOR_SIZE))

    def _identify(self, task: Task, transfer: Transfer, reply: Reply) -> None:
        transfer.write(_words(self._identity()))
        reply(Ended(moved=SECTOR_SIZE))

    def _identity(self) -> dict[int, int]:
        """The words of IDENTIFY DEVICE that are not 0."""
        sectors = self._image.size // SECTOR_SIZE
        short = min(sectors, _LBA28)
        physical = (self._image.physical_sector_size // SECTOR_SIZE).bit_length() - 1
        cache = 1 << 5 if self._write_cache else 0
        ahead = 1 << 6 if self._look_ahead else 0
        return {
            0: 0x0040,
            **dict(zip((1, 3, 6), (16383, 16, 63), strict=True)),
            **_text(10, serial_number(self._where()), 20),
            **_text(23, __version__, 8),
            **_text(27, MODEL, 40),
            47: 0x8000,
            49: 0x0F00,  # LBA, DMA, IORDY
            50: 0x4000,
            53: 0x0006,  # words 64 to 70 and 88 mean something
            60: short & 0xFFFF,
            61: short >> 16,
            63: 0x0007,  # multiword DMA modes
            64: 0x0003,  # PIO modes
            **dict.fromkeys(range(65, 69), 120),  # ns of a cycle
            75: QUEUE_DEPTH - 1,
            76: 0x010E,  # queued commands, three speeds
            77: 0x0006,  # the third of them
            80: 0x03F0,  # up to ACS-2
            82: 0x0068,  # look-ahead, write cache, power management
            83: 0x7400,  # flushes, 48-bit addresses
            84: 0x4060,  # forced unit access, logs
            85: 0x0008 | cache | ahead,
            86: 0x3400,
            87: 0x4060,
            88: 0x007F | 1 << 8 + self._transfer_mode,
            **dict(zip(range(100, 104), struct.unpack("<4H", struct.pack("<Q", sectors)), strict=True)),
            105: _TRIM_BLOCKS if self._image.discard_granularity else 0,
            106: 0x4000 | (0x2000 | physical if physical else 0),
            169: 1 if self._image.discard_granularity else 0,
            209: 0x4000,
            217: 1,  # nothing turns
        }

    def _set_features(self, task: Task, transfer: Transfer, reply: Reply) -> None:
        wanted = task.features & 0xFF
        if wanted in (CACHE_ON, CACHE_OFF):
            self._write_cache = wanted == CACHE_ON
        elif wanted in (AHEAD_ON, AHEAD_OFF):
            self._look_ahead = wanted == AHEAD_ON
        elif wanted == TRANSFER_MODE:
            self._set_transfer_mode(task.count & 0xFF)
        else:
            raise Aborted
        reply(Ended())

    def _set_transfer_mode(self, mode: int) -> None:
        """Nothing is slower for it; but what is set is told."""
        kind, number = mode >> 3, mode & 7
        most = {0: 1, 1: 4, 4: 2, 8: 6}  # PIO without and with flow control, multiword DMA, ultra DMA
        if number > most.get(kind, -1):
            raise Aborted
        if kind == 8:
            self._transfer_mode = number


def _ending(reply: Reply, error: int, status: int = ERROR, moved: int = 0) -> Done:
    results = {
        Outcome.DONE: Ended(moved=moved),
        Outcome.FAILED: Ended(error, status),
        Outcome.FAULTED: Ended(is_faulted=True),
    }
    return lambda outcome: reply(results[outcome])


def _words(words: dict[int, int]) -> bytes:
    return struct.pack("<256H", *(words.get(number, 0) for number in range(256)))


def _text(word: int, text: str, size: int) -> dict[int, int]:
    """A text, of which each word has the first character in its upper byte."""
    data = text.encode("ascii").ljust(size)[:size]
    return {word + at // 2: data[at] << 8 | data[at + 1] for at in range(0, size, 2)}
