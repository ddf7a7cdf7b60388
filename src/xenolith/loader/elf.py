"""A strict reader of ELF files: headers, segments, sections and symbols, every offset checked against the file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from xenolith.errors import UserError

MAGIC: Final = b"\x7fELF"
ELFCLASS32: Final = 1
ELFCLASS64: Final = 2
ELFDATA2LSB: Final = 1
EM_386: Final = 3
EM_X86_64: Final = 62
PT_LOAD: Final = 1
PT_INTERP: Final = 3
PT_NOTE: Final = 4
PF_X: Final = 1
PF_W: Final = 2
SHT_SYMTAB: Final = 2
SHT_STRTAB: Final = 3
SHT_DYNAMIC: Final = 6
SHT_NOTE: Final = 7
SHT_NOBITS: Final = 8
SHF_ALLOC: Final = 2
SHF_EXECINSTR: Final = 4
DT_NEEDED: Final = 1

MACHINE_NAMES: Final = {
    EM_386: "x86 (32-bit)",
    EM_X86_64: "x86-64",
    40: "ARM (32-bit)",
    183: "ARM64",
    243: "RISC-V",
    20: "PowerPC",
    21: "PowerPC64",
    22: "S/390",
    258: "LoongArch",
}


class ElfLayout(NamedTuple):
    """The binary layouts of one ELF class, as `struct` formats and sizes (System V gABI, chapters 4 and 5)."""

    bits: int
    header: struct.Struct
    program_header: struct.Struct
    section_header: struct.Struct
    symbol: struct.Struct


LAYOUT32: Final = ElfLayout(
    32, struct.Struct("<16sHHIIIIIHHHHHH"), struct.Struct("<8I"), struct.Struct("<10I"), struct.Struct("<IIIBBH")
)
LAYOUT64: Final = ElfLayout(
    64,
    struct.Struct("<16sHHIQQQIHHHHHH"),
    struct.Struct("<IIQQQQQQ"),
    struct.Struct("<IIQQQQIIQQ"),
    struct.Struct("<IBBHQQ"),
)


class ProgramHeader(NamedTuple):
    """One entry of the program header table; addresses and sizes in bytes."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


@dataclass(frozen=True, slots=True)
class SectionHeader:
    """One entry of the section header table; addresses and sizes in bytes."""

    index: int
    name: str
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int


class Symbol(NamedTuple):
    """A named address."""

    name: str
    value: int
    size: int
    info: int


