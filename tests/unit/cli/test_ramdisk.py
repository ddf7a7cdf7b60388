from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.unit.loader.elf_maker import Load, make_elf, pv_notes
from tests.unit.loader.module_maker import make_tree, module
from xenolith.cli import ramdisk
from xenolith.errors import UserError
from xenolith.loader import cpio, registry


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel of version 6.6.6 with modules, and a busybox."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"a program")
    monkeypatch.setattr(registry, "busybox", lambda: busybox)
    make_tree(tmp_path, {"xenfs.ko": module("privcmd"), "privcmd.ko": module(), "net.ko": module()})
    path = tmp_path / "boot/vmlinuz-6.6.6"
    path.parent.mkdir()
    path.write_bytes(make_elf([Load(0, bytes(64))], pv_notes()))
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(ramdisk.command, list(arguments))


def contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.data for entry in cpio.read(path.read_bytes())}


def test_a_shell_only(kernel: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("-o", str(out))
    assert result.exit_code == 0
    assert result.output.startswith(f"{out}: ")
    assert contents(out)["bin/busybox"] == b"a program"
    assert contents(out)["etc/xenolith/modules"] == b""


def test_all_options(kernel: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--kernel", str(kernel), "--module", "net", "--file", f"{kernel}:/opt/k", "--exec", "exit 3")
    result = run("-o", str(out), *arguments)
    assert result.exit_code == 0, result.exception
    files = contents(out)
    assert files["etc/xenolith/modules"] == b"kernel/privcmd.ko\nkernel/xenfs.ko\nkernel/net.ko\n"
    assert files["opt/k"] == kernel.read_bytes()
    assert files["etc/xenolith/command"] == b"exit 3\n"


def test_the_same_input_gives_the_same_output(kernel: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run("-o", str(tmp_path / name), "--kernel", str(kernel))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_usual_permissions(kernel: Path, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        run("-o", str(tmp_path / "out"))
    finally:
        os.umask(old)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--module", "nix", "--kernel"), "no module 'nix'"),
        (("--file", "a:b", "--kernel"), "does not name a file"),
        (("--file", "/nonexistent:/x", "--kernel"), "cannot be put into the ramdisk"),
    ],
)
def test_what_fails_writes_nothing(kernel: Path, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    out = tmp_path / "out"
    result = run("-o", str(out), *arguments, str(kernel))
    assert isinstance(result.exception, UserError)
    assert words in result.exception.message
    assert not out.exists()


def test_a_place_that_cannot_be_written(kernel: Path, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    for out in (tmp_path / "missing/out", tmp_path / "dir"):
        result = run("-o", str(out))
        assert isinstance(result.exception, UserError)
        assert "cannot be written" in result.exception.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boot", "busybox", "dir", "lib"]


def test_tools_must_have_been_pulled(kernel: Path, tmp_path: Path) -> None:
    result = run("-o", str(tmp_path / "out"), "--kernel", str(kernel), "--tools")
    assert isinstance(result.exception, UserError)
    assert "pull debian-dom0" in result.exception.hint
    assert not (tmp_path / "out").exists()
