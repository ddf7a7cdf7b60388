"""The store's end of a xenstore ring (public/io/xs_wire.h): bytes in and out of a page that a guest shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xenolith.abi.io.xs_wire import (
    XENSTORE_ERROR_COMM,
    XENSTORE_ERROR_PROTO,
    XENSTORE_ERROR_RINGIDX,
    XENSTORE_RING_SIZE,
    XENSTORE_SERVER_FEATURE_ERROR,
    XenstoreDomainInterface,
)
from xenolith.store.server import Connection
from xenolith.store.wire import Decoder, ProtocolError

_SIZE: Final = XENSTORE_RING_SIZE
_PAGE: Final = 4096
_REQ_CONS: Final[int] = XenstoreDomainInterface.req_cons.offset >> 2  # type: ignore[attr-defined]
_REQ_PROD: Final = _REQ_CONS + 1
_RSP_CONS: Final = _REQ_CONS + 2
_RSP_PROD: Final = _REQ_CONS + 3
_FEATURES: Final = _REQ_CONS + 4
_ERROR: Final = _REQ_CONS + 6
_INDEX_MASK: Final = 0xFFFF_FFFF
_HELD_BACK: Final = 4 * _PAGE
"""How many bytes may wait for a guest before its requests have to wait until it has read some."""


class _BadIndices(Exception):
    """A ring that holds more than its size."""


class StoreRing:
    """`page` is the shared frame, `notify` tells the guest of progress.

    Indices come from the guest and are never trusted. A guest that breaks the protocol finds the reason in the page's
    error field, and is answered no more; so does one that does not read its events.
    """

    def __init__(self, page: memoryview, connection: Connection, notify: Callable[[], None]) -> None:
        self._bytes = page[:_PAGE]
        self._words = self._bytes.cast("I")
        self._connection = connection
        self._notify = notify
        self._decoder = Decoder()
        self._cut = False
        self._words[_FEATURES] = XENSTORE_SERVER_FEATURE_ERROR

    def service(self) -> bool:
        """Take requests, have them answered, and give what waits for the guest, as far as the ring has room.

        Returns whether there was anything to do.
        """
        if self._cut:
            return False
        moved = True
        try:
            moved = self._give() | self._answer()
        except ProtocolError:
            self._cut_off(XENSTORE_ERROR_PROTO)
        except _BadIndices:
            self._cut_off(XENSTORE_ERROR_RINGIDX)
        if self._connection.overflowed:
            self._cut_off(XENSTORE_ERROR_COMM)
        if moved:
            self._notify()
        return moved

    def _answer(self) -> bool:
        moved = False
        while self._connection.waiting_bytes <= _HELD_BACK and (data := self._take(self._decoder.missing)):
            moved = True
            message = self._decoder.feed(data)
            if message is not None:
                self._connection.handle(message)
                self._give()
        return moved

    def _cut_off(self, error: int) -> None:
        self._cut = True
        self._words[_ERROR] = error

    def _used(self, producer: int, consumer: int) -> int:
        """How many bytes a ring holds. Raises _BadIndices if it cannot be."""
        used = (self._words[producer] - self._words[consumer]) & _INDEX_MASK
        if used > _SIZE:
            raise _BadIndices
        return used

    def _take(self, limit: int) -> bytes:
        size = min(self._used(_REQ_PROD, _REQ_CONS), limit)
        consumer = self._words[_REQ_CONS]
        start = consumer % _SIZE
        first = min(size, _SIZE - start)
        data = bytes(self._bytes[start : start + first]) + bytes(self._bytes[: size - first])
        self._words[_REQ_CONS] = (consumer + size) & _INDEX_MASK
        return data

    def _give(self) -> bool:
        moved = False
        while data := self._connection.take(_SIZE - self._used(_RSP_PROD, _RSP_CONS)):
            producer = self._words[_RSP_PROD]
            start = _SIZE + producer % _SIZE
            first = min(len(data), 2 * _SIZE - start)
            self._bytes[start : start + first] = data[:first]
            self._bytes[_SIZE : _SIZE + len(data) - first] = data[first:]
            self._words[_RSP_PROD] = (producer + len(data)) & _INDEX_MASK
            moved = True
        return moved
