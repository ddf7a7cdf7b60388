"""Physical region pages: where the data of an NVMe command is in memory.

Source: NVM Express 1.4, section 4.3.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from xenolith.machine.devices.disk_work import OpenMemory
from xenolith.machine.devices.nvme_commands import Refused, Status

PAGE: Final = 4096
"""Bytes of a memory page; the controller offers no other size."""
_ENTRY: Final = 8


class Segment(NamedTuple):
    """Memory at a bus address, in bytes."""

    maddr: int
    length: int


def segments(memory: OpenMemory, prp1: int, prp2: int, length: int) -> list[Segment]:
    """The memory, `length` bytes, that two entries describe; adjacent pages are one segment.

    Raises Refused for entries that are not aligned as they must be, and DmaFault for a list that cannot be read.
    """
    if prp1 % 4:
        raise Refused(Status.PRP_OFFSET)
    found = [Segment(prp1, min(length, PAGE - prp1 % PAGE))]
    rest = length - found[0].length
    if not rest:
        return found
    pages = [prp2] if rest <= PAGE else _listed(memory, prp2, -(-rest // PAGE))
    for page in pages:
        if page % PAGE:
            raise Refused(Status.PRP_OFFSET)
        size = min(rest, PAGE)
        last = found[-1]
        if last.maddr + last.length == page:
            found[-1] = Segment(last.maddr, last.length + size)
        else:
            found.append(Segment(page, size))
        rest -= size
    return found


def _listed(memory: OpenMemory, at: int, count: int) -> list[int]:
    """`count` entries of the list at `at`. The last entry of a page with more behind it leads to the next page."""
    if at % _ENTRY:
        raise Refused(Status.PRP_OFFSET)
    found: list[int] = []
    while True:
        room = (PAGE - at % PAGE) // _ENTRY
        wanted = count - len(found)
        entries = struct.unpack(f"<{min(room, wanted)}Q", memory(at, _ENTRY * min(room, wanted), False))
        if wanted <= room:
            return [*found, *entries]
        found += entries[:-1]
        at = entries[-1]
        if at % PAGE:
            raise Refused(Status.PRP_OFFSET)
