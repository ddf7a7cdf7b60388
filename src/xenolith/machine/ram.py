"""The machine's RAM: one mapping that a machine frame number indexes."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path
from typing import Final

from xenolith.errors import UserError

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
_NORESERVE: Final = 0x4000
_FIXED: Final = 0x10
"""Flags of mmap that Python does not name."""
_LESS: Final = "give the machine less memory"
_GIVEN_BACK: Final = 16
"""Frames from which on it pays to give them back to the host instead of zeroing them."""


class Ram:
    """`size` bytes of machine memory at machine address 0, of which the host holds only what was touched.

    `bytes` and `words` are the same memory as bytes and as 64-bit words. UserError if the host lacks it. The memory is
    this process's own, since the host has that ready sooner than what can be shared, until `share` is called.
    """

    def __init__(self, size: int) -> None:
        if size > (most := _host_memory()):
            raise UserError(
                f"{size >> 20} MiB of machine memory is more than this host has, which is {most >> 20} MiB",
                _LESS,
            )
        self.size = size
        self.frames = size >> PAGE_SHIFT
        try:
            self._map = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
            self._map.madvise(mmap.MADV_DONTFORK)
        except (OSError, OverflowError, ValueError) as error:
            raise UserError(f"the host cannot map {size >> 20} MiB of machine memory: {error}", _LESS) from None
        self.bytes = memoryview(self._map)
        self.words = self.bytes.cast("Q")
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self.host_address = ctypes.addressof(self._anchor)
        self._give_back = mmap.MADV_DONTNEED

    def share(self) -> int:
        """Back the memory by a file that others can map, which stays at the same address; returns its descriptor.

        To be called once, before anybody else uses the memory. UserError if the host lacks it.
        """
        try:
            fd = os.memfd_create("xenolith-ram", os.MFD_CLOEXEC)
            weakref.finalize(self, os.close, fd)
            os.ftruncate(fd, self.size)
            for mfn, is_resident in enumerate(self._residency()):
                if is_resident:
                    os.pwrite(fd, self.frame(mfn), mfn << PAGE_SHIFT)
            self._replace_mapping(fd)
        except OSError as error:
            raise UserError(f"the host cannot share {self.size >> 20} MiB of machine memory: {error}", _LESS) from None
        self._give_back = mmap.MADV_REMOVE
        return fd

    def _replace_mapping(self, fd: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
        rights, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _FIXED
        if libc.mmap(self.host_address, self.size, rights, flags, fd, 0) != self.host_address:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def frame(self, mfn: int) -> memoryview:
        """The 4096 bytes of frame `mfn`, not copied."""
        return self.bytes[mfn << PAGE_SHIFT : (mfn + 1) << PAGE_SHIFT]

    def clear(self, mfn: int, count: int = 1) -> None:
        """Zero `count` frames; large runs are given back to the host."""
        start, length = mfn << PAGE_SHIFT, count << PAGE_SHIFT
        if count >= _GIVEN_BACK:
            self._map.madvise(self._give_back, start, length)
        else:
            self.bytes[start : start + length] = bytes(length)

    def resident_bytes(self) -> int:
        """How much of this memory the host really holds."""
        return sum(self._residency()) << PAGE_SHIFT

    def _residency(self) -> bytes:
        """For each frame whether the host holds it: 1 or 0."""
        found = (ctypes.c_ubyte * self.frames)()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mincore(ctypes.c_void_p(self.host_address), ctypes.c_size_t(self.size), found):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return bytes(byte & 1 for byte in found)


def _host_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes of memory and swap that this host has, whether or not they are free."""
    lines = (line.split() for line in meminfo.read_text().splitlines())
    return sum(int(words[1]) << 10 for words in lines if words[0] in ("MemTotal:", "SwapTotal:"))
