"""A disk's ring: every operation, every way to break the protocol, and the order of the answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from errno import EIO, EOPNOTSUPP
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.backends.block.frontend import Frontend
from xenolith.abi.io.blkif import (
    BLKIF_DISCARD_SECURE,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
)
from xenolith.backends.block.ring import IN_FLIGHT_SEGMENTS
from xenolith.machine.disk import NoMedium
from xenolith.services.disks.file import HostFile
from xenolith.services.disks.raw import RawImage

SECTORS = 4096
SIZE = SECTORS * 512


class Watched:
    """A real image, and the order in which it was used. What `fails` names raises; `errno` says what."""

    def __init__(self, image: RawImage) -> None:
        self._image = image
        self.calls: list[tuple[str, int, int]] = []
        self.fails: set[int] = set()
        self.errno = EIO
        self.in_memory = False
        self.readonly = image.readonly
        self.physical_sector_size = image.physical_sector_size
        self.discard_granularity = image.discard_granularity
        self.size = image.size

    def _note(self, what: str, offset: int, length: int) -> None:
        self.calls.append((what, offset // 512, length // 512))
        if any(offset <= sector * 512 < offset + length for sector in self.fails):
            raise OSError(self.errno, "told to fail")

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._note("read", offset, sum(map(len, buffers)))
        self._image.readv(offset, buffers)

    def readv_at_once(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        if self.in_memory:
            self._note("read at once", offset, sum(map(len, buffers)))
            self._image.readv(offset, buffers)
        return self.in_memory

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._note("write", offset, sum(map(len, buffers)))
        self._image.writev(offset, buffers)

    def writev_at_once(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        if self.in_memory:
            self._note("write at once", offset, sum(map(len, buffers)))
            self._image.writev(offset, buffers)
        return self.in_memory

    def flush(self) -> None:
        self._note("flush", 0, 0)
        self._image.flush()

    def discard(self, offset: int, length: int) -> None:
        self._note("discard", offset, length)
        self._image.discard(offset, length)

    def measure(self) -> int:
        return self._image.measure()

    def close(self) -> None:
        self._image.close()

    @property
    def order(self) -> list[str]:
        return [what for what, *_ in self.calls]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(SIZE))
    return disk


@pytest.fixture
def image(path: Path) -> Watched:
    return Watched(RawImage(HostFile.open(path, readonly=False)))


@pytest.fixture
def front(image: Watched) -> Frontend:
    return Frontend(image)


def test_what_is_written_is_read_again(front: Frontend, path: Path) -> None:
    content = os.urandom(4096)
    source, target = front.grants.page(content), front.grants.page()
    front.access(BLKIF_OP_WRITE, 16, [(source, 0, 7)], ident=1)
    front.access(BLKIF_OP_READ, 17, [(target, 2, 4)], ident=2)
    front.ring.service()
    assert front.answers() == [(1, BLKIF_OP_WRITE, BLKIF_RSP_OKAY), (2, BLKIF_OP_READ, BLKIF_RSP_OKAY)]
    assert path.read_bytes()[16 * 512 : 24 * 512] == content
    assert front.grants.pages[target] == bytes(1024) + content[512:2048] + bytes(4096 - 2560)
    assert front.grants.mapped == 0


def test_what_the_host_has_in_memory_is_read_without_a_thread(front: Frontend, image: Watched, path: Path) -> None:
    image.in_memory = True
    first, second, third = (front.grants.page() for _ in range(3))
    front.access(BLKIF_OP_READ, 0, [(first, 0, 7)], ident=1)
    front.access(BLKIF_OP_READ, 8, [(second, 0, 7)], ident=2)
    front.access(BLKIF_OP_READ, 80, [(third, 1, 1)], ident=3)
    front.ring.service()
    assert front.answers() == [(ident, BLKIF_OP_READ, BLKIF_RSP_OKAY) for ident in (1, 2, 3)]
    assert image.calls == [("read at once", 0, 16), ("read at once", 80, 1)]
    content = path.read_bytes()
    assert front.grants.pages[first] + front.grants.pages[second] == content[:8192]
    assert front.grants.pages[third][512:1024] == content[80 * 512 : 81 * 512]
    assert front.grants.mapped == 0


def test_what_the_host_keeps_in_memory_is_written_without_a_thread(front: Frontend, image: Watched, path: Path) -> None:
    image.in_memory = True
    content = os.urandom(4096)
    front.access(BLKIF_OP_WRITE, 16, [(front.grants.page(content), 0, 7)], ident=1)
    front.ring.service()
    assert front.answers() == [(1, BLKIF_OP_WRITE, BLKIF_RSP_OKAY)]
    assert image.calls == [("write at once", 16, 8)]
    assert path.read_bytes()[8192:12288] == content


def test_segments_are_taken_in_their_order(front: Frontend, path: Path) -> None:
    pages = [front.grants.page() for _ in range(11)]
    front.access(BLKIF_OP_READ, 8, [(page, 7, 7) if page % 2 else (page, 0, 1) for page in pages])
    assert front.statuses() == [BLKIF_RSP_OKAY]
    read = b"".join(
        bytes(front.grants.pages[page][7 * 512 :] if page % 2 else front.grants.pages[page][:1024]) for page in pages
    )
    assert path.read_bytes()[8 * 512 :].startswith(read)
    assert len(read) == 5 * 512 + 6 * 1024


@pytest.mark.parametrize("count", [1, 12, 256])
def test_an_indirect_request_is_answered_as_the_operation_inside_it(front: Frontend, path: Path, count: int) -> None:
    pages = [front.grants.page() for _ in range(count)]
    front.indirect(BLKIF_OP_READ, 8, [(page, 0, 7) for page in pages], ident=7)
    front.ring.service()
    assert front.answers() == [(7, BLKIF_OP_READ, BLKIF_RSP_OKAY)]
    assert b"".join(front.grants.pages[page] for page in pages) == path.read_bytes()[8 * 512 :][: count * 4096]


@pytest.mark.parametrize("pages", [1, 2, 4, 8, 16])
def test_every_slot_of_every_ring_is_found(image: Watched, pages: int) -> None:
    front = Frontend(image, pages, start=0xFFFF_FFF0)
    page = front.grants.page()
    for number in range(front.size):
        front.access(BLKIF_OP_READ, 2 * number, [(page, 0, 0)], ident=0xABCD_0000_0000 + number)
    front.ring.service()
    assert front.answers() == [
        (0xABCD_0000_0000 + number, BLKIF_OP_READ, BLKIF_RSP_OKAY) for number in range(front.size)
    ]


def test_adjacent_requests_are_one_access(front: Frontend, image: Watched) -> None:
    pages = [front.grants.page(os.urandom(4096)) for _ in range(4)]
    for number, page in enumerate(pages):
        front.access(BLKIF_OP_WRITE, 8 * number, [(page, 0, 7)])
    front.access(BLKIF_OP_READ, 32, [(pages[0], 0, 7)])
    front.access(BLKIF_OP_READ, 48, [(pages[1], 0, 7)])
    assert front.statuses() == [BLKIF_RSP_OKAY] * 6
    assert image.calls == [("write", 0, 32), ("read", 32, 8), ("read", 48, 8)]


def test_of_adjacent_requests_only_the_bad_one_fails(front: Frontend, image: Watched) -> None:
    image.fails = {9}
    page = front.grants.page()
    for sector in (0, 8, 16):
        front.access(BLKIF_OP_READ, sector, [(page, 0, 7)])
    assert front.statuses() == [BLKIF_RSP_OKAY, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY]


def test_a_full_ring_of_big_requests_never_has_too_much_mapped(image: Watched) -> None:
    front = Frontend(image, at_once=False)
    pages = [front.grants.page() for _ in range(256)]
    for number in range(32):
        front.indirect(BLKIF_OP_READ, 2048 * (number % 2), [(page, 0, 7) for page in pages], ident=number)
    most = 0
    front.ring.service()
    while front.worker.queue:
        most = max(most, front.grants.mapped)
        front.worker.run()
    assert [ident for ident, *_ in front.answers()] == list(range(32))
    assert 256 < most <= IN_FLIGHT_SEGMENTS


# -- flushes, barriers, discards ------------------------------------------------------------------------------------


def test_a_flush_waits_for_earlier_writes_and_not_for_reads(image: Watched) -> None:
    front = Frontend(image, at_once=False)
    page = front.grants.page()
    front.access(BLKIF_OP_READ, 0, [(page, 0, 7)], ident=1)
    front.access(BLKIF_OP_WRITE, 16, [(page, 0, 7)], ident=2)
    front.access(BLKIF_OP_FLUSH_DISKCACHE, 0, [], ident=3)
    front.ring.service()
    assert len(front.worker.queue) == 2
    front.worker.run(1)
    front.worker.run(1)
    assert image.order == ["write", "flush"]
    assert front.answers() == [], "the read is not done, and answers keep their order"
    front.worker.run()
    assert [ident for ident, *_ in front.answers()] == [1, 2, 3]


def test_nothing_passes_a_barrier(image: Watched) -> None:
    front = Frontend(image, at_once=False)
    page = front.grants.page()
    front.access(BLKIF_OP_WRITE, 0, [(page, 0, 7)])
    front.access(BLKIF_OP_WRITE_BARRIER, 16, [(page, 0, 7)])
    front.access(BLKIF_OP_WRITE, 32, [(page, 0, 7)])
    front.ring.service()
    while front.worker.queue:
        assert len(front.worker.queue) == 1
        front.worker.run()
    assert image.order == ["write", "flush", "write", "flush", "write"]
    assert front.statuses() == [BLKIF_RSP_OKAY] * 3


@pytest.mark.parametrize("operation", [BLKIF_OP_WRITE_BARRIER, BLKIF_OP_FLUSH_DISKCACHE])
def test_an_empty_barrier_or_flush_flushes(front: Frontend, image: Watched, operation: int) -> None:
    front.access(operation, 1 << 63, [])
    assert front.statuses() == [BLKIF_RSP_OKAY]
    assert image.order == ["flush"]


def test_a_failed_flush_is_told(front: Frontend, image: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(EIO, "the disk is broken")

    monkeypatch.setattr(os, "fdatasync", fail)
    front.access(BLKIF_OP_FLUSH_DISKCACHE, 0, [])
    assert front.statuses() == [BLKIF_RSP_ERROR]
    monkeypatch.undo()
    front.access(BLKIF_OP_FLUSH_DISKCACHE, 0, [])
    assert front.statuses() == [BLKIF_RSP_ERROR], "what was lost then is still lost"


def test_a_discarded_range_is_given_back(front: Frontend, path: Path) -> None:
    front.discard(8, 8 * 512 // 512)
    front.discard(64, 8, BLKIF_DISCARD_SECURE)
    assert front.statuses() == [BLKIF_RSP_OKAY] * 2
    assert path.read_bytes()[8 * 512 : 16 * 512] == bytes(4096)


def test_a_host_that_cannot_discard(front: Frontend, image: Watched) -> None:
    image.fails, image.errno = {8}, EOPNOTSUPP
    front.discard(8, 8)
    image.discard_granularity = 0
    front.discard(16, 8)
    assert front.statuses() == [BLKIF_RSP_EOPNOTSUPP] * 2


# -- what a frontend must not do -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "sector", "segments"),
    [
        (BLKIF_OP_READ, 0, []),
        (BLKIF_OP_WRITE, 0, []),
        (BLKIF_OP_READ, 0, [(8, 0, 0)] * 12),
        (BLKIF_OP_READ, 0, [(8, 0, 0)] * 255),
        (BLKIF_OP_READ, 0, [(8, 0, 8)]),
        (BLKIF_OP_READ, 0, [(8, 3, 2)]),
        (BLKIF_OP_READ, 0, [(8, 255, 255)]),
        (BLKIF_OP_READ, SECTORS - 7, [(8, 0, 7)]),
        (BLKIF_OP_READ, SECTORS, [(8, 0, 0)]),
        (BLKIF_OP_READ, (1 << 64) - 1, [(8, 0, 7)]),
        (BLKIF_OP_WRITE, 1 << 55, [(8, 0, 7)]),
        (BLKIF_OP_READ, 0, [(999, 0, 7)]),
        (BLKIF_OP_READ, 0, [(8, 0, 7), (999, 0, 7)]),
        (BLKIF_OP_READ, 0, [(9, 0, 7)]),
    ],
)
def test_a_bad_request_is_an_error_and_does_nothing(
    front: Frontend, image: Watched, operation: int, sector: int, segments: list[tuple[int, int, int]]
) -> None:
    assert front.grants.page() == 8
    front.grants.readonly.add(front.grants.page())
    front.access(operation, sector, segments, ident=5)
    front.access(BLKIF_OP_READ, 0, [(8, 0, 7)], ident=6)
    front.ring.service()
    assert front.answers() == [(5, operation, BLKIF_RSP_ERROR), (6, BLKIF_OP_READ, BLKIF_RSP_OKAY)]
    assert image.calls == [("read", 0, 8)]
    assert front.grants.mapped == 0


@pytest.mark.parametrize("operation", [4, 7, 100, 255])
def test_an_unknown_operation_is_not_supported(front: Frontend, operation: int) -> None:
    front.access(operation, 0, [(front.grants.page(), 0, 7)], ident=9)
    front.ring.service()
    assert front.answers() == [(9, operation, BLKIF_RSP_EOPNOTSUPP)]


@pytest.mark.parametrize("inner", [BLKIF_OP_WRITE_BARRIER, BLKIF_OP_DISCARD, BLKIF_OP_INDIRECT, 77])
def test_only_reads_and_writes_are_indirect(front: Frontend, inner: int) -> None:
    front.indirect(inner, 0, [(front.grants.page(), 0, 7)])
    assert front.statuses() == [BLKIF_RSP_ERROR]


@pytest.mark.parametrize("count", [0, 257, 4096, 0xFFFF])
def test_an_indirect_request_has_its_bounds(front: Frontend, image: Watched, count: int) -> None:
    front.indirect(BLKIF_OP_READ, 0, [(front.grants.page(), 0, 0)] * count)
    assert front.statuses() == [BLKIF_RSP_ERROR]
    assert image.calls == []


def test_indirect_pages_that_are_not_granted(front: Frontend) -> None:
    (listed,) = front.indirect(BLKIF_OP_READ, 0, [(front.grants.page(), 0, 7)])
    del front.grants.pages[listed]
    assert front.statuses() == [BLKIF_RSP_ERROR]


def test_a_request_that_changes_after_it_was_taken(image: Watched) -> None:
    front = Frontend(image, at_once=False)
    page = front.grants.page()
    front.access(BLKIF_OP_READ, 0, [(page, 0, 7)], ident=1)
    (listed,) = front.indirect(BLKIF_OP_READ, 32, [(page, 0, 7)], ident=2)
    front.ring.service()
    front.memory[0][64:] = b"\xff" * (4096 - 64)
    front.grants.pages[listed][:] = b"\xff" * 4096
    front.worker.run()
    front.worker.run()
    assert front.answers() == [(1, BLKIF_OP_READ, BLKIF_RSP_OKAY), (2, BLKIF_OP_READ, BLKIF_RSP_OKAY)]
    assert image.calls == [("read", 0, 8), ("read", 32, 8)]


def test_a_read_only_disk_is_not_changed(path: Path) -> None:
    before = path.read_bytes()
    front = Frontend(RawImage(HostFile.open(path, readonly=True)))
    page = front.grants.page()
    front.access(BLKIF_OP_WRITE, 0, [(page, 0, 7)])
    front.access(BLKIF_OP_WRITE_BARRIER, 0, [(page, 0, 7)])
    front.discard(0, 8)
    front.indirect(BLKIF_OP_WRITE, 0, [(page, 0, 7)])
    front.access(BLKIF_OP_READ, 0, [(page, 0, 7)])
    assert front.statuses() == [BLKIF_RSP_ERROR] * 4 + [BLKIF_RSP_OKAY]
    assert path.read_bytes() == before


@pytest.mark.parametrize("ahead", [33, 64, 1 << 31, 0xFFFF_FFFF])
def test_an_index_that_jumps_breaks_the_ring(front: Frontend, image: Watched, ahead: int) -> None:
    front.head.req_prod = ahead
    front.ring.service()
    assert front.ring.broken
    assert front.head.rsp_prod == 0
    front.head.req_prod = 1
    front.ring.service()
    assert front.answers() == []
    assert image.calls == []


def test_an_index_that_jumps_while_requests_run(image: Watched) -> None:
    front = Frontend(image, at_once=False)
    front.access(BLKIF_OP_READ, 0, [(front.grants.page(), 0, 7)])
    front.ring.service()
    front.head.req_prod = 1 << 20
    front.ring.service()
    assert front.ring.broken
    front.worker.run()
    assert front.head.rsp_prod == 0
    assert front.grants.mapped == 0


def test_an_index_that_goes_back_harms_nobody(image: Watched) -> None:
    front = Frontend(image, at_once=False)
    page = front.grants.page()
    front.access(BLKIF_OP_READ, 0, [(page, 0, 7)], ident=1)
    front.access(BLKIF_OP_READ, 32, [(page, 0, 7)], ident=2)
    front.ring.service()
    front.head.req_prod = 1
    front.ring.service()
    assert not front.ring.broken
    while front.worker.queue:
        front.worker.run()
    assert front.grants.mapped == 0


def test_a_medium_that_is_changed(image: Watched, tmp_path: Path) -> None:
    front = Frontend(image, at_once=False)
    page = front.grants.page()
    front.access(BLKIF_OP_READ, 0, [(page, 0, 7)], ident=1)
    front.ring.service()
    front.ring.insert(NoMedium())
    front.access(BLKIF_OP_READ, 0, [(page, 0, 7)], ident=2)
    front.ring.service()
    front.worker.run()
    assert [status for *_, status in front.answers()] == [BLKIF_RSP_OKAY, BLKIF_RSP_ERROR]
    assert image.calls == [("read", 0, 8)]


# -- events, and who takes a ring over --------------------------------------------------------------------------------


def test_the_frontend_is_signalled_when_it_wants_to_be(front: Frontend) -> None:
    page = front.grants.page()
    front.head.rsp_event = 3
    for expected in (0, 0, 1, 1):
        front.access(BLKIF_OP_READ, 0, [(page, 0, 7)])
        front.ring.service()
        assert front.notified == expected
    assert front.head.req_event == 5, "and wants to be signalled of the next request"


def test_requests_that_were_not_answered_are_done_by_who_comes_next(image: Watched, path: Path) -> None:
    front = Frontend(image, at_once=False)
    pages = [front.grants.page(os.urandom(4096)) for _ in range(3)]
    for number, page in enumerate(pages):
        front.access(BLKIF_OP_WRITE, 32 * number, [(page, 0, 7)], ident=number)
    front.ring.service()
    front.worker.run()
    front.worker.run(1)  # the third is done, and cannot be answered before the second
    assert [ident for ident, *_ in front.answers()] == [0]
    front.connect().service()
    for _ in range(3):
        front.worker.run()
    assert [ident for ident, *_ in front.answers()] == [1, 2]
    disk = path.read_bytes()
    for number, page in enumerate(pages):
        assert disk[32 * 512 * number :][:4096] == front.grants.pages[page]


def test_who_closes_waits_for_what_runs(image: Watched) -> None:
    front = Frontend(image, at_once=False, keep=8)
    front.access(BLKIF_OP_READ, 0, [(front.grants.page(), 0, 7)])
    front.ring.service()
    closed: list[bool] = []
    front.ring.close(lambda: closed.append(True))
    assert not closed
    assert front.grants.mapped == 1
    front.worker.run()
    assert closed
    assert front.grants.mapped == 0
    assert front.answers() == []


# -- pages that stay mapped -------------------------------------------------------------------------------------------


def test_kept_pages_are_mapped_once(image: Watched) -> None:
    front = Frontend(image, keep=4)
    pages = [front.grants.page() for _ in range(4)]
    for _ in range(3):
        front.access(BLKIF_OP_WRITE, 0, [(page, 0, 7) for page in pages])
        front.access(BLKIF_OP_READ, 0, [(page, 0, 7) for page in pages])
    assert front.statuses() == [BLKIF_RSP_OKAY] * 6
    assert front.grants.calls == 4
    assert front.grants.mapped == 4


def test_the_page_that_was_not_used_for_longest_makes_room(image: Watched) -> None:
    front = Frontend(image, keep=2)
    first, second, third = (front.grants.page() for _ in range(3))
    for page in (first, second, first, third, first):
        front.access(BLKIF_OP_READ, 0, [(page, 0, 7)])
        assert front.statuses() == [BLKIF_RSP_OKAY]
    assert front.grants.calls == 3
    assert front.grants.mapped == 2


def test_pages_beyond_those_that_are_kept_are_unmapped(image: Watched) -> None:
    front = Frontend(image, keep=2)
    pages = [front.grants.page() for _ in range(11)]
    front.access(BLKIF_OP_READ, 0, [(page, 0, 7) for page in pages])
    assert front.statuses() == [BLKIF_RSP_OKAY]
    assert front.grants.mapped == 2


def test_a_refused_page_keeps_no_other_in_use(image: Watched) -> None:
    front = Frontend(image, keep=2)
    page, other = front.grants.page(), front.grants.page()
    front.access(BLKIF_OP_READ, 0, [(page, 0, 7), (999, 0, 7)])
    front.access(BLKIF_OP_READ, 0, [(other, 0, 7)])
    assert front.statuses() == [BLKIF_RSP_ERROR, BLKIF_RSP_OKAY]
    front.ring.close(lambda: None)
    assert front.grants.mapped == 0


@pytest.mark.parametrize("indirect", [False, True])
def test_a_back_end_without_room_waits(image: Watched, indirect: bool) -> None:
    front = Frontend(image, limit=0)
    segments = [(front.grants.page(), 0, 7)]
    if indirect:
        front.indirect(BLKIF_OP_READ, 0, segments)
    else:
        front.access(BLKIF_OP_READ, 0, segments)
    assert front.statuses() == []
    assert front.ring.starved
    front.grants.limit = 1
    assert front.statuses() == [BLKIF_RSP_OKAY]
    assert not front.ring.starved


# -- anything at all --------------------------------------------------------------------------------------------------

wild = st.one_of(st.integers(0, 8), st.integers(0, 255))
wild_sector = st.one_of(st.integers(0, SECTORS + 8), st.integers(0, (1 << 64) - 1))
wild_segment = st.tuples(st.integers(6, 14), st.integers(0, 9), st.integers(0, 9))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("access"), wild, wild_sector, st.lists(wild_segment, max_size=12)),
        st.tuples(st.just("indirect"), wild, wild_sector, st.lists(wild_segment, max_size=20)),
        st.tuples(st.just("discard"), wild_sector, wild_sector),
        st.tuples(st.just("noise"), st.binary(min_size=112, max_size=112)),
        st.tuples(st.just("jump"), st.integers(0, 0xFFFF_FFFF)),
        st.tuples(st.just("revoke"), st.integers(8, 14)),
        st.tuples(st.just("scribble"), st.integers(0, 4095), st.binary(max_size=64)),
        st.tuples(st.just("service")),
        st.tuples(st.just("run"), st.integers(0, 3)),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(steps=steps, keep=st.sampled_from([0, 2]), start=st.sampled_from([0, 0xFFFF_FFFC]))
def test_no_frontend_can_do_harm(
    steps: list[tuple], keep: int, start: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("wild") / "disk"
    path.write_bytes(bytes(64 * 512))
    image = RawImage(HostFile.open(path, readonly=False))
    front = Frontend(image, keep=keep, at_once=False, start=start, limit=64)
    for _ in range(6):
        front.grants.page(b"\xaa" * 4096)
    for what, *arguments in steps:
        if what in ("access", "indirect", "discard"):
            getattr(front, what)(*arguments)
        elif what == "noise":
            front.write_slot(front.head.req_prod, arguments[0])
            front.head.req_prod = (front.head.req_prod + 1) & 0xFFFF_FFFF
        elif what == "jump":
            front.head.req_prod = arguments[0]
        elif what == "revoke":
            front.grants.pages.pop(arguments[0], None)
        elif what == "scribble":
            at, content = arguments
            front.memory[0][at : at + len(content)] = content[: 4096 - at]
        elif what == "service":
            front.ring.service()
        elif front.worker.queue:
            front.worker.run(arguments[0] % len(front.worker.queue))
    while front.worker.queue:
        front.worker.run()
    closed: list[bool] = []
    front.ring.close(lambda: closed.append(True))
    assert closed, "nothing runs for ever"
    assert front.grants.mapped == 0, "nothing stays mapped"
    assert path.stat().st_size == 64 * 512, "nothing is written behind the end"
    image.close()
