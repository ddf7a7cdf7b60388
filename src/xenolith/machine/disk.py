"""What a PV back end, or a controller on PCI, asks of the content of a disk, wherever that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from errno import ENOMEDIUM
from typing import Final, Protocol

SECTOR_SIZE: Final = 512
"""Bytes: the unit of everything in the ring, whatever the image prefers."""


class Image(Protocol):
    """The bytes of a disk. Offsets and lengths are bytes, in whole sectors and within `size`.

    Its methods block, and may be called from several threads at once. All raise OSError when the host fails; `discard`
    raises OSError(EOPNOTSUPP) where the host cannot do it.
    """

    readonly: bool
    physical_sector_size: int
    """Bytes: the unit in which the image is best written."""
    discard_granularity: int
    """Bytes: the unit in which space can be given back; 0 if that cannot be done at all."""

    @property
    def size(self) -> int:
        """Bytes, in whole sectors."""

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, all of them, from `offset` on."""

    def readv_at_once(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        """The same without waiting for anything; False, with whatever in the buffers, where that cannot be."""

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Write the buffers from `offset` on. It may stay in caches until `flush`."""

    def writev_at_once(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        """The same where that takes no longer than giving it to a thread; False, with any part of it written, else."""

    def flush(self) -> None:
        """Return when all that was written before is safe from a loss of power."""

    def discard(self, offset: int, length: int) -> None:
        """These bytes are wanted no more, and may read as anything."""

    def measure(self) -> int:
        """Look again how big the image is; returns the new `size`."""

    def close(self) -> None:
        """Let go of the image. No other call is running, and none comes afterwards."""


class NoMedium:
    """The Image of a drive that is empty."""

    readonly = True
    physical_sector_size = SECTOR_SIZE
    discard_granularity = 0
    size = 0

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        raise OSError(ENOMEDIUM, "there is no medium")

    def readv_at_once(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        return False

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        raise OSError(ENOMEDIUM, "there is no medium")

    def writev_at_once(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        return False

    def flush(self) -> None: ...

    def discard(self, offset: int, length: int) -> None:
        raise OSError(ENOMEDIUM, "there is no medium")

    def measure(self) -> int:
        return 0

    def close(self) -> None: ...
