"""The block device ring (io/blkif.h)."""

from ctypes import Array, c_uint32
from typing import Annotated, Final

from xenolith.abi.types import I16, U8, U16, U32, U64, Struct, layout

# BlkifRequest.operation.
BLKIF_OP_READ: Final = 0
BLKIF_OP_WRITE: Final = 1
BLKIF_OP_WRITE_BARRIER: Final = 2
BLKIF_OP_FLUSH_DISKCACHE: Final = 3
BLKIF_OP_RESERVED_1: Final = 4
BLKIF_OP_DISCARD: Final = 5
BLKIF_OP_INDIRECT: Final = 6

# Segments and indirect pages of one request.
BLKIF_MAX_SEGMENTS_PER_REQUEST: Final = 11
BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST: Final = 8

# BlkifRequestDiscard.flag.
BLKIF_DISCARD_SECURE: Final = 1 << 0

# BlkifResponse.status.
BLKIF_RSP_EOPNOTSUPP: Final = -2
BLKIF_RSP_ERROR: Final = -1
BLKIF_RSP_OKAY: Final = 0

# The `info` key of the backend.
VDISK_CDROM: Final = 0x1
VDISK_REMOVABLE: Final = 0x2
VDISK_READONLY: Final = 0x4


@layout()
class BlkifRequestSegment(Struct):
    """A granted page and the first and last of its 512-byte sectors."""

    gref: U32
    first_sect: U8
    last_sect: U8


@layout()
class BlkifRequest(Struct):
    """Read, write or flush; `sector_number` in 512-byte sectors."""

    operation: U8
    nr_segments: U8
    handle: U16
    id: U64
    sector_number: U64
    seg: Annotated[Array[BlkifRequestSegment], BlkifRequestSegment * BLKIF_MAX_SEGMENTS_PER_REQUEST]


@layout()
class BlkifRequestDiscard(Struct):
    """Discard a range of 512-byte sectors; takes the place of a BlkifRequest."""

    operation: U8
    flag: U8
    handle: U16
    id: U64
    sector_number: U64
    nr_sectors: U64


@layout()
class BlkifRequestIndirect(Struct):
    """A request whose segments stand in granted pages."""

    operation: U8
    indirect_op: U8
    nr_segments: U16
    id: U64
    sector_number: U64
    handle: U16
    indirect_grefs: Annotated[Array[c_uint32], c_uint32 * BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST]


@layout()
class BlkifResponse(Struct):
    """The answer to a request."""

    id: U64
    operation: U8
    status: I16
