"""The console ring of a domain (io/console.h)."""

from ctypes import Array, c_uint8
from typing import Annotated

from xenolith.abi.types import U32, Struct, layout


@layout()
class XenconsInterface(Struct):
    """The page of the console ring: `in_` is read by the guest, `out` written by it; indices run freely."""

    in_: Annotated[Array[c_uint8], c_uint8 * 1024]
    out: Annotated[Array[c_uint8], c_uint8 * 2048]
    in_cons: U32
    in_prod: U32
    out_cons: U32
    out_prod: U32
