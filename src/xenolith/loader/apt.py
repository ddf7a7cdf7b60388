"""apt with a state of its own: package lists and packages of any suite, fetched and verified without root."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from xenolith.errors import UserError
from xenolith.loader.registry import Progress, Source

_MIRROR: Final = "http://deb.debian.org/debian"
_SECURITY_MIRROR: Final = "http://deb.debian.org/debian-security"
_KEYRINGS: Final = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
_TIMEOUT_SECONDS: Final = 20
_FIELD: Final = re.compile(r"^([\w-]+): (.*)$", re.MULTILINE)
_UNREACHABLE: Final = re.compile(
    r"(?i)temporary failure|could not resolve|could not connect|cannot initiate|timed out|unreachable|connection failed"
)


@dataclass(frozen=True, slots=True)
class Package:
    """A package that apt knows; `size` is its unpacked size in bytes."""

    name: str
    version: str
    size: int


class Apt:
    """apt for some suites, with its state in `directory`. UserError from each call that fails."""

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

    def resolve(self, wanted: Source) -> Package:
        """The package that holds what is wanted."""
        name, fields = wanted.package, self._show(wanted.package)
        if wanted.through:
            found = re.search(rf"(?:^|[\s,|])({wanted.through}?)(?=[\s,|(]|$)", fields.get("Depends", ""))
            if found is None:
                raise UserError(f"the package {name} names no kernel package any more")
            name, fields = found[1], self._show(found[1])
        return _package(name, fields)

    def package(self, name: str) -> Package:
        """The package of that name."""
        return _package(name, self._show(name))

    def libraries_of(self, packages: Iterable[str]) -> list[str]:
        """The packages of shared libraries on which these depend, by themselves or through such packages."""
        found: dict[str, None] = {}
        level = list(packages)
        while level:
            depends = [name for fields in self._show_all(level) for name in _depends(fields) if name not in found]
            level = [fields["Package"] for fields in self._show_all(depends) if fields.get("Section") == "libs"]
            level = [name for name in dict.fromkeys(level) if name not in found]
            found |= dict.fromkeys(level)
        return list(found)

    def download(self, package: str) -> Path:
        """Fetch a package file; apt has checked it against the signed lists."""
        return self.download_all([package])[0]

    def download_all(self, packages: Sequence[str]) -> list[Path]:
        """Fetch package files, in this order."""
        self._fetch(f"fetching {' '.join(packages)}", "download", *packages)
        return [next(self._directory.glob(f"{package}_*.deb")) for package in packages]

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
        fields = next(iter(self._show_all([package])), {})
        if "Version" not in fields:
            raise UserError(f"the distribution has no package {package} (any more)")
        return fields

    def _show_all(self, packages: Iterable[str]) -> list[dict[str, str]]:
        """The fields of the candidate versions of these packages, without those that are none."""
        names = list(packages)
        command = ["apt-cache", *self._options(), "show", "--no-all-versions", *names]
        result = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
        return [dict(_FIELD.findall(text)) for text in result.stdout.split("\n\n") if text.strip()]

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


def _depends(fields: dict[str, str]) -> list[str]:
    """The packages that a package cannot do without; of alternatives the first."""
    both = f"{fields.get('Pre-Depends', '')},{fields.get('Depends', '')}"
    return re.findall(r"(?:^|,)\s*([a-z0-9][a-z0-9+.-]+)", both)


def _package(name: str, fields: dict[str, str]) -> Package:
    return Package(name, fields["Version"], int(fields.get("Installed-Size", "0")) << 10)


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
