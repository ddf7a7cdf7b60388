"""The PV console's other end: a ring shared with the guest (public/io/console.h), and bytes on this side of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

IN_SIZE: Final = 1024
OUT_SIZE: Final = 2048
_OUT_AT: Final = IN_SIZE
_IN_CONS: Final = (IN_SIZE + OUT_SIZE) // 4
_IN_PROD: Final = _IN_CONS + 1
_OUT_CONS: Final = _IN_CONS + 2
_OUT_PROD: Final = _IN_CONS + 3
_PAGE: Final = 4096
_PENDING_LIMIT: Final = 1 << 20


class ConsoleRing:
    """`page` is the shared frame; `sink` gets what the guest prints; `notify` tells the guest of progress.

    Indices come from the guest and are never trusted: a producer that is further ahead than the ring is long counts as
    a full ring.
    """

    def __init__(self, page: memoryview, sink: Callable[[bytes], None], notify: Callable[[], None]) -> None:
        self._bytes = page[:_PAGE]
        self._words = self._bytes.cast("I")
        self._sink = sink
        self._notify = notify
        self._input = bytearray()
        self._closed = False

    def close(self) -> None:
        """Leave the page alone from now on: it may belong to somebody else."""
        self._closed = True

    def service(self) -> None:
        """Take what the guest has printed, and give it what was typed."""
        if self._closed:
            return
        moved = self._take()
        moved |= self._give()
        if moved:
            self._notify()

    def type(self, data: bytes) -> None:
        """Input for the guest; it waits here while the ring is full, up to a mebibyte."""
        if self._closed:
            return
        self._input += data[: _PENDING_LIMIT - len(self._input)]
        if self._give():
            self._notify()

    def _take(self) -> bool:
        consumer, producer = self._words[_OUT_CONS], self._words[_OUT_PROD]
        size = (producer - consumer) & 0xFFFF_FFFF
        if not size:
            return False
        size = min(size, OUT_SIZE)
        start = consumer % OUT_SIZE
        first = min(size, OUT_SIZE - start)
        data = bytes(self._bytes[_OUT_AT + start : _OUT_AT + start + first])
        data += bytes(self._bytes[_OUT_AT : _OUT_AT + size - first])
        self._words[_OUT_CONS] = producer
        self._sink(data)
        return True

    def _give(self) -> bool:
        consumer, producer = self._words[_IN_CONS], self._words[_IN_PROD]
        room = IN_SIZE - min((producer - consumer) & 0xFFFF_FFFF, IN_SIZE)
        size = min(room, len(self._input))
        for offset in range(size):
            self._bytes[(producer + offset) % IN_SIZE] = self._input[offset]
        if size:
            self._words[_IN_PROD] = (producer + size) & 0xFFFF_FFFF
            del self._input[:size]
        return bool(size)
