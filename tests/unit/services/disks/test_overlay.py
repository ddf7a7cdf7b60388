"""Overlays: reading is reading the last write or the base, and no loss of power takes what a flush has promised."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenolith.errors import UserError
from xenolith.services.disks import overlay
from xenolith.services.disks.file import HostFile
from xenolith.services.disks.open import DiskSource
from xenolith.services.disks.overlay import Header, Overlay
from xenolith.services.disks.raw import RawImage

SECTORS = 8 * 9 + 3
"""Of the small disks: nine whole clusters and a part of one."""


class Medium:
    """A disk drive under an overlay's file: a loss of power may take each sector that was not synced."""

    def __init__(self, durable: bytes = b"") -> None:
        self.content = bytearray(durable)
        self.durable = bytearray(durable)
        self.countdown = 1 << 30
        """After so many operations the power goes."""

    def _step(self) -> None:
        self.countdown -= 1
        if self.countdown < 0:
            raise PowerLoss

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            buffer[:] = self.content[offset : offset + len(buffer)]
            offset += len(buffer)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            for at in range(0, len(buffer), 512):
                self._step()
                piece = buffer[at : at + 512]
                self.content[offset : offset + len(piece)] = piece
                offset += len(piece)

    def sync(self) -> None:
        self._step()
        self.durable[:] = self.content
        self._step()

    def punch(self, offset: int, length: int) -> None:
        self.writev(offset, [memoryview(bytes(length))])

    def can_punch(self) -> bool:
        return True

    def resize(self, size: int) -> None:
        self.content = self.content[:size].ljust(size, b"\0")
        self.durable = self.durable[:size].ljust(size, b"\0")

    def close(self) -> None: ...

    def after_power_loss(self, chance: random.Random) -> Medium:
        """The drive as it is found: of the sectors that were not synced, any may have been written."""
        found = bytearray(self.durable)
        for at in range(0, len(found), 512):
            if chance.random() < 0.5:
                found[at : at + 512] = self.content[at : at + 512]
        return Medium(bytes(found))


class PowerLoss(Exception):
    pass


class Base:
    """A base in memory: every sector tells its number."""

    readonly = True
    physical_sector_size = 512
    discard_granularity = 0

    def __init__(self, sectors: int = SECTORS) -> None:
        self.size = sectors * 512
        self.content = b"".join(sector_of(0, number) for number in range(sectors))

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            assert offset + len(buffer) <= self.size
            buffer[:] = self.content[offset : offset + len(buffer)]
            offset += len(buffer)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        raise AssertionError("the base is written")

    flush = measure = close = discard = None  # type: ignore[assignment]


def sector_of(version: int, number: int) -> bytes:
    return (version << 32 | number + 1).to_bytes(8, "little") * 64


def version_of(sector: bytes, number: int) -> int:
    """Which write a sector comes from; -1 for none."""
    version = int.from_bytes(sector[:8], "little") >> 32
    return version if sector == sector_of(version, number) else -1


def attach(medium: Medium, boot: str) -> Overlay:
    header = Header.read(medium)
    assert header is not None
    return Overlay(medium, header, Base(), boot)  # type: ignore[arg-type]


def fresh() -> Medium:
    medium = Medium()
    overlay.create(medium, SECTORS * 512, 7, "first")
    return medium


def read(image: Overlay, sector: int, count: int) -> bytes:
    content = bytearray(count * 512)
    cut = len(content) // 3
    image.readv(sector * 512, [memoryview(content)[:cut], memoryview(content)[cut:]])
    return bytes(content)


def write(image: Overlay, sector: int, count: int, version: int) -> None:
    content = b"".join(sector_of(version, number) for number in range(sector, sector + count))
    image.writev(sector * 512, [memoryview(content)[:512], memoryview(content)[512:]])


ranges = st.integers(0, SECTORS - 1).flatmap(
    lambda start: st.tuples(st.just(start), st.integers(1, min(SECTORS - start, 30)))
)
operations = st.lists(
    st.tuples(st.sampled_from(["write", "write", "write", "flush", "reopen"]), ranges), min_size=1, max_size=12
)


