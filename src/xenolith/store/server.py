"""The store: clients' requests answered, watchers told of changes, and a journal from which it can be made again."""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Final, Protocol

from xenolith.abi import errno
from xenolith.abi.errno import E2BIG, EACCES, ENOENT, ENOSYS, XenError
from xenolith.abi.io.xs_wire import (
    XENSTORE_ERROR_COMM,
    XENSTORE_ERROR_PROTO,
    XENSTORE_PAYLOAD_MAX,
    XENSTORE_SERVER_FEATURE_ERROR,
    XENSTORE_SERVER_FEATURE_RECONNECTION,
    XS_ERROR,
    XS_MKDIR,
    XS_SET_PERMS,
    XS_WATCH,
    XS_WRITE,
)
from xenolith.store import quotas
from xenolith.store.connections import Connection
from xenolith.store.journal import Journal, Kind, Record
from xenolith.store.operations import OPERATIONS, Request
from xenolith.store.quotas import Quotas
from xenolith.store.tree import Change, Path, Permission, Permissions, Stamps, Tree, path_bytes, permits
from xenolith.store.watches import Watches
from xenolith.store.wire import XENSTORE_SERVER_FEATURE_WATCHDEPTH, Decoder, Message, ProtocolError

INTRODUCE_DOMAIN: Final = "@introduceDomain"
RELEASE_DOMAIN: Final = "@releaseDomain"
FEATURES: Final = (
    XENSTORE_SERVER_FEATURE_RECONNECTION | XENSTORE_SERVER_FEATURE_ERROR | XENSTORE_SERVER_FEATURE_WATCHDEPTH
)
"""What a ring can do."""
_FIRST_SOCKET: Final = 1 << 16
"""Connections of domains have the domid as their number; those of others begin here."""
_LOCAL: Final = _FIRST_SOCKET - 1
"""The number of the connection by which the domain that runs the store writes."""
_RING: Final = Struct("<QIII")
_OUTCOME: Final = Struct("<IQIII")
_NUMBER: Final = Struct("<I")


class Rim(Protocol):
    """The hypervisor, as the store needs it."""

    def bind(self, domid: int, frame: int, port: int) -> tuple[int, int]:
        """Map a domain's ring and bind its event channel, instead of what was; its req_cons and rsp_prod.

        Raises XenError.
        """

    def release(self, domid: int) -> None:
        """Let go of a domain's ring and event channel."""


def domain_path(domid: int) -> Path:
    """Where what belongs to a domain is."""
    return ("local", "domain", str(domid))


class DomainState:
    """What the store keeps of a domain, introduced or not."""

    def __init__(self, own: Quotas, features: int = FEATURES, shut_down: bool = False) -> None:
        self.quotas = own
        self.features = features
        self.shut_down = shut_down


