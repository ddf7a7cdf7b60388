"""Makes a tree of small kernel modules."""

from __future__ import annotations

from pathlib import Path

from tests.unit.loader.elf_maker import Section, make_elf
from xenolith.loader.modules import ModuleTree


def module(depends: str = "", softdep: str = "") -> bytes:
    """A module that states what it needs."""
    info = f"license=GPL\0depends={depends}\0" + (f"softdep={softdep}\0" if softdep else "")
    return make_elf(sections=[Section(".modinfo", 1, info.encode())])


def make_tree(root: Path, modules: dict[str, bytes], builtin: str = "") -> ModuleTree:
    """A lib/modules/6.6.6 with these files."""
    directory = root / "lib/modules/6.6.6"
    for name, data in modules.items():
        path = directory / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "modules.builtin").write_text(builtin)
    return ModuleTree(directory)
