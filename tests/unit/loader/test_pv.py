from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.loader.elf_maker import Load, Section, make_elf, pv_notes
from xenolith.abi.start_info import (
    SIF_INITDOMAIN,
    SIF_MOD_START_PFN,
    SIF_PRIVILEGED,
    SIF_VIRT_P2M_4TOOLS,
    XEN_VGATYPE_TEXT_MODE_3,
    Dom0VgaConsoleInfo,
    StartInfo,
)
from xenolith.abi.types import PAGE_SIZE
from xenolith.abi.x86_64 import PAGE_NX, PAGE_PRESENT, PAGE_RW, PTE_ADDR_MASK
from xenolith.errors import UserError
from xenolith.hypervisor.hypercall_page import hypercall_page
from xenolith.loader.image import KernelImage
from xenolith.loader.pv import (
    PvLayout,
    PvSpec,
    StartOfDay,
    build,
    minimum_frames,
    plan,
)

Read = Callable[[bytes], KernelImage]

MIB = 256
"""Frames."""
BASE = 0xFFFF_FFFF_8000_0000
INIT_P2M = 0x80_0000_0000
SHARED_INFO_MFN = 0x55
TEXT = Load(0x100000, b"\x90" * 0x1800, flags=5)
DATA = Load(0x103000, b"data" * 100, memsz=0x4000, flags=6)
ENTRY = BASE + 0x100010
RAMDISK = bytes(range(256)) * 50
DIRT = 0xAA


def linux(**notes: bytes | int | str) -> bytes:
    """A kernel that wants what Linux wants."""
    wants = {"GUEST_OS": "linux", "INIT_P2M": INIT_P2M, "MOD_START_PFN": 1, **notes}
    return make_elf([TEXT, DATA], pv_notes(BASE, ENTRY, **wants))  # type: ignore[arg-type]


def plain(*loads: Load, **notes: bytes | int | str) -> bytes:
    """A kernel at virtual address 0 that asks for nothing."""
    return make_elf(loads or (Load(0, b"\x90" * 0x2000),), pv_notes(0, 0, **notes))


@dataclass
class Built:
    """A guest in its memory, and the ways to look at it."""

    spec: PvSpec
    layout: PvLayout
    start: StartOfDay
    p2m: np.ndarray
    memory: np.ndarray

    def frame(self, pfn: int) -> bytes:
        return self.memory[int(self.p2m[pfn])].tobytes()

    def bytes_at(self, paddr: int, length: int) -> bytes:
        first, last = paddr // PAGE_SIZE, (paddr + length - 1) // PAGE_SIZE
        data = b"".join(self.frame(pfn) for pfn in range(first, last + 1))
        return data[paddr % PAGE_SIZE :][:length]

    def entry(self, vaddr: int) -> int:
        """The level-1 entry of a virtual address, 0 if a level above has none."""
        mfn = int(self.start.l4_mfn)
        for level in (4, 3, 2, 1):
            entry = int(self.memory[mfn].view(np.uint64)[vaddr >> 3 + 9 * level & 511])
            if level == 1 or not entry & PAGE_PRESENT:
                return entry if level == 1 else 0
            mfn = (entry & PTE_ADDR_MASK) >> 12
        raise AssertionError

    def pfn(self, vaddr: int) -> int | None:
        """The pfn that a virtual address is mapped to."""
        entry = self.entry(vaddr)
        if not entry & PAGE_PRESENT:
            return None
        (found,) = np.flatnonzero(self.p2m == (entry & PTE_ADDR_MASK) >> 12)
        return int(found)

    def writable(self, pfn: int) -> bool:
        return bool(self.entry(self.layout.vaddr(pfn)) & PAGE_RW)

    def executable(self, pfn: int) -> bool:
        return not self.entry(self.layout.vaddr(pfn)) & PAGE_NX

    @property
    def info(self) -> StartInfo:
        return StartInfo.from_bytes(self.frame(self.start.start_info_pfn))


