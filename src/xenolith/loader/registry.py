"""Kernels, their modules and busybox from the distribution's registry, brought into the cache without root."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, Final

from xenolith.errors import UserError
from xenolith.loader.cache import cache_directory
from xenolith.loader.elf import EM_X86_64, PT_INTERP, ElfFile

Progress = Callable[[str, float], None]
"""Told what is being done and how far it is (0.0–1.0)."""

_MIRROR: Final = "http://deb.debian.org/debian"
_SECURITY_MIRROR: Final = "http://deb.debian.org/debian-security"
_KEYRINGS: Final = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
_UNFINISHED: Final = ".new-"
_STALE_SECONDS: Final = 24 * 3600
_MANIFEST: Final = "manifest.json"
_TIMEOUT_SECONDS: Final = 20
_UNREACHABLE: Final = re.compile(
    r"(?i)temporary failure|could not resolve|could not connect|cannot initiate|timed out|unreachable|connection failed"
)

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


@dataclass(frozen=True, slots=True)
class Source:
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


@dataclass(frozen=True, slots=True)
class Pulled:
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
        manifest = json.loads((directory / _MANIFEST).read_text())
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


def pull(alias: str, progress: Progress) -> Pulled:
    """Bring a kernel of SOURCES, its modules, and a busybox if there is none yet, into the cache.

    What is brought appears complete or not at all, in the place of what was pulled before. UserError if there is no
    such alias, no apt-get, the registry cannot be reached, or the disk is full.
    """
    wanted = source(alias)
    if wanted is None:
        known = ", ".join(candidate.alias for candidate in SOURCES)
        raise UserError(f"there is nothing called '{alias}' to pull", f"known are {known}")
    sources = (_BUSYBOX, wanted) if wanted.modules and busybox() is None else (wanted,)
    for suites, group in groupby(sources, lambda candidate: candidate.suites):
        _pull(tuple(group), suites, progress)
    return _result(wanted)


def pull_busybox(progress: Progress) -> Path:
    """Bring a statically linked busybox into the cache. UserError as for `pull`."""
    _pull((_BUSYBOX,), _BUSYBOX.suites, progress)
    return _result(_BUSYBOX).file


def _result(wanted: Source) -> Pulled:
    found = pulled(wanted.alias)
    if found is None:
        raise UserError(f"'{wanted.alias}' was pulled, but something else has removed it from {_place(wanted.alias)}")
    return found


def _shelf() -> Path:
    return cache_directory() / "kernels"


def _place(alias: str) -> Path:
    return _shelf() / alias


def _pull(sources: Iterable[Source], suites: Iterable[str], progress: Progress) -> None:
    """Bring things of the same suites."""
    parent = _shelf()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=parent) as temporary:
            apt = _Apt(Path(temporary, "apt"), suites, progress)
            apt.update()
            for wanted in sources:
                _bring(wanted, apt, Path(temporary, wanted.alias), progress)
    except OSError as error:
        raise UserError(f"nothing can be stored in {parent}: {error.strerror or error}") from None


def _bring(wanted: Source, apt: _Apt, work: Path, progress: Progress) -> None:
    """Fetch one thing, unpack it in `work`, and put it in its place."""
    package = apt.resolve(wanted)
    deb = apt.download(package.name)
    tree, place = work / "tree", _place(wanted.alias)
    tree.mkdir(parents=True)
    _unpack(deb, package, tree, wanted, progress)
    _write_manifest(tree, wanted, package)
    if place.exists():
        os.rename(place, work / "old")
    os.rename(tree, place)


def _sweep(parent: Path) -> None:
    """Remove what a killed pull left behind a day or more ago."""
    for directory in parent.glob(f"{_UNFINISHED}*"):
        if time.time() - directory.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Package:
    """A package that apt knows; `size` is its unpacked size in bytes."""

    name: str
    version: str
    size: int


class _Apt:
    """apt with a state of its own, so that it needs no root and knows other suites than the host's."""

    def __init__(self, directory: Path, suites: Iterable[str], progress: Progress) -> None:
        if shutil.which("apt-get") is None:
            raise UserError("this host has no apt-get, so nothing can be pulled", "name a kernel file instead")
        self._directory = directory
        self._progress = progress
        for name in ("lists/partial", "cache/archives/partial"):
            (directory / name).mkdir(parents=True)
        (directory / "status").touch()
        (directory / "sources.list").write_text("".join(_source_lines(suites)))

    def update(self) -> None:
        """Fetch the suites' package lists."""
        self._fetch("reading the package lists", "update", "--error-on=any")

    def resolve(self, wanted: Source) -> _Package:
        """The package that holds what is wanted."""
        name, fields = wanted.package, self._show(wanted.package)
        if wanted.through:
            found = re.search(rf"(?:^|[\s,|])({wanted.through}?)(?=[\s,|(]|$)", fields.get("Depends", ""))
            if found is None:
                raise UserError(f"the package {name} names no kernel package any more")
            name, fields = found[1], self._show(found[1])
        return _Package(name, fields["Version"], int(fields.get("Installed-Size", "0")) << 10)

    def download(self, package: str) -> Path:
        """Fetch a package file; apt has checked it against the signed lists."""
        self._fetch(f"fetching {package}", "download", package)
        return next(self._directory.glob(f"{package}_*.deb"))

    def _options(self) -> list[str]:
        settings = {
            "Dir::State": self._directory,
            "Dir::State::lists": self._directory / "lists",
            "Dir::State::status": self._directory / "status",
            "Dir::Cache": self._directory / "cache",
            "Dir::Etc::SourceList": self._directory / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Update::Post-Invoke": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": _TIMEOUT_SECONDS,
            "Acquire::https::Timeout": _TIMEOUT_SECONDS,
        }
        if os.geteuid() == 0:
            # The user that apt would drop to may not enter the cache of another.
            settings["APT::Sandbox::User"] = "root"
        return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]

    def _show(self, package: str) -> dict[str, str]:
        """The fields of the package's candidate version."""
        command = ["apt-cache", *self._options(), "show", "--no-all-versions", package]
        result = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
        fields = dict(re.findall(r"^([\w-]+): (.*)$", result.stdout, re.MULTILINE))
        if result.returncode or "Version" not in fields:
            raise UserError(f"the distribution has no package {package} (any more)")
        return fields

    def _fetch(self, what: str, *arguments: str) -> None:
        """Run apt-get and report its progress. UserError if it fails."""
        self._progress(what, 0.0)
        with tempfile.TemporaryFile("w+") as output, self._running(arguments, output) as (process, status):
            for share in _shares(status):
                self._progress(what, share)
            if process.wait():
                output.seek(0)
                raise _apt_error(output.read())

    @contextlib.contextmanager
    def _running(self, arguments: Iterable[str], output: IO[str]) -> Iterator[tuple[subprocess.Popen[bytes], IO[str]]]:
        """apt-get and the stream on which it reports; it is ended when the block is left early."""
        reader, writer = os.pipe()
        with open(reader, errors="replace") as status:
            try:
                process = subprocess.Popen(
                    ["apt-get", *self._options(), "-o", f"APT::Status-Fd={writer}", "-qq", *arguments],
                    cwd=self._directory,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(writer,),
                    env=_environment(),
                )
            finally:
                os.close(writer)
            try:
                yield process, status
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def _shares(status: Iterable[str]) -> Iterator[float]:
    """How far apt is, from the lines "dlstatus:N:PERCENT:TEXT" (apt's README.progress-reporting)."""
    for line in status:
        kind, _, percent, *_ = (*line.split(":", 3), "", "")
        if kind == "dlstatus":
            with contextlib.suppress(ValueError):
                yield float(percent) / 100


