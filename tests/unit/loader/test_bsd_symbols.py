from __future__ import annotations

import struct

from tests.unit.loader.elf_maker import Load, Section, make_elf
from xenolith.loader import bsd_symbols
from xenolith.loader.elf import ElfFile

NAMES = b"\0main\0panic\0"
SYMBOLS = b"".join(
    struct.pack("<IBBHQQ", name, 0x12, 0, 1, value, 4) for name, value in ((0, 0), (1, 0x1000), (6, 0x2000))
)


def make(link: int = 2) -> ElfFile:
    sections = [Section(".symtab", 2, SYMBOLS, link=link), Section(".strtab", 3, NAMES), Section(".text", 1, b"code")]
    return ElfFile.parse(make_elf([Load(0, b"x")], sections=sections))


def test_the_image_is_a_length_and_an_elf_file_with_the_same_symbols() -> None:
    image = bsd_symbols.image(make())
    assert len(image) % 8 == 0
    (length,) = struct.unpack_from("<I", image)
    inner = ElfFile.parse(image[4 : 4 + length])
    assert [section.type for section in inner.sections] == [0, 2, 3]
    assert inner.program_headers == ()
    assert [(symbol.name, symbol.value) for symbol in inner.symbols()] == [("main", 0x1000), ("panic", 0x2000)]


def test_the_tables_are_aligned_in_the_guest() -> None:
    image = bsd_symbols.image(make())
    inner = ElfFile.parse(image[4:])
    assert [(section.offset + 4) % 8 for section in inner.sections[1:]] == [0, 0]


def test_without_a_symbol_table_there_is_nothing() -> None:
    assert bsd_symbols.image(ElfFile.parse(make_elf([Load(0, b"x")]))) == b""
    assert bsd_symbols.image(make(link=3)) == b""
    assert bsd_symbols.image(make(link=99)) == b""
