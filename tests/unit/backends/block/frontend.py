"""A guest's end of a disk's ring for the tests: pages that it grants, requests that it puts, answers that it takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from xenolith.abi.io.blkif import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_INDIRECT,
    BlkifRequest,
    BlkifRequestDiscard,
    BlkifRequestIndirect,
    BlkifRequestSegment,
    BlkifResponse,
)
from xenolith.abi.io.ring import Sring
from xenolith.abi.types import PAGE_SIZE
from xenolith.backends.block.pages import GrantRefused, GuestPages, NoRoom
from xenolith.backends.block.requests import SLOT_BYTES
from xenolith.backends.block.ring import BlockRing
from xenolith.machine.disk import Image

MASK = 0xFFFF_FFFF


@dataclass
class Grants:
    """The frontend's grant table. `limit` is how many pages the back end can map at once."""

    pages: dict[int, bytearray] = field(default_factory=dict)
    readonly: set[int] = field(default_factory=set)
    limit: int = 1 << 30
    mapped: int = 0
    calls: int = 0

    def page(self, content: bytes = b"") -> int:
        """A new granted page; returns its reference."""
        gref = len(self.pages) + 8
        self.pages[gref] = bytearray(content.ljust(PAGE_SIZE, b"\0"))
        return gref

    def map(self, grefs: Sequence[int], readonly: bool) -> Mapped:
        self.calls += 1
        if not all(gref in self.pages and (readonly or gref not in self.readonly) for gref in grefs):
            raise GrantRefused(f"grants {grefs}")
        if self.mapped + len(grefs) > self.limit:
            raise NoRoom
        self.mapped += len(grefs)
        return Mapped(self, [memoryview(self.pages[gref]) for gref in grefs])


@dataclass
class Mapped:
    grants: Grants
    views: list[memoryview]

    def unmap(self) -> None:
        assert self.views, "unmapped twice"
        self.grants.mapped -= len(self.views)
        self.views = []


class Worker:
    """Does what is submitted: at once, or when the test says `run`, in the order that it says."""

    def __init__(self, at_once: bool = True) -> None:
        self.at_once = at_once
        self.queue: deque[tuple[Callable[[], Sequence[int]], Callable[[Sequence[int]], None]]] = deque()

    def submit(self, work: Callable[[], Sequence[int]], done: Callable[[Sequence[int]], None]) -> None:
        if self.at_once:
            done(work())
        else:
            self.queue.append((work, done))

    def run(self, number: int = 0) -> None:
        work, done = self.queue[number]
        del self.queue[number]
        done(work())


class Frontend:
    """Drives a BlockRing over `image`. The ring's indices begin at `start`."""

    def __init__(
        self, image: Image, pages: int = 1, keep: int = 0, at_once: bool = True, start: int = 0, limit: int = 1 << 30
    ) -> None:
        self.image = image
        self.memory = [bytearray(PAGE_SIZE) for _ in range(pages)]
        self.head = Sring.from_buffer(self.memory[0])
        self.head.req_prod = self.head.rsp_prod = start
        self.head.req_event = self.head.rsp_event = (start + 1) & MASK
        self.rsp_cons = start
        self.size = {1: 32, 2: 64, 4: 128, 8: 256, 16: 512}[pages]
        self.grants = Grants(limit=limit)
        self.keep = keep
        self.worker = Worker(at_once)
        self.notified = 0
        self.ring = self.connect()

    def connect(self) -> BlockRing:
        """A back end that takes the ring as it stands."""
        self.pages = GuestPages(self.grants.map, self.keep)
        shared = [memoryview(page) for page in self.memory]
        self.ring = BlockRing(shared, self.image, self.pages, self.worker.submit, self._notified)
        return self.ring

    def _notified(self) -> None:
        self.notified += 1

    # -- requests -----------------------------------------------------------------------------------------------------

    def put(self, request: BlkifRequest | BlkifRequestDiscard | BlkifRequestIndirect) -> None:
        self.write_slot(self.head.req_prod, request.to_bytes())
        self.head.req_prod = (self.head.req_prod + 1) & MASK

    def write_slot(self, index: int, content: bytes) -> None:
        at = 64 + index % self.size * SLOT_BYTES
        for number, byte in enumerate(content, at):
            self.memory[number // PAGE_SIZE][number % PAGE_SIZE] = byte

    def read_slot(self, index: int, size: int) -> bytes:
        at = 64 + index % self.size * SLOT_BYTES
        return bytes(self.memory[number // PAGE_SIZE][number % PAGE_SIZE] for number in range(at, at + size))

    def access(self, operation: int, sector: int, segments: Sequence[tuple[int, int, int]], ident: int = 0) -> None:
        request = BlkifRequest(operation=operation, nr_segments=len(segments), id=ident, sector_number=sector)
        for place, segment in zip(request.seg, segments, strict=False):
            place.gref, place.first_sect, place.last_sect = segment
        self.put(request)

    def indirect(
        self, operation: int, sector: int, segments: Sequence[tuple[int, int, int]], ident: int = 0
    ) -> list[int]:
        """Returns the references of the pages that have the segments."""
        listed = [BlkifRequestSegment(*segment).to_bytes() for segment in segments]
        grefs = [self.grants.page(b"".join(listed[at : at + 512])) for at in range(0, len(listed), 512)]
        request = BlkifRequestIndirect(
            operation=BLKIF_OP_INDIRECT,
            indirect_op=operation,
            nr_segments=len(segments),
            id=ident,
            sector_number=sector,
        )
        request.indirect_grefs[: len(grefs)] = grefs[:8]
        self.put(request)
        return grefs

    def discard(self, sector: int, sectors: int, flag: int = 0, ident: int = 0) -> None:
        self.put(
            BlkifRequestDiscard(
                operation=BLKIF_OP_DISCARD, flag=flag, id=ident, sector_number=sector, nr_sectors=sectors
            )
        )

    # -- answers ------------------------------------------------------------------------------------------------------

    def answers(self) -> list[tuple[int, int, int]]:
        """(id, operation, status) of the answers that have come."""
        found = []
        while self.rsp_cons != self.head.rsp_prod:
            response = BlkifResponse.from_bytes(self.read_slot(self.rsp_cons, BlkifResponse.sizeof()))
            found.append((response.id, response.operation, response.status))
            self.rsp_cons = (self.rsp_cons + 1) & MASK
        self.head.rsp_event = (self.rsp_cons + 1) & MASK
        return found

    def statuses(self) -> list[int]:
        """Serve, and take the status of each answer."""
        self.ring.service()
        return [status for *_, status in self.answers()]
