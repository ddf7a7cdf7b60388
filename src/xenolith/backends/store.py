"""The store's end of a xenstore ring (public/io/xs_wire.h): bytes in and out of a page that a guest shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xenolith.abi.io.xs_wire import (
    XENSTORE_CONNECTED,
    XENSTORE_ERROR_RINGIDX,
    XENSTORE_RECONNECT,
    XENSTORE_RING_SIZE,
    XenstoreDomainInterface,
)
from xenolith.abi.types import PAGE_SIZE
from xenolith.store.connections import Connection
from xenolith.store.server import Store

_SIZE: Final = XENSTORE_RING_SIZE
_REQ_CONS: Final[int] = XenstoreDomainInterface.req_cons.offset >> 2  # type: ignore[attr-defined]
_REQ_PROD: Final = _REQ_CONS + 1
_RSP_CONS: Final = _REQ_CONS + 2
_RSP_PROD: Final = _REQ_CONS + 3
_FEATURES: Final = _REQ_CONS + 4
_CONNECTION: Final = _REQ_CONS + 5
_ERROR: Final = _REQ_CONS + 6
_INDEX_MASK: Final = 0xFFFF_FFFF
_HELD_BACK: Final = 4 * PAGE_SIZE
"""How many bytes may wait for a guest before its requests have to wait until it has read some."""


def positions(page: memoryview) -> tuple[int, int]:
    """Where a ring stands that nobody has served yet: req_cons and rsp_prod."""
    words = page[:PAGE_SIZE].cast("I")
    return words[_REQ_CONS], words[_RSP_PROD]


class StoreRing:
    """`page` is the shared frame, `notify` tells the guest of progress.

    Indices come from the guest and are never trusted; our own are the positions that the store's journal has, and the
    page is told them after the journal. A guest that breaks the protocol finds the reason in the page's error field,
    and is answered no more, unless it reconnects.
    """

    def __init__(self, page: memoryview, store: Store, connection: Connection, notify: Callable[[], None]) -> None:
        self._bytes = page[:PAGE_SIZE]
        self._words = self._bytes.cast("I")
        self._store = store
        self._connection = connection
        self._notify = notify
        self._words[_FEATURES] = store.state_of(connection.domid).features
        self._words[_REQ_CONS] = connection.received
        self._words[_RSP_PROD] = connection.sent
        self._words[_ERROR] = connection.error
        if self._words[_CONNECTION] != XENSTORE_CONNECTED:
            # The builder has the guest wait like that, or the guest has asked for it.
            self._reconnect()

    def service(self) -> bool:
        """Take requests, have them answered, and give what waits for the guest, as far as the ring has room.

        Returns whether there was anything to do.
        """
        moved = False
        if self._words[_CONNECTION] == XENSTORE_RECONNECT:
            self._reconnect()
            moved = True
        if not self._connection.error:
            moved |= self._give()
            while self._answer():
                moved = True
                self._give()
        if self._connection.error != self._words[_ERROR]:
            self._words[_ERROR] = self._connection.error
            moved = True
        if moved:
            self._notify()
        return moved

    def _reconnect(self) -> None:
        """Begin anew (docs/misc/xenstore-ring.txt): the guest waits until `connection` says that it is done."""
        self._store.reconnect(self._connection)
        for word in (_REQ_CONS, _REQ_PROD, _RSP_CONS, _RSP_PROD, _ERROR):
            self._words[word] = 0
        self._words[_CONNECTION] = XENSTORE_CONNECTED

    def _answer(self) -> bool:
        """Take one message, or as much of it as there is."""
        connection = self._connection
        if not connection.is_ready or connection.waiting_bytes > _HELD_BACK:
            return False
        start = connection.received
        used = (self._words[_REQ_PROD] - start) & _INDEX_MASK
        if not used:
            return False
        if used > _SIZE:
            self._store.fail(connection, XENSTORE_ERROR_RINGIDX)
            return False
        at = start % _SIZE
        data = bytes(self._bytes[at : min(at + used, _SIZE)])
        if len(data) < used:
            data += bytes(self._bytes[: used - len(data)])
        self._store.receive(connection, data[: connection.wanted(data)])
        self._words[_REQ_CONS] = connection.received
        return True

    def _give(self) -> bool:
        moved, connection = False, self._connection
        while connection.waiting_bytes:
            start = connection.sent
            used = (start - self._words[_RSP_CONS]) & _INDEX_MASK
            if used > _SIZE:
                self._store.fail(connection, XENSTORE_ERROR_RINGIDX)
                return True
            data = connection.peek(_SIZE - used)
            if not data:
                break
            at = start % _SIZE
            first = min(len(data), _SIZE - at)
            self._bytes[_SIZE + at : _SIZE + at + first] = data[:first]
            self._bytes[_SIZE : _SIZE + len(data) - first] = data[first:]
            self._store.sent(connection, len(data))
            self._words[_RSP_PROD] = connection.sent
            moved = True
        return moved