class Store:
    """The tree and those connected to it, from a journal: a new store if that is empty, else the one that wrote it.

    `owner` is the domain that runs the store; it and those of `privileged` may do everything.
    """

    def __init__(
        self,
        owner: int,
        privileged: Iterable[int] = (),
        kept: bytearray | None = None,
        rim: Rim | None = None,
    ) -> None:
        self.owner = owner
        self.rim = rim
        self.features = FEATURES
        self.log: Callable[[str], None] = lambda line: None
        """Where XS_CONTROL prints to."""
        self.is_tracing = False
        self._journal = Journal(bytearray() if kept is None else kept)
        self._replayed: list[Record] = []
        self._begin(owner)
        if self._journal.is_empty:
            self._journal.begin(self._dump())
        else:
            self._replay()
        for domid in {owner, *privileged} - self.privileged:
            self.set_privileged(domid, True)

    def _begin(self, owner: int) -> None:
        self.stamps = Stamps()
        self.tree = Tree(owner, self.stamps)
        self.watches: Watches[Connection] = Watches()
        self.limits = quotas.defaults()
        self.privileged: set[int] = {owner}
        self.domains: dict[int, DomainState] = {}
        self.connections: dict[int, Connection] = {}
        self.active: dict[int, Connection] = {}
        """The connections for which something waits, or with which something is wrong."""
        self.specials: dict[str, Permissions] = {
            name: (Permission("n", owner),) for name in (INTRODUCE_DOMAIN, RELEASE_DOMAIN)
        }
        self._serial = 0
        self._local = self._open(_LOCAL, owner)
        self.tree.make(self._local, ("tool", "xenstored"))

    def next_serial(self) -> int:
        self._serial += 1
        return self._serial

    # -- what the rim tells -------------------------------------------------------------------------------------------

    def receive(self, connection: Connection, data: bytes) -> None:
        """Bytes of one message (`Connection.wanted`) have come from a client."""
        self._record(Kind.RECEIVED, connection.number, data)

    def sent(self, connection: Connection, count: int) -> None:
        """A client is about to see that many of the bytes that waited for it."""
        self._record(Kind.SENT, connection.number, _NUMBER.pack(count))

    def introduce(self, domid: int, ring: tuple[int, int] = (0, 0), at: tuple[int, int] = (0, 0)) -> Connection:
        """Begin to serve a domain, or begin anew: its ring's frame and port, req_cons and rsp_prod."""
        self._record(Kind.INTRODUCED, domid, _RING.pack(*ring, *at))
        return self.connections[domid]

    def open(self, domid: int) -> Connection:
        """A connection that has no ring, and acts as a domain."""
        number = next(number for number in range(_FIRST_SOCKET, 1 << 32) if number not in self.connections)
        self._record(Kind.OPENED, number, _NUMBER.pack(domid))
        return self.connections[number]

    def close(self, connection: Connection) -> None:
        """A connection is no more, with its watches and transactions."""
        self._record(Kind.CLOSED, connection.number)

    def reconnect(self, connection: Connection) -> None:
        """A domain wants to begin anew: watches and transactions are dropped, positions are 0."""
        self._record(Kind.RECONNECTED, connection.number)

    def fail(self, connection: Connection, error: int) -> None:
        """Serve a client no more. `error` is one of XENSTORE_ERROR_*."""
        self._record(Kind.FAILED, connection.number, _NUMBER.pack(error))

    def gone(self, domid: int) -> None:
        """A domain does not exist any more: nor does what it owned."""
        self._record(Kind.GONE, domid)

    def shut_down(self, domid: int) -> None:
        """A domain has shut down, or crashed; those who wait for that are told, once."""
        state = self.domains.get(domid)
        if self.is_introduced(domid) and not (state and state.shut_down):
            self._record(Kind.SHUT_DOWN, domid)

    def set_privileged(self, domid: int, privileged: bool) -> None:
        """Let a domain do everything, or no longer."""
        self._record(Kind.PRIVILEGED, domid, _NUMBER.pack(privileged))

    @property
    def introduced(self) -> list[Connection]:
        """The connections of the domains that were introduced."""
        return [connection for number, connection in self.connections.items() if number < _LOCAL]

    @property
    def known(self) -> set[int]:
        """The domains that the store has something of: `gone` is to be told of each."""
        named = {domid for counter in (self.tree.nodes, self.tree.named) for domid in counter if counter[domid] > 0}
        return named | self.domains.keys() | {number for number in self.connections if number < _LOCAL}

    def is_introduced(self, domid: int) -> bool:
        return domid in self.connections and domid < _LOCAL

    # -- the store's own domain ---------------------------------------------------------------------------------------

    def request(self, kind: int, payload: bytes) -> bytes:
        """Make a request as the domain that runs the store; its answer's payload. Raises XenError."""
        self.receive(self._local, Message(kind, 0, 0, payload).encode())
        encoded = self._local.peek(self._local.waiting_bytes)
        self.sent(self._local, len(encoded))
        answer = Decoder().feed(encoded)
        assert answer is not None
        if answer.type == XS_ERROR:
            raise XenError(getattr(errno, answer.payload[:-1].decode()), "xenstore says so")
        return answer.payload

    def write(self, path: Path, value: str) -> None:
        """Write as the domain that runs the store."""
        self.request(XS_WRITE, path_bytes(path) + b"\0" + value.encode())

    def make(self, path: Path, permissions: Permissions) -> None:
        """Make a node as the domain that runs the store, and set its permissions."""
        self.request(XS_MKDIR, path_bytes(path) + b"\0")
        self.request(XS_SET_PERMS, b"\0".join((path_bytes(path), *map(bytes, permissions))) + b"\0")

    def check(self) -> None:
        """Count again what the tree counts as it goes. AssertionError if it was wrong."""
        counted = Tree.load(self.tree.dump(), self.stamps)
        for one, other in zip(self.tree.counters, counted.counters, strict=True):
            assert +one == +other

    # -- the journal --------------------------------------------------------------------------------------------------

    def _record(self, kind: Kind, subject: int, data: bytes = b"") -> None:
        self._journal.append(kind, subject, data)
        _APPLY[kind.value](self, subject, data)
        if self._journal.is_long:
            self._shorten()

    def _replay(self) -> None:
        state, *self._replayed = self._journal.records()
        self._load(state.data)
        self._replayed.reverse()
        while self._replayed:
            record = self._replayed.pop()
            _APPLY[record.kind](self, record.subject, record.data)
        for connection in list(self.connections.values()):
            if connection.number >= _FIRST_SOCKET:
                self.close(connection)

    def _shorten(self) -> None:
        """Keep the state instead of how it came about. That ends transactions, so it waits for them; not for ever."""
        open_ = [each for connection in self.connections.values() for each in connection.transactions.values()]
        if open_ and not self._journal.is_very_long:
            return
        for transaction in open_:
            transaction.doom(self.tree)
        self._journal.begin(self._dump())

    def _dump(self) -> bytes:
        domains = [(n, each.quotas.own, each.features, each.shut_down) for n, each in self.domains.items()]
        connections = [connection.dump() for connection in self.connections.values()]
        specials = {name: [tuple(each) for each in permissions] for name, permissions in self.specials.items()}
        counters = self.stamps.last, self._serial
        plain = counters, self.tree.dump(), self.limits, sorted(self.privileged), domains, specials, connections
        return marshal.dumps(plain, 2)  # without references: equal stores have equal states

    def _load(self, state: bytes) -> None:
        (last, serial), nodes, self.limits, privileged, domains, specials, connections = marshal.loads(state)
        self.stamps.last = last
        self.tree = Tree.load(nodes, self.stamps)
        self.privileged = set(privileged)
        self.domains = {n: DomainState(Quotas(self.limits, own), *rest) for n, own, *rest in domains}
        self.specials = {
            name: tuple(Permission(*each) for each in permissions) for name, permissions in specials.items()
        }
        self.connections.clear()
        for plain in connections:
            self._open(plain[0][0], plain[0][1]).load(plain)
        self._local, self._serial = self.connections[_LOCAL], serial

    # -- what the records mean ----------------------------------------------------------------------------------------

    def _open(self, number: int, domid: int) -> Connection:
        connection = Connection(self, number, domid, self.state_of(domid).quotas)
        self.connections[number] = connection
        return connection

    def _apply_received(self, number: int, data: bytes) -> None:
        connection = self.connections[number]
        try:
            message = connection.feed(data)
        except ProtocolError:
            self.give_up(connection, XENSTORE_ERROR_PROTO)
            return
        if message is not None:
            self._answer(connection, message)

    def _apply_sent(self, number: int, data: bytes) -> None:
        self.connections[number].drop(*_NUMBER.unpack(data))

    def _apply_introduced(self, domid: int, data: bytes) -> None:
        frame, port, req_cons, rsp_prod = _RING.unpack(data)
        connection = self.connections.get(domid)
        is_new = connection is None
        if connection is None:
            connection = self._open(domid, domid)
        else:
            connection.reset()
        connection.ring = frame, port
        connection.received, connection.sent = req_cons, rsp_prod
        if is_new:
            self._tell_special(INTRODUCE_DOMAIN, domid)

    def _apply_opened(self, number: int, data: bytes) -> None:
        self._open(number, *_NUMBER.unpack(data))

    def _apply_closed(self, number: int, _: bytes) -> None:
        self._close(number)

    def _apply_reconnected(self, number: int, _: bytes) -> None:
        connection = self.connections[number]
        connection.reset()
        connection.received = connection.sent = 0

    def _apply_failed(self, number: int, data: bytes) -> None:
        self.give_up(self.connections[number], *_NUMBER.unpack(data))

    def _apply_gone(self, domid: int, _: bytes) -> None:
        was_introduced = self.is_introduced(domid)
        if was_introduced:
            self._close(domid)
        self.domains.pop(domid, None)
        self.privileged -= {domid} - {self.owner}
        for connection in self.connections.values():
            if connection.target == domid:
                connection.target = None
        self.tell(self.tree.forget(domid))
        for name, permissions in self.specials.items():
            kept = permissions if permissions[0].domid != domid else (Permission("n", self.owner),)
            self.specials[name] = (kept[0], *(each for each in kept[1:] if each.domid != domid))
        if was_introduced:
            self._tell_special(RELEASE_DOMAIN, domid)

    def _apply_shut_down(self, domid: int, _: bytes) -> None:
        self.state_of(domid).shut_down = True
        self._tell_special(RELEASE_DOMAIN, domid)

    def _apply_privileged(self, domid: int, data: bytes) -> None:
        if any(_NUMBER.unpack(data)):
            self.privileged.add(domid)
        else:
            self.privileged.discard(domid)

    def _close(self, number: int) -> None:
        connection = self.connections.pop(number)
        connection.reset(XENSTORE_ERROR_COMM)
        self.active.pop(number, None)

    # -- for the operations -------------------------------------------------------------------------------------------

    def state_of(self, domid: int) -> DomainState:
        """What is kept of a domain, from now on."""
        state = self.domains.get(domid)
        if state is None:
            state = self.domains[domid] = DomainState(Quotas(self.limits))
        return state

    def tell(self, changes: Iterable[Change], cause: Connection | None = None) -> None:
        """Send the events of changes to those who watch and may know of them."""
        for path, exact, readable in changes:
            for watch in self.watches.covering(path, exact):
                if any(permits(watch.owner, permissions, "r") for permissions in readable):
                    watch.owner.send_event(watch.event(path), cause)

    def _tell_special(self, name: str, domid: int) -> None:
        path = (name, str(domid))
        for watch in self.watches.covering(path, special=True):
            if permits(watch.owner, self.specials[name], "r"):
                watch.owner.send_event(watch.event(path))

    def give_up(self, connection: Connection, error: int = XENSTORE_ERROR_COMM) -> None:
        """Serve a client no more."""
        connection.reset(error)
        self.active[connection.number] = connection

    def introduce_by_request(self, domid: int, frame: int, port: int) -> None:
        """What XS_INTRODUCE asks for. Raises XenError."""
        failure, *ring = self._outcome(domid, frame, port)
        if failure:
            raise XenError(failure)
        self._apply_introduced(domid, _RING.pack(*ring))

    def _outcome(self, domid: int, frame: int, port: int) -> tuple[int, ...]:
        """What came of it, if it is recorded; else it is tried now, and recorded."""
        if self._replayed:
            return _OUTCOME.unpack(self._replayed.pop().data)
        failure, at = 0, (0, 0)
        if self.rim is not None:
            try:
                at = self.rim.bind(domid, frame, port)
            except XenError as error:
                failure = error.errno
        outcome = failure, frame, port, *at
        self._journal.append(Kind.OUTCOME, domid, _OUTCOME.pack(*outcome))
        return outcome

    def release_by_request(self, domid: int) -> None:
        """What XS_RELEASE asks for: to C xenstored too it is as if the domain were gone."""
        self._apply_gone(domid, b"")
        if self.rim is not None and not self._replayed:
            self.rim.release(domid)

    # -- requests -----------------------------------------------------------------------------------------------------

    def _answer(self, connection: Connection, message: Message) -> None:
        try:
            payload = self._carry_out(connection, message)
            if len(payload) > XENSTORE_PAYLOAD_MAX:
                raise XenError(E2BIG, f"an answer of {len(payload)} bytes")
        except XenError as error:
            connection.reply(message.refusal(error))
            return
        connection.reply(message.answer(payload))
        if message.type == XS_WATCH:
            connection.send_event(next(reversed(connection.watches.values())).first_event())

    def _carry_out(self, connection: Connection, message: Message) -> bytes:
        operation = OPERATIONS.get(message.type)
        if operation is None:
            raise XenError(ENOSYS, f"request {message.type}")
        if operation.privileged and not connection.privileged:
            raise XenError(EACCES, f"{operation.name} by domain {connection.domid}")
        transaction = None
        if message.tx_id and not operation.no_transaction:
            transaction = connection.transactions.get(message.tx_id)
            if transaction is None:
                raise XenError(ENOENT, f"transaction {message.tx_id}")
        if self.is_tracing:
            self.log(f"{connection.domid} {operation.name} {message.payload[:64]!r}")
        return operation.carry_out(Request(self, connection, message, transaction))


_APPLY: Final[dict[int, Callable[[Store, int, bytes], None]]] = {
    int(kind): apply
    for kind, apply in (
        (Kind.RECEIVED, Store._apply_received),
        (Kind.SENT, Store._apply_sent),
        (Kind.INTRODUCED, Store._apply_introduced),
        (Kind.OPENED, Store._apply_opened),
        (Kind.CLOSED, Store._apply_closed),
        (Kind.RECONNECTED, Store._apply_reconnected),
        (Kind.FAILED, Store._apply_failed),
        (Kind.GONE, Store._apply_gone),
        (Kind.SHUT_DOWN, Store._apply_shut_down),
        (Kind.PRIVILEGED, Store._apply_privileged),
    )
}
