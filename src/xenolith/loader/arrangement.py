"""Where a guest's builder has put what, in the words of Xen's log.

Facts are those of the messages of dom0_construct_pv in Xen 4.17's xen/arch/x86/pv/dom0_build.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from xenolith.abi.start_info import StartInfo
from xenolith.abi.types import PAGE_SHIFT
from xenolith.loader.pv import PvLayout, PvSpec, U64Array

_MOST_RUNS: Final = 8


def describe(name: str, spec: PvSpec, layout: PvLayout, p2m: U64Array) -> Iterator[str]:
    """Lines about a guest that is called `name` ("Dom0") and whose pseudo-physical frames are the machine's `p2m`."""
    image = spec.image
    yield f" {name} kernel: {image.bits}-bit, PAE, lsb, paddr {image.start_paddr:#x} -> {image.end_paddr:#x}"
    yield "PHYSICAL MEMORY ARRANGEMENT:"
    for start, end in _runs(p2m):
        yield f" {f'{name} alloc.:':<14} {start:016x}->{end:016x}"
    if layout.ramdisk is not None and spec.ramdisk is not None:
        for start, end in _runs(p2m[layout.ramdisk.pfn : layout.ramdisk.end], len(spec.ramdisk)):
            yield f" {'Init. ramdisk:':<14} {start:016x}->{end:016x}"
    yield "VIRTUAL MEMORY ARRANGEMENT:"
    for what, start, end in _places(spec, layout):
        yield f" {f'{what}:':<14} {start:016x}->{end:016x}"
    yield f" ENTRY ADDRESS: {image.entry:016x}"


def _places(spec: PvSpec, layout: PvLayout) -> Iterator[tuple[str, int, int]]:
    base, image = layout.virt_base, spec.image
    yield "Loaded kernel", base + image.start_paddr, base + image.end_paddr
    if layout.ramdisk is not None and layout.ramdisk_mapped and spec.ramdisk is not None:
        start = layout.vaddr(layout.ramdisk.pfn)
        yield "Init. ramdisk", start, start + len(spec.ramdisk)
    yield "Phys-Mach map", layout.p2m_vaddr, layout.p2m_vaddr + 8 * spec.memory_frames
    start_info = layout.vaddr(layout.start_info_pfn)
    yield "Start info", start_info, start_info + StartInfo.sizeof()
    tables = layout.page_tables
    yield "Page tables", layout.vaddr(tables.pfn), layout.vaddr(tables.end)
    yield "Boot stack", layout.vaddr(layout.stack_pfn), layout.vaddr(layout.stack_pfn + 1)
    yield "TOTAL", base, layout.vaddr(layout.mapped_frames)


def _runs(mfns: U64Array, size: int | None = None) -> Iterator[tuple[int, int]]:
    """First machine address and end of each run of adjacent frames, the first few of them; `size` bytes in all."""
    left = len(mfns) << PAGE_SHIFT if size is None else size
    breaks = np.flatnonzero(np.diff(mfns) != 1) + 1
    for run in np.split(mfns, breaks)[:_MOST_RUNS]:
        start, length = int(run[0]) << PAGE_SHIFT, min(left, len(run) << PAGE_SHIFT)
        yield start, start + length
        left -= length