@settings(max_examples=100, deadline=None)
@given(operations=operations)
def test_reading_is_reading_the_last_write(operations: list[tuple[str, tuple[int, int]]]) -> None:
    medium = fresh()
    image = attach(medium, "first")
    expected = [0] * SECTORS
    for version, (what, (start, count)) in enumerate(operations, 1):
        if what == "write":
            write(image, start, count, version)
            expected[start : start + count] = [version] * count
        elif what == "flush":
            image.flush()
        else:
            image = attach(medium, "first")  # the service was killed: nothing that was answered is lost
        content = read(image, start, count)
        assert [version_of(content[at * 512 :][:512], start + at) for at in range(count)] == expected[start:][:count]
    assert read(image, 0, SECTORS) == b"".join(sector_of(expected[number], number) for number in range(SECTORS))


@settings(max_examples=150, deadline=None)
@given(operations=operations, when=st.integers(0, 400), seed=st.integers(0, 1 << 30), again=st.integers(0, 40))
def test_no_loss_of_power_takes_what_was_flushed(
    operations: list[tuple[str, tuple[int, int]]], when: int, seed: int, again: int
) -> None:
    chance = random.Random(seed)
    medium = fresh()
    possible = [{0} for _ in range(SECTORS)]
    """Which versions of each sector may be found: the one of the last flush, and those written since."""
    current = [0] * SECTORS
    try:
        image = attach(medium, "first")
        medium.countdown = when
        for version, (what, (start, count)) in enumerate(operations, 1):
            if what == "write":
                for number in range(start, start + count):
                    possible[number].add(version)
                write(image, start, count, version)
                current[start : start + count] = [version] * count
            elif what == "flush":
                image.flush()
                possible = [{version} for version in current]
            else:
                image = attach(medium, "first")
    except PowerLoss:
        pass
    medium = medium.after_power_loss(chance)
    medium.countdown = again
    try:
        attach(medium, "second")
    except PowerLoss:  # and once more while it was being put right
        medium = medium.after_power_loss(chance)
    medium.countdown = 1 << 30
    found = read(attach(medium, "third"), 0, SECTORS)
    for number in range(SECTORS):
        assert version_of(found[number * 512 :][:512], number) in possible[number]


@pytest.mark.parametrize(("start", "count"), [(0, 8), (8, 16), (3, 20), (64, 11)])
def test_a_discard_never_brings_other_sectors_back(start: int, count: int) -> None:
    medium = fresh()
    image = attach(medium, "first")
    write(image, 0, SECTORS, 1)
    image.discard(start * 512, count * 512)
    content = read(image, 0, SECTORS)
    for number in range(SECTORS):
        sector = content[number * 512 :][:512]
        inside = start <= number < start + count
        assert version_of(sector, number) == 1 or (inside and sector == bytes(512))
    assert bytes(512) in [content[at : at + 512] for at in range(0, len(content), 512)] or start == 3


def test_the_bits_of_a_flush_that_failed_wait_for_the_next() -> None:
    medium = fresh()
    image = attach(medium, "first")
    write(image, 0, 8, 1)
    sync = medium.sync

    def fail() -> None:
        raise OSError(5, "the disk is broken")

    medium.sync = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="broken"):
        image.flush()
    medium.sync = sync  # type: ignore[method-assign]
    image.flush()
    assert version_of(read(attach(Medium(bytes(medium.durable)), "second"), 0, 1), 0) == 1


@pytest.mark.parametrize("size", [512, 64 << 30, (64 << 30) + 512, 8 << 40])
def test_the_bitmap_stays_small(size: int) -> None:
    header = Header.plan(size, 0, "boot")
    assert header.bitmap_bytes <= 2 << 20
    assert header.clusters * header.cluster_bytes >= size
    assert header.data_at >= header.present_at + header.bitmap_bytes
    assert header.data_at % header.cluster_bytes == 0


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.write_bytes(Base(2048).content)
    return path


def test_one_base_serves_many(base: Path, tmp_path: Path) -> None:
    disks = [DiskSource(str(base), overlay=tmp_path / f"overlay{number}").open()[0] for number in range(3)]
    for version, disk in enumerate(disks, 1):
        disk.writev(5 * 512, [memoryview(sector_of(version, 5))])
    for version, disk in enumerate(disks, 1):
        content = bytearray(16 * 512)
        disk.readv(0, [memoryview(content)])
        assert [version_of(bytes(content[at * 512 :][:512]), at) for at in range(16)] == [
            version if at == 5 else 0 for at in range(16)
        ]
        disk.close()
    assert base.read_bytes() == Base(2048).content
    assert (tmp_path / "overlay0").stat().st_blocks * 512 < 64 << 10


