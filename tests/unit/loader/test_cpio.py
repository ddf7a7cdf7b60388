from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.errors import UserError
from xenolith.loader import cpio

ENTRIES = [
    cpio.directory("dev"),
    cpio.device("dev/console", 5, 1),
    cpio.file("init", b"#!/bin/sh\n", 0o755),
    cpio.symlink("bin/sh", "busybox"),
    cpio.file("empty", b""),
]


def test_what_is_written_is_read() -> None:
    archive = cpio.write(ENTRIES)
    assert list(cpio.read(archive)) == ENTRIES
    assert len(archive) % 512 == 0
    assert cpio.write(ENTRIES) == archive


def test_modes() -> None:
    console, init, link = ENTRIES[1:4]
    assert stat.S_ISCHR(console.mode)
    assert console.rdev == (5, 1)
    assert stat.S_IMODE(init.mode) == 0o755
    assert stat.S_ISLNK(link.mode)
    assert link.data == b"busybox"


@given(st.lists(st.tuples(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1), st.binary())))
def test_any_names_and_contents(files: list[tuple[str, bytes]]) -> None:
    entries = [cpio.file(name, data) for name, data in files if name != "TRAILER!!!"]
    assert list(cpio.read(cpio.write(entries))) == entries


def test_every_header_and_every_contents_are_aligned_to_four() -> None:
    archive = cpio.write([cpio.file("a", b"x"), cpio.file("bb", b"yy"), cpio.file("ccc", b"zzz")])
    at = archive.find(b"070701", 1)
    while at >= 0:
        assert at % 4 == 0
        at = archive.find(b"070701", at + 1)
    assert all(archive.find(data) % 4 == 0 for data in (b"yy", b"zzz"))


@pytest.mark.parametrize("length", [0, 50, 200, -600])
def test_a_cut_archive(length: int) -> None:
    archive = cpio.write([cpio.file("a", b"x" * 1000)])
    with pytest.raises(UserError, match="cut off"):
        list(cpio.read(archive[:length]))


def test_another_file() -> None:
    with pytest.raises(UserError, match="not a newc cpio archive"):
        list(cpio.read(bytes(4096)))
    with pytest.raises(UserError, match="hexadecimal"):
        list(cpio.read(b"070701" + b"x" * 4096))


@pytest.mark.skipif(shutil.which("busybox") is None and shutil.which("cpio") is None, reason="no cpio on this host")
def test_another_reader_agrees(tmp_path: Path) -> None:
    command = ["cpio"] if shutil.which("cpio") else ["busybox", "cpio"]
    result = subprocess.run([*command, "-t"], input=cpio.write(ENTRIES), capture_output=True, check=True)
    assert result.stdout.decode().split() == [entry.name for entry in ENTRIES]
