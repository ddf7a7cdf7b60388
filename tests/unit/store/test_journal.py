"""A store that is dropped at any moment, and the one that its journal makes: no client can tell."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.store.ring_guest import RingGuest
from tests.unit.store.support import OWNER, guest, tools
from xenolith.abi.errno import ENOENT, XenError
from xenolith.abi.io.xs_wire import (
    XS_DIRECTORY,
    XS_ERROR,
    XS_GET_PERMS,
    XS_INTRODUCE,
    XS_MKDIR,
    XS_READ,
    XS_RESET_WATCHES,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenolith.backends.store import StoreRing
from xenolith.store import journal
from xenolith.store.server import Store
from xenolith.store.wire import Decoder, Message

DOMIDS = (OWNER, 5, 6)
PATHS = ("data", "data/a", "data/a/b", "data/b", "/shared", "/shared/x", "/shared/x/y", "data/" + "n" * 40)


class Killed(Exception):
    """The code was dropped."""


class World:
    """A store, its journal and its guests. The rings are the guests' memory and stay; all else can be dropped."""

    def __init__(self) -> None:
        self.kept = bytearray()
        self.guests = {domid: RingGuest(0xFFFF_FF00) for domid in DOMIDS}
        self.store = Store(OWNER, kept=self.kept)
        self.store.write(("shared",), "")
        for domid in DOMIDS:
            home = ("local", "domain", str(domid), "data")
            self.store.make(home, (_permission(f"n{domid}"),))
            self.store.introduce(domid, (1, 1), (0xFFFF_FF00, 0xFFFF_FF00))
        self.store.make(("shared",), (_permission("b1"), _permission("r6")))
        self.serve_again()

    def serve_again(self) -> None:
        self.rings = {
            connection.domid: StoreRing(
                self.guests[connection.domid].view, self.store, connection, self.guests[connection.domid].kick
            )
            for connection in self.store.introduced
        }

    def serve(self, first: int = OWNER) -> None:
        """What the service does when a domain has signalled: that one's ring, then the others', until nothing moves.

        In one order, so that what is not told twice because it waits already is the same with a kill and without.
        """
        rings = sorted(self.rings.items(), key=lambda each: (each[0] != first, each[0]))
        while sum(ring.service() for _, ring in rings):
            pass

    def restart(self) -> None:
        self.store = Store(OWNER, kept=self.kept)
        self.serve_again()

    def serve_and_die(self, first: int, lines: int) -> None:
        """Serve, be killed after so many lines of code, and start again; a kill while starting again is one, too."""
        try:
            _run_lines(lambda: self.serve(first), lines)
            return
        except Killed:
            pass
        try:
            _run_lines(self.restart, lines)
        except Killed:
            self.restart()
        self.serve(first)


def _permission(text: str) -> Any:
    from xenolith.store.tree import Permission

    return Permission.parse(text.encode())


def _run_lines(action: Any, lines: int) -> None:
    """Do it, and raise Killed before that many lines of the store's own code are done."""
    left = lines

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        name = frame.f_code.co_filename
        if "/xenolith/store/" not in name and "/xenolith/backends/" not in name:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Killed
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(previous)


def messages(data: bytes) -> list[Message]:
    """All complete messages of a stream."""
    decoder, found = Decoder(), []
    while data and (wanted := decoder.wanted(data)):
        message = decoder.feed(data[:wanted])
        data = data[wanted:]
        if message is not None:
            found.append(message)
    return found


payloads = st.one_of(
    st.tuples(
        st.sampled_from((XS_READ, XS_MKDIR, XS_RM, XS_DIRECTORY, XS_GET_PERMS)),
        st.sampled_from(PATHS).map(lambda path: path.encode() + b"\0"),
    ),
    st.tuples(
        st.just(XS_WRITE),
        st.tuples(st.sampled_from(PATHS), st.binary(max_size=300)).map(lambda pair: pair[0].encode() + b"\0" + pair[1]),
    ),
    st.tuples(
        st.just(XS_SET_PERMS),
        st.tuples(st.sampled_from(PATHS), st.sampled_from((b"n5\0", b"b5\0r6\0", b"w6\0", b"n1\0b5\0b6\0"))).map(
            lambda pair: pair[0].encode() + b"\0" + pair[1]
        ),
    ),
    st.tuples(
        st.sampled_from((XS_WATCH, XS_UNWATCH)),
        st.tuples(st.sampled_from((*PATHS, "/", "@releaseDomain")), st.sampled_from("tu")).map(
            lambda pair: "\0".join((*pair, "")).encode()
        ),
    ),
    st.tuples(st.just(XS_TRANSACTION_START), st.just(b"\0")),
    st.tuples(st.just(XS_TRANSACTION_END), st.sampled_from((b"T\0", b"T\0", b"F\0"))),
    st.tuples(st.just(XS_RESET_WATCHES), st.just(b"\0")),
    st.tuples(st.just(99), st.binary(max_size=20)),
)


