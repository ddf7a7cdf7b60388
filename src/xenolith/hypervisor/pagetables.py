"""Guest page tables: what an entry may say, what it refers to, and how tables become valid and stop being so.

A guest runs on its own tables, so every entry is checked before the processor can see it. A table's entries hold
references to the frames that they map; `FrameTable` calls `validate` and `devalidate` when the first and the last use
of a frame as a table begins and ends. Whole L1 tables are checked by vector operations; an entry that these cannot
accept is looked at by itself, which also finds the words for a refusal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from xenolith.abi.errno import EINVAL, EPERM, XenError
from xenolith.abi.types import DOMID_IO
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.frames import (
    FLAG_EXECUTABLE,
    NOT_RAM,
    TYPE_L1,
    TYPE_L4,
    TYPE_NAMES,
    TYPE_SEG_DESC,
    TYPE_WRITABLE,
    FrameTable,
)
from xenolith.hypervisor.guest_memory import GuestMemory

PRESENT: Final = 1
RW: Final = 2
USER: Final = 4
ACCESSED: Final = 0x20
DIRTY: Final = 0x40
GLOBAL: Final = 0x100
GUEST_KERNEL: Final = 1 << 52
NX: Final = 1 << 63
ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_MFN_MASK: Final = 0xFF_FFFF_FFFF
_CACHE_ATTRIBUTES: Final = 0x98
_TABLE_DISALLOWED: Final = 0x198
_HIGH_FLAGS: Final = 0xFFF0_0000_0000_0000
_HARMLESS_L1: Final = _HIGH_FLAGS | 0xE00 | GLOBAL | DIRTY | ACCESSED | USER
_HARMLESS_TABLE: Final = _HIGH_FLAGS | 0xE00 | DIRTY | ACCESSED | USER
XEN_SLOT_FIRST: Final = 256
XEN_SLOT_LAST: Final = 271
_FEW: Final = 24

_U64 = np.uint64
_NP_PRESENT: Final = _U64(PRESENT)
_NP_RW: Final = _U64(RW)
_NP_USER: Final = _U64(USER)
_NP_KERNEL: Final = _U64(GUEST_KERNEL)
_NP_KERNEL_USER: Final = _U64(GUEST_KERNEL | USER)
_NP_GLOBAL_USER: Final = _U64(GLOBAL | USER)
_NP_NX: Final = _U64(NX)
_NP_SHIFT: Final = _U64(12)
_NP_MFN: Final = _U64(_MFN_MASK)


def adjust_l1e(entry: int) -> int:
    """The entry as Xen stores it: readable at CPL 3, and marked as the guest's kernel's or as its users'."""
    if not entry & USER:
        return entry | USER | GUEST_KERNEL
    return entry if entry & GUEST_KERNEL else entry | GLOBAL


def refers_anew(old: int, new: int) -> bool:
    """Whether the L1 entry `new` in the place of `old` is present and differs in more than harmless bits."""
    return bool(new & PRESENT and (old ^ new) & ~_HARMLESS_L1)


