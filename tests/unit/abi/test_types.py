"""The structure base: layout from annotations, copies and overlays."""

from ctypes import Array, c_char, c_uint16
from typing import Annotated

import pytest

from xenolith.abi.mmu import MmuextOp
from xenolith.abi.types import U8, U16, U32, U64, Struct, Union, layout


@layout("struct something_else")
class Sample(Struct):
    """A structure of every kind of field."""

    @layout()
    class Either(Union):
        small: U16
        large: U64

    kind: U8
    either: Either
    words: Annotated[Array[c_uint16], c_uint16 * 3]
    name: Annotated[bytes, c_char * 5]
    low: Annotated[int, c_uint16, 4]
    high: Annotated[int, c_uint16, 12]


def test_fields_lie_where_a_c_compiler_puts_them() -> None:
    offsets = {name: getattr(Sample, name).offset for name in ("kind", "either", "words", "name", "low")}
    assert offsets == {"kind": 0, "either": 8, "words": 16, "name": 22, "low": 28}
    assert Sample.sizeof() == 32


def test_bit_fields_share_a_word() -> None:
    sample = Sample(low=0x5, high=0xABC)
    assert sample.to_bytes()[28:30] == b"\xc5\xab"


def test_bytes_and_back() -> None:
    sample = Sample(kind=7, name=b"xen")
    sample.either.large = 0x0102030405060708
    again = Sample.from_bytes(sample.to_bytes())
    assert (again.kind, again.name, again.either.small) == (7, b"xen", 0x0708)


def test_from_bytes_copies_and_ignores_what_follows() -> None:
    memory = bytearray(Sample.sizeof() + 100)
    sample = Sample.from_bytes(memory)
    memory[0] = 9
    assert sample.kind == 0


def test_from_bytes_refuses_too_little() -> None:
    with pytest.raises(ValueError, match="Buffer size too small"):
        Sample.from_bytes(bytes(Sample.sizeof() - 1))


def test_from_buffer_overlays_guest_memory() -> None:
    memory = bytearray(64)
    op = MmuextOp.from_buffer(memory, 8)
    op.cmd = 5
    op.arg1.mfn = 0x1234
    assert memory[8] == 5
    memory[16] = 0x35
    assert op.arg1.linear_addr == 0x1235


def test_numbers_are_little_endian() -> None:
    @layout()
    class Word(Struct):
        value: U32

    assert Word(value=0x01020304).to_bytes() == b"\x04\x03\x02\x01"


def test_a_declared_c_name_is_kept() -> None:
    assert Sample.C_NAME == "struct something_else"
    assert MmuextOp.C_NAME == ""
