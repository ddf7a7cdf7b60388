"""Filling the user's shelf of kernels: packages are fetched, and what is wanted of them is put into place at once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Final

from xenolith.errors import UserError
from xenolith.loader.apt import Apt, Package
from xenolith.loader.debian_dom0 import Tree
from xenolith.loader.package_tree import gather, members
from xenolith.loader.registry import MANIFEST, Progress, Source, shelf

_UNFINISHED: Final = ".new-"
_STALE_SECONDS: Final = 24 * 3600
_UNWANTED_MODULES: Final = (
    "sound/",
    "drivers/comedi/",
    "drivers/gpu/",
    "drivers/iio/",
    "drivers/infiniband/",
    "drivers/media/",
    "drivers/net/wireless/",
    "drivers/staging/",
)
"""Directories of modules, half of a package by size, for hardware that no machine of ours has."""


def fetch(sources: Iterable[Source | Tree], suites: Iterable[str], progress: Progress) -> None:
    """Bring things of the same suites. What is brought appears on the shelf complete or not at all.

    UserError if there is no apt-get, the registry cannot be reached, a package is damaged, or the disk is full.
    """
    parent = shelf()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        with _orderly_end(), tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=parent) as temporary:
            apt = Apt(Path(temporary, "apt"), suites, progress)
            apt.update()
            for wanted in sources:
                _bring(wanted, apt, Path(temporary, wanted.alias), progress)
    except OSError as error:
        raise UserError(f"nothing can be stored in {parent}: {error.strerror or error}") from None


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """Turn the signals that would end the process on the spot into SystemExit, so that nothing is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    replaced = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def _bring(wanted: Source | Tree, apt: Apt, work: Path, progress: Progress) -> None:
    """Fetch one thing, unpack it in `work`, and put it in its place."""
    tree, place = work / "tree", shelf() / wanted.alias
    tree.mkdir(parents=True)
    if isinstance(wanted, Tree):
        package = gather(wanted, apt, tree, progress)
    else:
        package = apt.resolve(wanted)
        _unpack(apt.download(package.name), package, tree, wanted, progress)
    _write_manifest(tree, wanted, package)
    if place.exists():
        os.rename(place, work / "old")
    os.rename(tree, place)


def _sweep(parent: Path) -> None:
    """Remove what a killed pull left behind a day or more ago."""
    for directory in parent.glob(f"{_UNFINISHED}*"):
        if time.time() - directory.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(directory, ignore_errors=True)


def _unpack(deb: Path, package: Package, tree: Path, wanted: Source, progress: Progress) -> None:
    """Write what is wanted of a package below `tree`, each module compressed. UserError if the package is damaged."""
    import zstandard

    compressor = zstandard.ZstdCompressor(level=3)
    for path, member in members(deb, lambda path: _is_wanted(_plain_path(path), wanted)):
        if member.link is not None:
            continue
        target = tree / _plain_path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ko":
            target.with_name(target.name + ".zst").write_bytes(compressor.compress(member.data))
        else:
            target.write_bytes(member.data)
            target.chmod(member.mode & 0o755)
        progress(f"unpacking {package.name}", min(member.end / max(package.size, 1), 1.0))
    progress(f"unpacking {package.name}", 1.0)


def _plain_path(path: PurePosixPath) -> PurePosixPath:
    """A path in a package, without the leading usr/ that merged file systems made a matter of taste."""
    return PurePosixPath(*path.parts[1:]) if path.parts[:1] == ("usr",) else path


def _is_wanted(path: PurePosixPath, wanted: Source) -> bool:
    if fnmatch(str(path), wanted.file):
        return True
    if not wanted.modules or path.parts[:2] != ("lib", "modules"):
        return False
    # lib/modules/VERSION/kernel/…
    return not "/".join(path.parts[4:]).startswith(_UNWANTED_MODULES)


def _write_manifest(tree: Path, wanted: Source | Tree, package: Package) -> None:
    """Note what the tree is, for `pulled` to read. UserError if the package did not hold the file."""
    file = next(iter(sorted(tree.glob(wanted.file))), None)
    if file is None:
        raise UserError(f"the package {package.name} holds no {wanted.file}")
    modules = next(iter(sorted(tree.glob("lib/modules/*"))), None)
    manifest = {
        "package": package.name,
        "version": package.version,
        "file": str(file.relative_to(tree)),
        "modules": str(modules.relative_to(tree)) if modules else None,
    }
    (tree / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
