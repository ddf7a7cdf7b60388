"""A guest's ends of a device's two rings for the tests: pages that it grants, requests that it puts, answers."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from xenolith.abi.io.ring import Sring
from xenolith.abi.types import PAGE_SIZE
from xenolith.backends.net.tx import Piece

HEAD = Sring.sizeof()
MASK = 0xFFFF_FFFF
SIZE = 256


@dataclass
class Grants:
    """The guest's pages by their grant references."""

    pages: dict[int, bytearray] = field(default_factory=dict)
    copied: list[int] = field(default_factory=list)
    """How many pieces each hypercall has copied."""

    def page(self, content: bytes = b"") -> int:
        gref = len(self.pages) + 8
        self.pages[gref] = bytearray(content.ljust(PAGE_SIZE, b"\0"))
        return gref

    def gather(self, pieces: Sequence[Piece]) -> list[bytes | None]:
        self.copied.append(len(pieces))
        assert all(piece.offset + piece.size <= PAGE_SIZE for piece in pieces)
        return [self._read(piece) for piece in pieces]

    def _read(self, piece: Piece) -> bytes | None:
        page = self.pages.get(piece.gref)
        return None if page is None else bytes(page[piece.offset : piece.offset + piece.size])

    def scatter(self, pages: Sequence[tuple[int, bytes]]) -> list[bool]:
        self.copied.append(len(pages))
        for gref, data in pages:
            assert len(data) <= PAGE_SIZE
            if gref in self.pages:
                self.pages[gref][: len(data)] = data
        return [gref in self.pages for gref, _ in pages]


class Ring:
    """One ring page. `first` is where all indices begin."""

    def __init__(self, slot_bytes: int, slots: int = SIZE, first: int = 0) -> None:
        self.page = bytearray(PAGE_SIZE)
        self.head = Sring.from_buffer(self.page)
        self.head.req_prod = self.head.rsp_prod = self.taken = first
        self.head.req_event = self.head.rsp_event = first + 1 & MASK
        self._slot_bytes, self._slots = slot_bytes, slots

    def put(self, *requests: bytes) -> None:
        for request in requests:
            at = HEAD + self.head.req_prod % self._slots * self._slot_bytes
            self.page[at : at + len(request)] = request
            self.head.req_prod = self.head.req_prod + 1 & MASK

    def answers(self, form: str) -> list[tuple[int, ...]]:
        """The new ones."""
        found = []
        while self.taken != self.head.rsp_prod:
            found.append(struct.unpack_from(form, self.page, HEAD + self.taken % self._slots * self._slot_bytes))
            self.taken = self.taken + 1 & MASK
        return found


class Slot(NamedTuple):
    """A request of the transmit ring."""

    gref: int
    offset: int
    flags: int
    identifier: int
    size: int

    def pack(self) -> bytes:
        return struct.pack("<IHHHH", *self)


def collect() -> tuple[list[object], Callable[[object], None]]:
    found: list[object] = []
    return found, found.append
