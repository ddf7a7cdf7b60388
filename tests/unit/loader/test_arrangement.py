"""What is told of a built guest: every number is that of its layout."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from tests.unit.loader.test_pv import BASE, ENTRY, INIT_P2M, MIB, RAMDISK, linux, plain
from xenolith.loader.arrangement import describe
from xenolith.loader.image import KernelImage
from xenolith.loader.pv import PvSpec, plan

Read = Callable[[bytes], KernelImage]


def told(spec: PvSpec, p2m: np.ndarray) -> dict[str, list[str]]:
    """What stands behind each label."""
    found: dict[str, list[str]] = {}
    for line in describe("Dom0", spec, plan(spec), p2m):
        label, _, value = line.strip().partition(":")
        found.setdefault(label, []).append(value.strip())
    return found


def test_where_a_kernel_that_is_as_linux_is(read: Read) -> None:
    spec = PvSpec(read(linux()), 16 * MIB, RAMDISK)
    layout = plan(spec)
    p2m = np.arange(0x1000, 0x1000 + 16 * MIB, dtype=np.uint64)
    found = told(spec, p2m)
    assert layout.ramdisk is not None
    ramdisk = (0x1000 + layout.ramdisk.pfn) << 12
    assert found["Dom0 kernel"] == ["64-bit, PAE, lsb, paddr 0x100000 -> 0x107000"]
    assert found["Dom0 alloc."] == ["0000000001000000->0000000002000000"]
    assert found["Init. ramdisk"] == [f"{ramdisk:016x}->{ramdisk + len(RAMDISK):016x}"]
    assert found["Loaded kernel"] == [f"{BASE + 0x100000:016x}->{BASE + 0x107000:016x}"]
    assert found["Phys-Mach map"] == [f"{INIT_P2M:016x}->{INIT_P2M + 16 * MIB * 8:016x}"]
    assert found["Boot stack"] == [f"{layout.vaddr(layout.stack_pfn):016x}->{layout.vaddr(layout.stack_pfn + 1):016x}"]
    assert found["TOTAL"] == [f"{BASE:016x}->{BASE + (layout.mapped_frames << 12):016x}"]
    assert found["ENTRY ADDRESS"] == [f"{ENTRY:016x}"]
    assert "" in found["PHYSICAL MEMORY ARRANGEMENT"]


def test_a_ramdisk_that_is_mapped_is_told_of_twice(read: Read) -> None:
    spec = PvSpec(read(plain()), 8 * MIB, RAMDISK)
    layout = plan(spec)
    physical, virtual = told(spec, np.arange(8 * MIB, dtype=np.uint64))["Init. ramdisk"]
    assert layout.ramdisk is not None
    assert physical == virtual == f"{layout.ramdisk.pfn << 12:016x}->{(layout.ramdisk.pfn << 12) + len(RAMDISK):016x}"


@pytest.mark.parametrize("runs", [1, 2, 8, 20])
def test_scattered_memory_is_told_of_run_by_run_but_not_without_end(read: Read, runs: int) -> None:
    spec = PvSpec(read(plain()), 8 * MIB)
    each = 8 * MIB // runs
    p2m = np.concatenate([np.arange(each) + 2 * each * run for run in range(runs)]).astype(np.uint64)
    found = told(spec, p2m)["Dom0 alloc."]
    assert len(found) == min(runs, 8)
    for run, text in enumerate(found):
        start, end = (int(part, 16) for part in re.split("->", text))
        assert (start, end) == (2 * each * run << 12, (2 * each * run + each) << 12)
