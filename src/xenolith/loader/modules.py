"""Kernel modules in a kernel package: finding them by name, and what each needs loaded before it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from xenolith.errors import UserError
from xenolith.loader import payload
from xenolith.loader.elf import ElfFile

_SUFFIXES: Final = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


@dataclass(frozen=True, slots=True)
class Module:
    """A module, unpacked: its name with underscores, its path below the module directory, its bytes."""

    name: str
    path: str
    data: bytes
    depends: tuple[str, ...]
    wants: tuple[str, ...]
    """Loaded before it if they exist (softdep pre:)."""


@dataclass(slots=True)
class ModuleTree:
    """The modules below …/lib/modules/VERSION.

    What a module needs is read from the module itself (section .modinfo): packages hold no modules.dep, since
    that is made on the machine where they are installed.
    """

    directory: Path
    _paths: dict[str, str] = field(init=False)
    _builtin: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self._paths = {
            _name(file): os.path.join(directory, file)
            for directory, _, files in os.walk(self.directory)
            for file in files
            if file.endswith(_SUFFIXES)
        }
        try:
            lines = (self.directory / "modules.builtin").read_text().split()
        except OSError:
            lines = []
        self._builtin = frozenset(_name(os.path.basename(line)) for line in lines)

    @property
    def version(self) -> str:
        """The kernel version that the modules are for."""
        return self.directory.name

    def __contains__(self, name: str) -> bool:
        """Whether there is such a module that can be loaded."""
        return name.replace("-", "_") in self._paths

    def provides(self, name: str) -> bool:
        """Whether there is such a module, or the kernel has it built in."""
        return name in self or name.replace("-", "_") in self._builtin

    def closure(self, names: Iterable[str]) -> list[Module]:
        """These modules and all that they need, each after what it needs; those built into the kernel are left out.

        UserError if there is no such module, or one is damaged.
        """
        found: list[Module] = []
        begun: set[str] = set()
        for name in names:
            self._add(name.replace("-", "_"), found, begun)
        return found

    def _add(self, name: str, found: list[Module], begun: set[str]) -> None:
        """Append a module after what it needs; `begun` breaks the circles that soft dependencies may form."""
        if name in begun or name in self._builtin:
            return
        begun.add(name)
        module = self._read(name)
        for other in (*(wanted for wanted in module.wants if wanted in self._paths), *module.depends):
            self._add(other, found, begun)
        found.append(module)

    def _read(self, name: str) -> Module:
        if name not in self._paths:
            import difflib

            close = difflib.get_close_matches(name, self._paths, 3)
            hint = f"did you mean {' or '.join(close)}?" if close else ""
            raise UserError(f"the kernel {self.version} has no module '{name}'", hint)
        path = Path(self._paths[name])
        data = _unpacked(path)
        try:
            elf = ElfFile.parse(data)
        except UserError as error:
            raise UserError(f"the module {path} is damaged: {error.message}") from None
        info = dict(_modinfo(elf))
        plain = path.with_name(path.name.split(".ko")[0] + ".ko").relative_to(self.directory)
        depends = tuple(part.replace("-", "_") for part in info.get("depends", "").split(",") if part)
        return Module(name, str(plain), data, depends, tuple(_soft_dependencies(info.get("softdep", ""))))


def _name(file: str) -> str:
    """A module's name from its file's: without the suffix, with underscores."""
    return file.split(".ko")[0].replace("-", "_")


def _unpacked(path: Path) -> bytes:
    """The module's bytes, uncompressed. UserError if they cannot be had."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"the module {path} cannot be read: {error.strerror}") from None
    compression = payload.compression(memoryview(data))
    try:
        return data if compression is None else payload.decompress(memoryview(data), compression)
    except UserError as error:
        raise UserError(f"the module {path} is damaged: {error.message}") from None


def _modinfo(elf: ElfFile) -> Iterator[tuple[str, str]]:
    """The KEY=VALUE strings by which a module describes itself; of a key given twice the last remains in a dict."""
    section = elf.section(".modinfo")
    if section is not None:
        for item in bytes(elf.section_data(section)).split(b"\0"):
            key, _, value = item.decode("utf-8", "replace").partition("=")
            yield key, value


def _soft_dependencies(text: str) -> Iterator[str]:
    """The names after "pre:" of a softdep string such as "pre: a b post: c"."""
    before = False
    for word in text.split():
        if word.endswith(":"):
            before = word == "pre:"
        elif before:
            yield word.replace("-", "_")