def build_spec(spec: PvSpec, seed: int = 1) -> Built:
    """Build a guest into dirty frames scattered over the machine."""
    frames = spec.memory_frames + 64
    p2m = np.random.default_rng(seed).permutation(frames)[: spec.memory_frames].astype(np.uint64)
    memory = np.full((frames, PAGE_SIZE), DIRT, np.uint8)
    layout = plan(spec)
    start = build(spec, layout, p2m, memoryview(memory).cast("B"), SHARED_INFO_MFN)
    return Built(spec, layout, start, p2m, memory)


def test_segments_are_loaded_and_cleared(read: Read) -> None:
    guest = build_spec(PvSpec(read(linux()), 16 * MIB))
    assert guest.bytes_at(TEXT.paddr, len(TEXT.data)) == TEXT.data
    assert guest.bytes_at(DATA.paddr, DATA.memsz) == DATA.data.ljust(DATA.memsz, b"\0")
    # What no segment covers is left alone.
    assert guest.frame(1) == bytes([DIRT]) * PAGE_SIZE


def test_segments_that_share_a_page(read: Read) -> None:
    """GRUB's second segment begins in the page where its first one ends."""
    first, second = Load(0, b"a" * 0x800, memsz=0x1810), Load(0x1810, b"b" * 0x900)
    guest = build_spec(PvSpec(read(plain(first, second)), 8 * MIB))
    assert guest.bytes_at(0, 0x2110) == b"a" * 0x800 + bytes(0x1010) + b"b" * 0x900


def test_the_initial_mapping_is_one_to_one(read: Read) -> None:
    guest = build_spec(PvSpec(read(linux()), 16 * MIB))
    layout = guest.layout
    assert [guest.pfn(layout.vaddr(pfn)) for pfn in range(layout.mapped_frames)] == list(range(layout.mapped_frames))
    assert guest.pfn(layout.vaddr(layout.mapped_frames)) is None
    assert guest.pfn(BASE - PAGE_SIZE) is None
    assert layout.vaddr(layout.mapped_frames) % (4 << 20) == 0


def test_everything_but_page_tables_is_writable(read: Read) -> None:
    guest = build_spec(PvSpec(read(linux()), 16 * MIB))
    tables = range(guest.layout.page_tables.pfn, guest.layout.page_tables.end)
    assert [pfn for pfn in range(guest.layout.mapped_frames) if not guest.writable(pfn)] == list(tables)
    assert guest.start.page_table_pfns.tolist() == [
        *tables,
        *range(guest.layout.p2m_tables.pfn, guest.layout.p2m_tables.end),
    ]
    assert guest.start.l4_pfn == tables[0]


def test_there_is_room_behind_the_stack(read: Read) -> None:
    layout = plan(PvSpec(read(linux()), 16 * MIB))
    assert layout.mapped_frames - (layout.stack_pfn + 1) >= 128


def test_the_order_of_things(read: Read) -> None:
    spec = PvSpec(read(plain()), 16 * MIB, ramdisk=RAMDISK)
    layout = plan(spec)
    assert layout.ramdisk is not None
    assert layout.store_pfn is not None
    assert layout.console_pfn is not None
    assert layout.ramdisk.pfn == 2  # behind the kernel
    assert layout.p2m.pfn == layout.ramdisk.end
    assert layout.start_info_pfn == layout.p2m.end
    assert (layout.store_pfn, layout.console_pfn) == (layout.start_info_pfn + 1, layout.start_info_pfn + 2)
    assert layout.page_tables.pfn == layout.console_pfn + 1
    assert layout.stack_pfn == layout.page_tables.end
    assert layout.total_frames == layout.mapped_frames


