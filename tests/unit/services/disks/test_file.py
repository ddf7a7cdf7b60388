"""Files of the host as disks: whole transfers, exclusive use, and flushes that do not lie."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xenolith.errors import UserError
from xenolith.services.disks.file import HostFile, advance, split
from xenolith.services.disks.raw import RawImage

HOLD = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
print("held", flush=True)
sys.stdin.read()
"""


def views(*contents: bytes) -> list[memoryview]:
    return [memoryview(bytearray(content)) for content in contents]


def test_parts_of_buffers() -> None:
    assert [bytes(part) for part in advance(views(b"abc", b"def", b"g"), 4)] == [b"ef", b"g"]
    assert advance(views(b"abc"), 3) == []
    parts = split(views(b"abc", b"", b"def", b"gh"), [1, 4, 3])
    assert [b"".join(part) for part in parts] == [b"a", b"bcde", b"fgh"]


def test_more_buffers_than_the_host_takes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(3000 * 512))
    image = RawImage(HostFile.open(path, readonly=False))
    content = os.urandom(2500 * 512)
    image.writev(512, [memoryview(content)[at : at + 512] for at in range(0, len(content), 512)])
    target = bytearray(len(content))
    image.readv(512, [memoryview(target)[at : at + 512] for at in range(0, len(content), 512)])
    assert target == content
    assert path.read_bytes()[512:][: len(content)] == content


def test_only_what_is_in_memory_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"cached" * 2048)
    file = HostFile.open(path, readonly=True)
    first, second = views(bytes(4096), bytes(512))
    if not file.readv_cached(6, [first, second]):
        pytest.skip("this file system does not say what it has in memory")
    assert bytes(first) + bytes(second) == (b"cached" * 2048)[6:4614]
    assert not file.readv_cached(12288 - 512, [first])
    assert not file.readv_cached(0, [memoryview(bytearray(8)) for _ in range(1200)])


def test_a_few_pages_are_written_at_once(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 18))
    file = HostFile.open(path, readonly=False)
    assert file.writev_cached(4096, views(b"a" * 1024, b"b" * 3072))
    assert path.read_bytes()[4096:8192] == b"a" * 1024 + b"b" * 3072
    for offset, length in ((512, 4096), (0, 512), (0, 1 << 17)):
        assert not file.writev_cached(offset, views(bytes(length)))
    file.close()
    assert not HostFile.open(path, readonly=True).writev_cached(0, views(bytes(4096)))


def test_a_host_that_makes_writers_wait_is_given_to_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(8192))
    file = HostFile.open(path, readonly=False)
    now, waits = [100.0], [7]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("xenolith.services.disks.file._waits", lambda: waits[0])
    write = os.pwritev

    def preempted(*arguments: Any) -> int:
        now[0] += 0.1
        return write(*arguments)

    def slow(*arguments: Any) -> int:
        waits[0] += 1
        return preempted(*arguments)

    page = views(b"a" * 4096)
    for _ in range(2):
        assert file.writev_cached(0, page)
        monkeypatch.setattr(os, "pwritev", preempted)
    monkeypatch.setattr(os, "pwritev", slow)
    assert file.writev_cached(0, page), "it was written all the same"
    assert not file.writev_cached(4096, page)
    now[0] += 11
    monkeypatch.setattr(os, "pwritev", write)
    assert file.writev_cached(4096, page)
    assert path.read_bytes() == b"a" * 8192


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(8192))
    image = RawImage(HostFile.open(path, readonly=False))
    os.truncate(path, 4096)
    with pytest.raises(OSError, match="ends early"):
        image.readv(0, views(bytes(8192)))
    assert image.measure() == 4096


def test_half_a_sector_is_no_part_of_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1000))
    image = RawImage(HostFile.open(path, readonly=True))
    assert (image.size, image.physical_sector_size, image.discard_granularity) == (512, 512, 0)


def test_a_writer_has_its_disk_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    writer = HostFile.open(path, readonly=False)
    for readonly in (True, False):
        with pytest.raises(UserError, match="in use elsewhere"):
            HostFile.open(path, readonly)
    writer.close()
    readers = [HostFile.open(path, readonly=True) for _ in range(2)]
    with pytest.raises(UserError, match="in use elsewhere"):
        HostFile.open(path, readonly=False)
    for reader in readers:
        reader.close()
    HostFile.open(path, readonly=False).close()


def test_a_disk_that_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="in use elsewhere"):
        HostFile.open(path, readonly=True)
    holder.kill()
    holder.communicate()
    HostFile.open(path, readonly=False).close()


def test_what_is_no_disk(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        HostFile.open(tmp_path / "none", readonly=True)
    with pytest.raises(UserError, match="neither a file nor a block device"):
        HostFile.open(tmp_path, readonly=True)
    with pytest.raises(UserError, match="neither a file nor a block device"):
        HostFile.open(Path("/dev/null"), readonly=False)


def test_a_hole_reads_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"\xff" * (1 << 20))
    image = RawImage(HostFile.open(path, readonly=False))
    if not image.discard_granularity:
        pytest.skip("the file system of the temporary directory has no holes")
    before = path.stat().st_blocks
    image.discard(4096, 1 << 19)
    image.flush()
    assert path.read_bytes()[4096 : 4096 + (1 << 19)] == bytes(1 << 19)
    assert path.stat().st_size == 1 << 20
    assert path.stat().st_blocks < before