class DroppedStore(RuleBasedStateMachine):
    """Two worlds that get the same: in one of them the store is killed again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.worlds = self.mortal, self.steady = World(), World()
        self.asked: dict[int, list[int]] = {domid: [] for domid in DOMIDS}
        self.written: dict[int, tuple[int, str, bytes]] = {}

    @rule(
        domid=st.sampled_from(DOMIDS),
        requests=st.lists(st.tuples(payloads, st.sampled_from((0, 0, 1, 2))), min_size=1, max_size=6),
        limit=st.integers(100, 1024),
        lines=st.integers(1, 5000),
    )
    def ask(self, domid: int, requests: list[tuple[tuple[int, bytes], int]], limit: int, lines: int) -> None:
        for (kind, payload), transaction in requests:
            number = sum(map(len, self.asked.values()))
            self.asked[domid].append(number)
            data = Message(kind, number, transaction, payload).encode()
            for world in self.worlds:
                world.guests[domid].outgoing += data
        self._push(domid, limit, lines)

    @rule(
        asker=st.sampled_from(DOMIDS),
        watcher=st.sampled_from(DOMIDS),
        paths=st.lists(st.sampled_from(PATHS), min_size=2, max_size=4),
        lines=st.integers(1, 5000),
    )
    def watch_and_write(self, asker: int, watcher: int, paths: list[str], lines: int) -> None:
        """What makes many events that wait."""
        self.ask(watcher, [((XS_WATCH, b"/\0t%d\0" % len(paths)), 0)], 1024, lines)  # type: ignore[operator]
        writes = [((XS_WRITE, path.encode() + b"\0" + b"v" * 200), 0) for path in paths]
        self.ask(asker, writes, 1024, lines)  # type: ignore[operator]

    def _push(self, domid: int, limit: int, lines: int) -> None:
        for world in self.worlds:
            world.guests[domid].push(limit)
        self.steady.serve(domid)
        self.mortal.serve_and_die(domid, lines)

    @rule(domid=st.sampled_from(DOMIDS), limit=st.integers(1, 1024), lines=st.integers(1, 5000))
    def push(self, domid: int, limit: int, lines: int) -> None:
        self._push(domid, limit, lines)

    @rule(domid=st.sampled_from(DOMIDS), limit=st.integers(1, 200), lines=st.integers(1, 500))
    def pull(self, domid: int, limit: int, lines: int) -> None:
        for world in self.worlds:
            world.guests[domid].pull(limit)
        self.steady.serve(domid)
        self.mortal.serve_and_die(domid, lines)

    @precondition(lambda self: len(self.asked[5]) > 9)
    @rule(restart=st.booleans())
    def reconnect(self, restart: bool) -> None:
        self.asked[5] = []
        for world in self.worlds:
            world.guests[5].outgoing.clear()
            world.guests[5].heard.clear()
            world.guests[5].ring.connection = 1
        if restart:
            self.mortal.restart()
        for world in self.worlds:
            world.serve()
            assert world.guests[5].ring.connection == 0

    @rule(domid=st.sampled_from(DOMIDS), cut=st.integers(1, 40))
    def shorten_in_the_middle_of_a_request(self, domid: int, cut: int) -> None:
        number = sum(map(len, self.asked.values()))
        self.asked[domid].append(number)
        for world in self.worlds:
            one = world.guests[domid]
            one.outgoing += Message(XS_WRITE, number, 0, b"data/a\0some value that is cut").encode()
            one.push(len(one.outgoing) - cut)
            world.serve(domid)
        for world in self.worlds:
            for connection in world.store.connections.values():
                for transaction in connection.transactions.values():
                    transaction.doom(world.store.tree)
            world.store._journal.begin(world.store._dump())
        self.mortal.restart()
        for world in self.worlds:
            world.serve()

    @invariant()
    def nobody_can_tell(self) -> None:
        for domid in DOMIDS:
            mortal, steady = (world.guests[domid] for world in self.worlds)
            assert mortal.heard == steady.heard
            assert mortal.page[:2048] == steady.page[:2048]
            assert bytes(mortal.ring)[2048:] == bytes(steady.ring)[2048:]
        assert self.mortal.store._dump() == self.steady.store._dump()

    @invariant()
    def each_request_has_one_answer_at_most_and_they_are_in_order(self) -> None:
        for domid in DOMIDS:
            heard = messages(bytes(self.mortal.guests[domid].heard))
            answers = [message.req_id for message in heard if message.type != XS_WATCH_EVENT]
            assert answers == self.asked[domid][: len(answers)]

    def teardown(self) -> None:
        """When all was said and heard, each request has its answer."""
        for domid, numbers in self.asked.items():
            for world in self.worlds:
                one = world.guests[domid]
                for _ in range(10_000):
                    before = len(one.outgoing), len(one.heard)
                    one.push()
                    world.serve()
                    one.pull()
                    if (len(one.outgoing), len(one.heard)) == before:
                        break
            heard = messages(bytes(self.mortal.guests[domid].heard))
            assert [message.req_id for message in heard if message.type != XS_WATCH_EVENT] == numbers
        self.mortal.store.check()


DroppedStore.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestDroppedStore = DroppedStore.TestCase


def test_what_was_acknowledged_is_there_after_a_kill_at_any_line() -> None:
    """Write, hear the answer, die anywhere in the next write: the first value is there, the second at last."""
    done, lines = False, 0
    while not done:
        lines += 1
        world = World()
        one = world.guests[5]
        one.outgoing += Message(XS_WRITE, 1, 0, b"data/a\0first").encode()
        one.push()
        world.serve()
        one.pull()
        assert [message.payload for message in messages(one.heard)] == [b"OK\0"]
        one.outgoing += Message(XS_WRITE, 2, 0, b"data/a\0second").encode()
        one.push()
        try:
            _run_lines(world.serve, lines)
            done = True
        except Killed:
            one.pull()  # the guest goes on while there is no store
        world.restart()
        value = world.store.request(XS_READ, b"/local/domain/5/data/a\0")
        assert value in ((b"second",) if len(messages(one.heard)) == 2 else (b"first", b"second"))
        world.serve()
        one.pull()
        assert [message.req_id for message in messages(one.heard)] == [1, 2]
        assert world.store.request(XS_READ, b"/local/domain/5/data/a\0") == b"second"
    assert lines > 100, "the write takes that much code at least"


def test_every_prefix_of_the_records_makes_the_store_as_it_was_then() -> None:
    kept = bytearray()
    store = Store(OWNER, kept=kept)
    one, two = guest(store, 5), guest(store, 6)
    states = []

    def remember() -> None:
        states.append((len(kept), store._dump()))

    for step in range(30):
        one.write(f"data/{step % 7}/x", f"{step}" * step)
        remember()
        if step % 5 == 0:
            one.watch(f"data/{step % 7}", f"token{step}")
            two.send(Message(XS_WATCH, step, 0, b"data\0t\0"))
            remember()
        if step % 9 == 0:
            number = one.start()
            one.write("data/transacted", str(step), number)
            remember()
            one.end(number)
            two.send(Message(XS_TRANSACTION_START, step, 0, b"\0"))
            remember()
    store.shut_down(6)
    remember()
    store.gone(6)
    remember()
    for length, state in states:
        assert Store(OWNER, kept=kept[:length])._dump() == state


def test_a_transaction_that_was_open_at_the_kill_goes_on() -> None:
    kept = bytearray()
    store = Store(OWNER, kept=kept)
    one = guest(store, 5)
    number = one.start()
    one.write("data/a", "in it", number)
    store = Store(OWNER, kept=kept)
    one.store, one.connection = store, store.connections[5]
    one.end(number)
    assert one.read("data/a") == b"in it"


def test_sockets_do_not_outlive_the_code() -> None:
    kept = bytearray()
    store = Store(OWNER, kept=kept)
    client = tools(store)
    client.watch("/", "t")
    client.write("/a", "kept")
    again = Store(OWNER, kept=kept)
    assert client.connection.number not in again.connections
    assert again.request(XS_READ, b"/a\0") == b"kept"
    assert not again.watches.covering(("a",))


def test_privileges_quotas_and_features_are_kept() -> None:
    kept = bytearray()
    store = Store(OWNER, [3], kept)
    store.set_privileged(4, True)
    store.set_privileged(3, False)
    tools(store).strings(26, "5", "nodes", "7")
    again = Store(OWNER, kept=kept)
    assert again.privileged == {OWNER, 4}
    assert again.domains[5].quotas["nodes"] == 7
    assert again._dump() == store._dump() or not any(n > 65535 for n in again.connections)


def test_the_journal_is_made_shorter_and_never_grows_beyond_a_few_times_the_state() -> None:
    kept = bytearray()
    store = Store(OWNER, kept=kept)
    client = tools(store)
    longest = 0
    for number in range(6000):
        client.write(f"/a/{number % 50}", "x" * 100)
        longest = max(longest, len(kept))
    assert longest < 2 * journal.COMPACTED_BYTES
    assert Store(OWNER, kept=kept).request(XS_READ, b"/a/7\0") == b"x" * 100


def test_a_transaction_that_is_never_ended_does_not_keep_the_journal_long() -> None:
    kept = bytearray()
    store = Store(OWNER, kept=kept)
    holder, client = guest(store, 5), tools(store)
    number = holder.start()
    holder.read("data", number)
    longest = 0
    for step in range(9000):
        client.write(f"/a/{step % 50}", "x" * 300)
        longest = max(longest, len(kept))
    assert longest < 6 * journal.COMPACTED_BYTES
    with pytest.raises(Exception, match="EAGAIN"):
        holder.end(number)


# -- introducing a domain ----------------------------------------------------------------------------------------------


class Binder:
    """What the hypervisor does when the store introduces a domain; it can fail, and be interrupted."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []
        self.released: list[int] = []
        self.error: Exception | None = None

    def bind(self, domid: int, frame: int, port: int) -> tuple[int, int]:
        self.calls.append((domid, frame, port))
        if self.error is not None:
            raise self.error
        return 16, 32

    def release(self, domid: int) -> None:
        self.released.append(domid)


