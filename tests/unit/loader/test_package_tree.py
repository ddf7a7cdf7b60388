"""File systems out of packages, with the apt of test_registry."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tests.unit.loader.elf_maker import Section, make_elf
from tests.unit.loader.test_registry import Apt, apt, silent, tar
from xenolith.errors import UserError
from xenolith.loader import package_tree
from xenolith.loader.apt import Apt as RealApt
from xenolith.loader.debian_dom0 import Part, Tree
from xenolith.loader.elf import DT_NEEDED, SHT_DYNAMIC, SHT_STRTAB, ElfFile, needed_libraries

__all__ = ["apt"]
LIBRARIES = "usr/lib/x86_64-linux-gnu"


def program(*needed: str) -> bytes:
    """An ELF file that needs these libraries."""
    names = b"\0" + b"\0".join(name.encode() for name in needed) + b"\0"
    tags = b"".join(struct.pack("<QQ", DT_NEEDED, names.index(name.encode())) for name in needed)
    sections = (Section(".dynstr", SHT_STRTAB, names), Section(".dynamic", SHT_DYNAMIC, tags + bytes(16), link=1))
    return make_elf(sections=sections)


def show(apt: Apt, name: str, section: str, depends: str, files: dict[str, bytes | str]) -> None:
    text = f"Package: {name}\nVersion: 1\nSection: {section}\nPre-Depends: libc (>= 2)\nDepends: {depends}\n"
    apt.package(name, text)
    (apt.directory / f"{name}.deb").write_bytes(tar(files))


@pytest.fixture
def distribution(apt: Apt) -> Apt:
    """`tool` needs a library that needs another; `script` is nothing that could be needed."""
    show(apt, "tool", "admin", "liba1 (>= 3), script | nix", {"usr/bin/tool": program("liba.so.1"), "usr/doc": b""})
    show(
        apt,
        "liba1",
        "libs",
        "libb2",
        {f"{LIBRARIES}/liba.so.1": "liba.so.1.5", f"{LIBRARIES}/liba.so.1.5": program("libb.so.2")},
    )
    show(
        apt,
        "libb2",
        "libs",
        "",
        {f"{LIBRARIES}/libb.so.2": program("libc.so"), f"{LIBRARIES}/libother.so.2": program("libnix.so")},
    )
    show(
        apt,
        "libc",
        "libs",
        "",
        {"lib64/libc.so": "/lib/x86_64-linux-gnu/libc.so", "lib/x86_64-linux-gnu/libc.so": program()},
    )
    show(apt, "script", "python", "liba1", {"usr/bin/python": program()})
    return apt


def gather(tmp_path: Path, *parts: Part, libraries: tuple[str, ...] = ()) -> Path:
    directory, state = tmp_path / "tree", tmp_path / "apt"
    state.mkdir()
    wanted = Tree("a tree", "", (), parts, "", libraries)
    package = package_tree.gather(wanted, RealApt(state, (), silent), directory, silent)
    assert package.name == parts[0].package
    return directory


def test_programs_and_the_libraries_that_they_need(distribution: Apt, tmp_path: Path) -> None:
    tree = gather(tmp_path, Part("tool", ("usr/bin/*",)))
    found = {str(path.relative_to(tree)) for path in tree.rglob("*") if not path.is_dir()}
    assert found == {
        "usr/bin/tool",
        f"{LIBRARIES}/liba.so.1",
        f"{LIBRARIES}/liba.so.1.5",
        f"{LIBRARIES}/libb.so.2",
        "lib/x86_64-linux-gnu/libc.so",
        "lib64/libc.so",
    }
    assert os.readlink(tree / LIBRARIES / "liba.so.1") == "liba.so.1.5"
    assert (tree / "usr/bin/tool").stat().st_mode & 0o777 == 0o644


def test_a_library_that_is_asked_for_by_name(distribution: Apt, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has the library libnix\.so"):
        gather(tmp_path, Part("tool", ("nothing",)), libraries=("libother.so.2",))


def test_a_package_that_there_is_not(distribution: Apt, tmp_path: Path) -> None:
    distribution.script("apt-get", download='[ "$2" != nix ] || { echo "E: no nix" >&2; exit 100; }')
    with pytest.raises(UserError, match="no nix"):
        gather(tmp_path, Part("nix", ("*",)))


def test_what_files_need() -> None:
    assert list(needed_libraries(ElfFile.parse(program("a.so", "b.so")))) == ["a.so", "b.so"]
    assert list(needed_libraries(ElfFile.parse(make_elf()))) == []
