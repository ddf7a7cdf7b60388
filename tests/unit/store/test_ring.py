"""The store's end of a ring: guests that keep the protocol, guests that reconnect, and guests that do neither."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.store.ring_guest import RingGuest
from tests.unit.store.support import OWNER, tools
from xenolith.abi.io.xs_wire import (
    XENSTORE_ERROR_PROTO,
    XENSTORE_ERROR_RINGIDX,
    XENSTORE_RECONNECT,
    XENSTORE_SERVER_FEATURE_ERROR,
    XENSTORE_SERVER_FEATURE_RECONNECTION,
    XS_READ,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenolith.backends.store import StoreRing
from xenolith.store.server import Store
from xenolith.store.tree import Permission
from xenolith.store.wire import Decoder, Message


class Served:
    """Domain 5, its ring, and the store."""

    def __init__(self, start: int = 0) -> None:
        self.guest = RingGuest(start)
        self.store = Store(OWNER)
        self.store.make(("local", "domain", "5"), (Permission("n", 5),))
        self.connection = self.store.introduce(5, (1, 1), (start, start))
        self.ring = StoreRing(self.guest.view, self.store, self.connection, self.guest.kick)

    def ask(self, kind: int, payload: bytes, number: int = 1, transaction: int = 0) -> None:
        self.guest.outgoing += Message(kind, number, transaction, payload).encode()

    def run(self) -> list[Message]:
        """Say and hear everything."""
        for _ in range(10_000):
            before = len(self.guest.outgoing), len(self.guest.heard)
            self.guest.push()
            self.ring.service()
            self.guest.pull()
            if (len(self.guest.outgoing), len(self.guest.heard)) == before:
                break
        decoder, found, heard = Decoder(), [], bytes(self.guest.heard)
        while heard and (wanted := decoder.wanted(heard)):
            message = decoder.feed(heard[:wanted])
            heard = heard[wanted:]
            if message is not None:
                found.append(message)
        return found


@pytest.mark.parametrize("start", [0, 1000, 0xFFFF_FFF0])
def test_requests_larger_than_the_ring_and_answers_larger_than_the_ring(start: int) -> None:
    served = Served(start)
    served.ask(XS_WRITE, b"big\0" + b"x" * 1500, 1)
    served.ask(XS_READ, b"big\0", 2)
    answers = served.run()
    assert [(answer.req_id, answer.payload) for answer in answers] == [(1, b"OK\0"), (2, b"x" * 1500)]


def test_the_page_says_what_the_store_can_do() -> None:
    features = Served().guest.ring.server_features
    assert features & XENSTORE_SERVER_FEATURE_RECONNECTION
    assert features & XENSTORE_SERVER_FEATURE_ERROR


def test_a_guest_is_told_of_progress_and_only_of_that() -> None:
    served = Served()
    assert not served.ring.service()
    assert served.guest.kicks == 0
    served.ask(XS_READ, b"none\0")
    served.run()
    assert served.guest.kicks == 1


@pytest.mark.parametrize("word", ["req_prod", "rsp_cons"])
def test_indices_that_cannot_be_end_the_connection_with_the_reason(word: str) -> None:
    served = Served()
    served.ask(XS_WATCH, b"a\0t\0")
    served.run()
    served.ask(XS_READ, b"a\0")
    served.guest.push()
    setattr(served.guest.ring, word, 5000)
    served.ring.service()
    assert served.guest.ring.error == XENSTORE_ERROR_RINGIDX
    assert not served.connection.watches
    kicks = served.guest.kicks
    assert not served.ring.service()
    served.store.write(("local", "domain", "5", "a"), "told to nobody")
    assert not served.ring.service()
    assert served.guest.kicks == kicks


def test_our_own_indices_in_the_page_are_not_believed() -> None:
    served = Served()
    served.ask(XS_READ, b"none\0", 1)
    served.run()
    served.guest.ring.req_cons, served.guest.ring.rsp_prod = 77, 99_999
    served.guest.ring.rsp_cons = served.connection.sent
    served.guest.ring.req_prod = served.connection.received
    data = Message(XS_READ, 2, 0, b"none\0").encode()
    start = served.connection.received
    for at, byte in enumerate(data):
        served.guest.page[(start + at) % 1024] = byte
    served.guest.ring.req_prod = start + len(data)
    served.ring.service()
    assert served.guest.ring.req_cons == start + len(data)
    served.guest.pull()
    assert served.guest.heard.endswith(Message(16, 2, 0, b"ENOENT\0").encode())


def test_a_message_that_is_too_long_ends_the_connection() -> None:
    served = Served()
    served.guest.outgoing += struct.pack("<4I", XS_READ, 1, 0, 4097)
    served.run()
    assert served.guest.ring.error == XENSTORE_ERROR_PROTO


def test_a_guest_reconnects_and_begins_anew() -> None:
    served = Served()
    served.ask(XS_WATCH, b"a\0t\0")
    served.ask(XS_TRANSACTION_START, b"\0")
    served.guest.outgoing += Message(XS_WRITE, 3, 0, b"a\0value").encode()[:20]
    served.run()
    served.guest.ring.connection = XENSTORE_RECONNECT
    kicks = served.guest.kicks
    served.ring.service()
    ring = served.guest.ring
    assert (ring.connection, ring.req_cons, ring.req_prod, ring.rsp_cons, ring.rsp_prod) == (0, 0, 0, 0, 0)
    assert served.guest.kicks == kicks + 1
    assert not served.connection.watches
    assert not served.connection.transactions
    served.guest.heard.clear()
    served.ask(XS_WRITE, b"a\0value", 4)
    assert [answer.req_id for answer in served.run()] == [4]


def test_a_guest_that_broke_the_protocol_may_reconnect() -> None:
    served = Served()
    served.guest.ring.req_prod = 5000
    served.ring.service()
    served.guest.ring.connection = XENSTORE_RECONNECT
    served.ring.service()
    assert served.guest.ring.error == 0
    served.ask(XS_WRITE, b"a\0value", 4)
    assert [answer.req_id for answer in served.run()] == [4]


def test_a_guest_that_does_not_read_is_asked_no_more_and_keeps_its_events_bounded() -> None:
    served = Served()
    served.ask(XS_WATCH, b"a\0t\0")
    served.guest.push()
    served.ring.service()
    writer = tools(served.store)
    served.store.limits["memory"] = 50_000
    for number in range(600):
        writer.write(f"/local/domain/5/a/{number:-<200}", "x")
    assert served.connection.waiting_bytes > 40_000
    assert served.connection.waiting_bytes <= served.connection.quotas["memory"]
    for number in range(200):
        served.ask(XS_READ, b"a\0", number)
    for _ in range(50):
        served.guest.push()
        served.ring.service()
    assert len(served.guest.outgoing) > 100 * 16
    served.store.tree.remove(writer.connection, ("local", "domain", "5", "a"))
    messages = served.run()
    assert len([each for each in messages if each.type != XS_WATCH_EVENT]) == 201
    assert not served.guest.outgoing


@settings(max_examples=200, deadline=None)
@given(
    page=st.binary(min_size=2048, max_size=2048),
    words=st.lists(st.one_of(st.integers(0, 2048), st.integers(0, 0xFFFF_FFFF)), min_size=7, max_size=7),
    turns=st.integers(1, 4),
)
def test_no_page_can_harm_the_store(page: bytes, words: list[int], turns: int) -> None:
    served = Served()
    before = served.store.request(XS_READ, b"/tool\0")
    for _ in range(turns):
        served.guest.page[:2048] = page
        served.guest.page[2048 : 2048 + 28] = struct.pack("<7I", *words)
        served.ring.service()
    assert served.store.request(XS_READ, b"/tool\0") == before
    served.store.check()
    assert bytes(served.guest.page[2048 + 28 :]) == bytes(4096 - 2048 - 28)
