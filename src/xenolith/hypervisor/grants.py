"""Grant tables: how a domain lets others map, copy or take over single frames of its memory.

The granter writes an entry into a table that it shares with the hypervisor; another domain names it by its number.
Facts are those of the public header grant_table.h and of the behaviour of Xen 4.17's grant_table.c. Handlers run to
their end while no guest runs, so that an entry cannot change between its check and its use.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_uint16
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from xenolith.abi.errno import EBUSY, EINVAL, ENOSYS, ERANGE, XenError
from xenolith.abi.grant_table import (
    GNTTAB_NR_RESERVED_ENTRIES,
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_copy_arg,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_bad_page,
    GNTST_eagain,
    GNTST_general_error,
    GNTST_no_device_space,
    GNTST_permission_denied,
    GrantEntryHeader,
    GrantEntryV1,
    GrantEntryV2,
    GTF_accept_transfer,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transfer_committed,
    GTF_transfer_completed,
    GTF_transitive,
    GTF_type_mask,
    GTF_writing,
)
from xenolith.abi.types import DOMID_SELF, PAGE_SHIFT, PAGE_SIZE
from xenolith.hypervisor.domain import Domain
from xenolith.hypervisor.frames import FLAG_ALLOCATED, TYPE_NONE, TYPE_WRITABLE, FrameTable

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor

DEFAULT_MAX_FRAMES: Final = 64
"""How long a table may become, in frames, unless the domain's creator says otherwise."""
DEFAULT_MAPTRACK_FRAMES: Final = 1024
MAPPINGS_PER_FRAME: Final = 256
"""Of Xen's map-track entries, of 16 bytes each."""
MAX_MAPPINGS: Final = DEFAULT_MAPTRACK_FRAMES * MAPPINGS_PER_FRAME
"""How many mappings a domain may hold, unless its creator says otherwise."""
_PIN_LIMIT: Final = 0x80
_BOTH_MAPS: Final = GNTMAP_host_map | GNTMAP_device_map
_KEPT_FLAGS: Final = _BOTH_MAPS | GNTMAP_readonly | GNTMAP_contains_pte
_STATUS_PER_FRAME: Final = PAGE_SIZE // 2
_V1_PER_FRAME: Final = PAGE_SIZE // GrantEntryV1.sizeof()
_V2_PER_FRAME: Final = PAGE_SIZE // GrantEntryV2.sizeof()


