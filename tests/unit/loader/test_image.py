from __future__ import annotations

import gzip
import lzma
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.loader.elf_maker import Load, Section, make_bzimage, make_elf, note, pv_notes
from xenolith.abi import elfnotes
from xenolith.errors import UserError
from xenolith.loader.elf import EM_386
from xenolith.loader.image import KernelImage

Read = Callable[[bytes], KernelImage]

BASE = 0xFFFF_FFFF_8000_0000
TEXT = Load(0x100000, b"code" * 1024, flags=5)
DATA = Load(0x102000, b"data", memsz=0x3000, flags=6)
ENTRY = BASE + 0x100010


def kernel(**notes: bytes | int | str) -> bytes:
    return make_elf([TEXT, DATA], pv_notes(**{"virt_base": BASE, "entry": ENTRY, **notes}))  # type: ignore[arg-type]


def test_a_plain_elf(read: Read) -> None:
    image = read(kernel())
    assert (image.format, image.compression, image.bits, image.machine) == ("ELF", None, 64, "x86-64")
    assert image.entry == ENTRY
    assert image.verdict.bootable
    text, data = image.segments
    assert (text.paddr, text.vaddr, bytes(text.data), text.memsz) == (0x100000, BASE + 0x100000, TEXT.data, 4096)
    assert (text.executable, text.writable) == (True, False)
    assert (data.paddr, bytes(data.data), data.memsz, data.executable, data.writable) == (
        0x102000,
        b"data",
        0x3000,
        False,
        True,
    )
    assert (image.start_paddr, image.end_paddr) == (0x100000, 0x105000)


def test_a_compressed_elf(read: Read) -> None:
    image = read(gzip.compress(kernel()))
    assert (image.format, image.compression) == ("compressed ELF", "gzip")
    assert image.verdict.bootable


def test_a_bzimage(read: Read, cache_home: Path) -> None:
    packed = lzma.compress(kernel(), check=lzma.CHECK_CRC32)
    image = read(make_bzimage(packed + struct.pack("<I", len(kernel()))))
    assert (image.format, image.compression, image.version) == ("bzImage", "xz", "9.9.9-test (nobody) #1")
    assert image.verdict.bootable
    assert len(list((cache_home / "xenolith/payload").iterdir())) == 1


def test_a_bzimage_with_an_uncompressed_kernel(read: Read) -> None:
    image = read(make_bzimage(kernel()))
    assert (image.format, image.compression) == ("bzImage", None)


def test_missing_notes_have_defaults(read: Read) -> None:
    """A unikernel may have a HYPERCALL_PAGE note and neither ENTRY nor VIRT_BASE."""
    notes = note(elfnotes.XEN_ELFNOTE_HYPERCALL_PAGE, struct.pack("<Q", 0x1000))
    notes += note(elfnotes.XEN_ELFNOTE_LOADER, b"generic\0") + note(elfnotes.XEN_ELFNOTE_XEN_VERSION, b"xen-3.0\0")
    image = read(make_elf([Load(0, bytes(0x3000))], notes, entry=0x20))
    assert (image.entry, image.virt_base) == (0x20, 0)
    assert image.verdict.bootable


def test_paddr_offset_is_subtracted(read: Read) -> None:
    image = read(make_elf([Load(BASE, bytes(64))], pv_notes(BASE, BASE, PADDR_OFFSET=BASE)))
    assert (image.segments[0].paddr, image.segments[0].vaddr) == (0, BASE)
    assert image.verdict.bootable


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        ({"entry": BASE}, "entry point .* outside the image"),
        ({"entry": BASE + 0x105000}, "entry point .* outside the image"),
        ({"virt_base": BASE + 1}, "not at a page boundary"),
        ({"virt_base": 0x7FFF_FFF0_0000, "entry": 0}, "no usable virtual address"),
        ({"virt_base": 0xFFFF_8000_0000_0000, "entry": 0}, "belongs to Xen"),
        ({"HYPERCALL_PAGE": BASE}, "HYPERCALL_PAGE .* not a page inside"),
        ({"HYPERCALL_PAGE": BASE + 0x100100}, "HYPERCALL_PAGE .* not a page inside"),
        ({"HYPERCALL_PAGE": BASE + 0x105000}, "HYPERCALL_PAGE .* not a page inside"),
        ({"INIT_P2M": 0xFFFF_8100_0000_0000}, "INIT_P2M"),
        ({"INIT_P2M": 1 << 48}, "INIT_P2M"),
        ({"HV_START_LOW": 0xFFFF_8800_0000_0000}, "HV_START_LOW"),
        ({"PADDR_OFFSET": 0x200000}, "negative physical address"),
        ({"XEN_VERSION": "xen-2.0"}, "xen-2.0"),
        ({"LOADER": "special"}, "loader 'special'"),
        ({"FEATURES": "!auto_translated_physmap"}, "'auto_translated_physmap'"),
    ],
)
def test_notes_that_contradict_or_point_outside(read: Read, notes: dict[str, int | str], words: str) -> None:
    verdict = read(kernel(**notes)).verdict
    assert not verdict.bootable
    assert re.search(words, verdict.sentence), verdict.sentence


