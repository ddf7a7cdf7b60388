"""The SMBIOS tables: an entry point that scanning finds, and structures that can be walked to the end."""

from __future__ import annotations

import struct

from xenolith.machine.smbios import ENTRY_MADDR, MANUFACTURER, PRODUCT, build_smbios


def walk(table: bytes) -> dict[int, tuple[bytes, list[str]]]:
    """Each structure's formatted area and strings, by type, as DSP0134 says to walk them."""
    found: dict[int, tuple[bytes, list[str]]] = {}
    at = 0
    while at < len(table):
        kind, length = table[at], table[at + 1]
        end = table.index(b"\x00\x00", at + length) + 2
        text = table[at + length : end - 2].split(b"\x00")
        found[kind] = (table[at : at + length], [string.decode() for string in text])
        at = end
    assert at == len(table)
    return found


def test_the_entry_point_is_found_and_sums_to_zero() -> None:
    (entry_maddr, entry), (table_maddr, table) = build_smbios()
    assert entry_maddr == ENTRY_MADDR
    assert entry_maddr % 16 == 0
    assert 0xF0000 <= entry_maddr < 0x100000
    assert entry[:4] == b"_SM_"
    assert entry[16:21] == b"_DMI_"
    assert len(entry) == entry[5] == 31
    assert sum(entry) % 256 == 0
    assert sum(entry[16:]) % 256 == 0
    length, address, count = struct.unpack_from("<HIH", entry, 22)
    assert (address, length, count) == (table_maddr, len(table), len(walk(table)))
    assert table_maddr + len(table) <= 0x100000


def test_the_structures_name_the_machine() -> None:
    structures = walk(build_smbios()[1][1])
    assert set(structures) == {0, 1, 3, 127}
    system, strings = structures[1]
    assert len(system) == 27
    assert strings[system[4] - 1] == MANUFACTURER
    assert strings[system[5] - 1] == PRODUCT
    bios, strings = structures[0]
    assert len(bios) == 24
    assert strings[bios[4] - 1] == MANUFACTURER
    assert len(structures[3][0]) == 22


def test_the_largest_structure_is_announced() -> None:
    entry, table = (data for _, data in build_smbios())
    announced = struct.unpack_from("<H", entry, 8)[0]
    assert announced == max(len(area) + sum(map(len, text)) + len(text) + 1 for area, text in walk(table).values())
