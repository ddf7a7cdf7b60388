"""How long a file system says that it is, so that a disk which was cut off is noticed before a guest finds out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xenolith.machine.disk import SECTOR_SIZE, Image

_LOOKED_AT: Final = 4096


def _ext(head: bytes) -> int:
    """ext2, ext3, ext4 (linux/Documentation/filesystems/ext4/super.rst)."""
    block = head[1024:]
    if block[0x38:0x3A] != b"\x53\xef" or _little(block, 0x18, 4) > 6:
        return 0
    is_64bit = _little(block, 0x60, 4) & 0x80
    blocks = _little(block, 0x4, 4) | (_little(block, 0x150, 4) << 32 if is_64bit else 0)
    return blocks << 10 + _little(block, 0x18, 4)


def _xfs(head: bytes) -> int:
    """XFS (xfs_format.h: struct xfs_dsb)."""
    return int.from_bytes(head[4:8], "big") * int.from_bytes(head[8:16], "big") if head[:4] == b"XFSB" else 0


def _squashfs(head: bytes) -> int:
    """SquashFS (squashfs_fs.h: struct squashfs_super_block)."""
    return _little(head, 40, 8) if head[:4] == b"hsqs" else 0


_KINDS: Final[dict[str, Callable[[bytes], int]]] = {"ext": _ext, "XFS": _xfs, "SquashFS": _squashfs}


def _little(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def missing_bytes(image: Image) -> tuple[str, int] | None:
    """The kind of the file system that fills a disk, and how many bytes it is longer than the disk; None if it is not,
    or if there is none that is known. Raises OSError."""
    head = bytearray(min(_LOOKED_AT, image.size))
    if len(head) < 2 * SECTOR_SIZE + 1024:
        return None
    image.readv(0, [memoryview(head)])
    for name, length in _KINDS.items():
        missing = length(bytes(head)) - image.size
        if missing > 0:
            return name, missing
    return None
