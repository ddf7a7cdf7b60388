"""A kernel image as a whole: opened, unpacked, its notes read, its place in memory worked out, and judged."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

from xenolith.abi.types import PAGE_SIZE
from xenolith.abi.x86_64 import HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START
from xenolith.errors import UserError
from xenolith.loader import bzimage, cache, payload
from xenolith.loader.elf import (
    EM_386,
    EM_X86_64,
    MACHINE_NAMES,
    MAGIC,
    PF_W,
    PF_X,
    PT_LOAD,
    SHF_ALLOC,
    SHF_EXECINSTR,
    ElfFile,
)
from xenolith.loader.notes import XenNotes, read_notes

_PV_CANNOT: Final = frozenset(
    {"auto_translated_physmap", "supervisor_mode_kernel", "writable_descriptor_tables", "hvm_callback_vector"}
)
"""Features (features.h) that no 64-bit PV guest is given, so that a kernel that requires one cannot run."""
_PADDR_LIMIT: Final = 1 << 36
_ADDRESS_LIMIT: Final = 1 << 64
_MAX_P2M_SIZE: Final = _PADDR_LIMIT // PAGE_SIZE * 8
"""Bytes that the list of all frames below _PADDR_LIMIT takes."""


class Segment(NamedTuple):
    """A piece of the kernel to be loaded: `data` at physical address `paddr`, zeros up to `memsz` bytes.

    `vaddr` is where the initial mapping shows it. `executable` and `writable` are the ELF file's own words.
    """

    paddr: int
    vaddr: int
    data: memoryview
    memsz: int
    executable: bool
    writable: bool


class Verdict(NamedTuple):
    """Whether the image can be started as a 64-bit PV guest, and one sentence that says why (not)."""

    bootable: bool
    sentence: str


class KernelImage(NamedTuple):
    """A kernel file and all it says about itself.

    `format` is "ELF", "bzImage" or "compressed ELF"; `compression` the name of the packing, or None.
    `version` is the bzImage's version line, or empty. `notes` is None if the image has nothing to say to Xen.
    """

    path: Path
    format: str
    compression: str | None
    version: str
    elf: ElfFile
    notes: XenNotes | None

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Open and understand a kernel file. UserError, naming the file, if it is not one or is damaged."""
        path = Path(path)
        data = _map(path)
        try:
            return cls._parse(path, data)
        except UserError as error:
            raise UserError(f"{path}: {error.message}", error.hint) from None

    @classmethod
    def _parse(cls, path: Path, data: memoryview) -> Self:
        format_, version, packed = "ELF", "", data
        if bzimage.is_bzimage(data):
            boot = bzimage.parse(data)
            format_, version, packed = "bzImage", boot.version, boot.payload
        compression = payload.compression(packed)
        body = packed
        if compression is not None:
            format_ = format_ if format_ == "bzImage" else "compressed ELF"
            body = cache.unpacked(packed, lambda: payload.decompress(packed, compression))
        if bytes(body[:4]) != MAGIC:
            raise _foreign(body, format_)
        elf = ElfFile.parse(body)
        if not any(header.type == PT_LOAD and header.memsz for header in elf.program_headers):
            raise UserError("this ELF file has nothing to load (an object file or a library, not a kernel)")
        notes = read_notes(elf) if elf.machine in (EM_386, EM_X86_64) else None
        return cls(path, format_, compression, version, elf, notes)

    @property
    def bits(self) -> int:
        """32 or 64."""
        return self.elf.bits

    @property
    def machine(self) -> str:
        """The processor that the image is for."""
        return MACHINE_NAMES.get(self.elf.machine, f"ELF machine {self.elf.machine}")

    @property
    def virt_base(self) -> int:
        """Virtual address of pfn 0 in the initial mapping (note VIRT_BASE, 0 if not given)."""
        return (self.notes.virt_base if self.notes else None) or 0

    @property
    def paddr_offset(self) -> int:
        """What to subtract from the ELF file's physical addresses to get pseudo-physical ones (note PADDR_OFFSET)."""
        return (self.notes.paddr_offset if self.notes else None) or 0

    @property
    def entry(self) -> int:
        """Virtual address of the first instruction (note ENTRY, else the ELF header's)."""
        entry = self.notes.entry if self.notes else None
        return self.elf.entry if entry is None else entry

    @property
    def p2m_base(self) -> int | None:
        """Virtual address for the list of frames (note INIT_P2M); None puts it into the initial mapping.

        As in Xen's libxenguest, an address that is not below the kernel's or not at a page boundary is not honoured.
        """
        base = self.notes.init_p2m if self.notes else None
        return base if base is not None and base < self.virt_base and base % PAGE_SIZE == 0 else None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What is to be loaded, in the order of the file; addresses after PADDR_OFFSET and VIRT_BASE."""
        return tuple(
            Segment(
                paddr=header.paddr - self.paddr_offset,
                vaddr=header.paddr - self.paddr_offset + self.virt_base,
                data=self.elf.segment_data(header),
                memsz=header.memsz,
                executable=bool(header.flags & PF_X),
                writable=bool(header.flags & PF_W),
            )
            for header in self.elf.program_headers
            if header.type == PT_LOAD and header.memsz
        )

    @property
    def start_paddr(self) -> int:
        """The lowest physical address that the kernel takes."""
        return min(segment.paddr for segment in self.segments)

    @property
    def end_paddr(self) -> int:
        """The first physical address behind the kernel (its symbols, where BSD_SYMTAB asks for them, not counted)."""
        return max(segment.paddr + segment.memsz for segment in self.segments)

    def executable_ranges(self) -> Iterator[tuple[int, int]]:
        """Physical [start, end) ranges in bytes that hold code.

        Of a segment whose sections are known only those with instructions count; one without any counts whole. Linux
        keeps its constants and its zeroed data in segments that may be executed.
        """
        for header in self.elf.program_headers:
            if header.type != PT_LOAD or not header.flags & PF_X:
                continue
            start = header.paddr - self.paddr_offset
            sections = [
                (start + section.addr - header.vaddr, section.size)
                for section in self.elf.sections
                if section.flags & SHF_ALLOC
                and section.flags & SHF_EXECINSTR
                and header.vaddr <= section.addr < header.vaddr + header.memsz
            ]
            yield from ((at, at + size) for at, size in sections or [(start, header.memsz)])

    @property
    def verdict(self) -> Verdict:
        """Whether this can run as a 64-bit PV guest, as Xen's own loader would judge it."""
        reason = next(self._obstacles(), None)
        if reason is not None:
            return Verdict(False, reason)
        return Verdict(True, "a 64-bit PV kernel: it boots as " + self._roles())

    @property
    def supports_dom0(self) -> bool:
        """Whether the kernel says it can run as the control domain (a kernel too old to say is believed to)."""
        return self.notes is not None and (
            not self.notes.supported_features_note or "dom0" in self.notes.features_supported
        )

    @property
    def requires_dom0(self) -> bool:
        """Whether the kernel says it can run as the control domain only."""
        return self.notes is not None and "dom0" in self.notes.features_required

    def _roles(self) -> str:
        if self.requires_dom0:
            return "the control domain only"
        return "control domain or as guest" if self.supports_dom0 else "guest, not as the control domain"

    def _obstacles(self) -> Iterator[str]:
        """Everything that stands in the way of booting, most general first."""
        if self.elf.machine not in (EM_386, EM_X86_64):
            yield f"it is a kernel for {self.machine}, not for x86-64"
            return
        notes = self.notes
        if notes is None:
            yield (
                "it carries no Xen notes, so it cannot run as a Xen PV guest"
                " (a Linux kernel needs CONFIG_XEN_PV; was this vmlinux stripped of its notes?)"
            )
            return
        if notes.pvh_only:
            yield f"it is a {self.bits}-bit kernel with a PVH entry point only; Xenolith starts 64-bit PV kernels"
            return
        if self.elf.machine == EM_386 or self.bits == 32:
            yield "it is a 32-bit PV kernel; Xenolith starts 64-bit PV kernels only"
            return
        yield from self._contradictions(notes)

    def _contradictions(self, notes: XenNotes) -> Iterator[str]:
        """What the notes say that cannot be, each as the sentence to refuse it with."""
        yield from notes.problems
        if not notes.loader.startswith("generic") and not notes.is_linux:
            yield f"it asks for the loader '{notes.loader}'; Xen has only the generic one"
        if not notes.xen_version.startswith("xen-3.0"):
            yield f"it is built for the Xen interface '{notes.xen_version}', not for xen-3.0"
        missing = sorted(notes.features_required & _PV_CANNOT)
        if missing:
            yield f"it requires the feature '{missing[0]}', which a 64-bit PV guest does not get"
        if notes.paddr_offset is not None and notes.virt_base is None:
            yield "its notes contradict each other: PADDR_OFFSET is given without VIRT_BASE"
        if self.virt_base % PAGE_SIZE:
            yield f"its note VIRT_BASE {self.virt_base:#x} is not at a page boundary"
        if self.start_paddr < 0:
            yield f"its notes put it at the negative physical address {self.start_paddr:#x}"
        if self.end_paddr > _PADDR_LIMIT:
            yield f"it wants to be loaded up to the physical address {self.end_paddr:#x}, which is beyond all reason"
        yield from self._misplaced(notes)

    def _misplaced(self, notes: XenNotes) -> Iterator[str]:
        """Addresses that lie where they must not."""
        start, end = self.virt_base + self.start_paddr, self.virt_base + self.end_paddr
        if end > _ADDRESS_LIMIT or not _canonical(start, end):
            yield f"its notes map it at {start:#x}–{end:#x}, which is no usable virtual address range"
        if start < HYPERVISOR_VIRT_END and end > HYPERVISOR_VIRT_START:
            yield f"its notes map it at {start:#x}, into the address range that belongs to Xen"
        if not start <= self.entry < end:
            yield f"its entry point {self.entry:#x} lies outside the image ({start:#x}–{end:#x})"
        page = notes.hypercall_page
        if page is not None and (page % PAGE_SIZE or not start <= page <= end - PAGE_SIZE):
            yield f"its note HYPERCALL_PAGE {page:#x} is not a page inside the image ({start:#x}–{end:#x})"
        p2m = self.p2m_base
        if p2m is not None and (not _canonical(p2m, p2m + _MAX_P2M_SIZE) or _in_xen(p2m)):
            yield f"its note INIT_P2M {p2m:#x} is no place for the frame list"
        if notes.hv_start_low is not None and notes.hv_start_low > HYPERVISOR_VIRT_START:
            yield f"its note HV_START_LOW {notes.hv_start_low:#x} lies above the start of Xen's range"


