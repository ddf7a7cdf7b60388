"""The shared ring that block, network and other devices speak through (io/ring.h)."""

from ctypes import Array, c_uint8
from typing import Annotated

from xenolith.abi.types import U32, Struct, layout


@layout("struct blkif_sring")
class Sring(Struct):
    """The head of a ring page; the slots (each as long as the longer of request and response) follow it at `ring`.

    Indices run freely through 32 bits; a slot's number is the index modulo the number of slots. `req_event` and
    `rsp_event` are the index at which the other end wants to be told.
    """

    req_prod: U32
    req_event: U32
    rsp_prod: U32
    rsp_event: U32
    pvt: Annotated[Array[c_uint8], c_uint8 * 4]
    pad_: Annotated[Array[c_uint8], c_uint8 * 44]
    ring: Annotated[Array[c_uint8], c_uint8 * 0]


def ring_size(ring_bytes: int, slot_bytes: int) -> int:
    """The number of slots in a ring of `ring_bytes` (one page or several): the greatest power of two that fits."""
    return 1 << (((ring_bytes - Sring.sizeof()) // slot_bytes).bit_length() - 1)
