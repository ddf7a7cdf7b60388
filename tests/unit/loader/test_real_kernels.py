"""The kernels that this machine's cache holds: each is read, laid out and built into plain memory, in both roles."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from xenolith.abi.start_info import SIF_INITDOMAIN, SIF_PRIVILEGED, StartInfo
from xenolith.abi.types import PAGE_SIZE
from xenolith.abi.x86_64 import PAGE_PRESENT, PTE_ADDR_MASK
from xenolith.errors import UserError
from xenolith.loader import registry
from xenolith.loader.image import KernelImage
from xenolith.loader.pv import PvSpec, build, minimum_frames, plan

USER_CACHE = os.environ.get("XDG_CACHE_HOME", "")
MEMORY_FRAMES = 128 << 8


@pytest.fixture(params=[source.alias for source in registry.SOURCES])
def pulled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> registry.Pulled:
    """One of the registry's kernels, from the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", USER_CACHE)
    found = registry.pulled(request.param)
    if found is None:
        pytest.skip(f"'{request.param}' is not in the cache: run 'xenolith pull {request.param}'")
    return found


@pytest.mark.parametrize("flags", [0, SIF_PRIVILEGED | SIF_INITDOMAIN])
def test_it_can_be_built(pulled: registry.Pulled, flags: int) -> None:
    image = KernelImage.read(pulled.file)
    assert image.verdict.bootable, image.verdict.sentence
    spec = PvSpec(image, MEMORY_FRAMES, ramdisk=b"ramdisk" * 10_000, cmdline="quiet", flags=flags)
    layout = plan(spec)
    p2m = np.arange(MEMORY_FRAMES, dtype=np.uint64)[::-1].copy()
    memory = bytearray(MEMORY_FRAMES * PAGE_SIZE)
    start = build(spec, layout, p2m, memoryview(memory), 0)

    info = StartInfo.from_bytes(memory[start.start_info_mfn * PAGE_SIZE :][:PAGE_SIZE])
    assert info.magic == b"xen-3.0-x86_64"
    frames = np.frombuffer(memory, np.uint64).reshape(-1, 512)

    def read(vaddr: int, length: int) -> bytes:
        mfn = int(start.l4_mfn)
        for level in (4, 3, 2, 1):
            entry = int(frames[mfn][vaddr >> 3 + 9 * level & 511])
            assert entry & PAGE_PRESENT
            mfn = (entry & PTE_ADDR_MASK) >> 12
        return frames[mfn].tobytes()[vaddr % PAGE_SIZE :][:length]

    entry_segment = next(s for s in image.segments if s.vaddr <= start.entry < s.vaddr + s.memsz)
    offset = start.entry - entry_segment.vaddr
    assert read(start.entry, 16) == bytes(entry_segment.data[offset : offset + 16])
    assert read(start.start_info_vaddr, 14) == b"xen-3.0-x86_64"
    assert read(layout.p2m_vaddr, 16) == p2m[:2].tobytes()
    read(start.stack_pointer - 8, 8)


def test_the_memory_it_needs_is_said(pulled: registry.Pulled) -> None:
    image = KernelImage.read(pulled.file)
    needed = minimum_frames(PvSpec(image, 0))
    assert 1 << 8 <= needed <= 96 << 8
    with pytest.raises(UserError, match=f"{-(-needed // 256)} MiB is needed"):
        plan(PvSpec(image, needed - 1))


def test_its_modules_can_be_loaded(pulled: registry.Pulled) -> None:
    from xenolith.loader.modules import ModuleTree

    if pulled.modules is None:
        assert pulled.alias in ("grub", "mach")
        return
    tree = ModuleTree(Path(pulled.modules))
    names = [module.name for module in tree.closure(["xenfs", "xen-netback", "ext4", "fuse"])]
    assert names.index("xen_privcmd") < names.index("xenfs")
    assert "xen_netback" in names
    assert "ext4" not in names or names.index("jbd2") < names.index("ext4")
