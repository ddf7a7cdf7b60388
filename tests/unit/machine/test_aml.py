"""AML constructs have the encodings of the ACPI specification, chapter 20."""

from __future__ import annotations

import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.machine import aml


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("_HID", b"_HID"),
        ("S5", b"S5__"),
        ("\\_SB", b"\\_SB_"),
        ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"),
        ("\\_SB.PCI0.ISA", b"\\\x2f\x03_SB_PCI0ISA_"),
    ],
)
def test_name_strings(path: str, encoded: bytes) -> None:
    assert aml.name_string(path) == encoded


def test_a_long_segment_is_refused() -> None:
    with pytest.raises(ValueError, match="four"):
        aml.name_string("\\_SB.TOOLONG")


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, b"\x00"),
        (1, b"\x01"),
        (2, b"\x0a\x02"),
        (0xFF, b"\x0a\xff"),
        (0x100, b"\x0b\x00\x01"),
        (0x12345678, b"\x0c\x78\x56\x34\x12"),
        (1 << 32, b"\x0e\x00\x00\x00\x00\x01\x00\x00\x00"),
    ],
)
def test_integers_take_their_shortest_form(value: int, encoded: bytes) -> None:
    assert aml.integer(value) == encoded


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_an_integer_outside_64_bits_is_refused(value: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        aml.integer(value)


def decode_package_length(data: bytes) -> tuple[int, int]:
    """The length that a PkgLength tells, and the bytes it takes itself."""
    extra = data[0] >> 6
    if extra == 0:
        return data[0] & 0x3F, 1
    return int.from_bytes(data[1 : 1 + extra], "little") << 4 | data[0] & 0xF, 1 + extra


@given(st.one_of(st.integers(0, 5000), st.sampled_from([56, 57, 58, 59, 60, 4085, 4086, 4087, 1 << 20])))
def test_a_package_length_counts_itself_and_its_body(length: int) -> None:
    encoded = aml.scope("\\_SB", bytes(length))
    told, own = decode_package_length(encoded[1:])
    assert told == len(encoded) - 1
    assert encoded[1 + own :] == b"\\_SB_" + bytes(length)


def test_eisa_identifiers() -> None:
    assert aml.eisa_id("PNP0A03") == b"\x0c\x41\xd0\x0a\x03"
    assert aml.eisa_id("PNP0501") == b"\x0c\x41\xd0\x05\x01"


@given(st.uuids())
def test_a_uuid_has_its_first_three_fields_swapped(value: uuid.UUID) -> None:
    assert aml.uuid(str(value)) == aml.buffer(value.bytes_le)


def test_a_buffer_tells_its_size_and_a_package_its_elements() -> None:
    assert aml.buffer(b"abc") == b"\x11\x06\x0a\x03abc"
    assert aml.package(aml.ZERO, aml.ONE) == b"\x12\x04\x02\x00\x01"
    assert aml.string("PC") == b"\x0dPC\x00"


@pytest.mark.parametrize(
    "descriptor",
    [
        aml.io_ports(0x3F8, 8),
        aml.irq(4),
        aml.memory32_fixed(0xE0000000, 1 << 28),
        aml.bus_numbers(0, 255),
        aml.io_window(0xD00, 0xFFFF),
        aml.memory_window(0xC0000000, 0xDFFFFFFF),
    ],
)
def test_a_resource_descriptor_tells_its_own_length(descriptor: bytes) -> None:
    if descriptor[0] & 0x80:
        assert struct.unpack_from("<H", descriptor, 1)[0] == len(descriptor) - 3
    else:
        assert descriptor[0] & 7 == len(descriptor) - 1


def test_a_window_tells_the_length_of_what_it_spans() -> None:
    first, last, _, length = struct.unpack_from("<IIII", aml.memory_window(0xA0000, 0xBFFFF), 10)
    assert (first, last, length) == (0xA0000, 0xBFFFF, 0x20000)
