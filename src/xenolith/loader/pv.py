"""The start of day of a 64-bit PV guest: where everything lies, and writing it into the guest's memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from xenolith.abi.start_info import (
    MAGIC,
    MAX_GUEST_CMDLINE,
    SIF_INITDOMAIN,
    SIF_MOD_START_PFN,
    SIF_VIRT_P2M_4TOOLS,
    XEN_VGATYPE_TEXT_MODE_3,
    Dom0VgaConsoleInfo,
    StartInfo,
)
from xenolith.abi.types import PAGE_SHIFT, PAGE_SIZE, Mfn, Pfn, Vaddr
from xenolith.abi.x86_64 import (
    HYPERVISOR_VIRT_END,
    HYPERVISOR_VIRT_START,
    PAGE_ACCESSED,
    PAGE_DIRTY,
    PAGE_NX,
    PAGE_PRESENT,
    PAGE_RW,
    PAGE_USER,
)
from xenolith.errors import UserError
from xenolith.hypervisor.hypercall_page import hypercall_page
from xenolith.loader import bsd_symbols
from xenolith.loader.image import KernelImage

_SLACK_FRAMES: Final = (512 << 10) >> PAGE_SHIFT
"""Frames kept free behind the boot stack, inside the initial mapping (xen.h, start-of-day memory layout, 7)."""
_MAPPING_ALIGN: Final = 4 << 20
_ENTRIES: Final = 512
_VADDR_MASK: Final = (1 << 48) - 1
_ADDRESS_LIMIT: Final = 1 << 64
_LOWER_HALF_END: Final = 1 << 47

_TABLE_FLAGS: Final = PAGE_PRESENT | PAGE_RW | PAGE_USER | PAGE_ACCESSED | PAGE_DIRTY
_READ_ONLY: Final = PAGE_PRESENT | PAGE_ACCESSED
_READ_WRITE: Final = PAGE_PRESENT | PAGE_RW | PAGE_ACCESSED | PAGE_DIRTY

U64Array = npt.NDArray[np.uint64]


NO_DISPLAY: Final = Dom0VgaConsoleInfo(video_type=XEN_VGATYPE_TEXT_MODE_3).to_bytes()
"""A display of no rows and no columns. Linux that is told of none at all drives one of 25 rows all the same."""


@dataclass(frozen=True, slots=True)
class PvSpec:
    """What a guest is to be started with.

    `memory_frames` frames of memory, all there from the start. `flags` are SIF_* (SIF_MOD_START_PFN and, as
    libxenguest does for all that it builds, SIF_VIRT_P2M_4TOOLS are added where they apply). A guest without
    SIF_INITDOMAIN gets a xenstore and a console ring page with the two event channel ports; one with it gets `vga`,
    the bytes of a Dom0VgaConsoleInfo, and of the rings the store's only if that is kept by another domain
    (`store_elsewhere`). `nx` marks what holds no code as not executable, which every Xen allows
    and an emulating engine rewards; without it everything is executable.
    """

    image: KernelImage
    memory_frames: int
    ramdisk: bytes | bytearray | memoryview | None = None
    cmdline: str = ""
    flags: int = 0
    store_port: int = 0
    console_port: int = 0
    vga: bytes = NO_DISPLAY
    nx: bool = True
    store_elsewhere: bool = False

    @property
    def has_store(self) -> bool:
        """Whether the guest gets a xenstore ring page."""
        return self.store_elsewhere or self.has_console

    @property
    def has_console(self) -> bool:
        """Whether the guest gets a console ring page."""
        return not self.flags & SIF_INITDOMAIN


class Extent(NamedTuple):
    """A run of frames in the guest's own numbering."""

    pfn: int
    frames: int

    @property
    def end(self) -> int:
        """The first pfn behind the run."""
        return self.pfn + self.frames


class Table(NamedTuple):
    """A page table: its level (1–4), the first virtual address (48 bits) that it translates, and its frame."""

    level: int
    vaddr: int
    pfn: int


