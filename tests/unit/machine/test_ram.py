"""The machine's memory: one mapping seen as bytes and as words, and given back when nobody holds it any more."""

from __future__ import annotations

import gc
import mmap
import os
from itertools import product
from pathlib import Path

import pytest

from xenolith.errors import UserError
from xenolith.machine.ram import Ram


def test_bytes_words_and_frames_are_the_same_memory() -> None:
    ram = Ram(3 << 12)
    assert ram.frames == 3
    ram.words[513] = 0x0807_0605_0403_0201
    assert bytes(ram.bytes[4104:4112]) == bytes(range(1, 9))
    assert bytes(ram.frame(1)[8:16]) == bytes(range(1, 9))


def test_clear_zeroes_the_frames_named_and_no_other() -> None:
    for count, shared in product((1, 16), (False, True)):
        ram = Ram(32 << 12)
        if shared:
            ram.share()
        ram.bytes[:] = b"\xff" * (32 << 12)
        ram.clear(4, count)
        assert not any(ram.bytes[4 << 12 : (4 + count) << 12])
        assert all(byte == 0xFF for byte in ram.bytes[: 4 << 12])
        assert all(byte == 0xFF for byte in ram.bytes[(4 + count) << 12 :])


@pytest.mark.parametrize("shared", [False, True])
def test_memory_is_resident_only_where_it_was_touched(shared: bool) -> None:
    ram = Ram(1 << 30)
    if shared:
        ram.share()
    before = ram.resident_bytes()
    ram.bytes[5 << 20] = 1
    assert before < ram.resident_bytes() <= before + (2 << 20)
    ram.clear(5 << 8, 512)
    assert ram.resident_bytes() <= before


def test_shared_memory_is_what_it_was_and_seen_by_others() -> None:
    ram = Ram(32 << 12)
    ram.bytes[5000:5003] = b"abc"
    other = mmap.mmap(ram.share(), ram.size, mmap.MAP_SHARED)
    assert other[5000:5003] == b"abc"
    ram.words[1024] = 0x21
    assert other[8192] == 0x21
    other[8193] = 0x22
    assert ram.words[1024] == 0x2221
    ram.clear(0, 32)
    assert not any(other[:])


def test_the_host_gets_its_file_back() -> None:
    def open_files() -> int:
        return sum("xenolith-ram" in os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())

    gc.collect()
    before = open_files()
    ram = Ram(1 << 12)
    assert open_files() == before
    ram.share()
    assert open_files() > before
    del ram
    gc.collect()
    assert open_files() == before


@pytest.mark.parametrize("size", [1 << 62, 1 << 70])
def test_a_size_that_the_host_does_not_have_is_the_users_mistake(size: int) -> None:
    with pytest.raises(UserError, match="more than this host has"):
        Ram(size)
