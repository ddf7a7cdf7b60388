"""The machine's RAM: one shared mapping that a machine frame number indexes."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path

from xenolith.errors import UserError

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT


class Ram:
    """`size` bytes of machine memory at machine address 0, backed by a memfd that grows only as it is touched.

    `bytes` and `words` are the same memory as bytes and as 64-bit words. UserError if the host lacks it.
    """

    def __init__(self, size: int) -> None:
        if size > (most := _host_memory()):
            raise UserError(
                f"{size >> 20} MiB of machine memory is more than this host has, which is {most >> 20} MiB",
                "give the machine less memory",
            )
        self.size = size
        self.frames = size >> PAGE_SHIFT
        try:
            self.fd = os.memfd_create("xenolith-ram", os.MFD_CLOEXEC)
            weakref.finalize(self, os.close, self.fd)
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size, mmap.MAP_SHARED)
        except (OSError, OverflowError, ValueError) as error:
            raise UserError(
                f"the host cannot map {size >> 20} MiB of machine memory: {error}", "give the machine less memory"
            ) from None
        self.bytes = memoryview(self._map)
        self.words = self.bytes.cast("Q")
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self.host_address = ctypes.addressof(self._anchor)

    def frame(self, mfn: int) -> memoryview:
        """The 4096 bytes of frame `mfn`, not copied."""
        return self.bytes[mfn << PAGE_SHIFT : (mfn + 1) << PAGE_SHIFT]

    def clear(self, mfn: int, count: int = 1) -> None:
        """Zero `count` frames; large runs are given back to the host."""
        start, length = mfn << PAGE_SHIFT, count << PAGE_SHIFT
        if count >= 16:
            self._map.madvise(mmap.MADV_REMOVE, start, length)
        else:
            self.bytes[start : start + length] = bytes(length)

    def resident_bytes(self) -> int:
        """How much of this memory the host really holds."""
        return os.fstat(self.fd).st_blocks * 512


def _host_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes of memory and swap that this host has, whether or not they are free."""
    lines = (line.split() for line in meminfo.read_text().splitlines())
    return sum(int(words[1]) << 10 for words in lines if words[0] in ("MemTotal:", "SwapTotal:"))
