"""Makes small ELF kernels, so that tests write their own input."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from xenolith.abi import elfnotes
from xenolith.loader.elf import EM_X86_64, LAYOUT32, LAYOUT64, PF_W, PF_X, PT_LOAD, PT_NOTE, SHT_STRTAB

PF_R = 4


@dataclass(frozen=True)
class Load:
    """A PT_LOAD segment."""

    paddr: int
    data: bytes
    memsz: int = 0
    flags: int = PF_R | PF_W | PF_X
    vaddr: int | None = None


@dataclass(frozen=True)
class Section:
    """A section; `offset` places it over bytes that are there already, otherwise its data is appended."""

    name: str
    type: int
    data: bytes = b""
    flags: int = 0
    addr: int = 0
    link: int = 0
    size: int | None = None


def note(type_: int, description: bytes, owner: bytes = b"Xen\0") -> bytes:
    """One ELF note."""
    head = struct.pack("<3I", len(owner), len(description), type_)
    return head + owner + bytes(-len(owner) % 4) + description + bytes(-len(description) % 4)


def pv_notes(virt_base: int = 0, entry: int = 0, **more: bytes | int | str) -> bytes:
    """The notes of a simple PV kernel, and more of them by name."""
    values: dict[str, bytes | int | str] = {
        "GUEST_OS": "test",
        "XEN_VERSION": "xen-3.0",
        "LOADER": "generic",
        "VIRT_BASE": virt_base,
        "ENTRY": entry,
        **more,
    }
    return b"".join(
        note(getattr(elfnotes, f"XEN_ELFNOTE_{name}"), _description(value)) for name, value in values.items()
    )


def _description(value: bytes | int | str) -> bytes:
    if isinstance(value, int):
        return struct.pack("<Q", value)
    return value.encode() + b"\0" if isinstance(value, str) else value


def make_elf(
    loads: Sequence[Load] = (),
    notes: bytes = b"",
    sections: Sequence[Section] = (),
    entry: int = 0,
    machine: int = EM_X86_64,
    bits: int = 64,
) -> bytes:
    """An ELF file: headers, then the segments' data, then the sections' data, then the section headers."""
    layout = LAYOUT64 if bits == 64 else LAYOUT32
    programs = len(loads) + bool(notes)
    body = bytearray(layout.header.size + programs * layout.program_header.size)
    headers = []
    for load in loads:
        vaddr = load.paddr if load.vaddr is None else load.vaddr
        headers.append(
            (PT_LOAD, load.flags, len(body), vaddr, load.paddr, len(load.data), max(load.memsz, len(load.data)))
        )
        body += load.data
    if notes:
        headers.append((PT_NOTE, PF_R, len(body), 0, 0, len(notes), 0))
        body += notes
    for index, (type_, flags, offset, vaddr, paddr, filesz, memsz) in enumerate(headers):
        at = layout.header.size + index * layout.program_header.size
        order64 = (type_, flags, offset, vaddr, paddr, filesz, memsz, 1)
        order32 = (type_, offset, vaddr, paddr, filesz, memsz, flags, 1)
        layout.program_header.pack_into(body, at, *(order64 if bits == 64 else order32))
    shoff, count = _append_sections(body, layout, sections)
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1, 1]).ljust(12, b"\0")
    layout.header.pack_into(
        body,
        0,
        ident,
        2,
        machine,
        1,
        entry,
        layout.header.size if programs else 0,
        shoff,
        0,
        layout.header.size,
        layout.program_header.size,
        programs,
        layout.section_header.size,
        count,
        count - 1 if count else 0,
    )
    return bytes(body)


def _append_sections(body: bytearray, layout, sections: Sequence[Section]) -> tuple[int, int]:
    if not sections:
        return 0, 0
    names = b"\0"
    records = [(0,) * 10]
    for section in (*sections, Section(".shstrtab", SHT_STRTAB)):
        name_at, names = len(names), names + section.name.encode() + b"\0"
        data = names if section.name == ".shstrtab" else section.data
        size = len(data) if section.size is None else section.size
        records.append((name_at, section.type, section.flags, section.addr, len(body), size, section.link, 0, 1, 0))
        body += data
    body += bytes(-len(body) % 8)
    shoff = len(body)
    for record in records:
        body += layout.section_header.pack(*record)
    return shoff, len(records)


def make_bzimage(payload: bytes, *, protocol: int = 0x20F, version: str = "9.9.9-test (nobody) #1") -> bytes:
    """A bzImage around a packed kernel."""
    setup_sectors = 3
    image = bytearray((setup_sectors + 1) * 512)
    image[0x1F1] = setup_sectors
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, protocol)
    struct.pack_into("<H", image, 0x20E, 0x300)
    image[0x500 : 0x500 + len(version)] = version.encode()
    struct.pack_into("<II", image, 0x248, 64, len(payload))
    return bytes(image) + bytes(64) + payload
