"""The hypervisor's part of every guest's address space: the machine-to-physical table, and the domain's own area.

Of Xen's reserved L4 slots 256 to 271 a guest sees the M2P (slot 256 where the engine can show it there, else 257;
read-only) and, for the processor only, its descriptor tables (slot 260) and what the engine needs (slot 261). The M2P
has no page where the machine has no memory, so that looking there faults.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from xenolith.abi.types import DOMID_XEN
from xenolith.cpu.engine import ENGINE_SLOT
from xenolith.hypervisor.domain import Domain
from xenolith.hypervisor.frames import HYPERVISOR, NOT_RAM, TYPE_SHARED, FrameTable
from xenolith.hypervisor.pagetables import XEN_SLOT_FIRST, XEN_SLOT_LAST

_XEN_START: Final = 0xFFFF_8000_0000_0000
_M2P_BYTES: Final = 0x40_0000_0000
_PERDOMAIN_SLOT: Final = 260
_ENTRIES_PER_FRAME: Final = 512
_TABLE: Final = 0x27
_READ_ONLY: Final = 0x8000_0000_0000_0025
_SUPERVISOR_TABLE: Final = 0x23


class XenSpace:
    """Builds the M2P over `frames`, which is DOMID_XEN's. `m2p` is the table as 64-bit words, indexed by mfn."""

    def __init__(self, frames: FrameTable, m2p_slot: int = XEN_SLOT_FIRST, engine_table: int = 0) -> None:
        self._frames = frames
        self._m2p_slot = m2p_slot
        self._engine_table = engine_table
        self._pages: set[int] = set()
        self.fixed_start = _XEN_START
        """Where guests look for the M2P that do not ask."""
        self.is_elsewhere = m2p_slot != XEN_SLOT_FIRST
        self._words = frames.ram.words
        size = -(-frames.total // _ENTRIES_PER_FRAME)
        self._m2p_mfns = frames.allocate_top(DOMID_XEN, size)
        for mfn in self._m2p_mfns:
            frames.get_page_type(mfn, TYPE_SHARED)  # nobody can have it writable
        first = self._m2p_mfns[0]
        self.m2p = self._words[first << 9 : (first + size) << 9]
        np.frombuffer(self.m2p, dtype=np.uint64)[:] = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
        self._l3_mfn = self._build_tables(size)

    def _build_tables(self, size: int) -> int:
        l1_count = -(-size // 512)
        l3, l2, *l1s = self._frames.allocate(HYPERVISOR, 2 + l1_count)
        self._words[l3 << 9] = l2 << 12 | _TABLE
        memory = self._frames.owners != NOT_RAM
        for number, l1 in enumerate(l1s):
            self._words[(l2 << 9) + number] = l1 << 12 | _TABLE
            for slot in range(min(512, size - number * 512)):
                page = number * 512 + slot
                if memory[page * _ENTRIES_PER_FRAME : (page + 1) * _ENTRIES_PER_FRAME].any():
                    self._pages.add(page)
                    self._words[(l1 << 9) + slot] = self._m2p_mfns[page] << 12 | _READ_ONLY
        return l3

    def fill_slots(self, l4_mfn: int, domain: Domain) -> None:
        """Write the hypervisor's entries into an L4 table of `domain`."""
        base = l4_mfn << 9
        for slot in range(XEN_SLOT_FIRST, XEN_SLOT_LAST + 1):
            self._words[base + slot] = 0
        self._words[base + self._m2p_slot] = self._l3_mfn << 12 | _TABLE
        self._words[base + _PERDOMAIN_SLOT] = domain.perdomain_l3_mfn << 12 | _SUPERVISOR_TABLE
        self._words[base + ENGINE_SLOT] = self._engine_table

    def m2p_range(self) -> tuple[int, int, int]:
        """Where guests see the M2P: first address, address after the last, and the highest index."""
        start = _XEN_START + (self._m2p_slot - XEN_SLOT_FIRST << 39)
        return start, start + _M2P_BYTES, _M2P_BYTES // 8 - 1

    def entry(self, mfn: int) -> int | None:
        """What the M2P says of a frame; None where it has no page."""
        return self.m2p[mfn] if mfn // _ENTRIES_PER_FRAME in self._pages else None

    def m2p_chunks(self) -> list[int]:
        """The first frame of each 2 MiB of the M2P."""
        return self._m2p_mfns[::512]