class ElfFile(NamedTuple):
    """A checked ELF file: every segment and section that it names lies inside `data`."""

    data: memoryview
    layout: ElfLayout
    machine: int
    entry: int
    program_headers: tuple[ProgramHeader, ...]
    sections: tuple[SectionHeader, ...]

    @property
    def bits(self) -> int:
        """32 or 64."""
        return self.layout.bits

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> ElfFile:
        """Read the headers of an ELF file. UserError if it is truncated, corrupt or big-endian."""
        view = memoryview(data)
        layout = _layout(view)
        if len(view) < layout.header.size:
            raise UserError("the ELF header is cut off")
        fields = layout.header.unpack_from(view)
        _, _, machine, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, shstrndx = fields
        programs = tuple(_program_headers(view, layout, phoff, phentsize, phnum))
        sections = tuple(_sections(view, layout, shoff, shentsize, shnum, shstrndx))
        return cls(view, layout, machine, entry, programs, sections)

    def segment_data(self, header: ProgramHeader) -> memoryview:
        """The bytes of a segment that stand in the file."""
        return self.data[header.offset : header.offset + header.filesz]

    def section_data(self, header: SectionHeader) -> memoryview:
        """The bytes of a section that stand in the file; none for SHT_NOBITS."""
        if header.type == SHT_NOBITS:
            return self.data[:0]
        return self.data[header.offset : header.offset + header.size]

    def section(self, name: str) -> SectionHeader | None:
        """The first section of that name."""
        return next((header for header in self.sections if header.name == name), None)

    def symbol_table(self) -> tuple[SectionHeader, SectionHeader] | None:
        """The symbol table and its string table, if the file has both."""
        symtab = next((header for header in self.sections if header.type == SHT_SYMTAB), None)
        if symtab is None or symtab.link >= len(self.sections):
            return None
        strtab = self.sections[symtab.link]
        return (symtab, strtab) if strtab.type == SHT_STRTAB else None

    def symbols(self) -> Iterator[Symbol]:
        """Every named symbol, in the order of the table."""
        tables = self.symbol_table()
        if tables is None:
            return
        symtab, strtab = tables
        names = bytes(self.section_data(strtab))
        record = self.layout.symbol
        data = self.section_data(symtab)
        for fields in record.iter_unpack(data[: len(data) // record.size * record.size]):
            if self.bits == 64:
                name, info, _, _, value, size = fields
            else:
                name, value, size, info, _, _ = fields
            if name:
                yield Symbol(_string(names, name), value, size, info)


def _layout(view: memoryview) -> ElfLayout:
    if bytes(view[:4]) != MAGIC:
        raise UserError("this is not an ELF file")
    if len(view) < 16:
        raise UserError("the ELF header is cut off")
    if view[5] != ELFDATA2LSB:
        raise UserError("this ELF file is big-endian, so not for x86")
    if view[4] not in (ELFCLASS32, ELFCLASS64):
        raise UserError(f"the ELF class {view[4]} is neither 32-bit nor 64-bit")
    return LAYOUT64 if view[4] == ELFCLASS64 else LAYOUT32


def _table(
    view: memoryview, what: str, record: struct.Struct, offset: int, entry_size: int, count: int
) -> Iterator[tuple[int, ...]]:
    """Unpack a table of headers after checking that all of it is in the file."""
    if count == 0:
        return
    if entry_size < record.size or offset + entry_size * count > len(view):
        raise UserError(f"the ELF {what} header table reaches beyond the end of the file (is the file truncated?)")
    for index in range(count):
        yield record.unpack_from(view, offset + index * entry_size)


def _program_headers(
    view: memoryview, layout: ElfLayout, offset: int, entry_size: int, count: int
) -> Iterator[ProgramHeader]:
    for index, fields in enumerate(_table(view, "program", layout.program_header, offset, entry_size, count)):
        if layout.bits == 64:
            type_, flags, start, vaddr, paddr, filesz, memsz, _ = fields
        else:
            type_, start, vaddr, paddr, filesz, memsz, flags, _ = fields
        if type_ in (PT_LOAD, PT_NOTE) and start + filesz > len(view):
            raise UserError(f"ELF segment {index} reaches beyond the end of the file (is the file truncated?)")
        if type_ == PT_LOAD and filesz > memsz:
            raise UserError(f"ELF segment {index} has more bytes in the file than in memory")
        if type_ == PT_LOAD and (paddr + memsz >> layout.bits or vaddr + memsz > 1 << layout.bits):
            raise UserError(f"ELF segment {index} wraps around the end of the address space")
        yield ProgramHeader(type_, flags, start, vaddr, paddr, filesz, memsz)


def _sections(
    view: memoryview, layout: ElfLayout, offset: int, entry_size: int, count: int, names_index: int
) -> Iterator[SectionHeader]:
    table = list(_table(view, "section", layout.section_header, offset, entry_size, count))
    for index, (_, type_, _, _, start, size, *_) in enumerate(table):
        if type_ not in (0, SHT_NOBITS) and start + size > len(view):
            raise UserError(f"ELF section {index} reaches beyond the end of the file (is the file truncated?)")
    names = b""
    if names_index < len(table) and table[names_index][1] == SHT_STRTAB:
        start, size = table[names_index][4:6]
        names = bytes(view[start : start + size])
    for index, (name, type_, flags, addr, start, size, link, *_) in enumerate(table):
        yield SectionHeader(index, _string(names, name), type_, flags, addr, start, size, link)


def _string(table: bytes, offset: int) -> str:
    """The NUL-terminated string at `offset` of a string table; empty beyond its end."""
    end = table.find(b"\0", offset)
    return table[offset : end if end >= 0 else len(table)].decode("utf-8", "replace")


def needed_libraries(elf: ElfFile) -> Iterator[str]:
    """The file names of the shared libraries that a 64-bit ELF file asks for (DT_NEEDED).

    Taken from the sections, which distributions' files keep.
    """
    dynamic = next((header for header in elf.sections if header.type == SHT_DYNAMIC), None)
    if dynamic is None or dynamic.link >= len(elf.sections) or elf.bits != 64:
        return
    names = bytes(elf.section_data(elf.sections[dynamic.link]))
    data = elf.section_data(dynamic)
    for tag, value in struct.iter_unpack("<QQ", data[: len(data) // 16 * 16]):
        if tag == DT_NEEDED:
            yield _string(names, value)
