"""A directory of the host as a guest may use it: what is in it and below it, and nothing else.

A path is gone along name by name, each opened in the directory before it without following a symbolic link, so that
neither links nor what others move about meanwhile lead out of the directory.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EAGAIN, EEXIST, EINVAL, ELOOP, EMFILE, ENXIO, EPERM
from pathlib import Path
from typing import Final

from xenolith.backends.ninepfs.filesystem import Changes, Entry, Lock, Owner
from xenolith.errors import UserError

_STEP: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FLAGS: Final = (
    os.O_ACCMODE | os.O_TRUNC | os.O_APPEND | os.O_DSYNC | os.O_SYNC | os.O_DIRECTORY
)  # what of a guest's wishes reaches the host
_FLOCK: Final = struct.Struct("hhqqi4x")
"""struct flock of fcntl(2) on x86-64."""
_LOCK_TYPES: Final = (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)
"""By the numbers of 9P."""
_NODES: Final = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)
_MIXER: Final = 0x9E37_79B9_7F4A_7C15
_NUMBER_MASK: Final = (1 << 64) - 1


class Allowance:
    """How many files may be open at once, of all shares together, each of which has threads of its own."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self.left = limit

    def take(self) -> None:
        """Raises OSError(EMFILE)."""
        with self._lock:
            if self.left <= 0:
                raise OSError(EMFILE, "too many files of shares are open")
            self.left -= 1

    def take_anyway(self) -> None:
        """For a file that is open already."""
        with self._lock:
            self.left -= 1

    def give(self) -> None:
        with self._lock:
            self.left += 1