def test_while_it_has_overlays_nobody_writes_to_the_base(base: Path, tmp_path: Path) -> None:
    disk = DiskSource(str(base), overlay=tmp_path / "overlay").open()[0]
    with pytest.raises(UserError, match="in use elsewhere"):
        DiskSource(str(base)).open()
    with pytest.raises(UserError, match="in use elsewhere"):
        DiskSource(str(base), overlay=tmp_path / "overlay").open()
    disk.close()
    DiskSource(str(base)).open()[0].close()


def test_an_overlay_that_does_not_last(base: Path) -> None:
    source = DiskSource(str(base), overlay=True)
    disk, passing = source.open()
    assert passing is not None
    disk.writev(0, [memoryview(sector_of(3, 0))])
    again, _ = source.open(HostFile(os.dup(passing.fileno()), readonly=False))
    disk.close()
    content = bytearray(1024)
    again.readv(0, [memoryview(content)])
    again.close()
    assert content == sector_of(3, 0) + sector_of(0, 1)
    other, _ = source.open()
    other.readv(0, [memoryview(content)])
    other.close()
    assert content == Base(2048).content[:1024]


def test_a_base_that_has_changed(base: Path, tmp_path: Path) -> None:
    source = DiskSource(str(base), overlay=tmp_path / "overlay")
    source.open()[0].close()
    os.utime(base, ns=(1, 1))
    with pytest.raises(UserError, match="is not what it was"):
        source.open()


def test_a_file_that_is_no_overlay(base: Path, tmp_path: Path) -> None:
    for content in (b"", b"xenolith-overlay", bytes(1 << 16)):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(UserError, match="is no overlay"):
            DiskSource(str(base), overlay=tmp_path / "other").open()
        assert (tmp_path / "other").read_bytes() == content


def test_an_overlay_that_cannot_be_made(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="overlay"):
        DiskSource(str(base), overlay=tmp_path / "nowhere/overlay").open()
    RawImage(HostFile.open(base, readonly=False)).close()


def test_a_read_only_disk_with_an_overlay_shows_it(base: Path, tmp_path: Path) -> None:
    with_overlay = DiskSource(str(base), overlay=tmp_path / "overlay")
    disk = with_overlay.open()[0]
    disk.writev(0, [memoryview(sector_of(3, 0))])
    disk.close()
    disk = DiskSource(str(base), readonly=True, overlay=tmp_path / "overlay").open()[0]
    content = bytearray(512)
    disk.readv(0, [memoryview(content)])
    assert disk.readonly
    assert version_of(bytes(content), 0) == 3
    disk.close()


WRITER = """
import random, sys
from pathlib import Path
from xenolith.services.disks.open import DiskSource
disk = DiskSource(sys.argv[1], overlay=Path(sys.argv[2])).open()[0]
chance = random.Random(int(sys.argv[3]))
for version in range(1, 1 << 20):
    start = chance.randrange(2048)
    count = min(chance.randrange(1, 20), 2048 - start)
    print("begin", version, start, count, flush=True)
    numbers = range(start, start + count)
    content = b"".join((version << 32 | number + 1).to_bytes(8, "little") * 64 for number in numbers)
    disk.writev(start * 512, [memoryview(content)])
    print("done", version, start, count, flush=True)
    if not version % 16:
        disk.flush()
"""


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_any_moment_nothing_that_was_answered_is_lost(base: Path, tmp_path: Path, seed: int) -> None:
    command = [sys.executable, "-c", WRITER, str(base), str(tmp_path / "overlay"), str(seed)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    lines = [writer.stdout.readline() for _ in range(200 + 37 * seed)]
    writer.send_signal(signal.SIGKILL)
    lines += writer.communicate()[0].splitlines(keepends=True)
    possible = [{0} for _ in range(2048)]
    for line in lines:
        if line.endswith("\n"):
            what, *numbers = line.split()
            version, start, count = map(int, numbers)
            for number in range(start, start + count):
                possible[number] = {version} if what == "done" else possible[number] | {version}
    disk = DiskSource(str(base), overlay=tmp_path / "overlay").open()[0]
    content = bytearray(2048 * 512)
    disk.readv(0, [memoryview(content)])
    disk.close()
    for number in range(2048):
        assert version_of(bytes(content[number * 512 :][:512]), number) in possible[number]