def test_what_came_of_an_introduction_is_kept_and_not_tried_again() -> None:
    kept, rim = bytearray(), Binder()
    store = Store(OWNER, kept=kept, rim=rim)
    client = tools(store)
    client.strings(XS_INTRODUCE, "7", "123", "4")
    rim.error = XenError(ENOENT)
    with pytest.raises(Exception, match="ENOENT"):
        client.strings(XS_INTRODUCE, "8", "124", "5")
    after = Binder()
    again = Store(OWNER, kept=kept, rim=after)
    assert after.calls == []
    assert [connection.ring for connection in again.introduced] == [(123, 4)]
    assert (again.connections[7].received, again.connections[7].sent) == (16, 32)


def test_an_introduction_that_was_interrupted_is_tried_again() -> None:
    kept, rim = bytearray(), Binder()
    store = Store(OWNER, [2], kept, rim)
    asker = store.introduce(2)
    rim.error = Killed()
    data = Message(XS_INTRODUCE, 9, 0, b"\0".join((b"7", b"123", b"4", b""))).encode()
    with pytest.raises(Killed):
        store.receive(asker, data)
    after = Binder()
    again = Store(OWNER, kept=kept, rim=after)
    assert after.calls == [(7, 123, 4)]
    assert again.is_introduced(7)
    answers = messages(again.connections[2].peek(100))
    assert [(answer.type, answer.req_id) for answer in answers] == [(XS_INTRODUCE, 9)]
    assert XS_ERROR not in [answer.type for answer in answers]


def test_a_shortened_journal_keeps_what_waits_and_what_is_begun() -> None:
    kept = bytearray()
    store = Store(OWNER, kept=kept)
    one, writer = guest(store, 5), tools(store)
    one.watch("data", "t")
    one.events()
    writer.write("/local/domain/5/data/a", "x")
    writer.write("/local/domain/5/data/b", "x")
    store.sent(one.connection, 5)
    store.receive(one.connection, Message(XS_READ, 3, 0, b"data\0").encode()[:18])
    store._journal.begin(store._dump())

    again = Store(OWNER, kept=kept)
    there, rest = again.connections[5], bytearray(5)
    assert there.waiting_bytes == one.connection.waiting_bytes
    again.request(XS_WRITE, b"/local/domain/5/data/b\0y")
    again.receive(there, Message(XS_READ, 3, 0, b"data\0").encode()[18:])
    while data := there.peek(1000):
        again.sent(there, len(data))
        rest += data
    assert rest.count(b"data/b\0t\0") == 1
    assert rest.endswith(Message(XS_READ, 3, 0, b"").encode())
    assert there.waiting_bytes == 0
    again.request(XS_WRITE, b"/local/domain/5/data/b\0z")
    assert there.waiting_bytes, "what was told before is told anew"
