"""The back end's side of a shared ring (public/io/ring.h): requests copied out, responses put in, events asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xenolith.abi.io.ring import Sring, ring_size
from xenolith.abi.types import PAGE_SHIFT, PAGE_SIZE

_HEAD: Final = Sring.sizeof()
_REQ_PROD: Final[int] = Sring.req_prod.offset >> 2  # type: ignore[attr-defined]
_REQ_EVENT: Final[int] = Sring.req_event.offset >> 2  # type: ignore[attr-defined]
_RSP_PROD: Final[int] = Sring.rsp_prod.offset >> 2  # type: ignore[attr-defined]
_RSP_EVENT: Final[int] = Sring.rsp_event.offset >> 2  # type: ignore[attr-defined]
_INDEX_MASK: Final = 0xFFFF_FFFF


class RingBroken(Exception):
    """The frontend claims more requests than the ring has slots: nothing in the ring means anything any more."""


class BackRing:
    """A ring in `pages` (the frames that the frontend granted, in order), with slots of `slot_bytes`.

    It starts where the last response was written, so that code that is started again finds in the ring exactly what
    is still to be answered, provided that responses are given in the order of the requests.
    """

    def __init__(self, pages: Sequence[memoryview], slot_bytes: int) -> None:
        self._pages = [page[:PAGE_SIZE] for page in pages]
        self._slot_bytes = slot_bytes
        self._words = self._pages[0][:_HEAD].cast("I")
        self.size = ring_size(len(pages) << PAGE_SHIFT, slot_bytes)
        self._req_cons = self._rsp_prod = self._published = self._words[_RSP_PROD]

    def waiting(self) -> int:
        """How many requests have not been taken. Raises RingBroken."""
        producer = self._words[_REQ_PROD]
        if (producer - self._rsp_prod) & _INDEX_MASK > self.size:
            raise RingBroken(f"{(producer - self._rsp_prod) & _INDEX_MASK} requests in a ring of {self.size}")
        waiting = (producer - self._req_cons) & _INDEX_MASK
        return waiting if waiting <= self.size else 0  # an index that went back takes no request away

    def take(self) -> bytes:
        """Copy the next request out, once: what the frontend does to the slot afterwards changes nothing.

        To be called only while `waiting()`.
        """
        slot = self._copy(self._offset(self._req_cons))
        self._req_cons = (self._req_cons + 1) & _INDEX_MASK
        return slot

    def ask_for_event(self, wanted: int = 1) -> bool:
        """Have the frontend signal when `wanted` requests wait; returns whether they do already. Raises RingBroken."""
        self._words[_REQ_EVENT] = (self._req_cons + wanted) & _INDEX_MASK
        return self.waiting() >= wanted

    def respond(self, response: bytes) -> None:
        """Write the response to the oldest request without one. The frontend sees it after `publish`."""
        at, end = self._offset(self._rsp_prod), len(response)
        page, offset = at >> PAGE_SHIFT, at & PAGE_SIZE - 1
        first = min(end, PAGE_SIZE - offset)
        self._pages[page][offset : offset + first] = response[:first]
        if first < end:
            self._pages[page + 1][: end - first] = response[first:]
        self._rsp_prod = (self._rsp_prod + 1) & _INDEX_MASK

    def publish(self) -> bool:
        """Show the frontend what was written; returns whether it wants to be signalled for that."""
        new, old, self._published = self._rsp_prod, self._published, self._rsp_prod
        self._words[_RSP_PROD] = new
        return (new - self._words[_RSP_EVENT]) & _INDEX_MASK < (new - old) & _INDEX_MASK

    def _offset(self, index: int) -> int:
        return _HEAD + index % self.size * self._slot_bytes

    def _copy(self, at: int) -> bytes:
        page, offset = at >> PAGE_SHIFT, at & PAGE_SIZE - 1
        data = bytes(self._pages[page][offset : offset + self._slot_bytes])
        missing = self._slot_bytes - len(data)
        return data + bytes(self._pages[page + 1][:missing]) if missing else data
