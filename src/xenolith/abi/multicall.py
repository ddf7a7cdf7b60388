"""multicall: a batch of hypercalls in one (xen.h)."""

from ctypes import Array, c_uint64
from typing import Annotated

from xenolith.abi.types import U64, Struct, layout


@layout()
class MulticallEntry(Struct):
    """One call: its number and arguments in, its result out."""

    op: U64
    result: U64
    args: Annotated[Array[c_uint64], c_uint64 * 6]