def test_an_offset_needs_a_base(read: Read) -> None:
    notes = note(elfnotes.XEN_ELFNOTE_PADDR_OFFSET, bytes(8)) + note(elfnotes.XEN_ELFNOTE_LOADER, b"generic\0")
    notes += note(elfnotes.XEN_ELFNOTE_XEN_VERSION, b"xen-3.0\0")
    assert "PADDR_OFFSET is given without VIRT_BASE" in read(make_elf([TEXT], notes)).verdict.sentence


def test_linux_needs_no_generic_loader(read: Read) -> None:
    assert read(kernel(GUEST_OS="linux", LOADER="")).verdict.bootable


def test_an_enormous_image(read: Read) -> None:
    image = read(make_elf([Load(0, b"x", memsz=1 << 40)], pv_notes()))
    assert "beyond all reason" in image.verdict.sentence


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (make_elf([TEXT]), "carries no Xen notes"),
        (make_elf([TEXT], pv_notes(), machine=EM_386, bits=32), "32-bit PV kernel"),
        (make_elf([TEXT], note(18, struct.pack("<I", 0x100000))), "64-bit kernel with a PVH entry point only"),
        (
            make_elf([TEXT], note(18, struct.pack("<I", 0x100000)), machine=EM_386, bits=32),
            "32-bit kernel with a PVH entry point only",
        ),
        (make_elf([TEXT], machine=183), "kernel for ARM64"),
        (make_elf([TEXT], machine=999), "kernel for ELF machine 999"),
    ],
)
def test_other_kernels_are_called_what_they_are(read: Read, data: bytes, words: str) -> None:
    verdict = read(data).verdict
    assert not verdict.bootable
    assert words in verdict.sentence


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"#!/bin/sh\n", "neither an ELF file nor a bzImage"),
        (bytes(0x38) + b"ARM\x64" + bytes(64), "kernel for ARM64"),
        (b"MZ" + bytes(100), "EFI program"),
        (gzip.compress(b"a text", mtime=0), "what is packed in this file is not an ELF kernel"),
        (kernel()[:100], "beyond the end of the file"),
        (make_bzimage(lzma.compress(kernel())[:-40]), "corrupt"),
        (make_bzimage(lzma.compress(kernel()))[:-40], "cut off"),
        (make_elf(sections=[Section(".text", 1, b"code")]), "nothing to load"),
    ],
)
def test_files_that_are_no_kernels(read: Read, data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read(data)
    assert str(tmp_path / "kernel") in caught.value.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no kernel"):
        KernelImage.read(tmp_path / "missing")
    with pytest.raises(UserError, match="is a directory"):
        KernelImage.read(tmp_path)
    with pytest.raises(UserError, match="a device or a pipe"):
        KernelImage.read("/dev/null")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(kernel())
    path.chmod(0)
    with pytest.raises(UserError, match="may not be read"):
        KernelImage.read(path)


def test_roles(read: Read) -> None:
    old = read(kernel())
    assert old.supports_dom0
    assert not old.requires_dom0
    guest = read(kernel(SUPPORTED_FEATURES=1))
    assert not guest.supports_dom0
    assert "not as the control domain" in guest.verdict.sentence
    dom0 = read(kernel(FEATURES="!dom0"))
    assert dom0.supports_dom0
    assert dom0.requires_dom0


def test_executable_ranges(read: Read) -> None:
    text = Load(0x100000, b"x" * 0x3000, flags=5, vaddr=BASE + 0x100000)
    mixed = Load(0x200000, b"x" * 0x3000, flags=7, vaddr=BASE + 0x200000)
    sections = [
        Section(".text", 1, flags=6, addr=BASE + 0x100000, data=bytes(0x1800)),
        Section(".rodata", 1, flags=2, addr=BASE + 0x102000, data=bytes(0x800)),
        Section(".init.text", 1, flags=6, addr=BASE + 0x200000, data=bytes(0x800)),
        Section(".init.data", 1, flags=3, addr=BASE + 0x201000, data=bytes(0x800)),
    ]
    data = make_elf([text, DATA, mixed], pv_notes(BASE, ENTRY), sections)
    assert list(read(data).executable_ranges()) == [(0x100000, 0x101800), (0x200000, 0x200800)]
    without = make_elf([text, DATA, mixed], pv_notes(BASE, ENTRY))
    assert list(read(without).executable_ranges()) == [(0x100000, 0x103000), (0x200000, 0x203000)]