def _canonical(start: int, end: int) -> bool:
    """Whether [start, end) lies in one half of the 48-bit virtual address space."""
    return end <= 1 << 47 or (start >= _ADDRESS_LIMIT - (1 << 47) and end <= _ADDRESS_LIMIT)


def _in_xen(vaddr: int) -> bool:
    return HYPERVISOR_VIRT_START <= vaddr < HYPERVISOR_VIRT_END


def _map(path: Path) -> memoryview:
    """The file's bytes, mapped. UserError if there is no such file, or it is empty, unreadable or not a file."""
    try:
        if path.is_dir():
            raise UserError(f"{path} is a directory, not a kernel")
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is a device or a pipe, not a kernel file")
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise UserError(f"{path} is empty")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise UserError(f"there is no kernel {path}", "'xenolith kernels' lists those that can be had") from None
    except PermissionError:
        raise UserError(
            f"{path} may not be read", "ask the administrator, or bring a kernel of your own with 'xenolith pull'"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _foreign(data: memoryview, format_: str) -> UserError:
    """The sentence for a file that holds no ELF kernel."""
    if bytes(data[0x38:0x3C]) == b"ARM\x64":
        return UserError("this is a kernel for ARM64, not for x86-64")
    if format_ != "ELF":
        return UserError("what is packed in this file is not an ELF kernel")
    if bytes(data[:2]) == b"MZ":
        return UserError("this is an EFI program, not a Linux bzImage or an ELF kernel")
    return UserError("this is neither an ELF file nor a bzImage, so not a kernel that Xen can start")
