"""A virtio disk: what its requests do, what it refuses, and that nothing old happens after a reset."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.machine.devices.board import MEMORY_BYTES
from tests.unit.machine.devices.disks import SECTORS, MemoryDisk, Worker, pattern
from tests.unit.machine.devices.virtio_driver import DEVICE, NEXT, WRITE, Driver
from xenolith.machine.devices.virtio_blk import (
    CONFIG_WCE,
    DISCARD,
    FLUSH,
    MAX_DISCARDS,
    MAX_ZEROES,
    READONLY,
    WRITE_ZEROES,
    WRITEBACK_AT,
    Request,
    Status,
    VirtioBlk,
)
from xenolith.machine.devices.virtio_pci import EVENT_IDX, INDIRECT_DESC, NEEDS_RESET

USUAL = FLUSH | CONFIG_WCE | DISCARD | WRITE_ZEROES
PENDING = 0xEE


class Disk:
    """A disk, and a driver that uses its first queue."""

    def __init__(
        self, image: MemoryDisk | None = None, *, features: int = USUAL, at_once: bool = True, queue_size: int = 8
    ) -> None:
        self.image = image or MemoryDisk()
        self.worker = Worker(at_once)
        self.driver = Driver(VirtioBlk(self.image, self.worker.submit), queue_size)
        self.features = features
        self.start()

    def start(self) -> None:
        """Reset the disk and begin with empty rings."""
        self.driver.set_status(0)
        for queue in range(4):
            for ring in self.driver.rings(queue)[1:]:
                self.driver.board.set_word(ring, 4, 0)
        self.driver.start(self.features)

    def lend(self, kind: int, sector: int = 0, out: Sequence[bytes] = (), room: Sequence[int] = ()) -> list[int]:
        """Put a request into the queue; where its parts are. Data that is to be written may be in several parts."""
        places = self.driver.lend(0, [struct.pack("<IIQ", kind, 0, sector), *out], [*room, 1])
        self.driver.board.put(places[-1], bytes((PENDING,)))
        return places

    def status(self, places: list[int]) -> int:
        return self.driver.board.memory[places[-1]]

    def do(self, kind: int, sector: int = 0, out: Sequence[bytes] = (), room: Sequence[int] = ()) -> tuple[int, bytes]:
        """One request: its status, and what was read."""
        places = self.lend(kind, sector, out, room)
        self.driver.kick(0)
        assert len(self.driver.answers(0)) == 1
        start = places[1 + len(out)]
        return self.status(places), bytes(self.driver.board.memory[start : start + sum(room)])


@pytest.fixture
def disk() -> Disk:
    return Disk()


def test_its_registers_tell_what_it_is(disk: Disk) -> None:
    read = disk.driver.read
    assert read(DEVICE, 0, 4) == SECTORS
    assert read(DEVICE, 20, 4) == 512
    assert (read(DEVICE, 24, 1), read(DEVICE, 26, 2)) == (3, 8)
    assert read(DEVICE, 34, 2) == 4
    assert read(DEVICE, 44, 4) == 8
    assert disk.driver.board.read_config(0, 4) == 0x1042_1AF4


def test_features_follow_the_image() -> None:
    image = MemoryDisk()
    image.readonly, image.discard_granularity = True, 0
    assert Disk(image, features=0).driver.offered() & (READONLY | DISCARD) == READONLY
    assert Disk(features=0).driver.offered() & (READONLY | DISCARD) == DISCARD


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("features", [0, USUAL, USUAL | EVENT_IDX])
def test_it_reads(cached: bool, features: int) -> None:
    disk = Disk(features=features)
    disk.image.cached = cached
    status, data = disk.do(Request.IN, 5, room=[512, 1536])
    assert (status, data) == (Status.OK, pattern(SECTORS)[5 * 512 : 9 * 512])
    assert disk.driver.board.take_messages() == [101]


def test_it_writes(disk: Disk) -> None:
    assert disk.do(Request.OUT, 7, [b"a" * 300, b"b" * 724]) == (Status.OK, b"")
    assert disk.image.content[7 * 512 : 9 * 512] == b"a" * 300 + b"b" * 724
    assert disk.image.content[9 * 512 :] == pattern(SECTORS)[9 * 512 :]


def test_it_tells_how_much_it_has_written(disk: Disk) -> None:
    disk.lend(Request.IN, 0, room=[512])
    disk.lend(Request.OUT, 0, [bytes(512)])
    disk.driver.kick(0)
    assert [length for _, length in disk.driver.answers(0)] == [513, 1]


def test_it_has_a_name(disk: Disk) -> None:
    assert disk.do(Request.GET_ID, room=[20]) == (Status.OK, b"XENOLITH0018".ljust(20, b"\0"))
    assert disk.do(Request.GET_ID, room=[8]) == (Status.OK, b"XENOLITH")


def test_without_flushes_all_that_is_written_is_safe() -> None:
    disk = Disk(features=0)
    disk.do(Request.OUT, 0, [bytes(512)])
    assert disk.image.calls == ["write", "flush"]


def test_the_driver_may_want_no_cache(disk: Disk) -> None:
    disk.do(Request.OUT, 0, [bytes(512)])
    assert disk.image.calls == ["write"]
    disk.driver.write(DEVICE, WRITEBACK_AT, 1, 0)
    disk.do(Request.OUT, 0, [bytes(512)])
    assert disk.image.calls == ["write", "write", "flush"]
    disk.start()
    assert disk.driver.read(DEVICE, WRITEBACK_AT, 1) == 1


def test_only_that_register_can_be_written(disk: Disk) -> None:
    disk.driver.write(DEVICE, 0, 4, 1)
    assert disk.driver.read(DEVICE, 0, 4) == SECTORS


def test_a_flush_waits_for_writes() -> None:
    disk = Disk(at_once=False)
    disk.lend(Request.OUT, 0, [bytes(512)])
    disk.lend(Request.FLUSH)
    disk.driver.kick(0)
    assert len(disk.worker.queue) == 1
    disk.worker.run_all()
    assert disk.image.calls == ["write", "flush"]
    assert len(disk.driver.answers(0)) == 2
    assert disk.driver.board.take_messages() == [101, 101]


def test_zeros_and_discards(disk: Disk) -> None:
    assert disk.do(Request.WRITE_ZEROES, 0, [struct.pack("<QII", 1, 2, 1)])[0] == Status.OK
    assert disk.image.content[512:1536] == bytes(1024)
    assert disk.do(Request.DISCARD, 0, [struct.pack("<QIIQII", 8, 8, 0, 40, 8, 0)])[0] == Status.OK
    assert disk.image.calls == ["write", "discard", "discard"]


@pytest.mark.parametrize(
    ("kind", "sector", "out", "room", "status"),
    [
        (Request.IN, SECTORS, [], [512], Status.IOERR),
        (Request.IN, SECTORS - 1, [], [1024], Status.IOERR),
        (Request.IN, (1 << 64) - 1, [], [512], Status.IOERR),
        (Request.IN, 0, [], [100], Status.IOERR),
        (Request.IN, 0, [], [], Status.IOERR),
        (Request.OUT, SECTORS, [bytes(512)], [], Status.IOERR),
        (Request.OUT, 0, [bytes(100)], [], Status.IOERR),
        (Request.OUT, 0, [], [], Status.IOERR),
        (Request.DISCARD, 0, [struct.pack("<QII", 0, 8, 1)], [], Status.UNSUPP),
        (Request.DISCARD, 0, [struct.pack("<QII", SECTORS, 1, 0)], [], Status.IOERR),
        (Request.DISCARD, 0, [bytes(8)], [], Status.IOERR),
        (Request.DISCARD, 0, [bytes(16 * (MAX_DISCARDS + 1))], [], Status.IOERR),
        (Request.DISCARD, 0, [], [], Status.IOERR),
        (Request.WRITE_ZEROES, 0, [struct.pack("<QII", 0, MAX_ZEROES + 1, 0)], [], Status.IOERR),
        (Request.WRITE_ZEROES, 0, [bytes(32)], [], Status.IOERR),
        (Request.WRITE_ZEROES, 0, [struct.pack("<QII", 0, 1, 2)], [], Status.UNSUPP),
        (99, 0, [], [], Status.UNSUPP),
    ],
)
def test_requests_that_cannot_be(
    disk: Disk, kind: int, sector: int, out: list[bytes], room: list[int], status: Status
) -> None:
    assert disk.do(kind, sector, out, room)[0] == status
    assert disk.image.content == pattern(SECTORS)
    assert disk.do(Request.IN, 0, room=[512])[0] == Status.OK


@pytest.mark.parametrize("kind", [Request.OUT, Request.WRITE_ZEROES, Request.DISCARD])
def test_a_readonly_disk_is_not_written_to(kind: int) -> None:
    image = MemoryDisk()
    image.readonly = True
    disk = Disk(image, features=FLUSH | READONLY)
    assert disk.do(kind, 0, [bytes(512)])[0] == Status.IOERR
    assert image.calls == []


@pytest.mark.parametrize("kind", [Request.IN, Request.OUT])
def test_data_where_the_device_may_not_go(disk: Disk, kind: Request) -> None:
    driver = disk.driver
    header, status = driver.place(struct.pack("<IIQ", kind, 0, 0)), driver.place(bytes((PENDING,)))
    driver.describe(0, 0, header, 16, NEXT, 1)
    driver.describe(0, 1, MEMORY_BYTES - 256, 512, NEXT | (WRITE if kind == Request.IN else 0), 2)
    driver.describe(0, 2, status, 1, WRITE)
    driver.offer(0, 0)
    driver.kick(0)
    assert driver.board.memory[status] == Status.IOERR
    assert driver.answers(0) == [(0, 0)]
    assert disk.do(Request.IN, 0, room=[512])[0] == Status.OK


@pytest.mark.parametrize(("readable", "writable"), [([bytes(16)], []), ([bytes(8)], [1]), ([], [1])])
def test_what_is_no_request_stops_the_disk(disk: Disk, readable: list[bytes], writable: list[int]) -> None:
    disk.driver.lend(0, readable, writable)
    disk.driver.kick(0)
    assert disk.driver.status & NEEDS_RESET
    disk.start()
    assert disk.do(Request.IN, 0, room=[512])[0] == Status.OK


@pytest.mark.parametrize("kind", [Request.IN, Request.OUT, Request.FLUSH, Request.DISCARD])
def test_the_host_may_fail(disk: Disk, kind: int) -> None:
    disk.image.failing = True
    out = {Request.OUT: [bytes(512)], Request.DISCARD: [struct.pack("<QII", 0, 8, 0)]}.get(Request(kind), [])
    assert disk.do(kind, 0, out, [512] if kind == Request.IN else [])[0] == Status.IOERR


@pytest.mark.parametrize("kind", [Request.IN, Request.OUT])
def test_nothing_old_happens_after_a_reset(kind: int) -> None:
    disk = Disk(at_once=False)
    disk.image.cached = False
    places = disk.lend(kind, 0, [bytes(512)] if kind == Request.OUT else [], [512] if kind == Request.IN else [])
    disk.driver.kick(0)
    disk.start()
    before = bytes(disk.driver.board.memory)
    disk.worker.run_all()
    assert disk.driver.board.memory == before
    assert disk.status(places) == PENDING


def test_more_requests_than_may_run_wait_for_others() -> None:
    disk = Disk(at_once=False, queue_size=256)
    for queue in range(4):
        for _ in range(80):
            disk.driver.lend(queue, [struct.pack("<IIQ", Request.OUT, 0, 0), bytes(512)], [1])
        disk.driver.kick(queue)
    assert 128 < len(disk.worker.queue) <= 257
    disk.worker.run_all()
    assert [len(disk.driver.answers(queue)) for queue in range(4)] == [80] * 4


requests = st.tuples(
    st.one_of(st.sampled_from(Request), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(0, SECTORS + 8), st.integers(0, 2**64 - 1)),
    st.lists(st.one_of(st.binary(max_size=80), st.sampled_from([bytes(512), bytes(16)])), max_size=2),
    st.lists(st.sampled_from([1, 20, 512, 4096]), max_size=2),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(requests, st.sampled_from(["run", "restart"])), max_size=12), st.booleans(), st.booleans())
def test_whatever_is_asked_is_answered_once(things: list[object], cached: bool, indirect: bool) -> None:
    disk = Disk(at_once=False, features=USUAL | (INDIRECT_DESC if indirect else 0), queue_size=64)
    disk.image.cached = cached
    asked = 0
    for thing in things:
        match thing:
            case (int(kind), int(sector), list(out), list(room)):
                disk.lend(kind, sector, out, room)
                disk.driver.kick(0)
                asked += 1
                if disk.driver.status & NEEDS_RESET:
                    disk.start()
                    asked = 0
            case "run":
                if disk.worker.queue:
                    disk.worker.run()
            case "restart":
                disk.start()
                asked = 0
        disk.driver.next_buffer = 0x20000 if disk.driver.next_buffer > 0xE0000 else disk.driver.next_buffer
    disk.worker.run_all()
    assert len(disk.driver.answers(0)) == asked