def test_start_info_of_a_guest(read: Read) -> None:
    spec = PvSpec(read(linux()), 16 * MIB, RAMDISK, "console=hvc0 quiet", store_port=1, console_port=2)
    guest = build_spec(spec)
    info, layout = guest.info, guest.layout
    assert layout.ramdisk is not None
    assert info.magic == b"xen-3.0-x86_64"
    assert (info.nr_pages, info.shared_info) == (16 * MIB, SHARED_INFO_MFN << 12)
    assert info.flags == SIF_MOD_START_PFN | SIF_VIRT_P2M_4TOOLS
    assert (info.store_mfn, info.store_evtchn) == (guest.start.store_mfn, 1)
    assert (info.console.domU.mfn, info.console.domU.evtchn) == (guest.start.console_mfn, 2)
    assert guest.start.store_mfn == guest.p2m[layout.store_pfn]
    assert info.cmd_line == b"console=hvc0 quiet"
    assert (info.mod_start, info.mod_len) == (layout.ramdisk.pfn, len(RAMDISK))
    assert info.pt_base == layout.vaddr(layout.page_tables.pfn)
    assert info.nr_pt_frames == layout.page_tables.frames
    assert info.mfn_list == INIT_P2M
    assert info.first_p2m_pfn == layout.p2m.pfn
    assert info.nr_p2m_frames == layout.p2m.frames + layout.p2m_tables.frames
    for ring in (layout.store_pfn, layout.console_pfn):
        assert guest.frame(ring) == bytes(PAGE_SIZE)


def test_start_info_of_a_control_domain(read: Read) -> None:
    vga = bytes(range(1, 60))
    spec = PvSpec(read(linux()), 16 * MIB, flags=SIF_PRIVILEGED | SIF_INITDOMAIN, vga=vga)
    guest = build_spec(spec)
    info = guest.info
    assert info.flags == SIF_PRIVILEGED | SIF_INITDOMAIN
    assert (info.store_mfn, info.store_evtchn) == (0, 0)
    assert (guest.start.store_pfn, guest.start.console_mfn) == (None, None)
    at, size = info.console.dom0.info_off, info.console.dom0.info_size
    assert guest.frame(guest.start.start_info_pfn)[at : at + size] == vga
    assert (info.mod_start, info.mod_len) == (0, 0)


def test_a_control_domain_whose_store_is_elsewhere(read: Read) -> None:
    """It gets that ring, and has the hypervisor's console all the same."""
    spec = PvSpec(read(linux()), 16 * MIB, flags=SIF_INITDOMAIN, store_port=3, store_elsewhere=True)
    guest = build_spec(spec)
    assert (guest.info.store_mfn, guest.info.store_evtchn) == (guest.start.store_mfn, 3)
    assert guest.layout.store_pfn is not None
    assert guest.writable(guest.layout.store_pfn)
    assert guest.start.console_mfn is None
    assert guest.info.console.dom0.info_off == StartInfo.sizeof()


def test_a_control_domain_without_a_display(read: Read) -> None:
    guest = build_spec(PvSpec(read(linux()), 16 * MIB, flags=SIF_INITDOMAIN))
    at, size = guest.info.console.dom0.info_off, guest.info.console.dom0.info_size
    display = Dom0VgaConsoleInfo.from_bytes(guest.frame(guest.start.start_info_pfn)[at : at + size])
    assert display.video_type == XEN_VGATYPE_TEXT_MODE_3
    assert (display.u.text_mode_3.rows, display.u.text_mode_3.columns) == (0, 0)


def test_registers(read: Read) -> None:
    guest = build_spec(PvSpec(read(linux()), 16 * MIB))
    start, layout = guest.start, guest.layout
    assert start.entry == ENTRY
    assert guest.pfn(start.stack_pointer - 8) == layout.stack_pfn
    assert start.stack_pointer % PAGE_SIZE == 0
    assert guest.pfn(start.start_info_vaddr) == layout.start_info_pfn == start.start_info_pfn
    assert start.l4_mfn == guest.p2m[start.l4_pfn]
    assert start.hypercall_page_vaddr is None


def test_the_frame_list_at_its_own_address(read: Read) -> None:
    guest = build_spec(PvSpec(read(linux()), 16 * MIB + 1))
    layout = guest.layout
    assert not layout.p2m_mapped
    assert layout.p2m.frames == 9
    mapped = [guest.pfn(INIT_P2M + index * PAGE_SIZE) for index in range(layout.p2m.frames + 1)]
    assert mapped == [*range(layout.p2m.pfn, layout.p2m.end), None]
    entries = np.frombuffer(guest.bytes_at(layout.p2m.pfn * PAGE_SIZE, 9 * PAGE_SIZE), np.uint64)
    assert np.array_equal(entries[: 16 * MIB + 1], guest.p2m)
    assert (entries[16 * MIB + 1 :] == ~np.uint64(0)).all()


