from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from xenolith.errors import UserError
from xenolith.loader import cpio
from xenolith.loader.ramdisk import read_ramdisk

ARCHIVE = cpio.write([cpio.file("init", b"#!/bin/sh\n" * 100, 0o755)])


@pytest.mark.parametrize(
    "data",
    [
        ARCHIVE,
        ARCHIVE.replace(b"070701", b"070702"),
        ARCHIVE + gzip.compress(ARCHIVE, mtime=0),  # microcode first, as distributions do
        gzip.compress(ARCHIVE, mtime=0),
        bytes(0x438) + b"\x53\xef" + bytes(500),
        b"hsqs" + bytes(500),
    ],
)
def test_what_linux_takes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "ramdisk"
    path.write_bytes(data)
    assert bytes(read_ramdisk(path, linux=True)) == data


def test_other_kernels_take_anything(tmp_path: Path) -> None:
    path = tmp_path / "ramdisk"
    path.write_bytes(b"whatever")
    assert bytes(read_ramdisk(path, linux=False)) == b"whatever"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"#!/bin/sh\n", "no ramdisk for Linux"),
        (b"\x7fELF" + bytes(2000), "no ramdisk for Linux"),
        (ARCHIVE[:-600], "is damaged: .* cut off"),
        (ARCHIVE[:50], "is damaged"),
    ],
)
def test_what_cannot_be_one(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "ramdisk"
    path.write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_ramdisk(path, linux=True)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_ramdisk(tmp_path / "missing", linux=True)
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(UserError, match="is not a file"):
            read_ramdisk(path, linux=False)
