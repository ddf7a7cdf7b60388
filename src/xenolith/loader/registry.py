"""What can be had from the distribution's registry, and what of it is in the cache: kernels, modules, and tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

from xenolith.errors import UserError
from xenolith.loader.debian_dom0 import DEBIAN_DOM0, Tree
from xenolith.loader.elf import EM_X86_64, PT_INTERP, ElfFile
from xenolith.user_cache import cache_directory

Progress = Callable[[str, float], None]
"""Told what is being done and how far it is (0.0–1.0)."""

MANIFEST: Final = "manifest.json"
"""Beside the files of an alias: what they are."""


class Source(NamedTuple):
    """Something that can be pulled.

    `suites` are apt suites, each of the main or (named …-security) the security archive. `package` holds the file
    itself, unless `through` is given: then it is the first dependency of `package` that this expression matches.
    `file` is the path in the package without a leading usr/, with shell wildcards; `modules` says whether lib/modules
    goes with it.
    """

    alias: str
    description: str
    suites: tuple[str, ...]
    package: str
    file: str
    through: str = ""
    modules: bool = False


_BOOKWORM: Final = ("bookworm", "bookworm-security")
_LINUX: Final = r"linux-image-\d\S*"
_VMLINUZ: Final = "boot/vmlinuz-*"

SOURCES: Final = (
    Source("debian", "Debian 12's kernel", _BOOKWORM, "linux-image-amd64", _VMLINUZ, _LINUX, True),
    Source(
        "debian-cloud", "Debian 12's kernel for clouds", _BOOKWORM, "linux-image-cloud-amd64", _VMLINUZ, _LINUX, True
    ),
    Source("debian-rt", "Debian 12's real-time kernel", _BOOKWORM, "linux-image-rt-amd64", _VMLINUZ, _LINUX, True),
    Source(
        "debian-backports",
        "a newer kernel for Debian 12",
        ("bookworm-backports",),
        "linux-image-amd64",
        _VMLINUZ,
        _LINUX,
        True,
    ),
    Source(
        "debian-bullseye-cloud",
        "Debian 11's kernel for clouds",
        ("bullseye", "bullseye-security"),
        "linux-image-cloud-amd64",
        _VMLINUZ,
        _LINUX,
        True,
    ),
    Source("grub", "GRUB as a PV guest", _BOOKWORM, "grub-xen-host", "lib/grub-xen/grub-x86_64-xen.bin"),
    Source(
        "mach",
        "GNU Mach for Xen",
        _BOOKWORM,
        "gnumach-image-1-xen-486",
        "boot/gnumach-*-xen-*.gz",
        r"gnumach-image-\S+-xen-\S+",
    ),
)
"""What `xenolith pull` knows, the default first."""

_BUSYBOX: Final = Source("busybox", "busybox for ramdisks", _BOOKWORM, "busybox-static", "bin/busybox")
_PASST: Final = Source("passt", "user-mode networking", _BOOKWORM, "passt", "bin/passt*")
_TOOLS: Final = (_BUSYBOX, _PASST, DEBIAN_DOM0)
"""What `xenolith pull` knows besides kernels."""


class Pulled(NamedTuple):
    """Something in the cache: `file` is the kernel, `modules` its …/lib/modules/VERSION or None."""

    alias: str
    package: str
    version: str
    file: Path
    modules: Path | None


def source(alias: str) -> Source | None:
    """The source of that alias."""
    return next((candidate for candidate in SOURCES if candidate.alias == alias), None)


def pulled(alias: str) -> Pulled | None:
    """What was pulled under that alias, or None if nothing was, or it is damaged."""
    directory = _place(alias)
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        modules = manifest["modules"]
        found = Pulled(
            alias,
            str(manifest["package"]),
            str(manifest["version"]),
            directory / manifest["file"],
            directory / modules if modules else None,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.file.is_file() else None


def busybox() -> Path | None:
    """A busybox for ramdisks: the cache's, or the host's own if it is statically linked; None if there is neither."""
    found = pulled(_BUSYBOX.alias)
    if found is not None:
        return found.file
    return next((path for path in map(Path, ("/bin/busybox", "/usr/bin/busybox")) if _is_static(path)), None)


def tool(alias: str) -> Path | None:
    """A program that was pulled under that alias, or None."""
    found = pulled(alias)
    return found.file if found is not None else None


def debian_dom0() -> Path:
    """The tree of a control domain's tools. UserError if it was not pulled."""
    alias = DEBIAN_DOM0.alias
    if pulled(alias) is None:
        raise UserError(f"'{alias}' is not in the cache", f"'xenolith pull {alias}' brings it from the registry")
    return _place(alias)


def pull(alias: str, progress: Progress) -> Pulled:
    """Bring a tool, or a kernel of SOURCES, its modules, and a busybox if there is none yet, into the cache.

    What is brought appears complete or not at all, in the place of what was pulled before. UserError if there is no
    such alias, no apt-get, the registry cannot be reached, or the disk is full.
    """
    wanted = next((candidate for candidate in (*SOURCES, *_TOOLS) if candidate.alias == alias), None)
    if wanted is None:
        known = ", ".join(candidate.alias for candidate in (*SOURCES, *_TOOLS))
        raise UserError(f"there is nothing called '{alias}' to pull", f"known are {known}")
    sources = (*_companions(wanted), wanted)
    for suites, group in groupby(sources, lambda candidate: candidate.suites):
        _fetch(tuple(group), suites, progress)
    return _result(wanted)


def _companions(wanted: Source | Tree) -> Iterator[Source]:
    """What else is brought, if there is none yet: a ramdisk needs busybox, a control domain's tools a kernel."""
    if (isinstance(wanted, Tree) or wanted.modules) and busybox() is None:
        yield _BUSYBOX
    if isinstance(wanted, Tree) and pulled(SOURCES[0].alias) is None:
        yield SOURCES[0]


def pull_busybox(progress: Progress) -> Path:
    """Bring a statically linked busybox into the cache. UserError as for `pull`."""
    _fetch((_BUSYBOX,), _BUSYBOX.suites, progress)
    return _result(_BUSYBOX).file


def _fetch(sources: Iterable[Source | Tree], suites: Iterable[str], progress: Progress) -> None:
    # Found kernels are the rule: what fetching takes is imported when it is needed.
    from xenolith.loader.fetch import fetch

    fetch(sources, suites, progress)


def _result(wanted: Source | Tree) -> Pulled:
    found = pulled(wanted.alias)
    if found is None:
        raise UserError(f"'{wanted.alias}' was pulled, but something else has removed it from {_place(wanted.alias)}")
    return found


def shelf() -> Path:
    """The directory with one directory for each alias that was pulled."""
    return cache_directory() / "kernels"


def _place(alias: str) -> Path:
    return shelf() / alias


def _is_static(path: Path) -> bool:
    """Whether this is an x86-64 program that needs no dynamic linker."""
    try:
        elf = ElfFile.parse(path.read_bytes())
    except (OSError, UserError):
        return False
    return elf.machine == EM_X86_64 and all(header.type != PT_INTERP for header in elf.program_headers)
