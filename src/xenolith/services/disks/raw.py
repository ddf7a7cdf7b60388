"""A disk whose content is a file or block device of the host, byte by byte."""

from __future__ import annotations

from collections.abc import Sequence

from xenolith.machine.disk import SECTOR_SIZE
from xenolith.services.disks.file import HostFile


class RawImage:
    """An Image. Bytes behind the last whole sector are not part of the disk."""

    def __init__(self, file: HostFile) -> None:
        self._file = file
        self.readonly = file.readonly
        self.size = 0
        self.measure()
        block = file.block_size()
        self.physical_sector_size = block if block >= SECTOR_SIZE and self.size % block == 0 else SECTOR_SIZE
        self.discard_granularity = 0
        if not file.readonly and file.can_punch():
            self.discard_granularity = max(file.discard_granularity(), SECTOR_SIZE)

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._file.readv(offset, buffers)

    def readv_at_once(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        return self._file.readv_cached(offset, buffers)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._file.writev(offset, buffers)

    def writev_at_once(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        return self._file.writev_cached(offset, buffers)

    def flush(self) -> None:
        self._file.sync()

    def discard(self, offset: int, length: int) -> None:
        self._file.punch(offset, length)

    def measure(self) -> int:
        self.size = self._file.size() // SECTOR_SIZE * SECTOR_SIZE
        return self.size

    def close(self) -> None:
        self._file.close()
