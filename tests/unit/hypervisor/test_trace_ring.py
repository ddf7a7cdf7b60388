"""The ring of trace records: what is stored where, what is lost and how that is told."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from xenolith.abi.trace import (
    TRACE_EXTRA_MAX,
    TRACE_EXTRA_SHIFT,
    TRC_HD_CYCLE_FLAG,
    TRC_LOST_RECORDS,
    TRC_PV_HYPERCALL_V2,
    TRC_TRACE_WRAP_BUFFER,
)
from xenolith.hypervisor.trace_ring import TraceRing, pack

EVENT = TRC_PV_HYPERCALL_V2
WHO = (3, 1)


class Reader:
    """A ring and one who reads it, who knows nothing but the bytes and the two offsets."""

    def __init__(self, size: int) -> None:
        self.memory = bytearray(size)
        self.consumed = 0
        self.ring = TraceRing(size, self.store)

    def store(self, offset: int, data: bytes) -> None:
        assert offset + len(data) <= len(self.memory), "no record lies across the end"
        self.memory[offset : offset + len(data)] = data

    def append(self, *words: int, tsc: int = 0) -> bool:
        unread = self.ring.unread(self.consumed)
        assert unread is not None
        return self.ring.append(pack(EVENT, words, tsc), unread, WHO, tsc)

    def read(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        while self.consumed != self.ring.produced:
            at = self.consumed % len(self.memory)
            (header,) = struct.unpack_from("<I", self.memory, at)
            count = header >> TRACE_EXTRA_SHIFT & TRACE_EXTRA_MAX
            start = at + (12 if header & TRC_HD_CYCLE_FLAG else 4)
            event = header & (1 << TRACE_EXTRA_SHIFT) - 1
            if event != TRC_TRACE_WRAP_BUFFER:
                yield event, struct.unpack_from(f"<{count}I", self.memory, start)
            self.consumed = (self.consumed + start - at + 4 * count) % (2 * len(self.memory))


@pytest.mark.parametrize("size", [76, 100, 4088])
def test_records_come_out_as_they_went_in_all_around_the_ring(size: int) -> None:
    reader = Reader(size)
    for number in range(500):
        words = tuple(range(number, number + number % 8))
        assert reader.append(*words)
        assert list(reader.read()) == [(EVENT, words)]


def test_what_is_lost_is_told_before_the_next_that_is_not() -> None:
    reader = Reader(64)
    assert [reader.append(number, tsc=number) for number in range(6)] == [True] * 4 + [False] * 2
    assert [words for _, words in reader.read()] == [(0,), (1,), (2,), (3,)]
    assert reader.append(9, tsc=9)
    assert list(reader.read()) == [(TRC_LOST_RECORDS, (2, WHO[0] | WHO[1] << 16, 4, 0)), (EVENT, (9,))]


def test_what_was_lost_can_be_forgotten() -> None:
    reader = Reader(32)
    while reader.append(1):
        pass
    list(reader.read())
    reader.ring.forget_lost()
    assert reader.append(2)
    assert list(reader.read()) == [(EVENT, (2,))]


@pytest.mark.parametrize("consumed", [2, 128, 1 << 31, 32, 20])
def test_a_reader_s_impossible_offset(consumed: int) -> None:
    reader = Reader(64)
    reader.append(1)
    assert reader.ring.unread(consumed) is None
