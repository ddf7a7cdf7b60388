"""A file system out of packages: the wanted files of each, and the shared libraries that they need."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from xenolith.errors import UserError
from xenolith.loader.apt import Apt, Package
from xenolith.loader.debian_dom0 import Tree
from xenolith.loader.elf import MAGIC, ElfFile, needed_libraries

_LIBRARY_DIRECTORIES: Final = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64")


class Member(NamedTuple):
    """A file of a package: contents and permissions, or the target of a link if there is one."""

    data: bytes
    mode: int
    link: str | None
    end: int
    """How many bytes into the archive it ends."""


def gather(wanted: Tree, apt: Apt, directory: Path, progress: Callable[[str, float], None]) -> Package:
    """Write a tree of packages below `directory`; what its first package is. UserError if something cannot be had."""
    packages = [part.package for part in wanted.parts]
    libraries = apt.libraries_of(packages)
    files = iter(apt.download_all([*packages, *libraries]))
    needed = set(wanted.libraries)
    for part in wanted.parts:
        progress(f"unpacking {part.package}", 0.0)
        for path, member in members(next(files), _matching(part.files)):
            _write(directory / path, member)
            needed |= _needs(member)
    found = defaultdict[str, list[tuple[PurePosixPath, Member]]](list)
    for number, (name, file) in enumerate(zip(libraries, files, strict=True)):
        progress(f"unpacking {name}", number / len(libraries))
        for path, member in members(file, _is_library):
            found[path.name].append((path, member))
    _add_libraries(needed, found, directory)
    progress("unpacking", 1.0)
    return apt.package(packages[0])


def _add_libraries(needed: set[str], found: Mapping[str, list[tuple[PurePosixPath, Member]]], directory: Path) -> None:
    """Write the libraries of these names and all that they need in turn."""
    waiting, begun = sorted(needed), set(needed)
    while waiting:
        name = waiting.pop()
        if name not in found:
            raise UserError(f"no package that was asked for has the library {name}")
        for path, member in found[name]:
            _write(directory / path, member)
            others = _needs(member) if member.link is None else {PurePosixPath(member.link).name}
            waiting += sorted(others - begun)
            begun |= others


def _needs(member: Member) -> set[str]:
    """The libraries that a program or library asks for; none for other files."""
    if not member.data.startswith(MAGIC):
        return set()
    return set(needed_libraries(ElfFile.parse(member.data)))


def _is_library(path: PurePosixPath) -> bool:
    return str(path.parent) in _LIBRARY_DIRECTORIES and ".so" in path.name


def _matching(patterns: tuple[str, ...]) -> Callable[[PurePosixPath], bool]:
    return lambda path: any(fnmatch(str(path), pattern) for pattern in patterns)


def _write(target: Path, member: Member) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.link is not None:
        target.unlink(missing_ok=True)
        target.symlink_to(member.link)
    else:
        target.write_bytes(member.data)
        target.chmod(member.mode & 0o755)


def members(deb: Path, is_wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[PurePosixPath, Member]]:
    """The files and links of a package whose path, without a leading slash, is wanted. UserError if it is damaged."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for found in archive:
                    path = PurePosixPath(found.name.removeprefix("./"))
                    if ".." in path.parts or path.is_absolute() or not is_wanted(path):
                        continue
                    member = _member(archive, found, path)
                    if member is not None:
                        yield path, member
            process.stdout.read()
        except tarfile.TarError as error:
            raise UserError(f"the package {deb.name} is damaged: {error}") from None
        finally:
            process.stdout.close()
    if process.returncode:
        raise UserError(f"the package {deb.name} is damaged")


def _member(archive: tarfile.TarFile, found: tarfile.TarInfo, path: PurePosixPath) -> Member | None:
    """What is kept of a member; None for a directory. A hard link is kept as a symbolic one."""
    if found.issym():
        return Member(b"", found.mode, found.linkname, found.offset_data)
    if found.islnk():
        target = found.linkname.removeprefix("./")
        return Member(b"", found.mode, os.path.relpath(target, path.parent), found.offset_data)
    file = archive.extractfile(found) if found.isreg() else None
    return Member(file.read(), found.mode, None, found.offset_data + found.size) if file is not None else None