class PvLayout(NamedTuple):
    """Where everything lies: pfns, and the page tables needed to map it.

    The initial mapping shows pfn 0 up to `mapped_frames` at `virt_base`: to a multiple of 4 MiB, or all of a memory
    that ends before. `tables` are all page tables, those of the initial mapping (`page_tables`) and those of the frame
    list at its own address (`p2m_tables`). `symbols_paddr` is where the BSD symbol table goes, if the kernel wants one.
    `total_frames` is the memory used.
    """

    virt_base: int
    symbols_paddr: int | None
    ramdisk: Extent | None
    ramdisk_mapped: bool
    p2m: Extent
    p2m_vaddr: int
    p2m_mapped: bool
    start_info_pfn: int
    store_pfn: int | None
    console_pfn: int | None
    page_tables: Extent
    stack_pfn: int
    mapped_frames: int
    p2m_tables: Extent
    tables: tuple[Table, ...]
    total_frames: int

    def vaddr(self, pfn: int) -> Vaddr:
        """Where the initial mapping shows a frame."""
        return Vaddr(self.virt_base + (pfn << PAGE_SHIFT))


class StartOfDay(NamedTuple):
    """What the first vCPU and the rest of the machine must know of a built guest.

    `page_table_pfns` are the frames of all page tables, to be validated by pinning `l4_mfn`.
    """

    entry: Vaddr
    stack_pointer: Vaddr
    start_info_vaddr: Vaddr
    start_info_pfn: Pfn
    start_info_mfn: Mfn
    l4_pfn: Pfn
    l4_mfn: Mfn
    store_pfn: Pfn | None
    store_mfn: Mfn | None
    console_pfn: Pfn | None
    console_mfn: Mfn | None
    page_table_pfns: U64Array
    hypercall_page_vaddr: Vaddr | None


def plan(spec: PvSpec) -> PvLayout:
    """Work out the layout (xen.h, "Start-of-day memory layout"; order and rounding as Xen's libxenguest has them).

    UserError if the image cannot be booted, or not in this role, or not in so little memory.
    """
    _check(spec)
    layout = _lay_out(spec, spec.memory_frames)
    if layout.total_frames > spec.memory_frames:
        raise UserError(
            f"{_size(spec.memory_frames)} of memory is too little for {spec.image.path.name}"
            f"{' and its ramdisk' if spec.ramdisk else ''}: {_size(minimum_frames(spec))} is needed to start it",
            "give the guest more memory",
        )
    return layout


def minimum_frames(spec: PvSpec) -> int:
    """The least number of frames with which this image and ramdisk can be started, whatever `spec.memory_frames` is."""
    frames = 0
    while (needed := _lay_out(spec, frames).total_frames) > frames:
        frames = needed
    return frames


def build(spec: PvSpec, layout: PvLayout, p2m: U64Array, memory: memoryview, shared_info_mfn: int) -> StartOfDay:
    """Write the guest into its frames.

    `p2m` gives the mfn of each pfn; `memory` is all machine memory, indexed by mfn * PAGE_SIZE. Frames that are not
    written to are left as they are. ValueError if `p2m` names a frame outside `memory` (a mistake of the caller).
    """
    guest = _GuestMemory(p2m[: spec.memory_frames], memory)
    _load_kernel(spec, layout, guest)
    if layout.ramdisk is not None and spec.ramdisk is not None:
        guest.write(layout.ramdisk.pfn << PAGE_SHIFT, spec.ramdisk)
    _write_p2m(layout, guest)
    _write_start_info(spec, layout, guest, shared_info_mfn)
    for ring in (layout.store_pfn, layout.console_pfn):
        if ring is not None:
            guest.zero(ring << PAGE_SHIFT, PAGE_SIZE)
    _write_tables(spec, layout, guest)
    return _start_of_day(spec, layout, guest)


def _size(frames: int) -> str:
    return f"{-(-frames // 256)} MiB" if frames >= 256 else f"{frames << 2} KiB"


