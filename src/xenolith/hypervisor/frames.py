"""The frame table: who owns each machine frame, how often it is referenced, and as what it is used.

The rules are Xen's (xen/include/asm-x86/mm.h explains them): a frame has a total reference count and a type with a
count of its own. While the type count is above zero the type cannot change, so a page table, a descriptor table and a
writable page exclude each other. The table is plain arrays, so that whole page tables are checked by vector operations.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_uint64
from typing import Final

import numpy as np
import numpy.typing as npt

from xenolith.abi.errno import EINVAL, ENOMEM, XenError
from xenolith.machine.ram import Ram

NOBODY: Final = -1
"""Owner of a free frame."""
NOT_RAM: Final = -2
"""Owner of a frame number behind which there is no memory."""
HYPERVISOR: Final = -3
"""Owner of the hypervisor's own frames. No domid means it, so that nobody can ask for them; what privileged domains may
look at belongs to DOMID_XEN."""

TYPE_NONE: Final = 0
TYPE_L1: Final = 1
TYPE_L2: Final = 2
TYPE_L3: Final = 3
TYPE_L4: Final = 4
TYPE_SEG_DESC: Final = 5
TYPE_SHARED: Final = 6
TYPE_WRITABLE: Final = 7
TYPE_NAMES: Final = ("none", "L1", "L2", "L3", "L4", "segment descriptors", "shared", "writable")

FLAG_ALLOCATED: Final = 1
"""The owner's own reference, which it gives up when it gives the frame back."""
FLAG_PINNED: Final = 2
FLAG_EXECUTABLE: Final = 4
"""The frame was mapped executable since it was allocated: an engine may hold translated code of it."""
FLAG_SCRUB: Final = 8
"""The frame holds old contents and is cleared before it is given to anybody."""
FLAG_SHARED: Final = 16
"""The hypervisor's own frame, lent to its owner: not part of the owner's memory."""

_REFILL: Final = 512
_WINDOW: Final = 1 << 16
_SEARCHED_AT_ONCE: Final = 1 << 14
"""Frames among which free runs are looked for, before the next ones are."""


