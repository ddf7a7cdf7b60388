from __future__ import annotations

import struct

import pytest

from tests.unit.loader.elf_maker import Load, Section, make_elf
from xenolith.errors import UserError
from xenolith.loader.elf import EM_386, PT_LOAD, SHT_NOBITS, SHT_STRTAB, SHT_SYMTAB, ElfFile


@pytest.mark.parametrize("bits", [32, 64])
def test_headers_are_read_in_both_classes(bits: int) -> None:
    data = make_elf([Load(0x1000, b"abcd", memsz=0x20, flags=5, vaddr=0x2000)], entry=0x1234, machine=EM_386, bits=bits)
    elf = ElfFile.parse(data)
    assert (elf.bits, elf.machine, elf.entry) == (bits, EM_386, 0x1234)
    (header,) = elf.program_headers
    assert (header.type, header.flags, header.vaddr, header.paddr, header.memsz) == (PT_LOAD, 5, 0x2000, 0x1000, 0x20)
    assert bytes(elf.segment_data(header)) == b"abcd"


@pytest.mark.parametrize("bits", [32, 64])
def test_sections_have_names_and_data(bits: int) -> None:
    sections = [Section(".text", 1, b"code", flags=6, addr=0x40), Section(".bss", SHT_NOBITS, size=1 << 30)]
    elf = ElfFile.parse(make_elf(sections=sections, bits=bits))
    assert [section.name for section in elf.sections] == ["", ".text", ".bss", ".shstrtab"]
    text, bss = elf.section(".text"), elf.section(".bss")
    assert text is not None
    assert bytes(elf.section_data(text)) == b"code"
    assert (text.flags, text.addr) == (6, 0x40)
    assert bss is not None
    assert len(elf.section_data(bss)) == 0
    assert elf.section(".data") is None


@pytest.mark.parametrize("bits", [32, 64])
def test_symbols(bits: int) -> None:
    names = b"\0start\0end\0"
    if bits == 64:
        table = struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0) + struct.pack("<IBBHQQ", 1, 0x12, 0, 1, 0xFFFF, 7)
        table += struct.pack("<IBBHQQ", 7, 0, 0, 1, 9, 0)
    else:
        table = bytes(16) + struct.pack("<IIIBBH", 1, 0xFFFF, 7, 0x12, 0, 1) + struct.pack("<IIIBBH", 7, 9, 0, 0, 0, 1)
    sections = [Section(".symtab", SHT_SYMTAB, table, link=2), Section(".strtab", SHT_STRTAB, names)]
    symbols = list(ElfFile.parse(make_elf(sections=sections, bits=bits)).symbols())
    assert [(symbol.name, symbol.value, symbol.size) for symbol in symbols] == [("start", 0xFFFF, 7), ("end", 9, 0)]
    assert symbols[0].info == 0x12


def test_a_file_without_symbols_has_none() -> None:
    assert list(ElfFile.parse(make_elf(sections=[Section(".text", 1)])).symbols()) == []


def test_every_truncation_is_refused_or_harmless() -> None:
    data = make_elf([Load(0, b"x" * 64)], sections=[Section(".text", 1, b"code")])
    for length in range(len(data)):
        with pytest.raises(UserError):
            ElfFile.parse(data[:length])


@pytest.mark.parametrize(
    ("offset", "format_", "value", "words"),
    [
        (5, "<B", 2, "big-endian"),
        (4, "<B", 3, "ELF class 3"),
        (0, "<4s", b"\x7fELO", "not an ELF file"),
        (32, "<Q", 1 << 62, "program header table"),
        (40, "<Q", 1 << 62, "section header table"),
        (54, "<H", 8, "program header table"),
        (64 + 8, "<Q", 1 << 62, "segment 0 reaches beyond"),
        (64 + 40, "<Q", 3, "more bytes in the file than in memory"),
        (64 + 24, "<Q", (1 << 64) - 1, "wraps around"),
        (64 + 16, "<Q", (1 << 64) - 1, "wraps around"),
    ],
)
def test_damaged_headers_are_named(offset: int, format_: str, value: int | bytes, words: str) -> None:
    data = bytearray(make_elf([Load(0, b"x" * 64)], sections=[Section(".text", 1, b"code")]))
    struct.pack_into(format_, data, offset, value)
    with pytest.raises(UserError, match=words):
        ElfFile.parse(data)


def test_a_section_beyond_the_file_is_refused() -> None:
    with pytest.raises(UserError, match="section 1 reaches beyond"):
        ElfFile.parse(make_elf(sections=[Section(".text", 1, b"code", size=1 << 40)]))


def test_a_segment_that_ends_with_the_address_space_is_fine() -> None:
    elf = ElfFile.parse(make_elf([Load(0, b"x" * 16, vaddr=(1 << 64) - 16)]))
    assert elf.program_headers[0].vaddr == (1 << 64) - 16