def test_the_frame_list_in_the_initial_mapping(read: Read) -> None:
    guest = build_spec(PvSpec(read(plain()), 8 * MIB))
    layout = guest.layout
    assert layout.p2m_mapped
    assert guest.info.mfn_list == layout.vaddr(layout.p2m.pfn) == guest.layout.p2m_vaddr
    assert (guest.info.first_p2m_pfn, guest.info.nr_p2m_frames) == (0, 0)
    assert guest.bytes_at(layout.p2m.pfn * PAGE_SIZE, 8 * 8 * MIB) == guest.p2m.tobytes()


@pytest.mark.parametrize("address", [BASE + (1 << 30), INIT_P2M + 8])
def test_an_impossible_frame_list_address_is_not_honoured(read: Read, address: int) -> None:
    assert plan(PvSpec(read(linux(INIT_P2M=address)), 16 * MIB)).p2m_mapped


def test_a_frame_list_that_shares_tables_with_the_kernel(read: Read) -> None:
    """Both under one level-4 entry, and even under one level-1 table."""
    base = 0x40_0000
    image = make_elf([Load(0, bytes(0x1000))], pv_notes(base, base, INIT_P2M=base - 0x8000, GUEST_OS="linux"))
    guest = build_spec(PvSpec(read(image), 8 * MIB))
    assert guest.pfn(base - 0x8000) == guest.layout.p2m.pfn
    assert guest.pfn(base) == 0
    assert guest.layout.p2m_tables.frames == 1


def test_a_frame_list_that_would_run_into_the_kernel(read: Read) -> None:
    base = 0x40_0000
    image = read(make_elf([Load(0, bytes(0x1000))], pv_notes(base, base, INIT_P2M=base - 0x8000)))
    assert plan(PvSpec(image, 16 * MIB))
    with pytest.raises(UserError, match="so much memory"):
        plan(PvSpec(image, 16 * MIB + 1))


def test_a_mapped_ramdisk(read: Read) -> None:
    guest = build_spec(PvSpec(read(plain()), 8 * MIB, RAMDISK))
    assert not guest.info.flags & SIF_MOD_START_PFN
    pfn = guest.pfn(guest.info.mod_start)
    assert pfn is not None
    assert guest.bytes_at(pfn * PAGE_SIZE, len(RAMDISK)) == RAMDISK


def test_an_unmapped_ramdisk(read: Read) -> None:
    guest = build_spec(PvSpec(read(linux()), 16 * MIB, memoryview(RAMDISK)))
    assert guest.info.mod_start >= guest.layout.mapped_frames
    assert guest.bytes_at(guest.info.mod_start * PAGE_SIZE, len(RAMDISK)) == RAMDISK


def test_an_empty_ramdisk_is_none(read: Read) -> None:
    guest = build_spec(PvSpec(read(linux()), 16 * MIB, b""))
    assert guest.layout.ramdisk is None
    assert (guest.info.mod_start, guest.info.mod_len, guest.info.flags) == (0, 0, SIF_VIRT_P2M_4TOOLS)


def test_the_hypercall_page(read: Read) -> None:
    page = BASE + 0x104000  # in the data segment
    guest = build_spec(PvSpec(read(linux(HYPERCALL_PAGE=page)), 16 * MIB))
    assert guest.start.hypercall_page_vaddr == page
    assert guest.frame(0x104) == hypercall_page()
    assert guest.executable(0x104)
    assert not guest.executable(0x105)


def test_linux_data_is_not_executable(read: Read) -> None:
    guest = build_spec(PvSpec(read(linux()), 16 * MIB))
    executable = [pfn for pfn in range(guest.layout.mapped_frames) if guest.executable(pfn)]
    assert executable == [0x100, 0x101]
    assert guest.entry(INIT_P2M) & PAGE_NX


