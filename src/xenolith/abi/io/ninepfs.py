"""The page through which both ends of a shared directory find their rings (io/9pfs.h, io/ring.h)."""

from ctypes import Array, c_uint8, c_uint32
from typing import Annotated

from xenolith.abi.types import U32, Struct, layout


@layout("struct xen_9pfs_data_intf")
class Xen9pfsDataIntf(Struct):
    """Indices in bytes, which run freely through 32 bits, and the grants of the 2^`ring_order` pages of data.

    The first half of these pages is `in`, what the backend says, the second half is `out`, what the frontend says.
    """

    in_cons: U32
    in_prod: U32
    pad1: Annotated[Array[c_uint8], c_uint8 * 56]
    out_cons: U32
    out_prod: U32
    pad2: Annotated[Array[c_uint8], c_uint8 * 56]
    ring_order: U32
    ref: Annotated[Array[c_uint32], c_uint32 * 0]
