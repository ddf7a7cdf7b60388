"""What controllers have done on an image: in which order, how much at once, and what is left of it after a reset."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.machine.devices.disks import SECTORS, MemoryDisk, Worker, pattern
from xenolith.machine.devices.disk_work import IN_FLIGHT_BYTES, DiskWork, Extent, Outcome
from xenolith.machine.pci import DmaFault

_MEMORY_BYTES = 1 << 20


class Bench:
    """A disk whose work is done when the test says so, and memory."""

    def __init__(self, disk: MemoryDisk | None = None, *, at_once: bool = False) -> None:
        self.disk = disk or MemoryDisk()
        self.worker = Worker(at_once)
        self.memory = bytearray(_MEMORY_BYTES)
        self.limit = _MEMORY_BYTES
        self.ended: list[tuple[str, Outcome]] = []
        self.work = DiskWork(self.disk, self.open, self.worker.submit)

    def open(self, maddr: int, length: int, write: bool) -> memoryview:
        if maddr + length > self.limit:
            raise DmaFault("beyond memory")
        return memoryview(self.memory)[maddr : maddr + length]

    def note(self, name: str) -> Callable[[Outcome], None]:
        return lambda outcome: self.ended.append((name, outcome))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.ended]


def test_what_is_in_memory_is_read_at_once() -> None:
    bench = Bench()
    bench.work.read(512, [(0, 256), (1024, 768)], bench.note("read"))
    assert bench.ended == [("read", Outcome.DONE)]
    assert not bench.worker.queue
    assert bench.memory[:256] + bench.memory[1024:1792] == pattern(SECTORS)[512:1536]


def test_other_reads_touch_memory_when_they_are_done() -> None:
    bench = Bench()
    bench.disk.cached = False
    bench.work.read(512, [(0, 512)], bench.note("read"))
    assert (bench.ended, bench.memory[:512]) == ([], bytes(512))
    bench.worker.run()
    assert bench.memory[:512] == pattern(SECTORS)[512:1024]


def test_a_write_has_what_was_there_when_it_began() -> None:
    bench = Bench()
    bench.memory[:512] = b"a" * 512
    bench.work.write(0, [(0, 512)], bench.note("write"))
    bench.memory[:512] = b"b" * 512
    bench.worker.run()
    assert bench.disk.content[:512] == b"a" * 512


def test_a_write_that_the_host_takes_at_once_is_done() -> None:
    bench = Bench()
    bench.disk.quick = True
    bench.memory[:512], bench.memory[1024:1536] = b"a" * 512, b"b" * 512
    bench.work.write(512, [(0, 512), (1024, 512)], bench.note("write"))
    assert bench.ended == [("write", Outcome.DONE)]
    assert bench.disk.content[512:1536] == b"a" * 512 + b"b" * 512
    bench.work.write(0, [(0, 512)], bench.note("safe"), safe=True)
    assert bench.names == ["write"], "what has to be safe waits for the host"
    bench.worker.run()
    assert bench.disk.calls == ["write", "write", "flush"]


def test_memory_that_may_not_be_used() -> None:
    bench = Bench()
    bench.disk.cached = False
    bench.work.read(0, [(_MEMORY_BYTES - 256, 512)], bench.note("read"))
    bench.work.write(0, [(_MEMORY_BYTES - 256, 512)], bench.note("write"))
    assert bench.ended == [("read", Outcome.FAULTED), ("write", Outcome.FAULTED)]
    assert bench.disk.calls == []


def test_memory_may_be_gone_when_a_read_is_done() -> None:
    bench = Bench()
    bench.disk.cached = False
    bench.work.read(0, [(0, 512)], bench.note("read"))
    bench.limit = 0
    bench.worker.run()
    assert bench.ended == [("read", Outcome.FAULTED)]
    assert bench.memory[:512] == bytes(512)


def test_a_flush_waits_for_what_came_before_and_holds_back_what_comes_after() -> None:
    bench = Bench()
    bench.disk.cached = False
    bench.work.write(0, [(0, 512)], bench.note("write"))
    bench.work.read(0, [(0, 512)], bench.note("read"))
    bench.work.flush(bench.note("flush"))
    bench.work.discard([Extent(0, 4096)], bench.note("discard"))
    assert len(bench.worker.queue) == 2
    bench.worker.run()
    assert len(bench.worker.queue) == 3, "a flush does not wait for reads"
    bench.worker.run_all()
    assert bench.names == ["write", "read", "flush", "discard"]
    assert bench.disk.calls == ["write", "read", "flush", "discard"]


def test_so_much_is_copied_at_once_and_no_more() -> None:
    bench = Bench(MemoryDisk(SECTORS * 4))
    large = [(0, 1 << 20)] * 4
    for number in range(6):
        bench.work.write(0, large, bench.note(str(number)))
    assert len(bench.worker.queue) == IN_FLIGHT_BYTES // (4 << 20)
    bench.worker.run_all()
    assert bench.names == [str(number) for number in range(6)]


def test_what_is_longer_runs_alone() -> None:
    bench = Bench(MemoryDisk(SECTORS * 20))
    bench.work.write(0, [(0, 1 << 20)] * 20, bench.note("long"))
    bench.work.write(0, [(0, 512)], bench.note("short"))
    assert len(bench.worker.queue) == 1
    bench.worker.run_all()
    assert bench.names == ["long", "short"]


def test_others_get_their_turn() -> None:
    bench = Bench()
    for number in range(8):
        bench.work.read(0, [(0, 1 << 20)], bench.note(str(number)))
    assert len(bench.ended) == 4
    bench.worker.run()
    assert len(bench.ended) == 8


def test_many_small_pieces_of_memory_cost_too() -> None:
    bench = Bench()
    for number in range(3):
        bench.work.read(0, [(0, 2)] * 4096, bench.note(str(number)))
    assert len(bench.ended) == 1


def test_where_work_is_done_at_once_nothing_is_left_over() -> None:
    bench = Bench(at_once=True)
    bench.disk.cached = False
    for number in range(40):
        bench.work.read(0, [(0, 1 << 20)], bench.note(str(number)))
    assert len(bench.ended) == 40


@pytest.mark.parametrize("name", ["read", "write", "zero", "verify", "discard", "flush"])
def test_the_host_may_fail(name: str) -> None:
    bench = Bench(at_once=True)
    bench.disk.failing = True
    begin = {
        "read": lambda done: bench.work.read(0, [(0, 512)], done),
        "write": lambda done: bench.work.write(0, [(0, 512)], done),
        "zero": lambda done: bench.work.zero([Extent(0, 512)], done),
        "verify": lambda done: bench.work.verify(Extent(0, 512), done),
        "discard": lambda done: bench.work.discard([Extent(0, 512)], done),
        "flush": bench.work.flush,
    }[name]
    begin(bench.note(name))
    bench.disk.failing = False
    begin(bench.note(name))
    assert bench.ended == [(name, Outcome.FAILED), (name, Outcome.DONE)]


def test_a_host_that_cannot_discard_does_not_fail() -> None:
    bench = Bench(at_once=True)
    bench.disk.discard_granularity = 0
    bench.work.discard([Extent(0, 512)], bench.note("discard"))
    assert bench.ended == [("discard", Outcome.DONE)]


def test_our_own_mistakes_are_not_the_host_s() -> None:
    bench = Bench()
    bench.work.flush(bench.note("flush"))
    _, done = bench.worker.queue.popleft()
    with pytest.raises(ZeroDivisionError):
        done(None, ZeroDivisionError())


def test_zeros_of_any_length() -> None:
    bench = Bench(MemoryDisk(SECTORS * 2 + 2), at_once=True)
    bench.work.zero([Extent(512, bench.disk.size - 512)], bench.note("zero"), safe=True)
    assert bench.disk.content == pattern(1) + bytes(bench.disk.size - 512)
    assert bench.disk.calls == ["write", "write", "write", "flush"]


accesses = st.tuples(st.sampled_from(["read", "write", "flush", "cancel", "run"]), st.integers(0, 7), st.integers(0, 9))


@given(st.lists(accesses, max_size=40), st.booleans())
def test_the_disk_has_what_was_written_last(things: list[tuple[str, int, int]], cached: bool) -> None:
    """Whatever is cancelled in between and in whatever order work is done: of writes one after the other, each waited
    for or cancelled, the last one stays."""
    bench = Bench()
    bench.disk.cached = cached
    bench.work.flush(bench.note("begin"))
    bench.worker.run_all()
    for number, (name, sector, place) in enumerate(things):
        match name:
            case "read":
                bench.work.read(sector * 512, [(place * 512, 512)], bench.note("read"))
            case "write":
                bench.memory[0x80000:0x80200] = number.to_bytes(2, "little") * 256
                bench.work.write(sector * 512, [(0x80000, 512)], bench.note("write"))
            case "flush":
                bench.work.flush(bench.note("flush"))
            case "cancel":
                bench.work.cancel()
            case "run":
                if bench.worker.queue:
                    bench.worker.run(place % len(bench.worker.queue))
    bench.work.cancel()
    told = len(bench.ended)
    for sector in range(8):
        bench.memory[0x80000:0x80200] = bytes((0xF0 + sector,)) * 512
        bench.work.write(sector * 512, [(0x80000, 512)], lambda outcome: None)
        while bench.worker.queue:
            bench.worker.run(len(bench.worker.queue) - 1)
    assert len(bench.ended) == told
    assert bench.disk.content[: 8 * 512] == b"".join(bytes((0xF0 + sector,)) * 512 for sector in range(8))