def _frames(length: int) -> int:
    """How many frames `length` bytes take."""
    return -(-length // PAGE_SIZE)


def _check(spec: PvSpec) -> None:
    """Refuse what cannot be started, whatever the memory."""
    verdict = spec.image.verdict
    name = spec.image.path
    if not verdict.bootable:
        raise UserError(f"{name} cannot be started: {verdict.sentence}")
    if spec.flags & SIF_INITDOMAIN and not spec.image.supports_dom0:
        raise UserError(f"{name} says of itself that it cannot run as the control domain")
    if not spec.flags & SIF_INITDOMAIN and spec.image.requires_dom0:
        raise UserError(f"{name} says of itself that it can only run as the control domain")
    if len(_cmdline(spec)) >= MAX_GUEST_CMDLINE:
        raise UserError(f"the kernel command line is longer than Xen's limit of {MAX_GUEST_CMDLINE - 1} bytes")
    if "\0" in spec.cmdline:
        raise UserError("the kernel command line contains a NUL character")


def _cmdline(spec: PvSpec) -> bytes:
    return spec.cmdline.encode("utf-8", "surrogateescape")


def _lay_out(spec: PvSpec, memory_frames: int) -> PvLayout:
    """The layout for a frame list of `memory_frames` entries; it may need more frames than that."""
    image, notes = spec.image, spec.image.notes
    assert notes is not None
    base = image.virt_base
    end_paddr, symbols_paddr = image.end_paddr, None
    if notes.bsd_symtab and (symbols := bsd_symbols.image(image.elf)):
        symbols_paddr = bsd_symbols.aligned(end_paddr)
        end_paddr = symbols_paddr + len(symbols)
    ramdisk_frames = _frames(len(spec.ramdisk)) if spec.ramdisk else 0
    ramdisk_mapped = bool(ramdisk_frames) and not notes.mod_start_pfn
    p2m_mapped = image.p2m_base is None
    p2m_frames = _frames(memory_frames * 8)
    if image.p2m_base is not None and image.p2m_base + (p2m_frames << PAGE_SHIFT) > base:
        raise UserError(
            f"{image.path} cannot be started with so much memory: the list of its frames at {image.p2m_base:#x}"
            f" would run into the kernel at {base:#x}"
        )

    cursor = _Cursor(_frames(end_paddr))
    ramdisk = cursor.take(ramdisk_frames) if ramdisk_mapped else None
    p2m = cursor.take(p2m_frames) if p2m_mapped else None
    start_info = cursor.take(1)
    store = cursor.take(1) if spec.has_store else None
    console = cursor.take(1) if spec.has_console else None

    mapped_frames = _mapped_frames(image, cursor.pfn, memory_frames)
    tables = _tables(base, mapped_frames, cursor.pfn, ())
    page_tables = cursor.take(len(tables))
    stack = cursor.take(1)

    cursor = _Cursor(mapped_frames)
    if ramdisk_frames and not ramdisk_mapped:
        ramdisk = cursor.take(ramdisk_frames)
    p2m_vaddr = base + (p2m.pfn << PAGE_SHIFT) if p2m else image.p2m_base or 0
    more_tables: list[Table] = []
    if p2m is None:
        p2m = cursor.take(p2m_frames)
        more_tables = _tables(p2m_vaddr, p2m_frames, cursor.pfn, tables)
    return PvLayout(
        virt_base=base,
        symbols_paddr=symbols_paddr,
        ramdisk=ramdisk,
        ramdisk_mapped=ramdisk_mapped,
        p2m=p2m,
        p2m_vaddr=p2m_vaddr,
        p2m_mapped=p2m_mapped,
        start_info_pfn=start_info.pfn,
        store_pfn=store.pfn if store else None,
        console_pfn=console.pfn if console else None,
        page_tables=page_tables,
        stack_pfn=stack.pfn,
        mapped_frames=mapped_frames,
        p2m_tables=cursor.take(len(more_tables)),
        tables=(*tables, *more_tables),
        total_frames=cursor.pfn,
    )


class _Cursor:
    """Hands out runs of frames, one behind the other."""

    def __init__(self, pfn: int) -> None:
        self.pfn = pfn

    def take(self, frames: int) -> Extent:
        extent = Extent(self.pfn, frames)
        self.pfn += frames
        return extent


def _mapped_frames(image: KernelImage, used_frames: int, memory_frames: int) -> int:
    """How many frames the initial mapping shows: what is used, its own tables, the stack, the slack, to 4 MiB.

    Of a memory that ends before it shows all; libxenguest would refuse to build such a guest. The mapping's end decides
    how many tables it takes, and these are inside it: hence the search.
    """
    base = image.virt_base
    extra = 1 + _SLACK_FRAMES
    tables = 0
    while True:
        end = base + (used_frames + tables + extra << PAGE_SHIFT)
        end = end + _MAPPING_ALIGN - 1 & -_MAPPING_ALIGN
        if not (end <= _LOWER_HALF_END or (base >= HYPERVISOR_VIRT_END and end <= _ADDRESS_LIMIT)):
            raise UserError(
                f"{image.path} cannot be started: with all that belongs to it, it does not fit into the virtual"
                f" address space between its base {base:#x} and {_end_of_room(base):#x}"
            )
        frames = min(end - base >> PAGE_SHIFT, max(memory_frames, used_frames + tables + extra))
        needed = len(_tables(base, frames, 0, ()))
        if used_frames + needed + extra <= frames:
            return frames
        tables = needed


def _end_of_room(base: int) -> int:
    """Where the usable virtual addresses end that begin at `base`."""
    if base < HYPERVISOR_VIRT_START:
        return _LOWER_HALF_END
    return _ADDRESS_LIMIT


def _tables(vaddr: int, frames: int, first_pfn: int, existing: Iterable[Table]) -> list[Table]:
    """The page tables, from level 4 down, that map `frames` at `vaddr` and are not among the `existing`."""
    have = {(table.level, table.vaddr) for table in existing}
    start = vaddr & _VADDR_MASK
    last = start + (max(frames, 1) << PAGE_SHIFT) - 1
    tables: list[Table] = []
    for level in (4, 3, 2, 1):
        reach = _reach(level)
        for at in range(start & -reach, last + 1, reach):
            if (level, at) not in have:
                tables.append(Table(level, at, first_pfn + len(tables)))
    return tables


def _reach(level: int) -> int:
    """Bytes of virtual address space that one table of a level translates."""
    return 1 << PAGE_SHIFT + 9 * level


class _GuestMemory:
    """The guest's memory by physical address, whatever machine frames it consists of."""

    def __init__(self, p2m: U64Array, memory: memoryview) -> None:
        self.p2m = p2m
        self._frames = np.frombuffer(memory, np.uint8)[: len(memory) & -PAGE_SIZE].reshape(-1, PAGE_SIZE)
        if len(p2m) and int(p2m.max()) >= len(self._frames):
            raise ValueError(f"the frame list names frame {int(p2m.max()):#x}, beyond the machine's memory")

    def mfn(self, pfn: int) -> Mfn:
        """The machine frame of a guest frame."""
        return Mfn(int(self.p2m[pfn]))

    def frame(self, pfn: int) -> npt.NDArray[np.uint8]:
        """One frame's bytes, to be written to."""
        row: npt.NDArray[np.uint8] = self._frames[self.p2m[pfn]]
        return row

    def write(self, paddr: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes to any physical address."""
        source = np.frombuffer(data, np.uint8)
        for pfn, offset, start, length in self._pieces(paddr, len(source)):
            piece = source[start : start + length]
            if length < PAGE_SIZE:
                self.frame(pfn)[offset : offset + length] = piece
            else:
                rows = piece.reshape(-1, PAGE_SIZE)
                self._frames[self.p2m[pfn : pfn + len(rows)]] = rows

    def zero(self, paddr: int, length: int) -> None:
        """Clear any physical range."""
        for pfn, offset, _, size in self._pieces(paddr, length):
            if size < PAGE_SIZE:
                self.frame(pfn)[offset : offset + size] = 0
            else:
                self._frames[self.p2m[pfn : pfn + size // PAGE_SIZE]] = 0

    @staticmethod
    def _pieces(paddr: int, length: int) -> Iterator[tuple[int, int, int, int]]:
        """Cut a range at page boundaries into a part of a page, whole pages, and a part of a page.

        Each piece is (pfn, offset in the page, offset in the range, bytes).
        """
        done = 0
        while done < length:
            pfn, offset = divmod(paddr + done, PAGE_SIZE)
            rest = length - done
            size = rest & -PAGE_SIZE if offset == 0 and rest >= PAGE_SIZE else min(rest, PAGE_SIZE - offset)
            yield pfn, offset, done, size
            done += size


def _load_kernel(spec: PvSpec, layout: PvLayout, guest: _GuestMemory) -> None:
    """Copy the segments and clear the rest of each, then the symbols and the hypercall page where asked for."""
    image = spec.image
    assert image.notes is not None
    for segment in image.segments:
        guest.write(segment.paddr, segment.data)
        guest.zero(segment.paddr + len(segment.data), segment.memsz - len(segment.data))
    if layout.symbols_paddr is not None:
        guest.write(layout.symbols_paddr, bsd_symbols.image(image.elf))
    if image.notes.hypercall_page is not None:
        guest.write(image.notes.hypercall_page - layout.virt_base, hypercall_page())


def _write_p2m(layout: PvLayout, guest: _GuestMemory) -> None:
    """The list of the guest's machine frames, its last page filled up with invalid entries."""
    entries = np.full(layout.p2m.frames * (PAGE_SIZE // 8), ~np.uint64(0))
    entries[: len(guest.p2m)] = guest.p2m
    guest.write(layout.p2m.pfn << PAGE_SHIFT, entries.tobytes())


def _write_start_info(spec: PvSpec, layout: PvLayout, guest: _GuestMemory, shared_info_mfn: int) -> None:
    """The page whose address the guest finds in rsi."""
    info = StartInfo()
    info.magic = MAGIC
    info.nr_pages = spec.memory_frames
    info.shared_info = shared_info_mfn << PAGE_SHIFT
    info.flags = spec.flags | (SIF_VIRT_P2M_4TOOLS if spec.has_console else 0)
    if layout.store_pfn is not None:
        info.store_mfn, info.store_evtchn = guest.mfn(layout.store_pfn), spec.store_port
    if layout.console_pfn is not None:
        info.console.domU.mfn, info.console.domU.evtchn = guest.mfn(layout.console_pfn), spec.console_port
    else:
        info.console.dom0.info_off, info.console.dom0.info_size = StartInfo.sizeof(), len(spec.vga)
    info.pt_base, info.nr_pt_frames = layout.vaddr(layout.page_tables.pfn), layout.page_tables.frames
    info.mfn_list = layout.p2m_vaddr
    if layout.ramdisk is not None and spec.ramdisk is not None:
        info.mod_start, info.mod_len = layout.vaddr(layout.ramdisk.pfn), len(spec.ramdisk)
        if not layout.ramdisk_mapped:
            info.flags |= SIF_MOD_START_PFN
            info.mod_start = layout.ramdisk.pfn
    info.cmd_line = _cmdline(spec)
    if not layout.p2m_mapped:
        info.first_p2m_pfn, info.nr_p2m_frames = layout.p2m.pfn, layout.p2m.frames + layout.p2m_tables.frames
    page = (info.to_bytes() + (b"" if spec.has_console else spec.vga)).ljust(PAGE_SIZE, b"\0")
    guest.write(layout.start_info_pfn << PAGE_SHIFT, page[:PAGE_SIZE])


def _write_tables(spec: PvSpec, layout: PvLayout, guest: _GuestMemory) -> None:
    """Fill all page tables: leaves from the two mappings, and each table into the one above it."""
    contents = {(table.level, table.vaddr): np.zeros(_ENTRIES, np.uint64) for table in layout.tables}
    _map_frames(contents, guest, layout.virt_base, 0, _leaf_flags(spec, layout))
    if not layout.p2m_mapped:
        flags = np.full(layout.p2m.frames, _READ_WRITE | (PAGE_NX if spec.nx else 0), np.uint64)
        _map_frames(contents, guest, layout.p2m_vaddr, layout.p2m.pfn, flags)
    for table in layout.tables:
        if table.level < 4:
            parent = contents[table.level + 1, table.vaddr & -_reach(table.level + 1)]
            parent[table.vaddr // _reach(table.level) % _ENTRIES] = guest.mfn(table.pfn) << PAGE_SHIFT | _TABLE_FLAGS
    for table in layout.tables:
        guest.frame(table.pfn)[:] = contents[table.level, table.vaddr].view(np.uint8)


def _map_frames(
    contents: dict[tuple[int, int], U64Array], guest: _GuestMemory, vaddr: int, pfn: int, flags: U64Array
) -> None:
    """Enter the frames from `pfn` on, one for each of `flags`, at `vaddr` into the level-1 tables."""
    start = (vaddr & _VADDR_MASK) >> PAGE_SHIFT
    entries = guest.p2m[pfn : pfn + len(flags)] << np.uint64(PAGE_SHIFT) | flags
    for first in range(start & -_ENTRIES, start + len(flags), _ENTRIES):
        low, high = max(first, start), min(first + _ENTRIES, start + len(flags))
        contents[1, first << PAGE_SHIFT][low - first : high - first] = entries[low - start : high - start]


def _leaf_flags(spec: PvSpec, layout: PvLayout) -> U64Array:
    """The flags of each frame of the initial mapping: page tables read-only, all else writable, data not executable."""
    flags = np.full(layout.mapped_frames, _READ_WRITE, np.uint64)
    flags[layout.page_tables.pfn : layout.page_tables.end] = _READ_ONLY
    if spec.nx:
        flags[~_executable(spec.image, layout)] |= np.uint64(PAGE_NX)
    return flags


def _executable(image: KernelImage, layout: PvLayout) -> npt.NDArray[np.bool_]:
    """Which frames of the initial mapping may hold code.

    Linux runs nothing but its own instruction sections. Of another kernel only those whole pages are taken for data
    that belong to segments without the execute flag.
    """
    assert image.notes is not None
    linux = image.notes.is_linux
    executable = np.full(layout.mapped_frames, not linux, np.bool_)
    if not linux:
        for segment in image.segments:
            if not segment.executable:
                executable[_frames(segment.paddr) : segment.paddr + segment.memsz >> PAGE_SHIFT] = False
    for start, end in image.executable_ranges():
        executable[start >> PAGE_SHIFT : _frames(end)] = True
    if image.notes.hypercall_page is not None:
        executable[image.notes.hypercall_page - layout.virt_base >> PAGE_SHIFT] = True
    return executable


def _start_of_day(spec: PvSpec, layout: PvLayout, guest: _GuestMemory) -> StartOfDay:
    notes = spec.image.notes
    page = notes.hypercall_page if notes else None
    store, console = layout.store_pfn, layout.console_pfn
    return StartOfDay(
        entry=Vaddr(spec.image.entry),
        stack_pointer=layout.vaddr(layout.stack_pfn + 1),
        start_info_vaddr=layout.vaddr(layout.start_info_pfn),
        start_info_pfn=Pfn(layout.start_info_pfn),
        start_info_mfn=guest.mfn(layout.start_info_pfn),
        l4_pfn=Pfn(layout.page_tables.pfn),
        l4_mfn=guest.mfn(layout.page_tables.pfn),
        store_pfn=None if store is None else Pfn(store),
        store_mfn=None if store is None else guest.mfn(store),
        console_pfn=None if console is None else Pfn(console),
        console_mfn=None if console is None else guest.mfn(console),
        page_table_pfns=np.array([table.pfn for table in layout.tables], np.uint64),
        hypercall_page_vaddr=None if page is None else Vaddr(page),
    )
