"""Segment descriptors as they stand in a table, taken apart: Intel's manual, volume 3, 3.4.5."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


def attributes_of(descriptor: int) -> int:
    """The attribute word (bits 8-23 of the high half) of a descriptor, as engines keep it."""
    return descriptor >> 32 & 0x00F0_FF00


def base_of(descriptor: int) -> int:
    """Where the segment begins."""
    return (descriptor >> 16 & 0xFFFFFF) | (descriptor >> 56 & 0xFF) << 24


def limit_of(descriptor: int) -> int:
    """The last valid offset into the segment."""
    limit = (descriptor & 0xFFFF) | (descriptor >> 32 & 0xF0000)
    return limit << 12 | 0xFFF if descriptor >> 55 & 1 else limit


def is_code(descriptor: int) -> bool:
    """Present, and a code segment that CPL 3 may run."""
    return descriptor >> 40 & 0xF8 == 0xF8


def is_writable_data(descriptor: int) -> bool:
    """Present, and a data segment that CPL 3 may write."""
    return descriptor >> 40 & 0xFA == 0xF2


class Segment(NamedTuple):
    """What a descriptor says: whether CPL 3 may run or write it, its base, limit and attributes."""

    is_code: bool
    is_writable_data: bool
    base: int
    limit: int
    attributes: int


@lru_cache(maxsize=256)
def segment_of(descriptor: int) -> Segment:
    """A descriptor taken apart. The few that a guest uses are loaded at each return to its users."""
    return Segment(
        is_code(descriptor),
        is_writable_data(descriptor),
        base_of(descriptor),
        limit_of(descriptor),
        attributes_of(descriptor),
    )