def _apt_error(text: str) -> UserError:
    """One sentence out of apt's complaints."""
    if _UNREACHABLE.search(text):
        return UserError(
            "the distribution's registry cannot be reached",
            "check the network connection, or name a kernel file that is on this machine",
        )
    lines = [line[3:] for line in text.splitlines() if line.startswith("E: ")]
    return UserError(f"apt-get failed: {lines[0] if lines else text.strip() or 'it gave no reason'}")


def _source_lines(suites: Iterable[str]) -> Iterator[str]:
    keyring = next((path for path in _KEYRINGS if path.exists()), None)
    if keyring is None:
        raise UserError(
            "this host does not have Debian's signing keys, so packages could not be verified",
            "install the package debian-archive-keyring",
        )
    mirrors = _host_mirrors()
    for suite in suites:
        default = _SECURITY_MIRROR if suite.endswith("-security") else _MIRROR
        yield f"deb [signed-by={keyring}] {mirrors.get(suite, default)} {suite} main\n"


def _host_mirrors() -> dict[str, str]:
    """Suite to the mirror from which this host takes it."""
    command = ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"]
    result = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
    lines = (line.split() for line in result.stdout.splitlines())
    return {fields[0]: fields[2] for fields in lines if len(fields) == 3 and fields[1] == "main"}


def _unpack(deb: Path, package: _Package, tree: Path, wanted: Source, progress: Progress) -> None:
    """Write what is wanted of a package below `tree`, each module compressed. UserError if the package is damaged."""
    import zstandard

    compressor = zstandard.ZstdCompressor(level=3)
    for path, data, position in _members(deb, wanted):
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ko":
            target.with_name(target.name + ".zst").write_bytes(compressor.compress(data))
        else:
            target.write_bytes(data)
        progress(f"unpacking {package.name}", min(position / max(package.size, 1), 1.0))
    progress(f"unpacking {package.name}", 1.0)


def _members(deb: Path, wanted: Source) -> Iterator[tuple[PurePosixPath, bytes, int]]:
    """The wanted files of a package: path, contents, and how many bytes into the archive they end."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    path = _plain_path(member.name)
                    if member.isreg() and _is_wanted(path, wanted):
                        file = archive.extractfile(member)
                        assert file is not None
                        yield path, file.read(), member.offset_data + member.size
            process.stdout.read()
        except tarfile.TarError as error:
            raise UserError(f"the package {deb.name} is damaged: {error}") from None
        finally:
            process.stdout.close()
    if process.returncode:
        raise UserError(f"the package {deb.name} is damaged")


def _plain_path(name: str) -> PurePosixPath:
    """A path in a package, without the leading usr/ that merged file systems made a matter of taste."""
    path = PurePosixPath(name.removeprefix("./"))
    return PurePosixPath(*path.parts[1:]) if path.parts[:1] == ("usr",) else path


def _is_wanted(path: PurePosixPath, wanted: Source) -> bool:
    if ".." in path.parts or path.is_absolute():
        return False
    if fnmatch(str(path), wanted.file):
        return True
    if not wanted.modules or path.parts[:2] != ("lib", "modules"):
        return False
    # lib/modules/VERSION/kernel/…
    return not "/".join(path.parts[4:]).startswith(_UNWANTED_MODULES)


def _write_manifest(tree: Path, wanted: Source, package: _Package) -> None:
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
    (tree / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _is_static(path: Path) -> bool:
    """Whether this is an x86-64 program that needs no dynamic linker."""
    try:
        elf = ElfFile.parse(path.read_bytes())
    except (OSError, UserError):
        return False
    return elf.machine == EM_X86_64 and all(header.type != PT_INTERP for header in elf.program_headers)
