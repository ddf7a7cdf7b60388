"""What stands in the slots of a disk's ring: requests read and checked, before anything is done for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import Array
from dataclasses import dataclass
from typing import Final, NamedTuple

from xenolith.abi.io.blkif import (
    BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST,
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BlkifRequest,
    BlkifRequestDiscard,
    BlkifRequestIndirect,
    BlkifRequestSegment,
    BlkifResponse,
)
from xenolith.abi.types import PAGE_SIZE
from xenolith.machine.disk import SECTOR_SIZE

SLOT_BYTES: Final = max(BlkifRequest.sizeof(), BlkifResponse.sizeof())
MAX_INDIRECT_SEGMENTS: Final = 256
"""Segments of one indirect request: a mebibyte, as many as Linux's blkback takes."""
_SEGMENT_BYTES: Final = BlkifRequestSegment.sizeof()
_SECTORS_PER_PAGE: Final = PAGE_SIZE // SECTOR_SIZE
_SEGMENTS_PER_PAGE: Final = PAGE_SIZE // _SEGMENT_BYTES
_DATA_OPERATIONS: Final = (BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_WRITE_BARRIER, BLKIF_OP_FLUSH_DISKCACHE)

ReadPages = Callable[[Sequence[int]], bytes]
"""A copy of the granted pages. Raises Refused."""


class Refused(Exception):
    """A request that is answered with `status`, and for which nothing is done."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Segment(NamedTuple):
    """Sectors `first` to `last` of a granted page."""

    gref: int
    first: int
    last: int


@dataclass(slots=True, eq=False)
class Request:
    """One request. `operation` is what its answer names: that of an indirect one is the operation inside it.

    `status` is BLKIF_RSP_* when the answer is known.
    """

    id: int
    operation: int
    sector: int = 0
    sectors: int = 0
    segments: Sequence[Segment] = ()
    status: int | None = None

    @property
    def offset(self) -> int:
        """Bytes from the start of the disk."""
        return self.sector * SECTOR_SIZE

    @property
    def length(self) -> int:
        """Bytes."""
        return self.sectors * SECTOR_SIZE

    @property
    def end(self) -> int:
        """The first sector after those of the request."""
        return self.sector + self.sectors

    def answer(self) -> bytes:
        assert self.status is not None
        return BlkifResponse(id=self.id, operation=self.operation, status=self.status).to_bytes()


def read(slot: bytes, read_pages: ReadPages) -> Request:
    """The request in a slot (copied). `read_pages` is asked for the pages that have an indirect request's segments.

    One that breaks the protocol has its `status` already, as Linux's blkback would answer it. Raises what `read_pages`
    raises, other than Refused.
    """
    head = BlkifRequest.from_bytes(slot)
    request = Request(head.id, head.operation)
    try:
        _read_body(request, head, slot, read_pages)
    except Refused as refused:
        request.status = refused.status
    return request


def _read_body(request: Request, head: BlkifRequest, slot: bytes, read_pages: ReadPages) -> None:
    if head.operation == BLKIF_OP_DISCARD:
        discard = BlkifRequestDiscard.from_bytes(slot)
        request.sector, request.sectors = discard.sector_number, discard.nr_sectors
        if not request.sectors:
            raise Refused(BLKIF_RSP_ERROR, "no sectors")
        return
    request.sector = head.sector_number
    if head.operation == BLKIF_OP_INDIRECT:
        indirect = BlkifRequestIndirect.from_bytes(slot)
        request.operation = indirect.indirect_op
        request.segments = _indirect_segments(indirect, read_pages)
    elif head.operation in _DATA_OPERATIONS:
        if head.nr_segments > BLKIF_MAX_SEGMENTS_PER_REQUEST:
            raise Refused(BLKIF_RSP_ERROR, f"{head.nr_segments} segments")
        request.segments = _segments(head.seg, head.nr_segments)
    else:
        raise Refused(BLKIF_RSP_EOPNOTSUPP, f"operation {head.operation}")
    if not request.segments and request.operation in (BLKIF_OP_READ, BLKIF_OP_WRITE):
        raise Refused(BLKIF_RSP_ERROR, "no segments")
    request.sectors = sum(segment.last - segment.first + 1 for segment in request.segments)


def _indirect_segments(indirect: BlkifRequestIndirect, read_pages: ReadPages) -> list[Segment]:
    count = indirect.nr_segments
    if indirect.indirect_op not in (BLKIF_OP_READ, BLKIF_OP_WRITE) or not 0 < count <= MAX_INDIRECT_SEGMENTS:
        raise Refused(BLKIF_RSP_ERROR, f"operation {indirect.indirect_op} of {count} segments behind an indirect one")
    pages = -(-count // _SEGMENTS_PER_PAGE)
    assert pages <= BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST
    array = BlkifRequestSegment * count
    return _segments(array.from_buffer_copy(read_pages(indirect.indirect_grefs[:pages])), count)


def _segments(array: Array[BlkifRequestSegment], count: int) -> list[Segment]:
    segments = [Segment(entry.gref, entry.first_sect, entry.last_sect) for entry in array[:count]]
    for segment in segments:
        if not segment.first <= segment.last < _SECTORS_PER_PAGE:
            raise Refused(BLKIF_RSP_ERROR, f"sectors {segment.first} to {segment.last} of a page")
    return segments
