"""The rules for frames and page tables once more, written to be read: dictionaries, recursion, one entry at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

P, RW, USER, A, D = 1, 2, 4, 0x20, 0x40
GLOBAL, GUEST_KERNEL = 0x100, 1 << 52
CACHE_BITS = 0x98
NOT_IN_TABLES = 0x198
MAY_CHANGE = 0xFFF0_0000_0000_0E64
"""Bits that can change in a table's entry without a new look at what it refers to; GLOBAL as well in an L1 entry."""
NONE, L1, L2, L3, L4, SEG, SHARED, WRITABLE = range(8)
NOBODY = -1
XEN_SLOTS = range(256, 272)


class Refused(Exception):
    """What the rules forbid."""


@dataclass
class Frame:
    owner: int = NOBODY
    count: int = 0
    type: int = NONE
    type_count: int = 0
    pinned: bool = False
    allocated: bool = False
    shared: bool = False
    linear_entries: int = 0
    linear_uses: int = 0


@dataclass
class Model:
    """`xen_slots(domid)` gives the hypervisor's own entries of an L4; `devices` says which frame numbers behind which
    there is no memory a domain may map, and with that choose how memory is cached.
    """

    xen_slots: Callable[[int], dict[int, int]]
    devices: dict[int, range] = field(default_factory=dict)
    frames: dict[int, Frame] = field(default_factory=dict)
    words: dict[int, dict[int, int]] = field(default_factory=dict)

    # -- memory -------------------------------------------------------------------------------------------------------

    def read(self, mfn: int, slot: int) -> int:
        return self.words.get(mfn, {}).get(slot, 0)

    def write(self, mfn: int, slot: int, value: int) -> None:
        self.words.setdefault(mfn, {})[slot] = value

    def present(self, mfn: int) -> list[tuple[int, int]]:
        return [(slot, entry) for slot, entry in sorted(self.words.get(mfn, {}).items()) if entry & P]

    # -- refusals -----------------------------------------------------------------------------------------------------

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """What is refused leaves every owner, count and type as it was."""
        before = {mfn: copy.copy(frame) for mfn, frame in self.frames.items()}
        try:
            yield
        except Refused:
            self.frames = before
            raise

    # -- frames -------------------------------------------------------------------------------------------------------

    def allocated(self, mfns: list[int], domid: int) -> None:
        for mfn in mfns:
            assert self.frames[mfn].owner == NOBODY, f"frame {mfn} was given out twice"
            self.frames[mfn] = Frame(owner=domid, count=1, allocated=True)
            self.words.pop(mfn, None)

    def get(self, mfn: int, domid: int) -> None:
        frame = self.frames.get(mfn)
        if frame is None or frame.owner != domid:
            raise Refused(f"{mfn} is not of {domid}")
        frame.count += 1

    def put(self, mfn: int) -> None:
        frame = self.frames[mfn]
        frame.count -= 1
        if frame.count == 0:
            assert frame.type_count == 0, f"frame {mfn} is freed while it is in use as {frame.type}"
            frame.owner = NOBODY

    def get_type(self, mfn: int, kind: int) -> None:
        frame = self.frames[mfn]
        if frame.type_count == 0:
            frame.type, frame.type_count = kind, 1
            self.become(mfn, kind)
        elif frame.type == kind:
            frame.type_count += 1
        else:
            raise Refused(f"{mfn} is in use as {frame.type}")

    def put_type(self, mfn: int) -> None:
        frame = self.frames[mfn]
        if frame.type_count == 1:
            self.cease(mfn, frame.type)
        frame.type_count -= 1

    def get_both(self, mfn: int, domid: int, kind: int) -> None:
        self.get(mfn, domid)
        self.get_type(mfn, kind)

    def put_both(self, mfn: int) -> None:
        self.put_type(mfn)
        self.put(mfn)

    def release(self, mfn: int) -> None:
        """The owner's own reference."""
        if not self.frames[mfn].allocated:
            raise Refused(f"{mfn} was given back before")
        self.frames[mfn].allocated = False
        self.put(mfn)

    # -- tables -------------------------------------------------------------------------------------------------------

    def become(self, mfn: int, kind: int) -> None:
        domid = self.frames[mfn].owner
        if kind == SEG:
            for slot, entry in sorted(self.words.get(mfn, {}).items()):
                self.write(mfn, slot, descriptor(entry))
        if kind == L1:
            for slot, entry in self.present(mfn):
                self.get_l1e(entry, domid, domid)
                self.write(mfn, slot, adjusted(entry))
        if kind in (L2, L3, L4):
            for slot, entry in self.present(mfn):
                if kind != L4 or slot not in XEN_SLOTS:
                    self.get_upper(entry, mfn, kind, domid)
                    self.write(mfn, slot, entry | USER)
        if kind == L4:
            for slot in XEN_SLOTS:
                self.write(mfn, slot, self.xen_slots(domid).get(slot, 0))

    def cease(self, mfn: int, kind: int) -> None:
        if kind in (L1, L2, L3, L4):
            for slot, entry in self.present(mfn):
                if kind == L1:
                    self.put_l1e(entry)
                elif kind != L4 or slot not in XEN_SLOTS:
                    self.put_upper(entry, mfn, kind)

    def get_l1e(self, entry: int, domid: int, owner: int) -> None:
        if entry & CACHE_BITS and domid not in self.devices:
            raise Refused("cache attributes")
        mfn = address(entry)
        if mfn not in self.frames:
            if mfn not in self.devices.get(domid, ()):
                raise Refused("no memory")
            return
        self.get(mfn, owner)
        if entry & RW:
            self.get_type(mfn, WRITABLE)

    def put_l1e(self, entry: int) -> None:
        mfn = address(entry)
        if mfn in self.frames:
            if entry & RW:
                self.put_type(mfn)
            self.put(mfn)

    def get_upper(self, entry: int, table: int, kind: int, domid: int) -> None:
        if entry & NOT_IN_TABLES:
            raise Refused("flags")
        mfn = address(entry)
        target = self.frames.get(mfn)
        if target is None or not (target.type_count and target.type == kind):
            self.get(mfn, domid)
            self.get_type(mfn, kind - 1)
        elif entry & RW:
            raise Refused("a writable reference to a table of the same level")
        elif mfn != table:
            if self.frames[table].linear_uses or target.linear_entries:
                raise Refused("a chain of linear tables")
            self.get(mfn, domid)
            target.type_count += 1
            target.linear_uses += 1
            self.frames[table].linear_entries += 1

    def put_upper(self, entry: int, table: int, kind: int) -> None:
        mfn = address(entry)
        if mfn == table:
            return
        if self.frames[mfn].type == kind:
            self.frames[mfn].linear_uses -= 1
            self.frames[table].linear_entries -= 1
        self.put_both(mfn)

    # -- what domains ask for -----------------------------------------------------------------------------------------

    def pin(self, mfn: int, domid: int, kind: int) -> None:
        with self.all_or_nothing():
            self.get_both(mfn, domid, kind)
            if self.frames[mfn].pinned:
                raise Refused("pinned already")
            self.frames[mfn].pinned = True

    def unpin(self, mfn: int, domid: int) -> None:
        frame = self.frames.get(mfn)
        if frame is None or frame.owner != domid or not frame.pinned:
            raise Refused("not pinned")
        frame.pinned = False
        self.put_both(mfn)

    def update(self, mfn: int, slot: int, new: int, table_domid: int, owner: int, keep_ad: bool) -> None:
        frame = self.frames.get(mfn)
        if frame is None or frame.owner != table_domid:
            raise Refused("not a frame of that domain")
        kind = frame.type if frame.type_count else NONE
        if kind in (SEG, SHARED):
            raise Refused("neither a page table nor data")
        if kind == L4 and slot in XEN_SLOTS:
            raise Refused("the hypervisor's slot")
        if kind in (NONE, WRITABLE):
            self.write(mfn, slot, new)
            return
        with self.all_or_nothing():
            old = self.read(mfn, slot)
            free_bits = MAY_CHANGE | (GLOBAL if kind == L1 else 0)
            same = new & P and not (old ^ new) & ~free_bits
            if new & P and not same:
                if kind == L1:
                    self.get_l1e(new, table_domid, owner)
                else:
                    self.get_upper(new, mfn, kind, table_domid)
            if new & P:
                new = adjusted(new) if kind == L1 else new | USER
            if keep_ad:
                new |= old & (A | D)
            self.write(mfn, slot, new)
            if old & P and not same:
                if kind == L1:
                    self.put_l1e(old)
                else:
                    self.put_upper(old, mfn, kind)

    def give_back(self, mfn: int, domid: int) -> None:
        frame = self.frames.get(mfn)
        if frame is None or frame.owner != domid or not frame.allocated:
            raise Refused("not the domain's to give")
        if frame.pinned:
            self.unpin(mfn, domid)
        self.release(mfn)


def address(entry: int) -> int:
    return (entry & 0x000F_FFFF_FFFF_F000) >> 12


def adjusted(entry: int) -> int:
    if not entry & USER:
        return entry | USER | GUEST_KERNEL
    return entry if entry & GUEST_KERNEL else entry | GLOBAL


def descriptor(entry: int) -> int:
    """Of what these tests put into frames, this is all that can be a descriptor that a guest may have."""
    present, ordinary, kind = entry >> 47 & 1, entry >> 44 & 1, entry >> 40 & 0xF
    if not present or (kind == 0 and not ordinary):
        return entry
    if ordinary:
        return entry | 3 << 45
    raise Refused("a system descriptor")
