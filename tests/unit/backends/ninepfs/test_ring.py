"""The 9P ring from the back end's side: whole messages, wrapped and partial ones, and frontends that break it."""

from __future__ import annotations

import struct
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenolith.abi.io.ninepfs import Xen9pfsDataIntf
from xenolith.abi.types import PAGE_SIZE
from xenolith.backends.ninepfs.ring import Ring, RingBroken


class Frontend:
    """The other end, of two rings of `pages` / 2 pages each."""

    def __init__(self, pages: int = 2, start: int = 0) -> None:
        self.interface = memoryview(bytearray(PAGE_SIZE))
        self.page = Xen9pfsDataIntf.from_buffer(self.interface)
        data = memoryview(bytearray(pages * PAGE_SIZE))
        self.pages = [data[at : at + PAGE_SIZE] for at in range(0, len(data), PAGE_SIZE)]
        self.size = len(data) // 2
        self.in_, self.out = data[: self.size], data[self.size :]
        self.page.in_prod = self.page.in_cons = self.page.out_prod = self.page.out_cons = start

    def ring(self) -> Ring:
        return Ring(self.interface, self.pages)

    @property
    def room(self) -> int:
        return self.size - (self.page.out_prod - self.page.out_cons & 0xFFFF_FFFF)

    def send(self, data: bytes) -> None:
        first = self.size - self.page.out_prod % self.size
        self._put(data[:first])
        self._put(data[first:])

    def _put(self, data: bytes) -> None:
        self.out[self.page.out_prod % self.size :][: len(data)] = data
        self.page.out_prod = (self.page.out_prod + len(data)) & 0xFFFF_FFFF

    def receive(self, limit: int = 1 << 20) -> bytes:
        count = min(limit, (self.page.in_prod - self.page.in_cons) & 0xFFFF_FFFF)
        start = self.page.in_cons % self.size
        self.page.in_cons = (self.page.in_cons + count) & 0xFFFF_FFFF
        return bytes(self.in_[start : start + count]) + bytes(self.in_[: max(0, start + count - self.size)])


def sized(size: int, tag: int = 1) -> bytes:
    """A message of so many bytes."""
    return (struct.pack("<IBH", size, 100, tag) + bytes(range(256)) * (size // 256 + 1))[:size]


def test_a_request_stays_until_it_is_answered() -> None:
    front = Frontend()
    ring = front.ring()
    assert ring.request(4096) is None
    front.send(sized(100))
    front.send(sized(50, tag=2))
    assert ring.request(4096) == sized(100)
    assert ring.request(4096) == sized(100)
    assert front.page.out_cons == 0
    assert ring.answer(sized(100), b"answer")
    assert (front.page.out_cons, front.receive()) == (100, b"answer")
    assert ring.request(4096) == sized(50, tag=2)


def test_the_next_back_end_goes_on_where_the_one_before_was() -> None:
    front = Frontend(start=0xFFFF_FFF0)
    ring = front.ring()
    front.send(sized(100) + sized(60, tag=2))
    ring.answer(sized(100), sized(30))
    follower = front.ring()
    assert follower.position == 0xFFFF_FFF0 + 100 - (1 << 32)
    assert follower.request(4096) == sized(60, tag=2)
    follower.answer(sized(60, tag=2), sized(20))
    assert front.receive() == sized(30) + sized(20)


def test_a_request_may_come_in_parts() -> None:
    front = Frontend()
    ring = front.ring()
    whole = sized(500)
    for part in (whole[:3], whole[3:7], whole[7:499]):
        front.send(part)
        assert ring.request(4096) is None
    front.send(whole[499:])
    assert ring.request(4096) == whole


def test_an_answer_waits_for_room() -> None:
    front = Frontend()
    ring = front.ring()
    front.send(sized(10) + sized(10))
    assert ring.answer(sized(10), sized(4096))
    assert not ring.answer(sized(10), sized(7))
    assert (front.page.out_cons, front.page.in_prod) == (10, 4096)
    front.receive(limit=7)
    assert ring.answer(sized(10), sized(7))
    assert front.page.out_cons == 20


@pytest.mark.parametrize("size", [0, 6, 4097, 0xFFFF_FFFF])
def test_sizes_that_no_request_has(size: int) -> None:
    front = Frontend(pages=8)
    ring = front.ring()
    front.send(struct.pack("<I", size))
    with pytest.raises(RingBroken):
        ring.request(4096)


def test_indices_that_cannot_be() -> None:
    front = Frontend()
    ring = front.ring()
    front.page.out_prod = 4097
    with pytest.raises(RingBroken):
        ring.request(4096)
    front.page.in_cons = 1
    with pytest.raises(RingBroken):
        ring.answer(sized(20), sized(20))


def test_our_own_indices_are_not_believed() -> None:
    front = Frontend()
    ring = front.ring()
    front.send(sized(20))
    front.page.out_cons, front.page.in_prod = 77, 88
    assert ring.request(4096) == sized(20)
    ring.answer(sized(20), sized(9))
    assert (front.page.out_cons, front.page.in_prod) == (20, 9)


def test_a_ring_that_is_broken_from_the_start() -> None:
    front = Frontend()
    front.page.in_prod = 5000
    with pytest.raises(RingBroken):
        front.ring()


@settings(max_examples=60, deadline=None)
@given(
    pages=st.sampled_from([2, 4]),
    start=st.sampled_from([0, 1, 4095, 0xFFFF_F000, 0xFFFF_FFFF]),
    turns=st.lists(st.tuples(st.integers(7, 4096), st.integers(7, 4096), st.integers(0, 9000), st.booleans())),
)
def test_all_messages_arrive_whole_and_in_order(
    pages: int, start: int, turns: list[tuple[int, int, int, bool]]
) -> None:
    """Requests of any size are sent as there is room, in parts; answers of any size are read in parts."""
    front = Frontend(pages, start)
    ring = front.ring()
    waiting: deque[tuple[bytes, bytes]] = deque()
    expected, received = bytearray(), bytearray()
    for tag, (size, answer_size, read, again) in enumerate(turns):
        if again:
            ring = front.ring()
        if size <= front.room:
            front.send(sized(size, tag))
            waiting.append((sized(size, tag), sized(answer_size, tag)))
        if waiting:
            request, answer = waiting[0]
            assert ring.request(4096) == request
            if ring.answer(request, answer):
                waiting.popleft()
                expected += answer
        received += front.receive(read)
    assert bytes(expected).startswith(received + front.receive())


@settings(max_examples=200, deadline=None)
@given(
    indices=st.tuples(*[st.integers(0, 0xFFFF_FFFF)] * 4),
    near=st.booleans(),
    data=st.binary(max_size=40),
)
def test_any_ring(indices: tuple[int, int, int, int], near: bool, data: bytes) -> None:
    """Whatever is in the shared pages: a request that fits, nothing, or RingBroken."""
    front = Frontend(start=indices[0])
    front.send(data)
    if not near:
        front.page.in_cons, front.page.in_prod, front.page.out_cons, front.page.out_prod = indices
    try:
        ring = front.ring()
        request = ring.request(64)
        if request is not None:
            assert 7 <= len(request) <= 64
            ring.answer(request, b"x" * 4096)
    except RingBroken:
        pass
