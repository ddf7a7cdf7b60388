"""The symbol table as BSD kernels expect it behind their image: its length, then an ELF file of two sections."""

from __future__ import annotations

import struct
from typing import Final

from xenolith.loader.elf import LAYOUT64, ElfFile, SectionHeader

_ALIGN: Final = 8
_EHDR: Final = LAYOUT64.header.size
_SHDR: Final = LAYOUT64.section_header.size
_SYMTAB, _STRTAB = 1, 2
_OFFSET_AT: Final = 24
"""Where sh_offset stands in a 64-bit section header."""
_LINK_AT: Final = 40
"""Where sh_link stands in a 64-bit section header."""


def aligned(length: int) -> int:
    """`length` rounded up to the alignment that the parts of the table have."""
    return length + _ALIGN - 1 & -_ALIGN


def image(elf: ElfFile) -> bytes:
    """The bytes to load at the first aligned address behind the kernel; empty if the file has no symbol table.

    A 32-bit length, an ELF header, three section headers (none, symbols, strings), then both tables, each part
    aligned to 8 bytes; offsets count from the ELF header (layout: Xen, libelf-loader.c). 64-bit files only.
    """
    tables = elf.symbol_table()
    if tables is None:
        return b""
    symtab, strtab = (bytes(elf.section_data(table)) for table in tables)
    symtab_at = aligned(4 + _EHDR + 3 * _SHDR)
    strtab_at = symtab_at + aligned(len(symtab))
    headers = (
        _header(elf)
        + bytes(_SHDR)
        + _section_header(elf, tables[0], symtab_at - 4, link=_STRTAB)
        + _section_header(elf, tables[1], strtab_at - 4, link=tables[1].link)
    )
    length = struct.pack("<I", strtab_at + len(strtab) - 4)
    body = (length + headers).ljust(symtab_at, b"\0") + symtab.ljust(aligned(len(symtab)), b"\0") + strtab
    return body.ljust(aligned(len(body)), b"\0")


def _header(elf: ElfFile) -> bytes:
    """The kernel's own ELF header, made to say: no segments, and three sections right behind it."""
    fields = list(LAYOUT64.header.unpack_from(elf.data))
    fields[3] = 1  # e_version
    fields[5:7] = (0, _EHDR)  # e_phoff, e_shoff
    fields[8:] = (_EHDR, 0, 0, _SHDR, 3, 0)  # e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
    return LAYOUT64.header.pack(*fields)


def _section_header(elf: ElfFile, section: SectionHeader, offset: int, link: int) -> bytes:
    """The file's own header of a section with another place and another link."""
    fields = LAYOUT64.header.unpack_from(elf.data)
    shoff, shentsize = fields[6], fields[11]
    raw = bytearray(elf.data[shoff + section.index * shentsize :][:_SHDR])
    struct.pack_into("<Q", raw, _OFFSET_AT, offset)
    struct.pack_into("<I", raw, _LINK_AT, link)
    return bytes(raw)
