from __future__ import annotations

import os
from pathlib import Path

import pytest

from xenolith.loader import cache

DATA = b"unpacked" * 1000


class Unpacker:
    """Counts how often it is asked."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.calls = 0

    def __call__(self) -> bytes:
        self.calls += 1
        return self.data


def entries(home: Path) -> list[Path]:
    return sorted((home / "xenolith/payload").iterdir())


def test_the_second_time_nothing_is_unpacked(cache_home: Path) -> None:
    unpack = Unpacker()
    for _ in range(3):
        assert bytes(cache.unpacked(memoryview(b"packed"), unpack)) == DATA
    assert unpack.calls == 1
    assert len(entries(cache_home)) == 1


def test_the_contents_are_the_key(cache_home: Path) -> None:
    assert bytes(cache.unpacked(memoryview(b"one"), Unpacker(b"1"))) == b"1"
    assert bytes(cache.unpacked(memoryview(b"two"), Unpacker(b"2"))) == b"2"
    assert len(entries(cache_home)) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_entry_is_made_anew(cache_home: Path, damage: str) -> None:
    unpack = Unpacker()
    cache.unpacked(memoryview(b"packed"), unpack)
    (entry,) = entries(cache_home)
    data = bytearray(entry.read_bytes())
    data[3] ^= 1
    entry.write_bytes({"flip": data, "cut": data[:-1], "empty": b""}[damage])
    assert bytes(cache.unpacked(memoryview(b"packed"), unpack)) == DATA
    assert unpack.calls == 2
    assert bytes(cache.unpacked(memoryview(b"packed"), unpack)) == DATA
    assert unpack.calls == 2


def test_a_cache_that_cannot_be_written_does_no_harm(cache_home: Path) -> None:
    cache_home.write_text("a file where the directory should be")
    assert bytes(cache.unpacked(memoryview(b"packed"), Unpacker())) == DATA


def test_a_failed_write_leaves_nothing(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert bytes(cache.unpacked(memoryview(b"packed"), Unpacker())) == DATA
    assert entries(cache_home) == []


def test_a_failing_unpacker_is_heard(cache_home: Path) -> None:
    def fail() -> bytes:
        raise ValueError("corrupt")

    with pytest.raises(ValueError, match="corrupt"):
        cache.unpacked(memoryview(b"packed"), fail)


def test_the_oldest_entries_go_first(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PAYLOAD_LIMIT", 20_000)
    for number, name in enumerate((b"a", b"b")):
        cache.unpacked(memoryview(name), Unpacker())
        newest = max(entries(cache_home), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (number, number))
    cache.unpacked(memoryview(b"a"), Unpacker())  # used again: younger than b
    cache.unpacked(memoryview(b"c"), Unpacker())
    again = {name: Unpacker() for name in (b"a", b"c", b"b")}
    for name, unpack in again.items():
        cache.unpacked(memoryview(name), unpack)
    assert [unpack.calls for unpack in again.values()] == [0, 0, 1]


def test_an_entry_larger_than_the_limit_is_kept_alone(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PAYLOAD_LIMIT", 10)
    cache.unpacked(memoryview(b"a"), Unpacker())
    cache.unpacked(memoryview(b"b"), Unpacker())
    assert len(entries(cache_home)) == 1