class PageTables:
    """The rules for all guests' tables. `fill_xen_slots(l4_mfn, domain)` writes the hypervisor's own L4 entries."""

    def __init__(self, frames: FrameTable, memory: GuestMemory, domains: dict[int, Domain]) -> None:
        self._frames = frames
        self._memory = memory
        self._domains = domains
        self._words = frames.ram.words
        self.table = np.frombuffer(frames.ram.bytes, dtype=np.uint64)
        self.fill_xen_slots: Callable[[int, Domain], None] = lambda mfn, domain: None
        self.drop_ldt: Callable[[Domain], None] = lambda domain: None
        self.check_descriptors: Callable[[int], None] = lambda mfn: None
        self.linear_entries: Counter[int] = Counter()
        self.linear_uses: Counter[int] = Counter()
        self.mapping_removed: Callable[[int], None] | None = None
        self._table_entry_changed: Callable[[int], None] | None = None
        self._table_gone: Callable[[int], None] | None = None
        frames.validate = self.validate
        frames.devalidate = self.devalidate

    def watch(
        self,
        mapping_removed: Callable[[int], None],
        table_entry_changed: Callable[[int], None],
        table_gone: Callable[[int], None],
    ) -> None:
        """Tell an engine that keeps shadows of page tables what it must know (see `Engine`)."""
        self.mapping_removed = mapping_removed
        self._table_entry_changed = table_entry_changed
        self._table_gone = table_gone

    def table_gone(self, mfn: int) -> None:
        """Frame `mfn` stops being a page table."""
        if self._table_gone is not None:
            self._table_gone(mfn)

    # -- whole tables -------------------------------------------------------------------------------------------------

    def validate(self, mfn: int, kind: int) -> None:
        """Check every entry of a frame that is to become a table, and take what the entries refer to.

        Raises XenError(EINVAL or EPERM) and takes nothing if one entry breaks a rule.
        """
        domain = self._domains[self._frames.owner[mfn]]
        if kind == TYPE_SEG_DESC:
            self.check_descriptors(mfn)
            return
        if kind == TYPE_L1:
            self._validate_l1(mfn, domain)
        else:
            self._validate_upper(mfn, kind, domain)
            if kind == TYPE_L4:
                self.fill_xen_slots(mfn, domain)

    def devalidate(self, mfn: int, kind: int) -> None:
        """Give back what the entries of a table refer to."""
        if kind == TYPE_SEG_DESC:
            return
        self.table_gone(mfn)
        if kind == TYPE_L1:
            self._devalidate_l1(mfn)
        else:
            for slot, entry in self._present(mfn):
                if kind != TYPE_L4 or not XEN_SLOT_FIRST <= slot <= XEN_SLOT_LAST:
                    self._put_table_entry(entry, mfn, kind)

    def _present(self, mfn: int) -> list[tuple[int, int]]:
        base = mfn << 9
        entries = self.table[base : base + 512]
        found = np.flatnonzero(entries & _NP_PRESENT)
        return list(zip(found.tolist(), entries[found].tolist(), strict=True))

    def _validate_upper(self, mfn: int, kind: int, domain: Domain) -> None:
        taken: list[int] = []
        base = mfn << 9
        try:
            for slot, entry in self._present(mfn):
                if kind == TYPE_L4 and XEN_SLOT_FIRST <= slot <= XEN_SLOT_LAST:
                    continue
                self._get_table_entry(entry, mfn, kind, domain)
                taken.append(entry)
                self._words[base + slot] = entry | USER
        except XenError:
            for entry in taken:
                self._put_table_entry(entry, mfn, kind)
            raise

    def _validate_l1(self, mfn: int, domain: Domain) -> None:
        base = mfn << 9
        entries = self.table[base : base + 512]
        found = np.flatnonzero(entries & _NP_PRESENT)
        if len(found) <= _FEW or not self._validate_l1_at_once(entries, found, domain):
            self._validate_l1_singly(base, found.tolist(), domain)

    def _validate_l1_at_once(
        self, entries: npt.NDArray[np.uint64], found: npt.NDArray[np.intp], domain: Domain
    ) -> bool:
        """Accept all present entries together, or none and say so by False."""
        values = self._get_l1es(entries[found], domain)
        if values is None:
            return False
        entries[found] = values
        return True

    def _get_l1es(self, values: npt.NDArray[np.uint64], domain: Domain) -> npt.NDArray[np.uint64] | None:
        """Take the references that present entries stand for, all of them, and return the entries as Xen stores them.

        None, and nothing is taken, if there is one that must be looked at by itself.
        """
        frames = self._frames
        if (values & _U64(self.l1_disallowed(domain))).any():
            return None
        mfns = ((values >> _NP_SHIFT) & _NP_MFN).astype(np.int64)
        if int(mfns.max()) >= frames.total or (frames.owners[mfns] != domain.domid).any():
            return None
        writable = mfns[(values & _NP_RW) != 0]
        if ((frames.types[writable] != TYPE_WRITABLE) & (frames.type_counts[writable] != 0)).any():
            return None
        if len(writable) and (frames.stale_epochs[writable] == frames.epoch).any():
            frames.flush()
        np.add.at(frames.counts, mfns, np.uint32(1))
        np.add.at(frames.type_counts, writable, np.uint32(1))
        frames.types[writable] = TYPE_WRITABLE
        is_code = (values & _NP_NX) == 0
        for entry in values[is_code & ((values & _NP_KERNEL_USER) != _NP_USER)].tolist():
            self._becomes_code(entry)
        frames.all_flags[mfns[is_code]] |= FLAG_EXECUTABLE
        values = values | np.where((values & _NP_USER) == 0, _NP_KERNEL_USER, _U64(0))
        values |= np.where((values & _NP_KERNEL) == 0, _NP_GLOBAL_USER, _U64(0))
        return values

    def _validate_l1_singly(self, base: int, slots: list[int], domain: Domain) -> None:
        words = self._words
        taken: list[int] = []
        try:
            for slot in slots:
                entry = words[base + slot]
                if not entry >> 63:
                    self._becomes_code(entry)
                self.get_l1e(entry, domain, domain.domid)
                taken.append(entry)
                words[base + slot] = adjust_l1e(entry)
        except XenError:
            for entry in taken:
                self.put_l1e(entry)
            raise

    def _devalidate_l1(self, mfn: int) -> None:
        base = mfn << 9
        entries = self.table[base : base + 512]
        values = entries[np.flatnonzero(entries & _NP_PRESENT)]
        if len(values) <= _FEW or not self._put_l1es(values):
            for entry in values.tolist():
                self.put_l1e(entry)

    def _put_l1es(self, values: npt.NDArray[np.uint64]) -> bool:
        """Give back what present entries referred to, or nothing and say so if one must be looked at by itself."""
        frames = self._frames
        mfns = ((values >> _NP_SHIFT) & _NP_MFN).astype(np.int64)
        if int(mfns.max()) >= frames.total or (frames.owners[mfns] == NOT_RAM).any():
            return False
        if (frames.types[mfns] == TYPE_SEG_DESC).any():
            return False
        writable = mfns[(values & _NP_RW) != 0]
        np.subtract.at(frames.type_counts, writable, np.uint32(1))
        frames.stale_epochs[writable] = frames.epoch
        np.subtract.at(frames.counts, mfns, np.uint32(1))
        for unused in set(mfns[frames.counts[mfns] == 0].tolist()):
            frames.count[unused] = 1
            frames.put_page(unused)
        return True

    # -- single entries -----------------------------------------------------------------------------------------------

    def l1_disallowed(self, domain: Domain) -> int:
        """The flags that an L1e of this domain must not have: cache attributes need hardware of one's own."""
        return 0 if domain.iomem_ranges or domain.port_ranges else _CACHE_ATTRIBUTES

    def get_l1e(self, entry: int, domain: Domain, owner_domid: int) -> None:
        """Check a present L1 entry of `domain` and take the references that it stands for.

        The frame must belong to `owner_domid` (the domain itself, one that it may map, or DOMID_IO).
        Raises XenError(EINVAL or EPERM).
        """
        frames = self._frames
        if entry & _CACHE_ATTRIBUTES and entry & self.l1_disallowed(domain):
            raise XenError(
                EINVAL, f"L1e {entry:#x} has flags {entry & self.l1_disallowed(domain):#x} that are not allowed"
            )
        mfn = (entry & ADDRESS) >> 12
        if mfn >= frames.total or frames.owner[mfn] == NOT_RAM:
            self._check_device_memory(entry, mfn, domain)
            return
        if frames.owner[mfn] != owner_domid:
            raise XenError(
                EPERM if owner_domid == DOMID_IO else EINVAL,
                f"L1e {entry:#x} of domain {domain.domid}: frame {mfn:#x} {frames.describe_owner(mfn)}",
            )
        frames.count[mfn] += 1
        if entry & RW:
            if frames.type_count[mfn] and frames.type[mfn] == TYPE_WRITABLE:
                frames.type_count[mfn] += 1
            else:
                try:
                    frames.get_page_type(mfn, TYPE_WRITABLE)
                except XenError as error:
                    frames.put_page(mfn)
                    raise XenError(EINVAL, f"writable L1e {entry:#x}: {error.reason}") from None
        if not entry >> 63:
            frames.flags[mfn] |= FLAG_EXECUTABLE

    def _check_device_memory(self, entry: int, mfn: int, domain: Domain) -> None:
        if any(first <= mfn <= last for first, last in domain.iomem_ranges):
            return
        if Capability.HARDWARE in domain.capabilities:
            raise XenError(EPERM, f"L1e {entry:#x}: domain {domain.domid} may not map device frame {mfn:#x}")
        raise XenError(EINVAL, f"L1e {entry:#x}: frame {mfn:#x} is no memory")

    def put_l1e(self, entry: int) -> None:
        """Give back what a present L1 entry referred to."""
        frames = self._frames
        mfn = (entry & ADDRESS) >> 12
        if mfn >= frames.total or frames.owner[mfn] == NOT_RAM:
            return
        if entry & RW:
            frames.put_page_type(mfn)
        elif frames.type[mfn] == TYPE_SEG_DESC and frames.type_count[mfn]:
            self.drop_ldt(self._domains[frames.owner[mfn]])
        frames.put_page(mfn)

    def _get_table_entry(self, entry: int, table_mfn: int, kind: int, domain: Domain) -> None:
        if entry & _TABLE_DISALLOWED:
            raise XenError(EINVAL, f"L{kind}e {entry:#x} has flags {entry & _TABLE_DISALLOWED:#x} that are not allowed")
        mfn = (entry & ADDRESS) >> 12
        frames = self._frames
        if mfn < frames.total and frames.type_count[mfn] and frames.type[mfn] == kind:
            self._get_linear(entry, mfn, table_mfn, kind, domain)
            return
        try:
            frames.get_page_and_type(mfn, domain.domid, kind - 1)
        except XenError as error:
            raise XenError(EINVAL, f"L{kind}e {entry:#x}: {error.reason}") from None

    def _get_linear(self, entry: int, mfn: int, table_mfn: int, kind: int, domain: Domain) -> None:
        """A table that refers to one of its own level: read-only, and not in chains (Xen's XSA-240)."""
        frames = self._frames
        if entry & RW:
            raise XenError(EINVAL, f"L{kind}e {entry:#x} refers to an {TYPE_NAMES[kind]} with write access")
        if mfn == table_mfn:
            return
        if self.linear_uses[table_mfn] or self.linear_entries[mfn]:
            raise XenError(EINVAL, f"L{kind}e {entry:#x} would chain linear page tables")
        if not frames.get_page(mfn, domain.domid):
            raise XenError(EINVAL, f"L{kind}e {entry:#x}: frame {mfn:#x} {frames.describe_owner(mfn)}")
        frames.type_count[mfn] += 1
        self.linear_entries[table_mfn] += 1
        self.linear_uses[mfn] += 1

    def _put_table_entry(self, entry: int, table_mfn: int, kind: int) -> None:
        mfn = (entry & ADDRESS) >> 12
        if mfn == table_mfn:
            return
        frames = self._frames
        if frames.type[mfn] == kind:
            _count_down(self.linear_entries, table_mfn)
            _count_down(self.linear_uses, mfn)
        frames.put_page_and_type(mfn)

    # -- updates ------------------------------------------------------------------------------------------------------

    def update(
        self, maddr: int, new: int, kind: int, domain: Domain, owner_domid: int, preserve_ad: bool = False
    ) -> None:
        """Replace the entry at machine address `maddr` of a validated table of `domain`.

        `owner_domid` is whose frames an L1 entry may map. Raises XenError(EINVAL or EPERM) and changes nothing.
        """
        if kind == TYPE_L1:
            self.update_l1(maddr, new, domain, owner_domid, preserve_ad)
        else:
            self._update_upper(maddr, new, kind, domain, preserve_ad)

    def update_l1(self, maddr: int, new: int, domain: Domain, owner_domid: int, preserve_ad: bool = False) -> None:
        words = self._words
        old = words[maddr >> 3]
        if new & PRESENT:
            if not new >> 63 and (old >> 63 or not old & PRESENT):
                self._becomes_code(new)
            if refers_anew(old, new):
                self.get_l1e(new, domain, owner_domid)
                dropped = old
            else:
                dropped = 0
                if not new >> 63 and (new & ADDRESS) >> 12 < self._frames.total:
                    self._frames.flags[(new & ADDRESS) >> 12] |= FLAG_EXECUTABLE
            new = adjust_l1e(new)
        else:
            dropped = old
        if preserve_ad:
            new |= old & (ACCESSED | DIRTY)
        words[maddr >> 3] = new
        if old & PRESENT and self.mapping_removed is not None:
            self.mapping_removed((old & ADDRESS) >> 12)
        if dropped & PRESENT:
            self.put_l1e(dropped)

    def _becomes_code(self, entry: int) -> None:
        """A present entry makes its frame executable. Code that was translated from there is forgotten if a kernel does
        that: it may free the code of a module, and write that of the next into the same frame, without anything in
        between by which an engine would notice (Linux 6.12 does)."""
        frames, mfn = self._frames, (entry & ADDRESS) >> 12
        is_kernels = not entry & USER or entry & GUEST_KERNEL
        if is_kernels and mfn < frames.total and frames.flags[mfn] & FLAG_EXECUTABLE:
            frames.invalidate_code(mfn << 12, 4096)

    def update_l1s(self, maddr: int, new: npt.NDArray[np.uint64], domain: Domain) -> bool:
        """Replace the adjacent entries from `maddr` on, in one L1 table, all of them or none (and then say so).

        It is for entries that all come or all go. No order among them can matter then.
        """
        old = self.table[maddr >> 3 : (maddr >> 3) + len(new)]
        coming, going = int(((new & _NP_PRESENT) != 0).sum()), int(((old & _NP_PRESENT) != 0).sum())
        if coming == len(new) and not going:
            adjusted = self._get_l1es(new, domain)
            if adjusted is None:
                return False
            old[:] = adjusted
            return True
        if coming or going != len(new):
            return False
        dropped = old.copy()
        if not self._put_l1es(dropped):
            return False
        old[:] = new
        if self.mapping_removed is not None:
            for mfn in ((dropped >> _NP_SHIFT) & _NP_MFN).tolist():
                self.mapping_removed(mfn)
        return True

    def _update_upper(self, maddr: int, new: int, kind: int, domain: Domain, preserve_ad: bool) -> None:
        words = self._words
        table_mfn = maddr >> 12
        slot = (maddr & 0xFFF) >> 3
        if kind == TYPE_L4 and XEN_SLOT_FIRST <= slot <= XEN_SLOT_LAST:
            raise XenError(EINVAL, f"L4 slot {slot} belongs to the hypervisor")
        old = words[maddr >> 3]
        dropped = old
        if new & PRESENT:
            if (old ^ new) & ~_HARMLESS_TABLE:
                self._get_table_entry(new, table_mfn, kind, domain)
            else:
                dropped = 0
            new |= USER
        if preserve_ad:
            new |= old & (ACCESSED | DIRTY)
        words[maddr >> 3] = new
        if old & PRESENT and self._table_entry_changed is not None:
            self._table_entry_changed(maddr)
        if dropped & PRESENT:
            self._put_table_entry(dropped, table_mfn, kind)

    # -- grants -------------------------------------------------------------------------------------------------------

    def _grant_l1(self, domain: Domain, pte_maddr: int) -> None:
        frames = self._frames
        mfn = pte_maddr >> 12
        if (
            pte_maddr & 7
            or mfn >= frames.total
            or frames.owner[mfn] != domain.domid
            or frames.type[mfn] != TYPE_L1
            or not frames.type_count[mfn]
        ):
            raise XenError(EINVAL, f"{pte_maddr:#x} is no entry of an L1 table of domain {domain.domid}")

    def map_grant_pte(self, domain: Domain, pte_maddr: int, l1e: int) -> None:
        """Install a granted frame at an L1 entry; the caller has taken the references. Raises XenError(EINVAL)."""
        self._grant_l1(domain, pte_maddr)
        old = self._words[pte_maddr >> 3]
        self._words[pte_maddr >> 3] = l1e
        if not l1e >> 63:
            self._frames.flags[(l1e & ADDRESS) >> 12] |= FLAG_EXECUTABLE
        if old & PRESENT:
            if self.mapping_removed is not None:
                self.mapping_removed((old & ADDRESS) >> 12)
            self.put_l1e(old)
            self._frames.flush()

    def unmap_grant_pte(self, domain: Domain, pte_maddr: int, mfn: int, replacement_l1e: int) -> None:
        """Take a granted frame out of an L1 entry; the caller drops the references. Raises XenError(EINVAL)."""
        self._grant_l1(domain, pte_maddr)
        old = self._words[pte_maddr >> 3]
        if not old & PRESENT or (old & ADDRESS) >> 12 != mfn:
            raise XenError(EINVAL, f"the L1e {old:#x} at {pte_maddr:#x} does not map frame {mfn:#x}")
        self._words[pte_maddr >> 3] = replacement_l1e
        if self.mapping_removed is not None:
            self.mapping_removed(mfn)
        self._frames.flush()


def _count_down(counter: Counter[int], key: int) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
