"""The registry with an apt of the tests' own: scripts in the place of apt-get, apt-cache and dpkg-deb."""

from __future__ import annotations

import io
import os
import signal
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit.loader.module_maker import module
from xenolith.errors import UserError
from xenolith.loader import apt as apt_module
from xenolith.loader import registry

META = "Package: linux-image-amd64\nVersion: 6.6.6-1\nDepends: foo, linux-image-6.6.6-amd64 (= 6.6.6-1), bar\n"
IMAGE = "Package: linux-image-6.6.6-amd64\nVersion: 6.6.6-1\nInstalled-Size: 100\n"
BUSYBOX = "Package: busybox-static\nVersion: 1:1.35\nInstalled-Size: 2\n"

APT_GET = """#!/bin/sh
echo "$@" >> {log}
while [ "$1" != "${{1#-}}" ]; do
    case "$2" in APT::Status-Fd=*) fd="${{2#*=}}";; esac
    case "$1" in -o) shift;; esac
    shift
done
case "$1" in
indextargets) echo "bookworm main http://mirror.example/debian"; exit 0;;
update) {update};;
download) {download}
    echo "dlstatus:1:50.0:half" > /dev/fd/"$fd"
    shift
    for name; do cp {debs}/"$name".deb "$name"_1%3a2_amd64.deb; done;;
esac
"""


class Apt:
    """Writes the scripts and the packages, and remembers how they were called."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "log"
        self.log.touch()
        self.packages: dict[str, str] = {}
        self.script("apt-get")
        self.write("apt-cache", '#!/bin/sh\nfor name; do cat "{0}/$name.show" 2>/dev/null && echo; done\n')
        self.write("dpkg-deb", '#!/bin/sh\ncat "$2"\n')

    def write(self, name: str, text: str) -> None:
        path = self.directory / name
        path.write_text(text.replace("{0}", str(self.directory)))
        path.chmod(0o755)

    def script(self, name: str, update: str = ":", download: str = ":") -> None:
        self.write(name, APT_GET.format(log=self.log, debs=self.directory, update=update, download=download))

    def package(self, name: str, show: str, files: dict[str, bytes] | None = None) -> None:
        (self.directory / f"{name}.show").write_text(show)
        if files is not None:
            (self.directory / f"{name}.deb").write_bytes(tar(files))


def tar(files: Mapping[str, bytes | str]) -> bytes:
    """An archive of files, and of links where their targets are given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                archive.addfile(info)
                continue
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("./boot/vmlinuz-link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


KERNEL_FILES = {
    "boot/vmlinuz-6.6.6-amd64": b"the kernel",
    "boot/config-6.6.6": b"not wanted",
    "usr/share/doc/boot/vmlinuz-doc": b"not wanted either",
    "lib/modules/6.6.6-amd64/modules.builtin": b"kernel/lib/x.ko\n",
    "lib/modules/6.6.6-amd64/kernel/drivers/xen/xenfs.ko": module(),
    "usr/lib/modules/6.6.6-amd64/kernel/fs/merged.ko": module(),
    "lib/modules/6.6.6-amd64/kernel/sound/beep.ko": module(),
    "lib/modules/../../../../tmp/evil.ko": b"evil",
}


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    keyring = tmp_path / "keyring"
    keyring.touch()
    monkeypatch.setattr(apt_module, "_KEYRINGS", (keyring,))
    monkeypatch.setattr(registry, "_is_static", lambda path: False)
    found = Apt(directory)
    found.package("linux-image-amd64", META)
    found.package("linux-image-6.6.6-amd64", IMAGE, KERNEL_FILES)
    found.package("busybox-static", BUSYBOX, {"bin/busybox": b"a program"})
    return found


def silent(what: str, share: float) -> None:
    """Progress that nobody sees."""


def shelf(home: Path) -> set[str]:
    directory = home / "xenolith/kernels"
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def test_a_kernel_its_modules_and_busybox(apt: Apt, cache_home: Path) -> None:
    reports: list[tuple[str, float]] = []
    pulled = registry.pull("debian", lambda what, share: reports.append((what, share)))
    assert (pulled.package, pulled.version) == ("linux-image-6.6.6-amd64", "6.6.6-1")
    assert pulled.file.read_bytes() == b"the kernel"
    assert pulled.modules is not None
    files = {str(path.relative_to(pulled.modules)) for path in pulled.modules.rglob("*") if path.is_file()}
    assert files == {"modules.builtin", "kernel/drivers/xen/xenfs.ko.zst", "kernel/fs/merged.ko.zst"}
    assert registry.pulled("debian") == pulled
    busybox = registry.busybox()
    assert busybox is not None
    assert busybox.read_bytes() == b"a program"
    assert shelf(cache_home) == {"debian", "busybox"}
    assert {path.name for path in (cache_home / "xenolith/kernels/debian").iterdir()} == {
        "boot",
        "lib",
        "manifest.json",
    }
    assert ("fetching linux-image-6.6.6-amd64", 0.5) in reports
    assert reports[-1] == ("unpacking linux-image-6.6.6-amd64", 1.0)
    assert all(0 <= share <= 1 for _, share in reports)


def test_the_host_s_mirror_is_used(apt: Apt, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = list(apt_module._source_lines(("bookworm", "bookworm-security")))
    assert lines[0].endswith("] http://mirror.example/debian bookworm main\n")
    assert lines[1].endswith("] http://deb.debian.org/debian-security bookworm-security main\n")


def test_one_update_serves_all_that_is_of_the_same_suites(apt: Apt) -> None:
    registry.pull("debian", silent)
    assert apt.log.read_text().count(" update ") + apt.log.read_text().count(" update\n") == 1


def test_a_new_pull_replaces_the_old_one(apt: Apt, cache_home: Path) -> None:
    registry.pull("debian", silent)
    apt.package("linux-image-6.6.6-amd64", IMAGE, {"boot/vmlinuz-6.6.6-amd64": b"newer"})
    assert registry.pull("debian", silent).file.read_bytes() == b"newer"
    assert shelf(cache_home) == {"debian", "busybox"}


def test_something_that_is_no_linux(apt: Apt, cache_home: Path) -> None:
    apt.package("grub-xen-host", "Package: g\nVersion: 2\n", {"usr/lib/grub-xen/grub-x86_64-xen.bin": b"grub"})
    pulled = registry.pull("grub", silent)
    assert (pulled.file.read_bytes(), pulled.modules) == (b"grub", None)
    assert shelf(cache_home) == {"grub"}


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match="nothing called 'nix'") as caught:
        registry.pull("nix", silent)
    assert "debian-cloud" in caught.value.hint


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ({"update": 'echo "E: Temporary failure resolving mirror.example" >&2; exit 100'}, "cannot be reached"),
        ({"update": 'echo "E: The list is bad" >&2; exit 100'}, "apt-get failed: The list is bad"),
        ({"download": 'echo "E: Hash mismatch" >&2; exit 100'}, "apt-get failed: Hash mismatch"),
        ({"update": "exit 1"}, "gave no reason"),
    ],
)
def test_what_fails_leaves_nothing(apt: Apt, cache_home: Path, script: dict[str, str], words: str) -> None:
    apt.script("apt-get", **script)
    with pytest.raises(UserError, match=words):
        registry.pull("debian", silent)
    assert shelf(cache_home) == set()


