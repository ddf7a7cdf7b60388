"""What a 9P server asks of the files that it serves."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

UNCHANGED = -1
"""As uid or gid: left as it is (chown(2))."""


class Owner(NamedTuple):
    uid: int
    gid: int


class Entry(NamedTuple):
    """What a directory says of a file: its name, its number, its type in st_mode or 0 if that is unknown."""

    name: bytes
    number: int
    type: int


@dataclass(frozen=True, slots=True)
class Changes:
    """New attributes; None is left as it is. Times are in nanoseconds since 1970."""

    mode: int | None = None
    owner: Owner | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class Lock(NamedTuple):
    """A lock of a range of bytes. `type` as in 9P: 0 shared, 1 exclusive, 2 none; `length` 0 goes to the end."""

    type: int
    start: int
    length: int


class FileSystem(Protocol):
    """Files below one directory. A path is that of names joined by "/", b"" for the directory itself.

    Each call may wait for the host's file system, and raises OSError with Linux' error numbers. Symbolic links are not
    followed. A handle is an open file; where one is given along with a path it is what the path was when it was opened.
    """

    def status(self, path: bytes, handle: int | None = None) -> os.stat_result:
        """As lstat(2)."""

    def number(self, status: os.stat_result) -> int:
        """What tells a file from all others below the directory, whatever device they are on (64 bits)."""

    def usage(self, path: bytes) -> os.statvfs_result: ...

    def open(self, path: bytes, flags: int) -> int:
        """A handle of a file or a directory; `flags` are Linux' (O_*). Nothing else can be opened."""

    def create(self, path: bytes, flags: int, mode: int, owner: Owner) -> int:
        """A handle of a new file, or of one that there is if `flags` lack O_EXCL."""

    def adopt(self, handle: int) -> None:
        """A handle that this code's predecessor has left is in use."""

    def close(self, handle: int) -> None: ...

    def read(self, handle: int, offset: int, count: int) -> bytes: ...

    def write(self, handle: int, offset: int, data: memoryview) -> int: ...

    def sync(self, handle: int, data_only: bool) -> None: ...

    def entries(self, handle: int) -> Iterable[Entry]:
        """The content of a directory, without "." and ".."."""

    def lock(self, handle: int, lock: Lock) -> bool:
        """Lock, or unlock, a range for this handle; False if another has a lock there."""

    def locked(self, handle: int, lock: Lock) -> Lock | None:
        """A lock of another that is in the way of this one."""

    def change(self, path: bytes, handle: int | None, changes: Changes) -> None: ...

    def make_directory(self, path: bytes, mode: int, owner: Owner) -> None: ...

    def make_symlink(self, path: bytes, target: bytes, owner: Owner) -> None: ...

    def make_node(self, path: bytes, mode: int, owner: Owner) -> None:
        """A file, pipe or socket; OSError(EPERM) for devices."""

    def read_link(self, path: bytes) -> bytes: ...

    def link(self, path: bytes, new_path: bytes) -> None: ...

    def rename(self, path: bytes, new_path: bytes) -> None: ...

    def remove(self, path: bytes, is_directory: bool) -> None: ...
