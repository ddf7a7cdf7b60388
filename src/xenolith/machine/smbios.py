"""SMBIOS tables: what the machine says about its maker, its firmware and its memory.

Source: DMTF DSP0134, System Management BIOS Reference Specification 2.8, 32-bit entry point.
"""

from __future__ import annotations

import struct

from xenolith import __version__

ENTRY_MADDR = 0xF0040
TABLES_MADDR = 0xF0100
FIRMWARE_DATE = "01/01/2026"
MANUFACTURER = "Xenolith"
PRODUCT = "Xenolith PC"

_ENTRY_BYTES = 31
_BIOS_START_SEGMENT = 0xE000
_BIOS_FEATURES = 1 << 7
"""PCI is supported."""
_BIOS_EXTENSIONS = b"\x01\x1c"
"""ACPI is supported; targeted content, UEFI absent, virtual machine."""
_UNKNOWN = 0x02
_OTHER_CHASSIS = 0x01
_SAFE = 0x03
_WAKE_UP_POWER_SWITCH = 6


def _structure(kind: int, handle: int, fields: bytes, *strings: str) -> bytes:
    """One structure: header, formatted fields, the strings that the fields count from 1, two zero bytes (6.1)."""
    text = b"".join(string.encode("ascii") + b"\x00" for string in strings) or b"\x00"
    return struct.pack("<BBH", kind, 4 + len(fields), handle) + fields + text + b"\x00"


def _structures() -> list[bytes]:
    bios = struct.pack("<BBHBBQ", 1, 2, _BIOS_START_SEGMENT, 3, 1, _BIOS_FEATURES)
    system = struct.pack("<BBBB16sBBB", 1, 2, 3, 0, bytes(16), _WAKE_UP_POWER_SWITCH, 0, 0)
    chassis = struct.pack(
        "<BBBBBBBBBIBBBBB", 1, _OTHER_CHASSIS, 2, 0, 0, _SAFE, _SAFE, _SAFE, _UNKNOWN, 0, 0, 0, 0, 0, 0
    )
    return [
        _structure(0, 0x000, bios + _BIOS_EXTENSIONS + b"\x00\x01\xff\xff", MANUFACTURER, __version__, FIRMWARE_DATE),
        _structure(1, 0x100, system, MANUFACTURER, PRODUCT, __version__),
        _structure(3, 0x300, chassis, MANUFACTURER, __version__),
        _structure(127, 0x7F00, b""),
    ]


def build_smbios() -> list[tuple[int, bytes]]:
    """The entry point and the structure table, each with its machine address (bytes), inside the BIOS area."""
    structures = _structures()
    table = b"".join(structures)
    intermediate = bytearray(struct.pack("<5sBHIHB", b"_DMI_", 0, len(table), TABLES_MADDR, len(structures), 0x28))
    intermediate[5] = -sum(intermediate) & 0xFF
    entry = bytearray(
        struct.pack("<4sBBBBHB5s", b"_SM_", 0, _ENTRY_BYTES, 2, 8, max(map(len, structures)), 0, bytes(5))
        + intermediate
    )
    entry[4] = -sum(entry) & 0xFF
    return [(ENTRY_MADDR, bytes(entry)), (TABLES_MADDR, table)]
