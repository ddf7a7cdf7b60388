"""Encodes ACPI Machine Language: each function returns the bytes of one AML construct (ACPI 6.4, chapter 20)."""

from __future__ import annotations

import struct

ZERO = b"\x00"
ONE = b"\x01"
ELSE_OP = b"\xa1"


def _package_length(body: bytes) -> bytes:
    """PkgLength: counts itself and the body (20.2.4)."""
    if len(body) + 1 < 1 << 6:
        return bytes([len(body) + 1])
    for extra in (1, 2, 3):
        total = len(body) + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | total & 0xF]) + (total >> 4).to_bytes(extra, "little")
    raise ValueError("an AML package of more than 256 MiB")


def name_string(path: str) -> bytes:
    """A NameString such as `_HID`, `\\_SB` or `\\_SB.PCI0`; short segments are padded with underscores (20.2.2)."""
    root, path = (b"\\", path[1:]) if path.startswith("\\") else (b"", path)
    segments = [segment.ljust(4, "_").encode("ascii") for segment in path.split(".")]
    if any(len(segment) != 4 for segment in segments):
        raise ValueError(f"{path!r} has a name segment of more than four characters")
    prefix = {1: b"", 2: b"\x2e"}.get(len(segments), b"\x2f" + bytes([len(segments)]))
    return root + prefix + b"".join(segments)


def integer(value: int) -> bytes:
    """The shortest constant of `value` (20.2.3)."""
    if value in (0, 1):
        return bytes([value])
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * size:
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} does not fit an AML integer")


def string(text: str) -> bytes:
    """A String constant of 7-bit characters."""
    return b"\x0d" + text.encode("ascii") + b"\x00"


def buffer(data: bytes) -> bytes:
    """A Buffer constant."""
    body = integer(len(data)) + data
    return b"\x11" + _package_length(body) + body


def package(*elements: bytes) -> bytes:
    """A Package of up to 255 elements."""
    body = bytes([len(elements)]) + b"".join(elements)
    return b"\x12" + _package_length(body) + body


def eisa_id(identifier: str) -> bytes:
    """The EISA identifier integer of a name such as `PNP0A08` (ASL's EisaId, 19.6.36)."""
    vendor = [ord(letter) - 0x40 for letter in identifier[:3]]
    packed = vendor[0] << 26 | vendor[1] << 21 | vendor[2] << 16 | int(identifier[3:], 16)
    return integer(int.from_bytes(packed.to_bytes(4, "big"), "little"))


def uuid(text: str) -> bytes:
    """The buffer of a UUID (ASL's ToUUID, 19.6.142)."""
    fields = [bytes.fromhex(field) for field in text.split("-")]
    return buffer(b"".join(field[::-1] for field in fields[:3]) + b"".join(fields[3:]))


def name(path: str, value: bytes) -> bytes:
    """Name(path, value)."""
    return b"\x08" + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """Scope(path) { terms }."""
    body = name_string(path) + b"".join(terms)
    return b"\x10" + _package_length(body) + body


def device(path: str, *terms: bytes) -> bytes:
    """Device(path) { terms }."""
    body = name_string(path) + b"".join(terms)
    return b"\x5b\x82" + _package_length(body) + body


def method(path: str, arguments: int, *terms: bytes) -> bytes:
    """Method(path, arguments, NotSerialized) { terms }."""
    body = name_string(path) + bytes([arguments]) + b"".join(terms)
    return b"\x14" + _package_length(body) + body


def arg(index: int) -> bytes:
    """ArgX, an argument of the method."""
    return bytes([0x68 + index])


def create_dword_field(source: bytes, byte_index: int, path: str) -> bytes:
    """CreateDWordField(source, byte_index, path)."""
    return b"\x8a" + source + integer(byte_index) + name_string(path)


def local(index: int) -> bytes:
    """LocalX, a variable of the method."""
    return bytes([0x60 + index])


def store(value: bytes, target: str) -> bytes:
    """Store(value, target)."""
    return b"\x70" + value + name_string(target)


def and_(left: bytes, right: bytes, target: bytes) -> bytes:
    """And(left, right, target)."""
    return b"\x7b" + left + right + target


def or_into(target: str, value: int) -> bytes:
    """Or(target, value, target)."""
    return b"\x7d" + name_string(target) + integer(value) + name_string(target)


def equal(left: bytes, right: bytes) -> bytes:
    """LEqual(left, right)."""
    return b"\x93" + left + right


def not_(condition: bytes) -> bytes:
    """LNot(condition)."""
    return b"\x92" + condition


def if_(condition: bytes, *terms: bytes) -> bytes:
    """If (condition) { terms }."""
    body = condition + b"".join(terms)
    return b"\xa0" + _package_length(body) + body


def else_(*terms: bytes) -> bytes:
    """Else { terms }, directly after an If."""
    body = b"".join(terms)
    return ELSE_OP + _package_length(body) + body


def return_(value: bytes) -> bytes:
    """Return(value)."""
    return b"\xa4" + value


# Resource descriptors (ACPI 6.4, section 6.4).


def resource_template(*descriptors: bytes) -> bytes:
    """A buffer of resource descriptors with its end tag; checksum 0 means that it is not used (6.4.2.9)."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def io_ports(first: int, count: int) -> bytes:
    """IO(Decode16) at a fixed place (6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, 1, first, first, 1, count)


def irq(number: int) -> bytes:
    """IRQNoFlags: an edge-triggered, active-high ISA interrupt (6.4.2.1)."""
    return struct.pack("<BH", 0x22, 1 << number)


def memory32_fixed(start: int, length: int) -> bytes:
    """Memory32Fixed(ReadWrite) (6.4.3.4)."""
    return struct.pack("<BHBII", 0x86, 9, 1, start, length)


_MIN_AND_MAX_FIXED = 0x0C
_ENTIRE_IO_RANGE = 0x03
_READ_WRITE_UNCACHED = 0x01


def bus_numbers(first: int, last: int) -> bytes:
    """WordBusNumber(ResourceProducer) (6.4.3.5.3)."""
    return struct.pack("<BHBBBHHHHH", 0x88, 13, 2, _MIN_AND_MAX_FIXED, 0, 0, first, last, 0, last - first + 1)


def io_window(first: int, last: int) -> bytes:
    """WordIO(ResourceProducer): ports that a bridge forwards (6.4.3.5.3)."""
    return struct.pack(
        "<BHBBBHHHHH", 0x88, 13, 1, _MIN_AND_MAX_FIXED, _ENTIRE_IO_RANGE, 0, first, last, 0, last - first + 1
    )


def memory_window(first: int, last: int) -> bytes:
    """DWordMemory(ResourceProducer): addresses that a bridge forwards, not cacheable (6.4.3.5.2)."""
    return struct.pack(
        "<BHBBBIIIII", 0x87, 23, 0, _MIN_AND_MAX_FIXED, _READ_WRITE_UNCACHED, 0, first, last, 0, last - first + 1
    )
