"""A disk that shares what it never wrote with others: a base image, and a sparse file with what was written here.

The file is, one after the other and each a multiple of 4096 bytes long: a header, the bitmap of clusters that are
*safe*, the bitmap of those that are *present*, and the clusters at the places that they have in the disk.

A cluster's bit is set in the second bitmap before its first write is answered, so that code that is started again
finds all that was answered. The first bitmap gets it in a flush, after the data is on the disk, so that it never names
a cluster that a loss of power has taken. Which of them counts is told by the header: the second one only for the
host's boot in which it was written, since only then nothing of it can be missing.
"""

from __future__ import annotations

import os
import struct
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from xenolith.errors import UserError
from xenolith.machine.disk import Image
from xenolith.services.disks.file import HostFile, split

_MAGIC: Final = b"xenolith-overlay"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<16sIIQQ36s")
_PAGE: Final = 4096
_SMALLEST_CLUSTER: Final = 4096
"""Bytes: what a guest's file systems write at once, so that hardly a first write must read the base."""
_MOST_CLUSTERS: Final = 1 << 24
"""A bitmap of 2 MiB; the clusters of a disk above 64 GiB are larger."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class File(Protocol):
    """What an overlay asks of the file that it is kept in; HostFile is one."""

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None: ...
    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None: ...
    def sync(self) -> None: ...
    def punch(self, offset: int, length: int) -> None: ...
    def can_punch(self) -> bool: ...
    def resize(self, size: int) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Header:
    """`size` of the disk in bytes; `base_stamp` tells one state of the base from another; `boot` is the host's boot."""

    cluster_bytes: int
    size: int
    base_stamp: int
    boot: str

    @classmethod
    def plan(cls, size: int, base_stamp: int, boot: str) -> Header:
        cluster = _SMALLEST_CLUSTER
        while size > cluster * _MOST_CLUSTERS:
            cluster *= 2
        return cls(cluster, size, base_stamp, boot)

    @classmethod
    def read(cls, file: File) -> Header | None:
        """None if the file is no overlay."""
        content = bytearray(_HEADER.size)
        try:
            file.readv(0, [memoryview(content)])
        except OSError:
            return None
        magic, version, cluster, size, stamp, boot = _HEADER.unpack(content)
        if magic != _MAGIC or version != _VERSION or cluster < _SMALLEST_CLUSTER or cluster & cluster - 1:
            return None
        return cls(cluster, size, stamp, boot.rstrip(b"\0").decode("ascii", "replace"))

    def write(self, file: File) -> None:
        fields = self.cluster_bytes, self.size, self.base_stamp, self.boot.encode()
        file.writev(0, [memoryview(_HEADER.pack(_MAGIC, _VERSION, *fields))])

    @property
    def clusters(self) -> int:
        return -(-self.size // self.cluster_bytes)

    @property
    def bitmap_bytes(self) -> int:
        return -(-self.clusters // (8 * _PAGE)) * _PAGE

    @property
    def safe_at(self) -> int:
        return _PAGE

    @property
    def present_at(self) -> int:
        return _PAGE + self.bitmap_bytes

    @property
    def data_at(self) -> int:
        end = self.present_at + self.bitmap_bytes
        return -(-end // self.cluster_bytes) * self.cluster_bytes

    @property
    def file_bytes(self) -> int:
        return self.data_at + self.clusters * self.cluster_bytes


def create(file: File, size: int, base_stamp: int, boot: str) -> None:
    """Make an empty file the overlay of a disk of `size` bytes that has nothing of its own yet."""
    header = Header.plan(size, base_stamp, boot)
    file.resize(header.file_bytes)
    header.write(file)
    file.sync()


class Overlay:
    """An Image. `file` has the header `header`, `base` is as long as that says and is never written."""

    def __init__(self, file: File, header: Header, base: Image, boot: str) -> None:
        self._file = file
        self._base = base
        self._header = header
        self._cluster = header.cluster_bytes
        self._data_at = header.data_at
        self.readonly = False
        self.size = header.size
        self.physical_sector_size = base.physical_sector_size
        self.discard_granularity = self._cluster if file.can_punch() else 0
        self._growing = threading.Lock()
        self._flushing = threading.Lock()
        self._unsafe: set[int] = set()
        """Pages of the bitmap that have bits which are not safe."""
        self._bits = self._read_bits(boot)

    def _read_bits(self, boot: str) -> bytearray:
        header = self._header
        bits = bytearray(header.bitmap_bytes)
        if header.boot == boot:
            safe = bytearray(header.bitmap_bytes)
            self._file.readv(header.safe_at, [memoryview(safe)])
            self._file.readv(header.present_at, [memoryview(bits)])
            differs = np.frombuffer(safe, np.uint8) != np.frombuffer(bits, np.uint8)
            self._unsafe.update(int(page) for page in np.flatnonzero(differs.reshape(-1, _PAGE).any(axis=1)))
            return bits
        self._file.readv(header.safe_at, [memoryview(bits)])
        self._file.writev(header.present_at, [memoryview(bits)])
        Header(header.cluster_bytes, header.size, header.base_stamp, boot).write(self._file)
        return bits

    # -- Image --------------------------------------------------------------------------------------------------------

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        runs = list(self._runs(offset, sum(map(len, buffers))))
        for (present, start, _), part in zip(runs, split(buffers, [length for *_, length in runs]), strict=True):
            if present:
                self._file.readv(self._data_at + start, part)
            else:
                self._base.readv(start, part)

    def readv_at_once(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        return False

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        length = sum(map(len, buffers))
        if all(present for present, *_ in self._runs(offset, length)):
            self._file.writev(self._data_at + offset, buffers)
            return
        with self._growing:
            for cluster in self._partly_covered(offset, offset + length):
                self._fill(cluster)
            self._file.writev(self._data_at + offset, buffers)
            self._mark(offset // self._cluster, (offset + length - 1) // self._cluster)

    def writev_at_once(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        return False

    def flush(self) -> None:
        with self._flushing:
            with self._growing:
                pages, self._unsafe = self._unsafe, set()
                copies = {page: bytes(self._bits[page * _PAGE : (page + 1) * _PAGE]) for page in pages}
            try:
                self._file.sync()
                for page, copy in copies.items():
                    self._file.writev(self._header.safe_at + page * _PAGE, [memoryview(copy)])
                if copies:
                    self._file.sync()
            except OSError:
                with self._growing:
                    self._unsafe |= pages
                raise

    def discard(self, offset: int, length: int) -> None:
        first, last = -(-offset // self._cluster), (offset + length) // self._cluster
        start = first * self._cluster
        for present, at, size in self._runs(start, (last - first) * self._cluster):
            if present:
                self._file.punch(self._data_at + at, size)

    def measure(self) -> int:
        return self.size

    def close(self) -> None:
        self._file.close()
        self._base.close()

    # -- clusters -----------------------------------------------------------------------------------------------------

    def _runs(self, offset: int, length: int) -> Iterator[tuple[bool, int, int]]:
        """Parts of a range of the disk that are all present or all not: (present, offset, length in bytes)."""
        if length <= 0:
            return
        end = offset + length
        first, last = offset // self._cluster, (end - 1) // self._cluster
        packed = np.frombuffer(self._bits, np.uint8, last // 8 - first // 8 + 1, first // 8)
        bits = np.unpackbits(packed, bitorder="little")[first % 8 :][: last - first + 1]
        starts = [0, *(int(change) + 1 for change in np.flatnonzero(bits[1:] != bits[:-1]))]
        ends = [*((first + start) * self._cluster for start in starts[1:]), end]
        at = offset
        for start, stop in zip(starts, ends, strict=True):
            yield bool(bits[start]), at, stop - at
            at = stop

    def _is_present(self, cluster: int) -> bool:
        return bool(self._bits[cluster // 8] >> cluster % 8 & 1)

    def _partly_covered(self, start: int, end: int) -> set[int]:
        """Clusters that are not present and of which a range has only a part."""
        edges = set()
        if start % self._cluster:
            edges.add(start // self._cluster)
        if end % self._cluster and end != self.size:
            edges.add(end // self._cluster)
        return {cluster for cluster in edges if not self._is_present(cluster)}

    def _fill(self, cluster: int) -> None:
        """Copy a cluster from the base. It is not present before its bit is set."""
        start = cluster * self._cluster
        content = memoryview(bytearray(min(self._cluster, self.size - start)))
        self._base.readv(start, [content])
        self._file.writev(self._data_at + start, [content])

    def _mark(self, first: int, last: int) -> None:
        """The clusters `first` to `last` are present from now on, also for who opens the file next."""
        begin, end = first // 8, last // 8 + 1
        value = int.from_bytes(self._bits[begin:end], "little") | (1 << last + 1 - 8 * begin) - (1 << first - 8 * begin)
        changed = value.to_bytes(end - begin, "little")
        self._file.writev(self._header.present_at + begin, [memoryview(changed)])
        self._bits[begin:end] = changed
        self._unsafe.update(range(begin // _PAGE, (end - 1) // _PAGE + 1))


def boot_id() -> str:
    """Tells one boot of the host from another."""
    return _BOOT_ID.read_text().strip()


def open_overlay(path: Path, base: Image, base_stamp: int) -> Overlay:
    """The overlay at `path`, which is made if there is none. Raises UserError."""
    try:
        if not path.exists():
            _make(path, base.size, base_stamp)
    except OSError as error:
        raise UserError(f"the overlay {path} cannot be made: {error.strerror}") from None
    return adopt_overlay(HostFile.open(path, readonly=False), base, base_stamp, str(path))


def make_passing_overlay(base: Image, base_stamp: int) -> HostFile:
    """An overlay that has no name, and is gone with the last descriptor of its file. Raises UserError."""
    directory = tempfile.gettempdir()
    try:
        file = HostFile(os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600), readonly=False)
        create(file, base.size, base_stamp, boot_id())
    except OSError as error:
        raise UserError(f"there can be no overlay in {directory}: {error.strerror}", "set TMPDIR") from None
    return file


def adopt_overlay(file: HostFile, base: Image, base_stamp: int, name: str) -> Overlay:
    """The overlay in an open file, which is closed if that fails. Raises UserError."""
    try:
        header = Header.read(file)
        if header is None:
            raise UserError(f"{name} is no overlay of Xenolith's", "name a file that does not exist, and it is made")
        if (header.size, header.base_stamp) != (base.size, base_stamp):
            raise UserError(
                f"the base of the overlay {name} is not what it was when the overlay was made",
                "bring the old base back, or remove the overlay, which loses what was written to it",
            )
        return Overlay(file, header, base, boot_id())
    except OSError as error:
        file.close()
        raise UserError(f"the overlay {name} cannot be used: {error.strerror}") from None
    except UserError:
        file.close()
        raise


def _make(path: Path, size: int, base_stamp: int) -> None:
    """Nothing is at `path` before the overlay is whole."""
    unfinished = path.with_name(path.name + ".new")
    with suppress(FileNotFoundError):
        unfinished.unlink()
    file = HostFile.create(unfinished)
    try:
        create(file, size, base_stamp, boot_id())
        os.rename(unfinished, path)
    except BaseException:
        unfinished.unlink()
        raise
    finally:
        file.close()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
