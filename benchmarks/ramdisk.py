"""A minimal initramfs writer, so that both sides of a comparison are given the same bytes."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_DIRECTORIES = ("bin", "dev", "proc", "sys", "tmp", "mod")
_APPLETS = ("sh", "mount", "cat", "echo", "dmesg", "poweroff", "sleep", "find", "ls", "mkdir", "uname", "insmod", "od")


@dataclass(frozen=True)
class Entry:
    """One file of the archive: its path without a leading slash, mode bits (type included), content, device number."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str) -> Entry:
    """An empty directory, mode 0755."""
    return Entry(path, stat.S_IFDIR | 0o755)


def executable(path: str, content: bytes) -> Entry:
    """A regular file, mode 0755."""
    return Entry(path, stat.S_IFREG | 0o755, content)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link to `target`."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int) -> Entry:
    """A character device node, mode 0600."""
    return Entry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The entries as a cpio archive in the "newc" format.

    Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    blob = bytearray()
    for inode, entry in enumerate(entries, start=1):
        blob += _record(inode, entry)
    blob += _record(0, Entry(_TRAILER, 0))
    return bytes(blob)


def busybox_ramdisk(busybox: Path, init: str, programs: dict[str, bytes] | None = None) -> bytes:
    """An initramfs with a static busybox, the shell script `init` as /init, and `programs` by their absolute path."""
    entries = [directory(name) for name in _DIRECTORIES]
    entries += [character_device("dev/console", 5, 1), character_device("dev/null", 1, 3)]
    entries.append(executable("bin/busybox", busybox.read_bytes()))
    entries += [symlink(f"bin/{applet}", "busybox") for applet in _APPLETS]
    entries.append(executable("init", init.encode()))
    entries += [executable(path.lstrip("/"), content) for path, content in (programs or {}).items()]
    return archive(entries)


def _record(inode: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
    header = _MAGIC + b"".join(b"%08x" % number for number in numbers)
    return _padded(header + name) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
