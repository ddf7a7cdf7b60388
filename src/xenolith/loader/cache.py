"""Unpacked kernels in the user's cache, so that a second boot need not unpack them again."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from xenolith.user_cache import cache_directory

PAYLOAD_LIMIT: Final = 512 << 20
"""Bytes that unpacked kernels may take in the cache; the least recently used go first."""
_TRAILER: Final = struct.Struct("<8sQI4x")
_MAGIC: Final = b"XNLPAYL1"


def unpacked(packed: memoryview, unpack: Callable[[], bytes]) -> memoryview:
    """What `unpack()` returns for `packed`, from the cache if it was unpacked before.

    A cache that cannot be read or written, or a damaged entry, costs time and nothing else.
    """
    path = cache_directory() / "payload" / hashlib.blake2b(packed, digest_size=20).hexdigest()
    found = _load(path)
    if found is not None:
        return found
    data = unpack()
    if not _store(path, data):
        return memoryview(data)
    # The mapped file shares its pages with every later run; the private copy would not.
    return _load(path) or memoryview(data)


def _load(path: Path) -> memoryview | None:
    """The entry's data if its length and checksum are right."""
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        os.utime(path)
    except (OSError, ValueError):
        return None
    view = memoryview(mapping)
    length = len(view) - _TRAILER.size
    if length < 0:
        return None
    data = view[:length]
    expected = (_MAGIC, length, zlib.crc32(data))
    return data if _TRAILER.unpack(view[length:]) == expected else None


def _store(path: Path, data: bytes) -> bool:
    """Write an entry under a temporary name, rename it into place, and keep the cache within its limit."""
    import tempfile  # only the first boot of a kernel needs it

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    except OSError:
        return False
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.write(_TRAILER.pack(_MAGIC, len(data), zlib.crc32(data)))
        os.replace(temporary, path)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    _prune(path.parent, path)
    return True


def _prune(directory: Path, keep: Path) -> None:
    """Delete the entries used longest ago until the rest is within PAYLOAD_LIMIT; `keep` stays."""
    with contextlib.suppress(OSError):
        entries = sorted(((path.stat(), path) for path in directory.iterdir()), key=lambda entry: entry[0].st_mtime)
        excess = sum(status.st_size for status, _ in entries) - PAYLOAD_LIMIT
        for status, path in entries:
            if excess <= 0:
                return
            if path != keep:
                path.unlink()
                excess -= status.st_size
