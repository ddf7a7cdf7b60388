"""A file or block device of the host that nobody else writes to: vectors of buffers in and out, and real flushes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import stat
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from xenolith.errors import UserError

_IOV_MAX: Final = 1024
_PUNCH_HOLE: Final = 0x02 | 0x01
"""FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE of linux/falloc.h."""
_FLOCK: Final = "hhqqi4x"
"""struct flock: type, whence, start, length, pid."""
_PAGE: Final = 4096
_FEW_BYTES: Final = 64 << 10
_SLOW_S: Final = 0.005
_PATIENCE: Final = 20
"""How many times as long as a write waited the next ones are left to threads."""
_BUSY: Final = (errno.EACCES, errno.EAGAIN, errno.EBUSY)
_libc: Final = ctypes.CDLL(None, use_errno=True)


class HostFile:
    """An open file or block device. Made by `open` and `create`; all methods raise OSError and may block.

    A writer has it for itself, readers share it: by a lock of the open file, which QEMU heeds too, and by O_EXCL for
    a block device, which nobody gets who wants to write while it is mounted. The lock ends with the process at latest.
    """

    def __init__(self, fd: int, readonly: bool) -> None:
        self._fd = fd
        self.readonly = readonly
        self._sync_failed = False
        self._slow_until = 0.0
        self.is_device = stat.S_ISBLK(os.fstat(fd).st_mode)

    @classmethod
    def open(cls, path: Path, readonly: bool) -> HostFile:
        """Raises UserError if it cannot be had."""
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise _refusal(path, error) from None
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise UserError(f"the disk {path} is neither a file nor a block device")
        flags = os.O_RDONLY if readonly else os.O_RDWR | (os.O_EXCL if stat.S_ISBLK(mode) else 0)
        return cls._locked(path, flags, readonly)

    @classmethod
    def create(cls, path: Path) -> HostFile:
        """A new, empty file. Raises UserError, also if there is one."""
        return cls._locked(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, False)

    @classmethod
    def _locked(cls, path: Path, flags: int, readonly: bool) -> HostFile:
        fd = -1
        try:
            fd = os.open(path, flags | os.O_CLOEXEC, 0o666)
            kind = fcntl.F_RDLCK if readonly else fcntl.F_WRLCK
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0))
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise _refusal(path, error) from None
        return cls(fd, readonly)

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        _transfer(os.preadv, self._fd, offset, buffers)

    def readv_cached(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        """Fill the buffers with what the host has in memory, without blocking; False if that is not all of it."""
        try:
            done = os.preadv(self._fd, buffers[:_IOV_MAX], offset, os.RWF_NOWAIT)
        except OSError:
            return False
        return done == sum(map(len, buffers))

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        _transfer(os.pwritev, self._fd, offset, buffers)

    def writev_cached(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        """Put a few whole pages into the host's memory; False, with any part of them written, if it may not be quick.

        Few file systems know of writes that must not block. But where nothing has to be read or made room for, a page
        is copied and that is all; and whoever was made to wait uses threads for a while.
        """
        length = sum(map(len, buffers))
        begun = time.monotonic()
        if (offset | length) % _PAGE or length > _FEW_BYTES or begun < self._slow_until:
            return False
        waits = _waits()
        try:
            done = os.pwritev(self._fd, buffers[:_IOV_MAX], offset)
        except OSError:
            return False
        ended = time.monotonic()
        if ended - begun > _SLOW_S and _waits() != waits:
            self._slow_until = ended + _PATIENCE * (ended - begun)
        return done == length

    def sync(self) -> None:
        """Return when all that was written is safe. After a failure it fails for ever: the kernel tells of a lost write
        only once, and what it has then forgotten cannot be made safe by another try."""
        if self._sync_failed:
            raise OSError(errno.EIO, "an earlier flush failed")
        try:
            os.fdatasync(self._fd)
        except OSError:
            self._sync_failed = True
            raise

    def punch(self, offset: int, length: int) -> None:
        """Give the space back; it reads as zeros afterwards. OSError(EOPNOTSUPP) where the host cannot."""
        arguments = ctypes.c_int64(offset), ctypes.c_int64(length)
        if _libc.fallocate(self._fd, _PUNCH_HOLE, *arguments):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def can_punch(self) -> bool:
        if self.is_device:
            return _queue_limit(self._fd, "discard_max_bytes") > 0
        try:
            self.punch(self.size(), 4096)  # nothing is there
        except OSError:
            return False
        return True

    def size(self) -> int:
        """Bytes."""
        return os.lseek(self._fd, 0, os.SEEK_END)

    def resize(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def modified_ns(self) -> int:
        return os.fstat(self._fd).st_mtime_ns

    def block_size(self) -> int:
        """Bytes that the host writes at once."""
        return _queue_limit(self._fd, "physical_block_size") if self.is_device else os.fstat(self._fd).st_blksize

    def discard_granularity(self) -> int:
        return _queue_limit(self._fd, "discard_granularity") if self.is_device else os.fstat(self._fd).st_blksize

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


def _waits() -> int:
    """How often this thread has waited for something, other than its turn on a processor."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def advance(buffers: Sequence[memoryview], done: int) -> list[memoryview]:
    """The buffers without their first `done` bytes."""
    for number, buffer in enumerate(buffers):
        if done < len(buffer):
            return [buffer[done:], *buffers[number + 1 :]]
        done -= len(buffer)
    return []


def split(buffers: Sequence[memoryview], lengths: Sequence[int]) -> Iterator[list[memoryview]]:
    """The buffers in parts of `lengths` bytes, one after the other."""
    rest = list(reversed(buffers))
    for length in lengths:
        part = []
        while length:
            buffer = rest.pop()
            if len(buffer) > length:
                rest.append(buffer[length:])
                buffer = buffer[:length]
            part.append(buffer)
            length -= len(buffer)
        yield part


def _transfer(
    call: Callable[[int, Sequence[memoryview], int], int], fd: int, offset: int, buffers: Sequence[memoryview]
) -> None:
    while buffers:
        done = call(fd, buffers[:_IOV_MAX], offset)
        if not done:
            raise OSError(errno.EIO, "the disk ends early")
        offset += done
        buffers = advance(buffers, done)


def _queue_limit(fd: int, name: str) -> int:
    """A number that the host's kernel tells of a block device (Documentation/ABI/stable/sysfs-block); 0 without."""
    device = os.fstat(fd).st_rdev
    base = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for directory in (base / "queue", base.resolve().parent / "queue"):  # a partition has its disk's
        try:
            return int((directory / name).read_text())
        except (OSError, ValueError):
            continue
    return 0


def _refusal(path: Path, error: OSError) -> UserError:
    if error.errno == errno.ENOENT:
        return UserError(f"the disk {path} does not exist")
    if error.errno in _BUSY and os.access(path, os.R_OK):
        return UserError(f"the disk {path} is in use elsewhere", "stop what uses it, or attach it read-only everywhere")
    return UserError(f"the disk {path} cannot be opened: {error.strerror}")