class FrameTable:
    """Owner, counts, type and flags of every frame of `ram`. All frames start as NOT_RAM; `add_ram` makes them free.

    `validate` and `devalidate` are called with (mfn, type) when a frame becomes, or stops being, a page table or
    descriptor table; `validate` raises XenError to refuse. `flush` forgets all cached translations of the processor.
    """

    def __init__(self, ram: Ram) -> None:
        self.ram = ram
        self.total = ram.frames
        self.owners: npt.NDArray[np.int32] = np.full(self.total, NOT_RAM, np.int32)
        self.counts: npt.NDArray[np.uint32] = np.zeros(self.total, np.uint32)
        self.types: npt.NDArray[np.uint8] = np.zeros(self.total, np.uint8)
        self.type_counts: npt.NDArray[np.uint32] = np.zeros(self.total, np.uint32)
        self.all_flags: npt.NDArray[np.uint8] = np.zeros(self.total, np.uint8)
        self.stale_epochs: npt.NDArray[np.uint64] = np.zeros(self.total, np.uint64)
        self.owner = self.owners.data
        self.count = self.counts.data
        self.type = self.types.data
        self.type_count = self.type_counts.data
        self.flags = self.all_flags.data
        self.stale_epoch = self.stale_epochs.data
        self.epoch_counter = c_uint64(1)
        self.free_frames = 0
        self.ram_frames = 0
        """How many frames are memory, free or not."""
        self._pool: list[int] = []
        self._cursor = 0
        """Where to look for free frames next. Used ones come first, so that no more of the host's memory is touched."""
        self.validate: Callable[[int, int], None] = lambda mfn, kind: None
        self.devalidate: Callable[[int, int], None] = lambda mfn, kind: None
        self.flush: Callable[[], None] = lambda: None
        self.invalidate_code: Callable[[int, int], None] = lambda maddr, size: None
        self.on_free: Callable[[int, int], None] = lambda mfn, domid: None
        """A frame of a domain's memory is free: its number, and whose it was."""
        self.on_unshare: Callable[[int], None] = lambda domid: None
        """A frame of the hypervisor that was lent to this domain is free."""

    @property
    def epoch(self) -> int:
        """Counts how often the processor has forgotten all translations."""
        return self.epoch_counter.value

    # -- allocation ---------------------------------------------------------------------------------------------------

    def add_ram(self, first: int, count: int) -> None:
        """Frames `first` to `first + count - 1` are memory that may be given out."""
        self.owners[first : first + count] = NOBODY
        self.free_frames += count
        self.ram_frames += count

    def allocate(self, domid: int, count: int) -> list[int]:
        """Take `count` frames, in ascending order where they are free so, and make `domid` their owner.

        Raises XenError(ENOMEM) and takes none if there are not enough.
        """
        if count > self.free_frames:
            raise XenError(ENOMEM, f"{count} frames asked for, {self.free_frames} free")
        mfns = self._take(count)
        self._own(np.array(mfns, np.int64), domid)
        return mfns

    def _take(self, count: int) -> list[int]:
        if count > _REFILL:
            return self._take_many(count)
        taken: list[int] = []
        while len(taken) < count:
            if not self._pool:
                self._refill()
            mfn = self._pool.pop()
            if self.owner[mfn] == NOBODY:
                taken.append(mfn)
                self.owner[mfn] = NOT_RAM  # so that a stale second pool entry cannot be taken as well
        return taken

    def _take_many(self, count: int) -> list[int]:
        """The lowest free frames, looked for in pieces of growing size: most of them are early in the table."""
        end = 2 * count
        while True:
            found = np.flatnonzero(self.owners[:end] == NOBODY)[:count]
            if len(found) == count:
                first: list[int] = found.tolist()
                return first
            end *= 4

    def _refill(self) -> None:
        for _ in range(self.total // _WINDOW + 2):
            end = min(self._cursor + _WINDOW, self.total)
            found = np.flatnonzero(self.owners[self._cursor : end] == NOBODY)
            if len(found):
                found = found[:_REFILL] + self._cursor
                self._cursor = int(found[-1]) + 1
                self._pool = found[::-1].tolist()
                return
            self._cursor = end if end < self.total else 0
        raise AssertionError("free frame count and owners disagree")

    def allocate_contiguous(self, domid: int, order: int, highest: int) -> list[int]:
        """Take 2**order adjacent frames, aligned to their size and at or below frame `highest`.

        Raises XenError(ENOMEM) where there is no such run.
        """
        first = int(self.allocate_runs(domid, order, highest, 1)[0])
        return list(range(first, first + (1 << order)))

    def allocate_runs(self, domid: int, order: int, highest: int, count: int) -> npt.NDArray[np.int64]:
        """Take `count` times 2**order adjacent frames, aligned to their size and at or below frame `highest`.

        Returns the first of each run. Raises XenError(ENOMEM) and takes none where there are not as many.
        """
        size = 1 << order
        limit = min(self.total, highest + 1) >> order
        found = np.empty(0, np.int64)
        while limit and len(found) < count:
            low = max(0, limit - max(1, _SEARCHED_AT_ONCE >> order))
            free = (self.owners[low << order : limit << order] == NOBODY).reshape(-1, size).all(axis=1)
            found = np.concatenate((np.flatnonzero(free) + low, found))
            limit = low
        starts = found[-count:] << order
        if len(starts) < count:
            raise XenError(ENOMEM, f"no {count} free runs of {size} frames below {highest:#x}")
        self._own((starts[:, None] + np.arange(size)).reshape(-1), domid)
        return starts

    def allocate_top(self, domid: int, count: int) -> list[int]:
        """Take the highest `count` free frames, which must be adjacent. Raises XenError(ENOMEM)."""
        mfns = np.flatnonzero(self.owners == NOBODY)[-count:]
        if len(mfns) < count or int(mfns[-1] - mfns[0]) != count - 1:
            raise XenError(ENOMEM, f"no {count} adjacent frames at the top of memory")
        self._own(mfns, domid)
        result: list[int] = mfns.tolist()
        return result

    def _own(self, mfns: npt.NDArray[np.int64], domid: int) -> None:
        self._scrub(mfns[(self.all_flags[mfns] & FLAG_SCRUB) != 0])
        self.owners[mfns] = domid
        self.counts[mfns] = 1
        self.types[mfns] = TYPE_NONE
        self.type_counts[mfns] = 0
        self.all_flags[mfns] = FLAG_ALLOCATED
        self.free_frames -= len(mfns)
        if len(mfns) and int(self.stale_epochs[mfns].max()) == self.epoch:
            self.flush()

    def _scrub(self, mfns: npt.NDArray[np.int64]) -> None:
        """Clear frames, adjacent ones together."""
        ends = np.flatnonzero(np.diff(mfns) != 1) + 1
        for run in np.split(mfns, ends) if len(mfns) else ():
            self.ram.clear(int(run[0]), len(run))
        for mfn in mfns[(self.all_flags[mfns] & FLAG_EXECUTABLE) != 0].tolist():
            self.invalidate_code(mfn << 12, 4096)

    def release_allocation(self, mfn: int) -> None:
        """Drop the owner's own reference; the frame becomes free when nobody else refers to it.

        Raises XenError(EINVAL) if it was dropped before.
        """
        if not self.flags[mfn] & FLAG_ALLOCATED:
            raise XenError(EINVAL, f"frame {mfn:#x} was given back before")
        self.flags[mfn] &= ~FLAG_ALLOCATED & 0xFF
        self.put_page(mfn)

    def release_allocations(self, mfns: npt.NDArray[np.int64]) -> int:
        """Drop the owner's own reference to each of `mfns`, which the owner still holds.

        Returns how many became free at once, without `on_free` being told; it is told of the others as they do.
        """
        alone = (self.counts[mfns] == 1) & (self.type_counts[mfns] == 0)
        for mfn in mfns[~alone].tolist():
            self.release_allocation(mfn)
        free = mfns[alone]
        self.owners[free] = NOBODY
        self.counts[free] = 0
        self.types[free] = TYPE_NONE
        self.all_flags[free] = (self.all_flags[free] & FLAG_EXECUTABLE) | FLAG_SCRUB
        self.stale_epochs[free] = self.epoch
        self.free_frames += len(free)
        self._cursor = min(self._cursor, int(free.min(initial=self._cursor)))
        return len(free)

    def allocated_to(self, domid: int) -> npt.NDArray[np.int64]:
        """The frames of a domain that it has not given back, in ascending order."""
        return np.flatnonzero((self.owners == domid) & ((self.all_flags & FLAG_ALLOCATED) != 0))

    def owned_by(self, domid: int) -> list[int]:
        """All frames of a domain, in ascending order."""
        found: list[int] = np.flatnonzero(self.owners == domid).tolist()
        return found

    # -- reference counts ---------------------------------------------------------------------------------------------

    def get_page(self, mfn: int, domid: int) -> bool:
        """Take a reference if `mfn` is memory that `domid` owns."""
        if 0 <= mfn < self.total and self.owner[mfn] == domid and self.count[mfn]:
            self.count[mfn] += 1
            return True
        return False

    def put_page(self, mfn: int) -> None:
        """Give a reference back; the last one frees the frame."""
        left = self.count[mfn] - 1
        self.count[mfn] = left
        if not left:
            domid, flags = self.owner[mfn], self.flags[mfn]
            self.owner[mfn] = NOBODY
            self.type[mfn] = TYPE_NONE
            self.flags[mfn] = (flags & FLAG_EXECUTABLE) | FLAG_SCRUB
            self.stale_epoch[mfn] = self.epoch
            self.free_frames += 1
            if mfn < self._cursor:
                self._cursor = mfn
            if flags & FLAG_SHARED:
                self.on_unshare(domid)
            else:
                self.on_free(mfn, domid)

    def get_page_type(self, mfn: int, kind: int) -> None:
        """Take a type reference. The caller holds a reference to the frame.

        Raises XenError(EINVAL) if the frame is in use as something else, or what `validate` raises.
        """
        if self.type_count[mfn]:
            if self.type[mfn] != kind:
                raise XenError(
                    EINVAL,
                    f"frame {mfn:#x} is in use as {TYPE_NAMES[self.type[mfn]]} ({self.type_count[mfn]} uses), "
                    f"not free to be {TYPE_NAMES[kind]}",
                )
            self.type_count[mfn] += 1
            return
        if self.type[mfn] != kind and self.stale_epoch[mfn] == self.epoch:
            self.flush()
        self.type[mfn] = kind
        self.type_count[mfn] = 1
        if kind <= TYPE_SEG_DESC:
            try:
                self.validate(mfn, kind)
            except XenError:
                self.type_count[mfn] = 0
                self.type[mfn] = TYPE_NONE
                raise

    def put_page_type(self, mfn: int) -> None:
        """Give a type reference back; the last one of a table gives back what its entries refer to."""
        left = self.type_count[mfn] - 1
        if not left:
            kind = self.type[mfn]
            self.stale_epoch[mfn] = self.epoch
            if kind <= TYPE_SEG_DESC:
                self.devalidate(mfn, kind)
        self.type_count[mfn] = left

    def get_page_and_type(self, mfn: int, domid: int, kind: int) -> None:
        """Both references, or XenError(EINVAL) and neither."""
        if not self.get_page(mfn, domid):
            raise XenError(EINVAL, f"frame {mfn:#x} {self.describe_owner(mfn)}, not to domain {domid}")
        try:
            self.get_page_type(mfn, kind)
        except XenError:
            self.put_page(mfn)
            raise

    def put_page_and_type(self, mfn: int) -> None:
        self.put_page_type(mfn)
        self.put_page(mfn)

    def flushed(self) -> None:
        """The processor has just forgotten all translations: nothing noted before this is stale any more."""
        self.epoch_counter.value += 1

    def describe_owner(self, mfn: int) -> str:
        """Words for error messages."""
        if not 0 <= mfn < self.total or self.owner[mfn] == NOT_RAM:
            return "is no memory"
        if self.owner[mfn] == NOBODY:
            return "is free"
        if self.owner[mfn] == HYPERVISOR:
            return "belongs to the hypervisor"
        return f"belongs to domain {self.owner[mfn]}"
