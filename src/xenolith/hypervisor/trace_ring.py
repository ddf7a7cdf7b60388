"""A ring of trace records, of which another reads while it is written: what is stored where, and what is lost.

Facts are those of public/trace.h, and of __trace_var and its helpers in Xen 4.17's xen/common/trace.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from xenolith.abi.trace import (
    TRACE_EXTRA_MAX,
    TRACE_EXTRA_SHIFT,
    TRC_HD_CYCLE_FLAG,
    TRC_LOST_RECORDS,
    TRC_TRACE_WRAP_BUFFER,
)

_WORD: Final = 4
_CYCLES: Final = 8


def pack(event: int, words: tuple[int, ...], tsc: int) -> bytes:
    """A record with a time stamp and at most seven words of data."""
    header = event | len(words) << TRACE_EXTRA_SHIFT | TRC_HD_CYCLE_FLAG
    return struct.pack(f"<IQ{len(words)}I", header, tsc, *words)


class TraceRing:
    """A ring of `size` bytes, a multiple of 4. `store` writes bytes at an offset into it.

    `produced` is the offset of the next record, modulo twice the size, as is what readers say that they have consumed.
    """

    def __init__(self, size: int, store: Callable[[int, bytes], None]) -> None:
        self.size = size
        self.produced = 0
        self._store = store
        self._lost = 0
        self._first_lost_tsc = 0

    def unread(self, consumed: int) -> int | None:
        """Bytes that were not consumed yet; None if that offset is impossible."""
        if consumed % _WORD or consumed >= 2 * self.size:
            return None
        unread = (self.produced - consumed) % (2 * self.size)
        return unread if unread <= self.size else None

    def append(self, record: bytes, unread: int, who: tuple[int, int], tsc: int) -> bool:
        """Store a record after what is `unread`; if there is no room, only count that it was lost.

        Once there is room again, a record tells so first, with `who` runs now (domid and vCPU). Returns whether there
        was room. No record lies across the end of the ring.
        """
        records = [record]
        if self._lost:
            domid, vcpu_id = who
            words = (self._lost, domid | vcpu_id << 16, self._first_lost_tsc & 0xFFFF_FFFF, self._first_lost_tsc >> 32)
            records.insert(0, pack(TRC_LOST_RECORDS, words, tsc))
        at = self.produced % self.size
        pieces: list[bytes] = []
        for piece in records:
            left = self.size - at
            if len(piece) > left:
                pieces.append(_filler(left))
                at = 0
            pieces.append(piece)
            at = (at + len(piece)) % self.size
        if sum(map(len, pieces)) > self.size - unread:
            if not self._lost:
                self._first_lost_tsc = tsc
            self._lost += 1
            return False
        for piece in pieces:
            self._store(self.produced % self.size, piece)
            self.produced = (self.produced + len(piece)) % (2 * self.size)
        self._lost = 0
        return True

    def forget_lost(self) -> None:
        """What was lost until now is not told."""
        self._lost = 0


def _filler(size: int) -> bytes:
    """A record that fills the ring up to its end."""
    extra = size // _WORD - 1
    flag = 0
    if extra > TRACE_EXTRA_MAX:
        extra -= _CYCLES // _WORD
        flag = TRC_HD_CYCLE_FLAG
    return (TRC_TRACE_WRAP_BUFFER | extra << TRACE_EXTRA_SHIFT | flag).to_bytes(_WORD, "little").ljust(size, b"\0")
