"""What an NVMe controller tells of itself: the pages of Identify and of Get Log Page.

Source: NVM Express 1.4, section 5.14 (log pages), 5.15 (identify).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final
from uuid import NAMESPACE_OID, UUID, uuid5

from xenolith import __version__
from xenolith.machine.disk import SECTOR_SIZE, Image

VERSION: Final = 0x00010400
MAX_TRANSFER_SHIFT: Final = 8
"""A command moves at most 2 to this power pages."""
MAX_EVENT_REQUESTS: Final = 4
MAX_EXTENTS: Final = 256
"""Of one Dataset Management command."""
MODEL: Final = "Xenolith NVMe disk"
_PAGE_BYTES: Final = 4096
_KELVIN: Final = 300
"""There is no thermometer, and the field must have a value: a room's."""

_OPTIONAL_DATASET_MANAGEMENT: Final = 1 << 2
_OPTIONAL_WRITE_ZEROES: Final = 1 << 3
_HAS_PREFERRED_SIZES: Final = 1 << 4
_CONTROLLER_IS_FOR_IO: Final = 1
_LOG_WITH_OFFSETS: Final = 1 << 2
_NAMESPACE_READONLY: Final = 1
_DESCRIPTOR_UUID: Final = 3


def _patched(size: int, fields: dict[int, bytes]) -> bytes:
    """`size` bytes of zeros, with these fields at their offsets."""
    page = bytearray(size)
    for at, content in fields.items():
        page[at : at + len(content)] = content
    return bytes(page)


def _text(text: str, size: int) -> bytes:
    return text.encode("ascii").ljust(size)[:size]


def namespace_uuid(serial: str) -> UUID:
    return uuid5(NAMESPACE_OID, f"xenolith {serial}")


def identify_controller(serial: str, vendor: int, image: Image) -> bytes:
    """CNS 1."""
    optional = _OPTIONAL_WRITE_ZEROES | (_OPTIONAL_DATASET_MANAGEMENT if image.discard_granularity else 0)
    return _patched(
        _PAGE_BYTES,
        {
            0: struct.pack("<HH", vendor, vendor),
            4: _text(serial, 20),
            24: _text(MODEL, 40),
            64: _text(__version__, 8),
            77: bytes((MAX_TRANSFER_SHIFT,)),
            80: struct.pack("<I", VERSION),
            111: bytes((_CONTROLLER_IS_FOR_IO,)),
            259: bytes((MAX_EVENT_REQUESTS - 1,)),
            261: bytes((_LOG_WITH_OFFSETS,)),
            512: b"\x66\x44",  # sizes of entries, least and most: 64 and 16 bytes
            516: struct.pack("<I", 1),  # namespaces
            520: struct.pack("<H", optional),
            525: b"\x01",  # there is a cache that Flush empties
            768: f"nqn.2014-08.org.nvmexpress:uuid:{namespace_uuid(serial)}".encode(),
        },
    )


def identify_namespace(image: Image) -> bytes:
    """CNS 0, of the one namespace: the image, in sectors of 512 bytes, without metadata."""
    sectors = struct.pack("<Q", image.size // SECTOR_SIZE)
    write = image.physical_sector_size // SECTOR_SIZE - 1
    discard = max(image.discard_granularity // SECTOR_SIZE, 1) - 1
    return _patched(
        _PAGE_BYTES,
        {
            0: 3 * sectors,
            24: bytes((_HAS_PREFERRED_SIZES,)),
            64: struct.pack("<4H", write, write, min(discard, 0xFFFF), min(discard, 0xFFFF)),
            99: bytes((_NAMESPACE_READONLY if image.readonly else 0,)),
            128: struct.pack("<I", (SECTOR_SIZE.bit_length() - 1) << 16),
        },
    )


def identify_namespaces(after: int) -> bytes:
    """CNS 2: the numbers of namespaces above `after`."""
    return _patched(_PAGE_BYTES, {0: struct.pack("<I", 1)} if after < 1 else {})


def identify_descriptors(serial: str) -> bytes:
    """CNS 3: the names of the namespace."""
    return _patched(_PAGE_BYTES, {0: bytes((_DESCRIPTOR_UUID, 16, 0, 0)) + namespace_uuid(serial).bytes})


@dataclass(slots=True)
class Health:
    """What is counted for the health log: commands that ended well, and their bytes."""

    read_bytes: int = 0
    written_bytes: int = 0
    reads: int = 0
    writes: int = 0

    def log(self) -> bytes:
        """Log page 2. Data is told in thousands of sectors, rounded up."""
        unit = 1000 * SECTOR_SIZE
        counts = (-(-self.read_bytes // unit), -(-self.written_bytes // unit), self.reads, self.writes)
        return _patched(
            512,
            {
                1: struct.pack("<H", _KELVIN),
                3: bytes((100, 10)),  # spare blocks that are left, and from which on that is too few, in per cent
                32: b"".join(count.to_bytes(16, "little") for count in counts),
            },
        )


def error_log() -> bytes:
    """Log page 1: nothing is recorded."""
    return bytes(64)


def firmware_log() -> bytes:
    """Log page 3: one slot."""
    return _patched(512, {0: b"\x01", 8: _text(__version__, 8)})
