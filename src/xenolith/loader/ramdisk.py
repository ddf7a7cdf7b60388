"""A ramdisk that the user brings: opened, and looked at before a guest is started with it in vain."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Final

from xenolith.errors import UserError
from xenolith.loader import cpio, payload

_FILE_SYSTEMS: Final = (
    (0x438, b"\x53\xef"),
    (0, b"hsqs"),
    (0, b"-rom1fs-"),
    (0, b"\x45\x3d\xcd\x28"),
)
"""Offset and magic number of the file systems that Linux takes as an initrd: ext2, squashfs, romfs, cramfs."""


def read_ramdisk(path: Path, *, linux: bool) -> memoryview:
    """The bytes of a ramdisk file, mapped. `linux` says whether the kernel is Linux, which takes archives only.

    UserError if there is no such file, it is empty or cannot be read, or, for Linux, it is no cpio archive (newc), no
    compressed one and no file system, or an uncompressed archive is cut off.
    """
    data = _map(path)
    if linux:
        _check(path, data)
    return data


def _map(path: Path) -> memoryview:
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"the ramdisk {path} is not a file")
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise UserError(f"the ramdisk {path} is empty", "name an initramfs, or leave --ramdisk out")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise UserError(f"the ramdisk {path} cannot be read: {error.strerror}") from None


def _check(path: Path, data: memoryview) -> None:
    if cpio.is_archive(data):
        try:
            cpio.check(data)
        except UserError as error:
            raise UserError(f"the ramdisk {path} is damaged: {error.message}") from None
    elif payload.compression(data) is None and not any(data[at : at + len(m)] == m for at, m in _FILE_SYSTEMS):
        raise UserError(
            f"{path} is no ramdisk for Linux: neither a cpio archive, packed or not, nor a file system",
            "'xenolith ramdisk' makes one",
        )
