"""A guest's end of a xenstore ring, over a page that is only memory."""

from __future__ import annotations

from typing import Final

from xenolith.abi.io.xs_wire import XENSTORE_RING_SIZE, XenstoreDomainInterface
from xenolith.abi.types import PAGE_SIZE

SIZE: Final = XENSTORE_RING_SIZE
_MASK: Final = 0xFFFF_FFFF


class RingGuest:
    """`outgoing` is what the guest still wants to say, `heard` all that it was told."""

    def __init__(self, start: int = 0) -> None:
        self.page = bytearray(PAGE_SIZE)
        self.ring = XenstoreDomainInterface.from_buffer(self.page)
        self.ring.req_cons = self.ring.req_prod = self.ring.rsp_cons = self.ring.rsp_prod = start
        self.outgoing = bytearray()
        self.heard = bytearray()
        self.kicks = 0

    @property
    def view(self) -> memoryview:
        return memoryview(self.page)

    def kick(self) -> None:
        self.kicks += 1

    def push(self, limit: int = SIZE) -> None:
        """Put bytes into the ring, as far as there is room."""
        room = SIZE - ((self.ring.req_prod - self.ring.req_cons) & _MASK)
        data = self.outgoing[: min(room, limit)]
        for at, byte in enumerate(data):
            self.page[(self.ring.req_prod + at) % SIZE] = byte
        self.ring.req_prod = (self.ring.req_prod + len(data)) & _MASK
        del self.outgoing[: len(data)]

    def pull(self, limit: int = SIZE) -> None:
        """Take bytes out of the ring."""
        count = min((self.ring.rsp_prod - self.ring.rsp_cons) & _MASK, limit)
        for at in range(count):
            self.heard.append(self.page[SIZE + (self.ring.rsp_cons + at) % SIZE])
        self.ring.rsp_cons = (self.ring.rsp_cons + count) & _MASK
