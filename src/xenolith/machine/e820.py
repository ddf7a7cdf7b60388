"""The machine memory map of the PC: which machine addresses are RAM, firmware tables or devices.

The machine's memory is one flat array indexed by machine frame number. What is not RAM (the first MiB, the firmware
tables, the PCI hole) is frames of that array, or beyond it, that no domain owns; a sparse mapping makes them free.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from xenolith.errors import UserError
from xenolith.machine.ram import PAGE_SHIFT, PAGE_SIZE

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


class MemoryType(IntEnum):
    """Address range types (ACPI 6.4, table 15.374, and INT 15h function E820h)."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4
    UNUSABLE = 5


class MemoryRange(NamedTuple):
    """One entry of the map: bytes from `start`, `length` of them, all of one type."""

    start: int
    length: int
    type: MemoryType

    @property
    def end(self) -> int:
        """The first machine address after the range."""
        return self.start + self.length


# The fixed places of a PC (bytes).
EBDA_START = 0x9FC00
VGA_START = 0xA0000
BIOS_START = 0xE0000
LEGACY_END = 0x100000
LOW_RAM_LIMIT = 0xC000_0000
"""RAM that would lie at or above this address is found from 4 GiB up: the rest of the 32-bit space is the PCI hole."""
ECAM_START = 0xE000_0000
ECAM_BUSES = 1
"""Buses that memory-mapped configuration covers: a kernel maps every frame of it, so only what exists is told."""
ECAM_LENGTH = ECAM_BUSES * MIB
PCI_WINDOWS = (range(LOW_RAM_LIMIT, ECAM_START), range(ECAM_START + 256 * MIB, 0xFEC0_0000))
"""Where memory BARs may be placed."""
IOAPIC_START = 0xFEC0_0000
HPET_START = 0xFED0_0000
LAPIC_START = 0xFEE0_0000
FLASH_START = 0xFFFC_0000
HIGH_RAM_START = 4 * GIB

ACPI_LENGTH = 64 * KIB
NVS_LENGTH = 4 * KIB

MIN_RAM = 4 * MIB
MAX_RAM = 1 << 40

_FIXED_RESERVED = (
    (ECAM_START, ECAM_LENGTH),
    (IOAPIC_START, PAGE_SIZE),
    (LAPIC_START, PAGE_SIZE),
    (FLASH_START, HIGH_RAM_START - FLASH_START),
)


class MemoryMap:
    """The memory map of a PC with `ram_bytes` of RAM.

    UserError if `ram_bytes` is not a whole number of frames between 4 MiB and 1 TiB.
    """

    entries: tuple[MemoryRange, ...]
    """The map as the firmware reports it: ascending, without overlaps."""
    ram_ranges: tuple[range, ...]
    """Machine frame numbers that a domain may own: RAM from the first MiB up (the first MiB is I/O to every guest)."""
    top_frame: int
    """One past the last frame of RAM: the length in frames of the flat memory that holds this map."""
    acpi_range: range
    """Machine addresses of the ACPI tables, just below the end of low RAM."""
    nvs_range: range
    """Machine addresses of what firmware keeps across sleep (the FACS)."""

    def __init__(self, ram_bytes: int) -> None:
        if not MIN_RAM <= ram_bytes <= MAX_RAM or ram_bytes % PAGE_SIZE:
            raise UserError(
                f"A machine cannot have {ram_bytes} bytes of memory.",
                f"Give it between {MIN_RAM // MIB} MiB and {MAX_RAM // GIB} GiB, a multiple of 4 KiB.",
            )
        low_end = min(ram_bytes, LOW_RAM_LIMIT)
        high_bytes = ram_bytes - low_end
        self.nvs_range = range(low_end - NVS_LENGTH, low_end)
        self.acpi_range = range(self.nvs_range.start - ACPI_LENGTH, self.nvs_range.start)
        self.entries = (
            MemoryRange(0, EBDA_START, MemoryType.RAM),
            MemoryRange(EBDA_START, VGA_START - EBDA_START, MemoryType.RESERVED),
            MemoryRange(BIOS_START, LEGACY_END - BIOS_START, MemoryType.RESERVED),
            MemoryRange(LEGACY_END, self.acpi_range.start - LEGACY_END, MemoryType.RAM),
            MemoryRange(self.acpi_range.start, ACPI_LENGTH, MemoryType.ACPI),
            MemoryRange(self.nvs_range.start, NVS_LENGTH, MemoryType.NVS),
            *(MemoryRange(start, length, MemoryType.RESERVED) for start, length in _FIXED_RESERVED),
            *([MemoryRange(HIGH_RAM_START, high_bytes, MemoryType.RAM)] if high_bytes else []),
        )
        self.ram_ranges = tuple(
            range(entry.start >> PAGE_SHIFT, entry.end >> PAGE_SHIFT)
            for entry in self.entries
            if entry.type is MemoryType.RAM and entry.start >= LEGACY_END
        )
        self.top_frame = (HIGH_RAM_START + high_bytes if high_bytes else low_end) >> PAGE_SHIFT

    def is_ram(self, mfn: int) -> bool:
        """Whether a domain may own frame `mfn`."""
        return any(mfn in frames for frames in self.ram_ranges)