def test_other_kernels_keep_what_no_segment_calls_data(read: Read) -> None:
    code, data = Load(0, b"\x90" * 0x1000, flags=5), Load(0x1800, b"d" * 0x2800, flags=6)
    guest = build_spec(PvSpec(read(plain(code, data)), 8 * MIB))
    data_pages = [pfn for pfn in range(guest.layout.mapped_frames) if not guest.executable(pfn)]
    assert data_pages == [2, 3]  # page 1 is only partly the data segment's


def test_writable_code_stays_executable(read: Read) -> None:
    guest = build_spec(PvSpec(read(plain(Load(0, b"\x90" * 0x2000, flags=7))), 8 * MIB))
    assert guest.executable(0)
    assert guest.executable(1)


def test_without_nx_all_is_executable(read: Read) -> None:
    guest = build_spec(PvSpec(read(linux()), 16 * MIB, nx=False))
    assert all(guest.executable(pfn) for pfn in range(guest.layout.mapped_frames))
    assert not guest.entry(INIT_P2M) & PAGE_NX


def test_page_tables_hold_nothing_else(read: Read) -> None:
    guest = build_spec(PvSpec(read(linux()), 16 * MIB))
    used = {
        (table.level, table.pfn): np.count_nonzero(np.frombuffer(guest.frame(table.pfn), np.uint64))
        for table in guest.layout.tables
    }
    assert used[4, guest.layout.page_tables.pfn] == 2
    assert sum(count for (level, _), count in used.items() if level == 1) == (
        guest.layout.mapped_frames + guest.layout.p2m.frames
    )


def test_bsd_symbols_follow_the_kernel(read: Read) -> None:
    sections = [Section(".symtab", 2, bytes(48), link=2), Section(".strtab", 3, b"\0start\0")]
    image = make_elf([Load(0, b"k" * 0x1004)], pv_notes(BSD_SYMTAB="yes"), sections)
    guest = build_spec(PvSpec(read(image), 8 * MIB))
    assert guest.layout.symbols_paddr == 0x1008
    assert guest.bytes_at(0x100C, 4) == b"\x7fELF"
    assert plan(PvSpec(read(plain(Load(0, b"k" * 0x1004))), 8 * MIB)).symbols_paddr is None


def test_symbols_can_push_everything_further(read: Read) -> None:
    names = Section(".strtab", 3, b"\0" + b"s" * 0x2000 + b"\0")
    image = make_elf(
        [Load(0, b"k" * 0x1000)], pv_notes(BSD_SYMTAB="yes"), [Section(".symtab", 2, bytes(48), link=2), names]
    )
    assert plan(PvSpec(read(image), 8 * MIB)).p2m.pfn == 4


