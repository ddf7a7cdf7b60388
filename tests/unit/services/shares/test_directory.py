"""What a shared directory refuses whoever asks, and how it tells files apart; the rest is tested with the 9P server."""

from __future__ import annotations

import os
from errno import EINVAL, ELOOP, ENOTDIR, ENXIO
from pathlib import Path

import pytest

from xenolith.backends.ninepfs.filesystem import Changes, Owner
from xenolith.errors import UserError
from xenolith.services.shares.directory import Allowance, SharedDirectory

OWNER = Owner(-1, -1)


@pytest.fixture
def files(tmp_path: Path) -> SharedDirectory:
    (tmp_path / "share" / "d").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "share" / "link").symlink_to("../secret")
    (tmp_path / "share" / "up").symlink_to("..")
    return SharedDirectory(tmp_path / "share", 10, Allowance(10))


@pytest.mark.parametrize("path", [b"..", b"../secret", b"d/../../secret", b"/secret", b"d//x", b"./d", b"d/"])
def test_paths_that_are_not_below(path: bytes, files: SharedDirectory) -> None:
    calls = (
        lambda: files.status(path),
        lambda: files.open(path, os.O_RDONLY),
        lambda: files.create(path, os.O_WRONLY, 0o600, OWNER),
        lambda: files.remove(path, False),
        lambda: files.rename(b"d", path),
        lambda: files.link(path, b"x"),
        lambda: files.make_symlink(path, b"x", OWNER),
        lambda: files.change(path, None, Changes(mode=0)),
    )
    for call in calls:
        with pytest.raises(OSError) as refused:  # noqa: PT011
            call()
        assert refused.value.errno == EINVAL


def test_links_are_not_followed(files: SharedDirectory) -> None:
    for path, errno in ((b"link", ELOOP), (b"up/secret", ENOTDIR), (b"up/share/d", ENOTDIR)):
        with pytest.raises(OSError) as refused:  # noqa: PT011
            files.open(path, os.O_RDONLY)
        assert refused.value.errno == errno


def test_devices_of_the_host_are_not_opened() -> None:
    files = SharedDirectory(Path("/dev"), 10, Allowance(10))
    with pytest.raises(OSError) as refused:  # noqa: PT011
        files.open(b"null", os.O_RDONLY)
    assert refused.value.errno == ENXIO
    files.release()


def test_files_of_other_devices_have_numbers_of_their_own() -> None:
    files = SharedDirectory(Path("/"), 10, Allowance(10))
    root, process = files.status(b""), files.status(b"proc")
    assert files.number(root) == root.st_ino
    assert files.number(process) not in (process.st_ino, root.st_ino)
    files.release()


def test_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "none"):
        with pytest.raises(UserError) as refused:
            SharedDirectory(tmp_path / name, 10, Allowance(10))
        assert str(tmp_path / name) in refused.value.message


def test_only_a_file_that_is_opened_counts(files: SharedDirectory, tmp_path: Path) -> None:
    allowance = Allowance(1)
    files = SharedDirectory(tmp_path / "share", 10, allowance)
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            files.open(b"none", os.O_RDONLY)
    handle = files.open(b"d", os.O_RDONLY)
    assert allowance.left == 0
    files.close(handle)
    assert allowance.left == 1