def test_what_fails_keeps_what_was_there(apt: Apt) -> None:
    before = registry.pull("debian", silent)
    apt.script("apt-get", download="exit 1")
    with pytest.raises(UserError):
        registry.pull("debian", silent)
    assert before.file.read_bytes() == b"the kernel"


def test_an_interrupt_leaves_nothing(apt: Apt, cache_home: Path) -> None:
    def interrupt(what: str, share: float) -> None:
        if what.startswith("unpacking linux"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.pull("debian", interrupt)
    assert shelf(cache_home) == {"busybox"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing(apt: Apt, cache_home: Path, number: signal.Signals) -> None:
    def interrupt(what: str, share: float) -> None:
        os.kill(os.getpid(), number)

    with pytest.raises(SystemExit) as caught:
        registry.pull("grub", interrupt)
    assert caught.value.code == 128 + number
    assert shelf(cache_home) == set()
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_running_apt_is_ended(apt: Apt, cache_home: Path, tmp_path: Path) -> None:
    apt.script("apt-get", update=f'echo $$ > {tmp_path}/pid; echo "dlstatus:1:10:x" > /dev/fd/"$fd"; exec sleep 60')

    def interrupt(what: str, share: float) -> None:
        if share > 0:
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        registry.pull("debian", interrupt)
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    "script", ['#!/bin/sh\nhead -c 700 "$2"\n', '#!/bin/sh\ncat "$2"; exit 2\n', "#!/bin/sh\nexit 2\n"]
)
def test_a_damaged_package(apt: Apt, cache_home: Path, script: str) -> None:
    apt.write("dpkg-deb", script)
    with pytest.raises(UserError, match="is damaged"):
        registry.pull("debian", silent)
    assert shelf(cache_home) == set()


def test_a_package_without_the_file(apt: Apt) -> None:
    apt.package("linux-image-6.6.6-amd64", IMAGE, {"boot/other": b""})
    with pytest.raises(UserError, match="holds no boot/vmlinuz"):
        registry.pull("debian", silent)


def test_a_package_that_is_gone(apt: Apt) -> None:
    (apt.directory / "linux-image-amd64.show").unlink()
    with pytest.raises(UserError, match="has no package linux-image-amd64"):
        registry.pull("debian", silent)
    apt.package("linux-image-amd64", "Package: x\nVersion: 1\nDepends: nothing\n")
    with pytest.raises(UserError, match="names no kernel package"):
        registry.pull("debian", silent)


def test_a_host_without_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no apt-get"):
        registry.pull("grub", silent)


def test_a_host_without_the_keys(apt: Apt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt_module, "_KEYRINGS", ())
    with pytest.raises(UserError, match="signing keys"):
        registry.pull("grub", silent)


def test_a_cache_that_cannot_be_written(apt: Apt, cache_home: Path) -> None:
    cache_home.write_text("a file where the directory should be")
    with pytest.raises(UserError, match="nothing can be stored"):
        registry.pull("grub", silent)


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"package": 1, "version": 2, "file": "gone", "modules": null}'])
def test_a_damaged_entry_counts_as_missing(cache_home: Path, manifest: str) -> None:
    place = cache_home / "xenolith/kernels/debian"
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(manifest)
    assert registry.pulled("debian") is None


def test_old_leftovers_are_swept(apt: Apt, cache_home: Path) -> None:
    for name, age in ((".new-old", 100_000), (".new-young", 10)):
        directory = cache_home / "xenolith/kernels" / name
        directory.mkdir(parents=True)
        os.utime(directory, (time.time() - age,) * 2)
    registry.pull("debian", silent)
    assert shelf(cache_home) == {".new-young", "debian", "busybox"}


def test_the_host_s_own_busybox_must_be_static() -> None:
    assert not registry._is_static(Path("/nonexistent"))
    assert not registry._is_static(Path(__file__))
    assert not registry._is_static(Path(os.path.realpath("/bin/sh")))
