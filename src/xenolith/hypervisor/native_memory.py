"""The address space of a native domain: page tables like any guest's, and what its code sees through them.

A domain whose code is Python has real memory under the hypervisor's usual rules: validated page tables map its own
frames, and a window of virtual addresses into which it maps, by hypercalls, what others grant it or what it may look
at. Where a processor would translate an address, `AddressSpace.view` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from xenolith.abi.errno import ENOMEM, XenError
from xenolith.abi.types import PAGE_SHIFT, PAGE_SIZE
from xenolith.abi.x86_64 import PAGE_ACCESSED, PAGE_DIRTY, PAGE_NX, PAGE_PRESENT, PAGE_RW, PAGE_USER
from xenolith.hypervisor.frames import TYPE_L4
from xenolith.hypervisor.hypercalls import mmu

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor

_ENTRIES: Final = 512
_MEMORY_START: Final = 1 << 30
"""Where the domain's own pages begin: the second gibibyte, all of which one L2 table maps."""
_WINDOW_START: Final = _MEMORY_START + (_ENTRIES << PAGE_SHIFT)
_TABLE: Final = PAGE_PRESENT | PAGE_RW | PAGE_USER | PAGE_ACCESSED | PAGE_DIRTY
_LEAF: Final = PAGE_PRESENT | PAGE_ACCESSED | PAGE_DIRTY | PAGE_NX


def leaf(mfn: int, writable: bool) -> int:
    """An L1 entry for data: never executable."""
    return mfn << PAGE_SHIFT | _LEAF | (PAGE_RW if writable else 0)


class AddressSpace:
    """`page_count` adjacent pages (a power of 2, at most 512) of the domain's own, and a window of `window_tables`
    L1 tables, 512 pages each.

    Building it is what a domain builder does; afterwards it changes by hypercalls only. Raises XenError(ENOMEM).
    """

    def __init__(self, hv: Hypervisor, domain: Domain, page_count: int, window_tables: int) -> None:
        self._hv = hv
        self._vcpu = domain.vcpus[0]
        self.pages = range(0)
        frames = hv.frames
        domain.max_frames = domain.max_frames or page_count + window_tables + 4
        own = frames.allocate_contiguous(domain.domid, page_count.bit_length() - 1, frames.total)
        l4, l3, l2, *l1s = tables = frames.allocate(domain.domid, window_tables + 4)
        domain.tot_frames += len(own) + len(tables)
        for pfn, mfn in enumerate(own + tables):
            hv.m2p[mfn] = pfn
        self._window_l1s = l1s[1:]
        self._free = list(range(window_tables * _ENTRIES - 1, -1, -1))
        words = np.frombuffer(hv.ram.bytes, np.uint64)
        words[l4 << 9] = l3 << PAGE_SHIFT | _TABLE
        words[(l3 << 9) + (_MEMORY_START >> 30)] = l2 << PAGE_SHIFT | _TABLE
        words[l2 << 9 : (l2 << 9) + len(l1s)] = np.array(l1s, np.uint64) << np.uint64(PAGE_SHIFT) | np.uint64(_TABLE)
        words[l1s[0] << 9 : (l1s[0] << 9) + page_count] = [leaf(mfn, True) for mfn in own]
        mmu.pin(hv, domain, l4, TYPE_L4)
        frames.get_page_and_type(l4, domain.domid, TYPE_L4)
        self._vcpu.kernel_root = l4 << PAGE_SHIFT
        self.memory = hv.ram.bytes[own[0] << PAGE_SHIFT : (own[-1] + 1) << PAGE_SHIFT]
        self.first_mfn = own[0]

    def vaddr(self, offset: int) -> int:
        """The virtual address of a byte of the domain's own memory."""
        return _MEMORY_START + offset

    def view(self, vaddr: int) -> memoryview:
        """The page that is mapped at `vaddr`, as the processor would find it. Raises XenError(EFAULT)."""
        maddr = self._hv.memory.walk(self._vcpu.kernel_root, vaddr) & -PAGE_SIZE
        return self._hv.ram.bytes[maddr : maddr + PAGE_SIZE]

    # -- the window ---------------------------------------------------------------------------------------------------

    def take_slots(self, count: int) -> list[int]:
        """Virtual addresses of `count` pages of the window that map nothing. Raises XenError(ENOMEM)."""
        if count > len(self._free):
            raise XenError(ENOMEM, f"{count} pages of the window asked for, {len(self._free)} free")
        taken = self._free[-count:] if count else []
        del self._free[len(self._free) - count :]
        return [_WINDOW_START + (slot << PAGE_SHIFT) for slot in reversed(taken)]

    def give_slots(self, vaddrs: list[int]) -> None:
        """Pages of the window that map nothing any more."""
        self._free += [(vaddr - _WINDOW_START) >> PAGE_SHIFT for vaddr in reversed(vaddrs)]

    def entry_maddr(self, vaddr: int) -> int:
        """The machine address of the L1 entry of a page of the window, as its owner knows it."""
        slot = (vaddr - _WINDOW_START) >> PAGE_SHIFT
        return (self._window_l1s[slot // _ENTRIES] << PAGE_SHIFT) + slot % _ENTRIES * 8