class GrantError(Exception):
    """An operation on a grant failed: `status` is the GNTST_* that the guest is told, `reason` is for traces."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"GNTST {status}: {reason}")
        self.status = status
        self.reason = reason


@dataclass(slots=True, eq=False)
class ActiveGrant:
    """A grant that is mapped: what was granted when it was first mapped, whatever the entry says since.

    `pins` counts its mappings: host writable, host read-only, device writable, device read-only.
    """

    ref: int
    domid: int
    mfn: int
    pins: list[int] = field(default_factory=lambda: [0, 0, 0, 0])

    @property
    def writers(self) -> int:
        return self.pins[0] + self.pins[2]


@dataclass(slots=True, eq=False)
class Mapping:
    """What a handle stands for. `flags` are the GNTMAP_* of it that are still in force.

    The reference of a host mapping belongs to the page-table entry; with `in_table` False there is none, and the
    mapping holds it. The reference of a device mapping always belongs to the mapping.
    """

    granter: GrantTable
    active: ActiveGrant
    flags: int
    in_table: bool

    @property
    def readonly(self) -> bool:
        return bool(self.flags & GNTMAP_readonly)


def _counters(flags: int) -> list[int]:
    """Which of `ActiveGrant.pins` a mapping with these GNTMAP_* flags counts in."""
    readonly = 1 if flags & GNTMAP_readonly else 0
    return [
        base + readonly for base, wanted in ((0, flags & GNTMAP_host_map), (2, flags & GNTMAP_device_map)) if wanted
    ]


def status_frames_for(nr_frames: int) -> int:
    """Frames of status words that go with `nr_frames` frames of entries of version 2."""
    return -(-nr_frames * _V2_PER_FRAME // _STATUS_PER_FRAME)


class GrantTable:
    """The grants that one domain gives (`frames`, `status_frames`) and the mappings that it holds of others' grants."""

    def __init__(self, hv: Hypervisor, domain: Domain) -> None:
        self._hv = hv
        self._ram = hv.ram
        self.domain = domain
        self.version = 1
        self.max_version = 2
        self.max_frames = DEFAULT_MAX_FRAMES
        self.max_mappings = MAX_MAPPINGS
        self.frames: list[int] = []
        """The frames of the table itself, shared with the domain."""
        self.status_frames: list[int] = []
        """Version 2: the frames of the status words, shared with the domain."""
        self._active: dict[int, ActiveGrant] = {}
        self._mappings: dict[int, Mapping] = {}
        self._device_frames: dict[int, list[int]] = {}
        """Frames of others that devices may reach: how many mappings are writable, and how many read-only."""
        self._free_handles: list[int] = []
        self.grow(1)

    # -- the table ----------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> int:
        """How many entries the table has."""
        return len(self.frames) * (_V1_PER_FRAME if self.version == 1 else _V2_PER_FRAME)

    @property
    def mapped(self) -> int:
        """How many mappings the domain has of others' grants."""
        return len(self._mappings)

    def grow(self, nr_frames: int) -> None:
        """Make the table at least `nr_frames` long.

        Raises XenError: EINVAL above the domain's limit, ENOMEM.
        """
        if nr_frames > self.max_frames:
            raise XenError(EINVAL, f"{nr_frames} grant frames asked for, at most {self.max_frames} allowed")
        if self.domain.is_dying:
            raise XenError(EINVAL, f"{self.domain} is dying")
        if self.version == 2:
            self._grow_status(nr_frames)
        while len(self.frames) < nr_frames:
            self.frames.append(self._hv.share_frame(self.domain))

    def _grow_status(self, nr_frames: int) -> None:
        while len(self.status_frames) < status_frames_for(nr_frames):
            self.status_frames.append(self._hv.share_frame(self.domain))

    def _check_ref(self, ref: int) -> None:
        if not 0 <= ref < self.entries:
            raise GrantError(GNTST_bad_gntref, f"{self.domain} has no grant {ref}")

    def _maddr(self, ref: int) -> int:
        shift = 9 if self.version == 1 else 8
        size = 3 if self.version == 1 else 4
        return self.frames[ref >> shift] << PAGE_SHIFT | (ref & (1 << shift) - 1) << size

    def _header(self, ref: int) -> GrantEntryHeader:
        return GrantEntryHeader.from_buffer(self._ram.bytes, self._maddr(ref))

    def _v1(self, ref: int) -> GrantEntryV1:
        return GrantEntryV1.from_buffer(self._ram.bytes, self._maddr(ref))

    def _v2(self, ref: int) -> GrantEntryV2:
        return GrantEntryV2.from_buffer(self._ram.bytes, self._maddr(ref))

    def _granted_mfn(self, ref: int) -> int:
        word = self._maddr(ref) >> 3
        return self._ram.words[word] >> 32 if self.version == 1 else self._ram.words[word + 1]

    def _status(self, ref: int) -> c_uint16:
        """Where the hypervisor notes how an entry is used: in its flags, or in version 2's status word."""
        if self.version == 1:
            return c_uint16.from_buffer(self._ram.bytes, self._maddr(ref))
        maddr = self.status_frames[ref // _STATUS_PER_FRAME] << PAGE_SHIFT | ref % _STATUS_PER_FRAME << 1
        return c_uint16.from_buffer(self._ram.bytes, maddr)

    def grant(self, ref: int, domid: int, mfn: int, readonly: bool = False) -> None:
        """Write entry `ref`: domain `domid` may map frame `mfn`. Raises GrantError(GNTST_bad_gntref)."""
        self._check_ref(ref)
        if self.version == 1:
            self._v1(ref).frame = mfn
        else:
            self._v2(ref).full_page.frame = mfn
        header = self._header(ref)
        header.domid = domid
        header.flags = GTF_permit_access | (GTF_readonly if readonly else 0)

    def active_grants(self) -> list[ActiveGrant]:
        """The grants of this domain that others have mapped now."""
        return list(self._active.values())

    def is_mapped_by(self, domid: int, mfn: int) -> bool:
        """Whether domain `domid` holds a mapping of frame `mfn` by a grant of this table."""
        return any(active.domid == domid and active.mfn == mfn for active in self._active.values())

    # -- pinning: the granter's side ----------------------------------------------------------------------------------

    def _check_access(self, ref: int, domid: int, readonly: bool, kinds: tuple[int, ...], mask: int) -> int:
        """The flags of an entry by which `domid` may have access. Raises GrantError(GNTST_general_error)."""
        header = self._ram.words[self._maddr(ref) >> 3]
        flags, granted = header & 0xFFFF, header >> 16 & 0xFFFF
        if flags & mask not in kinds or granted != domid:
            raise GrantError(
                GNTST_general_error,
                f"grant {ref} of {self.domain} has flags {flags:#x} for domain {granted}, not {domid}",
            )
        self._check_writable(ref, flags, readonly)
        return flags

    def _check_writable(self, ref: int, flags: int, readonly: bool) -> None:
        if not readonly and flags & GTF_readonly:
            raise GrantError(GNTST_general_error, f"grant {ref} of {self.domain} is read-only")

    def _pin(self, ref: int, domid: int, flags: int) -> ActiveGrant:
        """Note one more mapping of entry `ref` by `domid`."""
        self._check_ref(ref)
        readonly = bool(flags & GNTMAP_readonly)
        active = self._active.get(ref)
        if active is None:
            self._check_access(ref, domid, readonly, (GTF_permit_access,), GTF_type_mask | GTF_sub_page)
            mfn = self._granted_mfn(ref)
            if not self._owns(mfn):
                raise GrantError(GNTST_bad_page, f"frame {mfn:#x} {self._hv.frames.describe_owner(mfn)}")
            active = ActiveGrant(ref, domid, mfn)
        else:
            if active.domid != domid or max(active.pins) >= _PIN_LIMIT:
                raise GrantError(GNTST_general_error, f"grant {ref} of {self.domain} is mapped by {active.domid}")
            if not active.writers:
                self._check_writable(ref, self._header(ref).flags, readonly)
        self._active[ref] = active
        for counter in _counters(flags):
            active.pins[counter] += 1
        self._status(ref).value |= GTF_reading if readonly else GTF_reading | GTF_writing
        return active

    def _owns(self, mfn: int) -> bool:
        frames: FrameTable = self._hv.frames
        return mfn < frames.total and frames.owner[mfn] == self.domain.domid

    def _unpin(self, active: ActiveGrant, flags: int) -> None:
        """Undo `_pin`."""
        for counter in _counters(flags):
            active.pins[counter] -= 1
        if self._active.get(active.ref) is not active:
            return  # the granter is gone, and its table with it
        cleared = 0 if active.writers or flags & GNTMAP_readonly else GTF_writing
        if not any(active.pins):
            cleared |= GTF_reading
            del self._active[active.ref]
        self._status(active.ref).value &= ~cleared & 0xFFFF

    def _take(self, mfn: int, readonly: bool) -> None:
        """Take the references of one mapping of a frame of this domain."""
        frames = self._hv.frames
        if readonly:
            taken = frames.get_page(mfn, self.domain.domid)
        else:
            try:
                frames.get_page_and_type(mfn, self.domain.domid, TYPE_WRITABLE)
                taken = True
            except XenError:
                taken = False
        if not taken:
            raise GrantError(GNTST_general_error, f"frame {mfn:#x} cannot be pinned")

    def _drop(self, mfn: int, readonly: bool) -> None:
        if readonly:
            self._hv.frames.put_page(mfn)
        else:
            self._hv.frames.put_page_and_type(mfn)

    # -- mapping: the mapper's side -----------------------------------------------------------------------------------

    def map_grant(
        self, granter_domid: int, ref: int, flags: int, install: Callable[[int], None] | None = None
    ) -> tuple[int, int]:
        """Map entry `ref` of domain `granter_domid` as the GNTMAP_* `flags` say; returns the handle and the mfn.

        `install` puts a frame into a page table, where the reference then belongs; it raises XenError to refuse.
        Raises GrantError.
        """
        flags &= _KEPT_FLAGS
        if not flags & _BOTH_MAPS:
            raise GrantError(GNTST_bad_gntref, "neither a host nor a device mapping is asked for")
        domain = self._hv.domains.get(granter_domid)
        if domain is None:
            raise GrantError(GNTST_bad_domain, f"no domain {granter_domid}")
        if len(self._mappings) >= self.max_mappings:
            raise GrantError(GNTST_no_device_space, "too many mappings")
        granter = domain.grants
        active = granter._pin(ref, self.domain.domid, flags)
        try:
            self._establish(granter, active.mfn, flags, install)
        except GrantError:
            granter._unpin(active, flags)
            raise
        handle = self._free_handles.pop() if self._free_handles else len(self._mappings)
        self._mappings[handle] = Mapping(granter, active, flags, install is not None)
        self._note_for_devices(active.mfn, flags, 1)
        self._hv.publish(
            "grant_map", domid=self.domain.domid, granter=granter_domid, ref=ref, mfn=active.mfn, flags=flags
        )
        return handle, active.mfn

    def _establish(self, granter: GrantTable, mfn: int, flags: int, install: Callable[[int], None] | None) -> None:
        readonly = bool(flags & GNTMAP_readonly)
        taken = 0
        try:
            for _ in _counters(flags):
                granter._take(mfn, readonly)
                taken += 1
            if install is not None and flags & GNTMAP_host_map:
                install(mfn)
        except (GrantError, XenError) as error:
            for _ in range(taken):
                granter._drop(mfn, readonly)
            if isinstance(error, GrantError):
                raise
            raise GrantError(GNTST_general_error, str(error)) from None

    def mapping(self, handle: int) -> Mapping:
        """What `handle` stands for. Raises GrantError(GNTST_bad_handle)."""
        mapping = self._mappings.get(handle)
        if mapping is None:
            raise GrantError(GNTST_bad_handle, f"{self.domain} has no mapping {handle}")
        return mapping

    def unmap_grant(self, handle: int, dev_bus_addr: int, remove: Callable[[Mapping], None] | None) -> None:
        """Undo parts of a mapping: the host's with `remove`, the device's where `dev_bus_addr` names it.

        `remove` takes the frame out of the page table and raises XenError to refuse. Raises GrantError.
        """
        mapping = self.mapping(handle)
        mfn = mapping.active.mfn
        if dev_bus_addr and dev_bus_addr != mfn << PAGE_SHIFT:
            raise GrantError(GNTST_general_error, f"bus address {dev_bus_addr:#x} is not that of frame {mfn:#x}")
        done = mapping.flags & GNTMAP_device_map if dev_bus_addr else 0
        if remove is not None and mapping.flags & GNTMAP_host_map:
            try:
                remove(mapping)
            except XenError as error:
                raise GrantError(GNTST_general_error, str(error)) from None
            done |= GNTMAP_host_map
        self._release(handle, mapping, done)

    def _release(self, handle: int, mapping: Mapping, done: int, drop_host: bool = True) -> None:
        """Give back what the parts `done` of a mapping hold, and the handle with the last of them."""
        readonly = mapping.flags & GNTMAP_readonly
        for part in (GNTMAP_host_map, GNTMAP_device_map):
            if done & part and (drop_host or part == GNTMAP_device_map):
                mapping.granter._drop(mapping.active.mfn, bool(readonly))
        if done:
            mapping.granter._unpin(mapping.active, done | readonly)
        mapping.flags &= ~done
        if not mapping.flags & _BOTH_MAPS:
            self._note_for_devices(mapping.active.mfn, readonly, -1)
            del self._mappings[handle]
            self._free_handles.append(handle)
            self._hv.publish(
                "grant_unmap",
                domid=self.domain.domid,
                granter=mapping.granter.domain.domid,
                ref=mapping.active.ref,
                mfn=mapping.active.mfn,
            )

    def _note_for_devices(self, mfn: int, flags: int, change: int) -> None:
        counts = self._device_frames.setdefault(mfn, [0, 0])
        counts[1 if flags & GNTMAP_readonly else 0] += change
        if counts == [0, 0]:
            del self._device_frames[mfn]

    def maps_for_devices(self, mfn: int, write: bool) -> bool:
        """Whether devices of this domain may read, or write, frame `mfn` of another, because a grant of it is mapped.

        As with Xen, any mapping of a grant is one for devices as well (gnttab_need_iommu_mapping).
        """
        writable, readonly = self._device_frames.get(mfn, (0, 0))
        return bool(writable or (readonly and not write))

    def map_frame(self, granter_domid: int, ref: int, readonly: bool = False) -> tuple[int, int]:
        """Map a grant for a native domain, which needs no page table; returns the handle and the mfn.

        Raises GrantError.
        """
        return self.map_grant(granter_domid, ref, GNTMAP_host_map | (GNTMAP_readonly if readonly else 0))

    def unmap_frame(self, handle: int) -> None:
        """Undo `map_frame`. Raises GrantError."""
        self.unmap_grant(handle, 0, lambda mapping: None)

    # -- copying ------------------------------------------------------------------------------------------------------

    def window(self, ref: int, domid: int, readonly: bool, transitive: bool = True) -> Window:
        """What `domid` may copy from or to by entry `ref`. Raises GrantError."""
        self._check_ref(ref)
        active = self._active.get(ref)
        if active is not None:
            if active.domid != domid:
                raise GrantError(GNTST_general_error, f"grant {ref} of {self.domain} is mapped by {active.domid}")
            if not active.writers:
                self._check_writable(ref, self._header(ref).flags, readonly)
            return Window(self.domain, active.mfn)
        kinds = (GTF_permit_access,) if self.version == 1 else (GTF_permit_access, GTF_transitive)
        flags = self._check_access(ref, domid, readonly, kinds, GTF_type_mask)
        if flags & GTF_type_mask == GTF_transitive:
            return self._referred_window(ref, readonly, transitive)
        mfn = self._granted_mfn(ref)
        if self.version == 2 and flags & GTF_sub_page:
            part = self._v2(ref).sub_page
            return Window(self.domain, mfn, part.page_off, part.length)
        return Window(self.domain, mfn)

    def _referred_window(self, ref: int, readonly: bool, transitive: bool) -> Window:
        entry = self._v2(ref).transitive
        referred = self._hv.domains.get(entry.trans_domid)
        if not transitive or referred is None or referred is self.domain:
            raise GrantError(GNTST_general_error, f"transitive grant {ref} of {self.domain} leads nowhere")
        table: GrantTable = referred.grants
        return table.window(entry.gref, self.domain.domid, readonly, transitive=False)

    # -- versions and entries -----------------------------------------------------------------------------------------

    def set_version(self, version: int) -> None:
        """Change the form of the entries. All are cleared but the reserved ones, which are rewritten.

        Raises XenError: EINVAL, EBUSY while grants are mapped or status frames are, ERANGE, ENOMEM.
        """
        if version not in (1, 2):
            raise XenError(EINVAL, f"there is no grant table version {version}")
        if version > self.max_version:
            raise XenError(ENOSYS, f"grant table version {version} was not given to {self.domain}")
        if version == self.version:
            return
        if any(ref >= GNTTAB_NR_RESERVED_ENTRIES for ref in self._active):
            raise XenError(EBUSY, "grants are in use")
        reserved = self._reserved_entries()
        if version == 2:
            self._grow_status(len(self.frames))
        else:
            self._drop_status_frames()
        self.version = version
        for mfn in self.frames:
            self._ram.clear(mfn)
        for ref, (flags, domid, frame) in enumerate(reserved):
            self.grant(ref, domid, frame)
            self._header(ref).flags = flags & ~(GTF_reading | GTF_writing)
            self._status(ref).value |= flags & (GTF_reading | GTF_writing)

    def _reserved_entries(self) -> list[tuple[int, int, int]]:
        """(flags with the use of the entry, domid, mfn) of each reserved entry."""
        refs = range(GNTTAB_NR_RESERVED_ENTRIES)
        if self.version == 1:
            return [(entry.flags, entry.domid, entry.frame) for entry in map(self._v1, refs)]
        return [self._reserved_entry_v2(ref) for ref in refs]

    def _reserved_entry_v2(self, ref: int) -> tuple[int, int, int]:
        entry = self._v2(ref).full_page
        kind = entry.hdr.flags & GTF_type_mask
        if kind == GTF_transitive or (kind == GTF_permit_access and entry.frame >> 32):
            raise XenError(ERANGE, f"grant {ref} cannot be said in version 1")
        if kind != GTF_permit_access:
            return 0, 0, 0
        return entry.hdr.flags | self._status(ref).value, entry.hdr.domid, entry.frame

    def _drop_status_frames(self) -> None:
        if any(self._hv.frames.count[mfn] > 1 for mfn in self.status_frames):
            raise XenError(EBUSY, "the status frames are mapped")
        for mfn in self.status_frames:
            self._hv.unshare_frame(mfn)
        self.status_frames.clear()

    def swap(self, first: int, second: int) -> None:
        """Exchange two entries. Raises GrantError: GNTST_bad_gntref, GNTST_eagain if one of them is in use."""
        self._check_ref(first)
        self._check_ref(second)
        if first == second:
            return
        if first in self._active or second in self._active:
            raise GrantError(GNTST_eagain, f"grant {first} or {second} is mapped")
        size = GrantEntryV1.sizeof() if self.version == 1 else GrantEntryV2.sizeof()
        one, other = self._maddr(first), self._maddr(second)
        memory = self._ram.bytes
        saved = bytes(memory[one : one + size])
        memory[one : one + size] = bytes(memory[other : other + size])
        memory[other : other + size] = saved
        if self.version == 2:
            mine, theirs = self._status(first), self._status(second)
            mine.value, theirs.value = theirs.value, mine.value

    # -- transfer -----------------------------------------------------------------------------------------------------

    def commit_transfer(self, ref: int, giver_domid: int) -> None:
        """Note that `giver_domid` gives a frame by entry `ref`. Raises GrantError(GNTST_general_error)."""
        if not 0 <= ref < self.entries:
            raise GrantError(GNTST_general_error, f"{self.domain} has no grant {ref}")
        header = self._header(ref)
        if header.flags != GTF_accept_transfer or header.domid != giver_domid:
            raise GrantError(GNTST_general_error, f"grant {ref} of {self.domain} accepts no frame of {giver_domid}")
        header.flags |= GTF_transfer_committed

    def complete_transfer(self, ref: int, mfn: int) -> int:
        """Tell the new owner which frame it got; returns the number that the domain wants to know the frame by."""
        gfn = self._granted_mfn(ref)
        if self.version == 1:
            self._v1(ref).frame = mfn
        else:
            self._v2(ref).full_page.frame = mfn
        self._header(ref).flags |= GTF_transfer_completed
        return gfn

    # -- the end ------------------------------------------------------------------------------------------------------

    def destroy(self, limit: int) -> bool:
        """Release the mappings that a dying domain holds, at most `limit` at once, and then its table.

        References that belong to its page tables are given back with these. Mappings that others hold of its frames
        stay until they give them back. Returns whether all is released.
        """
        for handle, mapping in list(islice(self._mappings.items(), limit)):
            self._release(handle, mapping, mapping.flags & _BOTH_MAPS, drop_host=not mapping.in_table)
        if self._mappings:
            return False
        self._active.clear()
        for mfn in self.frames + self.status_frames:
            self._hv.unshare_frame(mfn)
        self.frames.clear()
        self.status_frames.clear()
        return True


class Window(NamedTuple):
    """The bytes of one frame of `owner` that a copy may touch."""

    owner: Domain
    mfn: int
    offset: int = 0
    length: int = PAGE_SIZE


class CopyEnd(NamedTuple):
    """One end of a copy: a grant of `domid`, or the caller's own frame of that number."""

    number: int
    domid: int
    offset: int
    by_gref: bool


def copy(hv: Hypervisor, caller: Domain, origin: CopyEnd, target: CopyEnd, length: int) -> None:
    """One GNTTABOP_copy: `length` bytes between two frames. Raises GrantError."""
    source = _copy_window(hv, caller, origin, readonly=True)
    dest = _copy_window(hv, caller, target, readonly=False)
    frames = hv.frames
    if not frames.get_page(source.mfn, source.owner.domid):
        raise GrantError(GNTST_bad_page, f"frame {source.mfn:#x} {frames.describe_owner(source.mfn)}")
    try:
        _copy_to(hv, source, origin.offset, dest, target.offset, length)
    finally:
        frames.put_page(source.mfn)


def _copy_window(hv: Hypervisor, caller: Domain, end: CopyEnd, readonly: bool) -> Window:
    if not end.by_gref and end.domid != DOMID_SELF:
        raise GrantError(GNTST_permission_denied, "only frames of one's own are named by number")
    owner = caller if end.domid == DOMID_SELF else hv.domains.get(end.domid)
    if owner is None:
        raise GrantError(GNTST_bad_domain, f"no domain {end.domid}")
    if not end.by_gref:
        return Window(owner, end.number)
    return owner.grants.window(end.number & 0xFFFF_FFFF, caller.domid, readonly)


def _copy_to(hv: Hypervisor, source: Window, origin: int, dest: Window, target: int, length: int) -> None:
    frames = hv.frames
    if not frames.get_page(dest.mfn, dest.owner.domid):
        raise GrantError(GNTST_bad_page, f"frame {dest.mfn:#x} {frames.describe_owner(dest.mfn)}")
    try:
        frames.get_page_type(dest.mfn, TYPE_WRITABLE)
    except XenError as error:
        frames.put_page(dest.mfn)
        raise GrantError(GNTST_general_error, str(error)) from None
    try:
        _check_bounds(origin, length, source)
        _check_bounds(target, length, dest)
        start = source.mfn << PAGE_SHIFT | origin
        hv.memory.write_machine(dest.mfn << PAGE_SHIFT | target, hv.ram.bytes[start : start + length])
    finally:
        frames.put_page_and_type(dest.mfn)


def _check_bounds(offset: int, length: int, window: Window) -> None:
    if offset + length > PAGE_SIZE:
        raise GrantError(GNTST_bad_copy_arg, f"{length} bytes at {offset:#x} leave the frame")
    if offset < window.offset or offset + length > window.offset + window.length:
        raise GrantError(GNTST_general_error, f"{length} bytes at {offset:#x} leave the granted part of the frame")


def transfer(hv: Hypervisor, giver: Domain, mfn: int, taker_domid: int, ref: int) -> None:
    """Give frame `mfn` to the domain that accepts it by its entry `ref` (GNTTABOP_transfer).

    Raises GrantError. As the public header has it, the giver loses the frame in any case but GNTST_bad_page.
    """
    frames = hv.frames
    if (
        mfn >= frames.total
        or frames.owner[mfn] != giver.domid
        or frames.count[mfn] != 1
        or frames.type_count[mfn]
        or not frames.flags[mfn] & FLAG_ALLOCATED
    ):
        raise GrantError(GNTST_bad_page, f"frame {mfn:#x} is in use or not the domain's to give")
    taker = hv.domains.get(taker_domid)
    try:
        if taker is None:
            raise GrantError(GNTST_bad_domain, f"no domain {taker_domid}")
        if taker.is_dying or taker.tot_frames >= taker.max_frames:
            raise GrantError(GNTST_general_error, f"{taker} can take no more frames")
        taker.grants.commit_transfer(ref, giver.domid)
    except GrantError:
        frames.release_allocation(mfn)
        raise
    frames.flush()
    frames.owner[mfn] = taker.domid
    frames.type[mfn] = TYPE_NONE
    giver.tot_frames -= 1
    taker.tot_frames += 1
    hv.m2p[mfn] = taker.grants.complete_transfer(ref, mfn)
    hv.publish("grant_transfer", domid=giver.domid, taker=taker.domid, ref=ref, mfn=mfn)
