"""The newc cpio archive, in which Linux takes its first file system: writing and reading."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from xenolith.errors import UserError

_MAGIC: Final = b"070701"
_MAGICS: Final = (_MAGIC, b"070702")
"""What may be read: without and with checksums, which are not looked at."""
_HEADER_SIZE: Final = 110
_TRAILER: Final = "TRAILER!!!"
_BLOCK: Final = 512
_MAX_FILE: Final = (1 << 32) - 1


class Entry(NamedTuple):
    """One file: `name` without a leading slash, `mode` with the type bits of stat.h, `rdev` (major, minor) of a device.

    `data` is the contents of a file or the target of a symbolic link.
    """

    name: str
    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)


def directory(name: str, mode: int = 0o755) -> Entry:
    """A directory."""
    return Entry(name, stat.S_IFDIR | mode)


def file(name: str, data: bytes, mode: int = 0o644) -> Entry:
    """A plain file."""
    return Entry(name, stat.S_IFREG | mode, data)


def symlink(name: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def device(name: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    """A character device."""
    return Entry(name, stat.S_IFCHR | mode, rdev=(major, minor))


def write(entries: Iterable[Entry]) -> bytes:
    """The archive of these entries, in their order, without times or owners, so that equal input gives equal output.

    Format: Linux Documentation/driver-api/early-userspace/buffer-format.rst. UserError for a file of 4 GiB or more.
    """
    archive = bytearray()
    for inode, entry in enumerate((*entries, Entry(_TRAILER, 0)), 1):
        name = entry.name.encode("utf-8", "surrogateescape") + b"\0"
        if len(entry.data) > _MAX_FILE:
            raise UserError(f"{entry.name} is too large for a ramdisk")
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.rdev, len(name), 0)
        archive += _MAGIC + b"".join(b"%08X" % field for field in fields) + name
        archive += bytes(-len(archive) % 4) + entry.data
        archive += bytes(-len(archive) % 4)
    return bytes(archive + bytes(-len(archive) % _BLOCK))


def is_archive(data: memoryview) -> bool:
    """Whether this begins as a newc archive does."""
    return bytes(data[:6]) in _MAGICS


def check(archive: memoryview) -> None:
    """Walk through an archive. UserError if it is cut off or no newc archive; what follows its end is not looked at."""
    for _ in read(archive):
        pass


def read(archive: bytes | memoryview) -> Iterator[Entry]:
    """The entries of an uncompressed archive. UserError if it is cut off or no newc archive."""
    offset = 0
    while True:
        header = bytes(archive[offset : offset + _HEADER_SIZE])
        if len(header) < _HEADER_SIZE or not header.startswith(_MAGICS):
            raise UserError("this is not a newc cpio archive, or it is cut off")
        try:
            fields = [int(header[at : at + 8], 16) for at in range(6, _HEADER_SIZE, 8)]
        except ValueError:
            raise UserError("this cpio archive is damaged: a header is not hexadecimal") from None
        mode, size, major, minor, name_size = fields[1], fields[6], fields[9], fields[10], fields[11]
        name_at = offset + _HEADER_SIZE
        data_at = name_at + name_size + 3 & ~3
        offset = data_at + size + 3 & ~3
        name = bytes(archive[name_at : name_at + name_size]).rstrip(b"\0").decode("utf-8", "surrogateescape")
        if name == _TRAILER:
            return
        if data_at + size > len(archive):
            raise UserError("this cpio archive is cut off")
        yield Entry(name, mode, bytes(archive[data_at : data_at + size]), (major, minor))