@pytest.mark.parametrize("make", [linux, plain])
@pytest.mark.parametrize("ramdisk", [None, RAMDISK, bytes(5 << 20)])
def test_too_little_memory_says_how_much_is_needed(
    read: Read, make: Callable[[], bytes], ramdisk: bytes | None
) -> None:
    spec = PvSpec(read(make()), MIB // 2, ramdisk)
    frames = minimum_frames(spec)
    needed = f"{-(-frames // MIB)} MiB" if frames >= MIB else f"{4 * frames} KiB"
    with pytest.raises(UserError, match=rf"^512 KiB of memory is too little .*: {needed} is needed"):
        plan(spec)
    with pytest.raises(UserError):
        plan(replace(spec, memory_frames=frames - 1))
    assert plan(replace(spec, memory_frames=frames)).total_frames <= frames


def test_the_first_mapping_ends_where_a_small_memory_ends(read: Read) -> None:
    for frames in (MIB, 4 * MIB, 6 * MIB):
        layout = plan(PvSpec(read(plain()), frames))
        assert layout.mapped_frames == layout.total_frames == min(frames, 4 * MIB)
    guest = build_spec(PvSpec(read(plain()), MIB))
    assert [guest.pfn(PAGE_SIZE * pfn) for pfn in range(MIB + 1)] == [*range(MIB), None]


def test_no_memory_at_all(read: Read) -> None:
    with pytest.raises(UserError, match="0 KiB of memory"):
        plan(PvSpec(read(plain()), 0))


def test_what_cannot_boot_is_refused(read: Read) -> None:
    with pytest.raises(UserError, match="carries no Xen notes"):
        plan(PvSpec(read(make_elf([TEXT])), 16 * MIB))


def test_roles(read: Read) -> None:
    guest_only = read(linux(SUPPORTED_FEATURES=1))
    with pytest.raises(UserError, match="cannot run as the control domain"):
        plan(PvSpec(guest_only, 16 * MIB, flags=SIF_INITDOMAIN))
    assert plan(PvSpec(guest_only, 16 * MIB))
    dom0_only = read(linux(FEATURES="!dom0"))
    with pytest.raises(UserError, match="only run as the control domain"):
        plan(PvSpec(dom0_only, 16 * MIB))
    assert plan(PvSpec(dom0_only, 16 * MIB, flags=SIF_INITDOMAIN))


@pytest.mark.parametrize(("cmdline", "words"), [("x" * 1024, "longer than"), ("a\0b", "NUL")])
def test_bad_command_lines(read: Read, cmdline: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan(PvSpec(read(plain()), 16 * MIB, cmdline=cmdline))


def test_the_longest_command_line(read: Read) -> None:
    assert build_spec(PvSpec(read(plain()), 8 * MIB, cmdline="é" * 511)).info.cmd_line == "é".encode() * 511


@pytest.mark.parametrize(("base", "size"), [(0x7FFF_FFC0_0000, 0x1000), (0xFFFF_FFFF_FFC0_0000, 0x380000)])
def test_an_image_at_the_end_of_the_address_space(read: Read, base: int, size: int) -> None:
    image = read(make_elf([Load(0, bytes(16), memsz=size)], pv_notes(base, base)))
    if size > 0x300000:
        with pytest.raises(UserError, match=re.escape(f"{base:#x}")):
            plan(PvSpec(image, 64 * MIB))
    else:
        guest = build_spec(PvSpec(image, 8 * MIB))
        assert guest.pfn(base) == 0


def test_a_frame_list_beyond_the_machine_is_a_mistake(read: Read) -> None:
    spec = PvSpec(read(plain()), 8 * MIB)
    with pytest.raises(ValueError, match="beyond the machine"):
        build(spec, plan(spec), np.arange(8 * MIB, dtype=np.uint64), memoryview(bytearray(MIB * PAGE_SIZE)), 0)


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 20 << 20),
    memory=st.integers(0, 64 * MIB),
    ramdisk=st.integers(0, 9 << 20),
    base=st.sampled_from([0, 0x4000_0000, BASE, 0xFFFF_8800_0000_0000]),
    unmapped=st.booleans(),
)
def test_any_layout_is_disjoint_and_complete(
    tmp_path_factory: pytest.TempPathFactory, size: int, memory: int, ramdisk: int, base: int, unmapped: bool
) -> None:
    path = tmp_path_factory.mktemp("kernel") / "kernel"
    wants = {"MOD_START_PFN": 1, "INIT_P2M": INIT_P2M} if unmapped else {}
    path.write_bytes(make_elf([Load(0, b"x", memsz=size)], pv_notes(base, base, **wants)))
    spec = PvSpec(KernelImage.read(path), memory, bytes(ramdisk))
    try:
        layout = plan(spec)
    except UserError:
        assert minimum_frames(spec) > memory
        return
    runs = [range(-(-size // PAGE_SIZE)), range(layout.start_info_pfn, layout.start_info_pfn + 3)]
    runs += [range(layout.stack_pfn, layout.stack_pfn + 1)]
    runs += [range(e.pfn, e.end) for e in (layout.p2m, layout.page_tables, layout.p2m_tables, layout.ramdisk) if e]
    frames = [pfn for run in runs for pfn in run]
    assert len(frames) == len(set(frames))
    assert max(frames) < layout.total_frames <= memory
    assert layout.p2m.frames * 512 >= memory
    assert layout.stack_pfn + 1 + 128 <= layout.mapped_frames
    tables = {pfn for table in layout.tables for pfn in (table.pfn,)}
    assert tables == {
        *range(layout.page_tables.pfn, layout.page_tables.end),
        *range(layout.p2m_tables.pfn, layout.p2m_tables.end),
    }
