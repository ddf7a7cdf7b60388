"""The NVM command set: what an NVMe controller does for its one namespace.

Source: NVM Express 1.4, chapter 6.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from xenolith.machine.devices.disk_work import DiskWork, Done, Extent, OpenMemory, Outcome
from xenolith.machine.devices.nvme_commands import Command, Io, Refused, Status
from xenolith.machine.devices.nvme_data import MAX_TRANSFER_SHIFT, Health
from xenolith.machine.devices.nvme_prp import PAGE, segments
from xenolith.machine.disk import SECTOR_SIZE, Image

NAMESPACE: Final = 1
ALL_NAMESPACES: Final = 0xFFFFFFFF
_MAX_BYTES: Final = PAGE << MAX_TRANSFER_SHIFT
_SAFE: Final = 1 << 30
"""In dword 12: force unit access."""
_DEALLOCATE: Final = 1 << 2
"""In dword 11 of Dataset Management."""
_RANGE: Final = struct.Struct("<IIQ")

Ended = Callable[[Status], None]


class NvmCommands:
    """Executes the commands of I/O queues on `image`. `write_cache` is whether writes may stay in caches."""

    def __init__(self, image: Image, work: DiskWork, memory: OpenMemory, health: Health) -> None:
        self._image = image
        self._work = work
        self._memory = memory
        self._health = health
        self.write_cache = True
        self._handlers: Final = {
            Io.FLUSH: self._flush,
            Io.READ: self._read,
            Io.WRITE: self._write,
            Io.WRITE_ZEROES: self._write_zeroes,
            Io.DATASET_MANAGEMENT: self._manage,
        }

    def execute(self, command: Command, ended: Ended) -> None:
        """Start a command; `ended` is called when it is done. Raises Refused, or DmaFault, when nothing was started."""
        handler = self._handlers.get(command.opcode)  # type: ignore[call-overload]
        if handler is None:
            raise Refused(Status.INVALID_OPCODE)
        allowed = (NAMESPACE, ALL_NAMESPACES) if command.opcode == Io.FLUSH else (NAMESPACE,)
        if command.namespace not in allowed:
            raise Refused(Status.INVALID_NAMESPACE)
        handler(command, ended)

    def _flush(self, command: Command, ended: Ended) -> None:
        self._work.flush(_ending(ended, Status.WRITE_FAULT))

    def _read(self, command: Command, ended: Ended) -> None:
        extent = self._transfer(command)
        where = segments(self._memory, command.prp1, command.prp2, extent.length)

        def done(status: Status) -> None:
            if status is Status.SUCCESS:
                self._health.reads += 1
                self._health.read_bytes += extent.length
            ended(status)

        self._work.read(extent.offset, where, _ending(done, Status.READ_ERROR))

    def _write(self, command: Command, ended: Ended) -> None:
        extent = self._transfer(command)
        self._check_writable()
        where = segments(self._memory, command.prp1, command.prp2, extent.length)

        def done(status: Status) -> None:
            if status is Status.SUCCESS:
                self._health.writes += 1
                self._health.written_bytes += extent.length
            ended(status)

        self._work.write(extent.offset, where, _ending(done, Status.WRITE_FAULT), safe=self._is_safe(command))

    def _write_zeroes(self, command: Command, ended: Ended) -> None:
        extent = self._extent(command)
        self._check_writable()
        self._work.zero([extent], _ending(ended, Status.WRITE_FAULT), safe=self._is_safe(command))

    def _manage(self, command: Command, ended: Ended) -> None:
        count = (command.dwords[0] & 0xFF) + 1
        where = segments(self._memory, command.prp1, command.prp2, count * _RANGE.size)
        content = b"".join([self._memory(maddr, length, False) for maddr, length in where])
        extents = [self._checked(first, sectors) for _, sectors, first in _RANGE.iter_unpack(content)]
        if not command.dwords[1] & _DEALLOCATE or not self._image.discard_granularity:
            ended(Status.SUCCESS)
            return
        self._check_writable()
        self._work.discard([extent for extent in extents if extent.length], _ending(ended, Status.WRITE_FAULT))

    # -- checks -------------------------------------------------------------------------------------------------------

    def _transfer(self, command: Command) -> Extent:
        extent = self._extent(command)
        if extent.length > _MAX_BYTES:
            raise Refused(Status.INVALID_FIELD)
        return extent

    def _extent(self, command: Command) -> Extent:
        first = command.dwords[0] | command.dwords[1] << 32
        return self._checked(first, (command.dwords[2] & 0xFFFF) + 1)

    def _checked(self, first: int, sectors: int) -> Extent:
        if first + sectors > self._image.size // SECTOR_SIZE:
            raise Refused(Status.LBA_RANGE)
        return Extent(first * SECTOR_SIZE, sectors * SECTOR_SIZE)

    def _check_writable(self) -> None:
        if self._image.readonly:
            raise Refused(Status.WRITE_PROTECTED)

    def _is_safe(self, command: Command) -> bool:
        return bool(command.dwords[2] & _SAFE) or not self.write_cache


def _ending(ended: Ended, failure: Status) -> Done:
    statuses = {
        Outcome.DONE: Status.SUCCESS,
        Outcome.FAILED: failure,
        Outcome.FAULTED: Status.DATA_TRANSFER_ERROR,
    }
    return lambda outcome: ended(statuses[outcome])
