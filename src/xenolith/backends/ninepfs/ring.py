"""The back end's side of a 9P ring (Xen's docs/misc/9pfs.pandoc): whole requests out of it, whole answers into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xenolith.abi.io.ninepfs import Xen9pfsDataIntf
from xenolith.abi.types import PAGE_SHIFT, PAGE_SIZE

_IN_CONS: Final[int] = Xen9pfsDataIntf.in_cons.offset >> 2  # type: ignore[attr-defined]
_IN_PROD: Final[int] = Xen9pfsDataIntf.in_prod.offset >> 2  # type: ignore[attr-defined]
_OUT_CONS: Final[int] = Xen9pfsDataIntf.out_cons.offset >> 2  # type: ignore[attr-defined]
_OUT_PROD: Final[int] = Xen9pfsDataIntf.out_prod.offset >> 2  # type: ignore[attr-defined]
_INDEX_MASK: Final = 0xFFFF_FFFF
_SIZE_BYTES: Final = 4
_HEADER: Final = 7
"""Bytes of the shortest message: size[4] type[1] tag[2]."""


class RingBroken(Exception):
    """The frontend has written what no frontend may write; the ring cannot be used any more."""


class Ring:
    """One ring: `interface` is the page of a Xen9pfsDataIntf, `pages` are the data pages, a power of 2, at least two.

    Both indices of our own are read once, here: what an earlier user of the same ring has not done is still to be done.
    A request stays in the ring until its answer has been put, so that it can be done again. Raises RingBroken.
    """

    def __init__(self, interface: memoryview, pages: Sequence[memoryview]) -> None:
        half = len(pages) // 2
        self.size = half << PAGE_SHIFT
        self._words = interface[:PAGE_SIZE].cast("I")
        self._in, self._out = pages[:half], pages[half:]
        self._in_prod = self._words[_IN_PROD]
        self._out_cons = self._words[_OUT_CONS]
        self._room()

    @property
    def position(self) -> int:
        """Where the request that is first in the ring begins."""
        return self._out_cons

    def request(self, longest: int) -> bytes | None:
        """A copy of the first request if all of it is there. Raises RingBroken, also if it is longer than `longest`."""
        available = self._queued(self._words[_OUT_PROD], self._out_cons)
        if available < _SIZE_BYTES:
            return None
        size = int.from_bytes(self._read(_SIZE_BYTES), "little")
        if not _HEADER <= size <= min(longest, self.size):
            raise RingBroken(f"a request of {size} bytes")
        return self._read(size) if available >= size else None

    def answer(self, request: bytes, answer: bytes) -> bool:
        """Take the first request, which is `request`, out of the ring and put its answer in, both at once.

        False if there is no room before the frontend has read more. Raises RingBroken.
        """
        if len(answer) > self._room():
            return False
        self._write(answer)
        self._in_prod = (self._in_prod + len(answer)) & _INDEX_MASK
        self._out_cons = (self._out_cons + len(request)) & _INDEX_MASK
        self._words[_IN_PROD] = self._in_prod
        self._words[_OUT_CONS] = self._out_cons
        return True

    def _room(self) -> int:
        return self.size - self._queued(self._in_prod, self._words[_IN_CONS])

    def _queued(self, producer: int, consumer: int) -> int:
        queued = (producer - consumer) & _INDEX_MASK
        if queued > self.size:
            raise RingBroken(f"{queued} bytes in a ring of {self.size}")
        return queued

    def _read(self, size: int) -> bytes:
        return b"".join(self._parts(self._out, self._out_cons, size))

    def _write(self, data: bytes) -> None:
        done = 0
        for part in self._parts(self._in, self._in_prod, len(data)):
            part[:] = data[done : done + len(part)]
            done += len(part)

    def _parts(self, pages: Sequence[memoryview], index: int, size: int) -> list[memoryview]:
        """The `size` bytes of a ring from an index on, page by page."""
        parts = []
        at = index & (self.size - 1)
        while size:
            page, offset = at >> PAGE_SHIFT, at & (PAGE_SIZE - 1)
            length = min(PAGE_SIZE - offset, size)
            parts.append(pages[page][offset : offset + length])
            size -= length
            at = (at + length) & (self.size - 1)
        return parts