class SharedDirectory:
    """The FileSystem of one share, in which not more than `limit` files are open at once, and not more than `allowance`
    has left. UserError if `path` is no directory that can be used.
    """

    def __init__(self, path: Path, limit: int, allowance: Allowance) -> None:
        try:
            self._root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(
                f"{path} cannot be shared: {error.strerror}", "name a directory of the host that you can read"
            ) from None
        self._device = os.fstat(self._root).st_dev
        self._own = Allowance(limit)
        self._all = allowance

    def release(self) -> None:
        """The directory is not shared any more; handles stay as they are."""
        os.close(self._root)

    # -- ways ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def _place(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """The directory that a path's last name is in, as a descriptor, and that name."""
        *above, name = path.split(b"/")
        if path and not all(part not in (b"", b".", b"..") for part in (*above, name)):
            raise OSError(EINVAL, "this is no path below a directory")
        fd = self._root
        try:
            for part in above:
                inner = os.open(part, _STEP, dir_fd=fd)
                if fd != self._root:
                    os.close(fd)
                fd = inner
            yield fd, name or b"."
        finally:
            if fd != self._root:
                os.close(fd)

    @contextmanager
    def _found(self, path: bytes) -> Iterator[str]:
        """A name of the host for the file at a path, which stays the same file; a symbolic link is the link itself."""
        with self._place(path) as (directory, name):
            fd = os.open(name, _LOOK, dir_fd=directory)
        try:
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)

    def _number(self, device: int, inode: int) -> int:
        """One number for a file: its inode number, or a mixture if it is on another device than the directory."""
        return inode if device == self._device else (inode ^ device * _MIXER) & _NUMBER_MASK

    # -- looking ------------------------------------------------------------------------------------------------------

    def status(self, path: bytes, handle: int | None = None) -> os.stat_result:
        if handle is not None:
            return os.fstat(handle)
        with self._place(path) as (directory, name):
            return os.stat(name, dir_fd=directory, follow_symlinks=False)

    def number(self, status: os.stat_result) -> int:
        return self._number(status.st_dev, status.st_ino)

    def usage(self, path: bytes) -> os.statvfs_result:
        with self._found(path) as name:
            return os.statvfs(name)

    def read_link(self, path: bytes) -> bytes:
        with self._place(path) as (directory, name):
            return os.readlink(name, dir_fd=directory)

    # -- open files ---------------------------------------------------------------------------------------------------

    def adopt(self, handle: int) -> None:
        self._own.take_anyway()
        self._all.take_anyway()

    def _allowed(self) -> None:
        self._own.take()
        try:
            self._all.take()
        except OSError:
            self._own.give()
            raise

    @contextmanager
    def _allowance(self) -> Iterator[None]:
        """For a file that is opened within, and stays open unless that fails."""
        self._allowed()
        try:
            yield
        except BaseException:
            self._own.give()
            self._all.give()
            raise

    def open(self, path: bytes, flags: int) -> int:
        with self._allowance(), self._found(path) as name:
            mode = os.stat(name).st_mode
            if stat.S_ISLNK(mode):
                raise OSError(ELOOP, "it is a symbolic link")
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise OSError(ENXIO, "what is behind this file is the host's")
            return os.open(name, flags & _OPEN_FLAGS | os.O_CLOEXEC)

    def create(self, path: bytes, flags: int, mode: int, owner: Owner) -> int:
        try:
            with self._allowance(), self._place(path) as (directory, name):
                new = flags & _OPEN_FLAGS | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                handle = os.open(name, new, 0o600, dir_fd=directory)
                with suppress(PermissionError):  # without the right to give files away they are ours
                    os.fchown(handle, *owner)
                os.fchmod(handle, mode)
                return handle
        except OSError as error:
            if error.errno != EEXIST or flags & os.O_EXCL:
                raise
        return self.open(path, flags)

    def close(self, handle: int) -> None:
        os.close(handle)
        self._own.give()
        self._all.give()

    def read(self, handle: int, offset: int, count: int) -> bytes:
        return os.pread(handle, count, offset)

    def write(self, handle: int, offset: int, data: memoryview) -> int:
        return os.pwrite(handle, data, offset)

    def sync(self, handle: int, data_only: bool) -> None:
        os.fdatasync(handle) if data_only else os.fsync(handle)

    def entries(self, handle: int) -> Iterator[Entry]:
        device = os.fstat(handle).st_dev
        with os.scandir(handle) as entries:
            for entry in entries:
                yield Entry(os.fsencode(entry.name), self._number(device, entry.inode()), _type(entry))

    def lock(self, handle: int, lock: Lock) -> bool:
        """The lock is the open file's (F_OFD_SETLK), so that it holds against other guests, and against the host."""
        wanted = _FLOCK.pack(_LOCK_TYPES[lock.type], os.SEEK_SET, lock.start, lock.length, 0)
        try:
            fcntl.fcntl(handle, fcntl.F_OFD_SETLK, wanted)
        except OSError as error:
            if error.errno not in (EAGAIN, EACCES):
                raise
            return False
        return True

    def locked(self, handle: int, lock: Lock) -> Lock | None:
        wanted = _FLOCK.pack(_LOCK_TYPES[lock.type], os.SEEK_SET, lock.start, lock.length, 0)
        kind, _, start, length, _ = _FLOCK.unpack(fcntl.fcntl(handle, fcntl.F_OFD_GETLK, wanted))
        return None if kind == fcntl.F_UNLCK else Lock(_LOCK_TYPES.index(kind), start, length)

    # -- changing -----------------------------------------------------------------------------------------------------

    def change(self, path: bytes, handle: int | None, changes: Changes) -> None:
        if handle is not None:
            _change(f"/proc/self/fd/{handle}", changes)
        else:
            with self._found(path) as name:
                _change(name, changes)

    def make_directory(self, path: bytes, mode: int, owner: Owner) -> None:
        with self._place(path) as (directory, name):
            os.mkdir(name, 0o700, dir_fd=directory)
        self._give(path, owner, mode)

    def make_symlink(self, path: bytes, target: bytes, owner: Owner) -> None:
        with self._place(path) as (directory, name):
            os.symlink(target, name, dir_fd=directory)
        self._give(path, owner, None)

    def make_node(self, path: bytes, mode: int, owner: Owner) -> None:
        if stat.S_IFMT(mode) not in _NODES:
            raise OSError(EPERM, "guests make no devices")
        with self._place(path) as (directory, name):
            os.mknod(name, stat.S_IFMT(mode) | 0o600, dir_fd=directory)
        self._give(path, owner, stat.S_IMODE(mode))

    def _give(self, path: bytes, owner: Owner, mode: int | None) -> None:
        """Say whose a new file is, as far as that can be said, and then who may do what with it."""
        with suppress(PermissionError):
            self.change(path, None, Changes(owner=owner))
        if mode is not None:
            self.change(path, None, Changes(mode=mode))

    def link(self, path: bytes, new_path: bytes) -> None:
        with self._place(path) as (directory, name), self._place(new_path) as (new_directory, new_name):
            os.link(name, new_name, src_dir_fd=directory, dst_dir_fd=new_directory, follow_symlinks=False)

    def rename(self, path: bytes, new_path: bytes) -> None:
        with self._place(path) as (directory, name), self._place(new_path) as (new_directory, new_name):
            os.rename(name, new_name, src_dir_fd=directory, dst_dir_fd=new_directory)

    def remove(self, path: bytes, is_directory: bool) -> None:
        with self._place(path) as (directory, name):
            (os.rmdir if is_directory else os.unlink)(name, dir_fd=directory)


def _type(entry: os.DirEntry[str]) -> int:
    """The type bits of st_mode, as far as the directory itself has them."""
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0


def _change(name: str, changes: Changes) -> None:
    """`name` is a descriptor's in /proc, which stands for the file even where that is a symbolic link."""
    if changes.size is not None:
        os.truncate(name, changes.size)
    if changes.owner is not None:
        os.chown(name, *changes.owner)
    if changes.mode is not None:
        os.chmod(name, changes.mode)
    if changes.atime_ns is not None or changes.mtime_ns is not None:
        now = os.stat(name)
        atime_ns = now.st_atime_ns if changes.atime_ns is None else changes.atime_ns
        mtime_ns = now.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns
        os.utime(name, ns=(atime_ns, mtime_ns))
