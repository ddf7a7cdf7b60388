"""Finding a kernel: the one that the user named, the cache's, the host's own, or one from the registry."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from xenolith.errors import UserError
from xenolith.loader import registry
from xenolith.loader.image import KernelImage
from xenolith.loader.registry import Progress

_BOOT: Final = Path("/boot")
_MODULES: Final = Path("/lib/modules")
_PREFIX: Final = "vmlinuz-"


class Kernel(NamedTuple):
    """A kernel that can be had on this machine.

    `name` is what `--kernel` takes; `origin` is "file", "cache" or "host"; `modules` is its …/lib/modules/VERSION, if
    there is one.
    """

    name: str
    path: Path
    origin: str
    modules: Path | None
    description: str = ""

    def image(self) -> KernelImage:
        """The kernel itself. UserError if the file is damaged."""
        return KernelImage.read(self.path)


def find(name: str | None, progress: Progress) -> Kernel:
    """The kernel of that name (a file, an alias of `xenolith pull`, or a version in /boot), or the best there is.

    Without a name: the first Linux in the cache, in the order of the registry; the host's newest readable one that
    carries Xen PV notes; else the registry's default is pulled. UserError if there is no such kernel, or none can be
    had.
    """
    if name is not None:
        return _named(name, progress)
    found = next((kernel for kernel in cached() if _is_linux(kernel)), None) or next(
        (kernel for kernel in host() if _boots(kernel)), None
    )
    if found is not None:
        return found
    try:
        return _from_registry(registry.pull(registry.SOURCES[0].alias, progress))
    except UserError as error:
        raise UserError(
            f"no kernel was found in the cache or in {_BOOT}, and none can be brought: {error.message}",
            "name a kernel file with --kernel, or run 'xenolith pull' where there is a network",
        ) from None


def cached() -> Iterator[Kernel]:
    """The kernels in the cache, in the order of the registry."""
    for source in registry.SOURCES:
        pulled = registry.pulled(source.alias)
        if pulled is not None:
            yield _from_registry(pulled)


def host() -> Iterator[Kernel]:
    """The readable kernels in /boot, newest version first; whether they can boot is not looked at."""
    paths = (path for path in _BOOT.glob(f"{_PREFIX}*") if path.is_file() and os.access(path, os.R_OK))
    for path in sorted(paths, key=_version_key, reverse=True):
        version = path.name.removeprefix(_PREFIX)
        yield Kernel(version, path, "host", _directory(_MODULES / version), "this host's own kernel")


def _named(name: str, progress: Progress) -> Kernel:
    path = Path(name).expanduser()
    if path.exists() or "/" in name:
        return _file(name, path)
    if registry.source(name) is not None:
        pulled = registry.pulled(name)
        return _from_registry(pulled or registry.pull(name, progress))
    known = {kernel.name: kernel for kernel in host()}
    if name in known:
        return known[name]
    import difflib

    close = difflib.get_close_matches(name, [*known, *(source.alias for source in registry.SOURCES)], 1)
    hint = f"did you mean '{close[0]}'?" if close else "'xenolith kernels' lists those that can be had"
    raise UserError(f"there is no kernel '{name}'", hint)


def _file(name: str, path: Path) -> Kernel:
    """The kernel in a file, with the modules that lie where a package or an installation puts them."""
    version = path.name.removeprefix(_PREFIX)
    places = (path.resolve().parent.parent / "lib/modules" / version, _MODULES / version)
    return Kernel(name, path, "file", next(filter(None, map(_directory, places)), None))


def _directory(path: Path) -> Path | None:
    return path if path.name and path.is_dir() else None


def _from_registry(pulled: registry.Pulled) -> Kernel:
    source = registry.source(pulled.alias)
    assert source is not None
    return Kernel(pulled.alias, pulled.file, "cache", pulled.modules, f"{source.description}, {pulled.version}")


def _is_linux(kernel: Kernel) -> bool:
    """Whether a kernel of the cache is one that a machine can be started with unasked."""
    source = registry.source(kernel.name)
    return source is not None and source.modules


def _boots(kernel: Kernel) -> bool:
    try:
        return kernel.image().verdict.bootable
    except UserError:
        return False


def _version_key(path: Path) -> list[tuple[int, str]]:
    """Sorts 6.10 behind 6.9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
