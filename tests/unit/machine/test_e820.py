"""The memory map of a PC: ordered, complete, and exact about which frames are RAM."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.errors import UserError
from xenolith.machine.e820 import (
    ACPI_LENGTH,
    ECAM_START,
    GIB,
    LEGACY_END,
    LOW_RAM_LIMIT,
    MAX_RAM,
    MIB,
    MIN_RAM,
    NVS_LENGTH,
    MemoryMap,
    MemoryType,
)

SIZES = st.integers(MIN_RAM >> 12, MAX_RAM >> 12).map(lambda frames: frames << 12)


@given(SIZES)
def test_entries_ascend_without_overlap(ram_bytes: int) -> None:
    entries = MemoryMap(ram_bytes).entries
    assert all(entry.length > 0 for entry in entries)
    assert all(before.end <= after.start for before, after in pairwise(entries))


@given(SIZES)
def test_every_byte_of_ram_is_accounted_for(ram_bytes: int) -> None:
    memory_map = MemoryMap(ram_bytes)
    usable = sum(entry.length for entry in memory_map.entries if entry.type is MemoryType.RAM)
    legacy_hole = LEGACY_END - 0x9FC00
    assert usable == ram_bytes - legacy_hole - ACPI_LENGTH - NVS_LENGTH
    frames = sum(map(len, memory_map.ram_ranges))
    assert frames << 12 == ram_bytes - LEGACY_END - ACPI_LENGTH - NVS_LENGTH


@given(SIZES)
def test_usable_frames_are_below_the_top_and_outside_the_holes(ram_bytes: int) -> None:
    memory_map = MemoryMap(ram_bytes)
    assert memory_map.ram_ranges[-1].stop <= memory_map.top_frame
    for frames in memory_map.ram_ranges:
        assert memory_map.is_ram(frames.start)
        assert memory_map.is_ram(frames.stop - 1)
        assert not memory_map.is_ram(frames.stop)
    for maddr in (0, 0x9F000, 0xA0000, 0xF0000, memory_map.acpi_range.start, memory_map.nvs_range.start, ECAM_START):
        assert not memory_map.is_ram(maddr >> 12)


def test_ram_that_fits_below_the_hole_stays_there() -> None:
    memory_map = MemoryMap(LOW_RAM_LIMIT)
    assert memory_map.top_frame == LOW_RAM_LIMIT >> 12
    assert memory_map.entries[-1].type is MemoryType.RESERVED
    assert len(memory_map.ram_ranges) == 1


def test_the_rest_of_the_ram_is_found_above_4_gib() -> None:
    memory_map = MemoryMap(5 * GIB)
    high = memory_map.entries[-1]
    assert (high.start, high.length, high.type) == (4 * GIB, 2 * GIB, MemoryType.RAM)
    assert memory_map.top_frame == 6 * GIB >> 12
    assert memory_map.acpi_range.stop + NVS_LENGTH == LOW_RAM_LIMIT


@pytest.mark.parametrize("ram_bytes", [0, -4096, MIN_RAM - 4096, 64 * MIB + 1, MAX_RAM + 4096])
def test_an_impossible_size_is_the_users_mistake(ram_bytes: int) -> None:
    with pytest.raises(UserError, match=str(ram_bytes)):
        MemoryMap(ram_bytes)
