"""One client of the store: what has come from it, what waits for it, and what it has open."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from xenolith.abi.io.xs_wire import XENSTORE_ERROR_NONE, XENSTORE_PAYLOAD_MAX, XS_WATCH_EVENT
from xenolith.store.quotas import Quotas
from xenolith.store.transactions import Transaction
from xenolith.store.tree import Path
from xenolith.store.watches import Watch
from xenolith.store.wire import Decoder, Message

if TYPE_CHECKING:
    from xenolith.store.server import Store

WAITING_MAX: Final = 16 << 20
"""How many bytes may wait for a privileged client before it is given up."""
CAUSED_MAX: Final = 1024
"""How many events that a guest has caused may wait for privileged clients before its requests have to wait."""
_POSITION_MASK: Final = 0xFFFF_FFFF


class _Outgoing:
    """Bytes that wait for a client: a reply, or the event with that payload, which `cause` has brought about."""

    __slots__ = ("cause", "data", "event")

    def __init__(self, data: bytes, event: bytes | None, cause: Connection | None) -> None:
        self.data = data
        self.event = event
        self.cause = cause


class Connection:
    """A client that acts as `domid`. Everything that changes it goes through the store, which keeps a journal of it.

    `received` and `sent` are positions in the two streams, modulo 2^32: what the ring calls req_cons and rsp_prod.
    """

    def __init__(self, store: Store, number: int, domid: int, quotas: Quotas) -> None:
        self._store = store
        self.number = number
        self.domid = domid
        self.quotas = quotas
        self.serial = store.next_serial()
        self.home: Path = ("local", "domain", str(domid))
        self.target: int | None = None
        self.ring: tuple[int, int] | None = None
        """The frame and the event channel of a domain that was introduced."""
        self.received = 0
        self.sent = 0
        self.error = XENSTORE_ERROR_NONE
        """Why it is not served any more (XENSTORE_ERROR_*)."""
        self.watches: dict[tuple[bool, Path, bytes], Watch[Connection]] = {}
        self.transactions: dict[int, Transaction] = {}
        self.last_transaction = 0
        self.waiting_bytes = 0
        self._decoder = Decoder()
        self._outgoing: deque[_Outgoing] = deque()
        self._offset = 0
        self._events: set[bytes] = set()
        self._replies = 0
        self._caused = 0

    @property
    def privileged(self) -> bool:
        return self.domid in self._store.privileged

    # -- what comes in ------------------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether another request may be taken: what came before must have been read first (domain_can_read)."""
        if self.error:
            return False
        if self.privileged:
            return self._replies < WAITING_MAX // XENSTORE_PAYLOAD_MAX
        quotas = self.quotas
        return (
            self._replies < quotas["outstanding"]
            and self._caused < CAUSED_MAX
            and self.waiting_bytes < quotas["memory"]
        )

    @property
    def outstanding(self) -> int:
        """How many replies wait for the client."""
        return self._replies

    def wanted(self, available: bytes) -> int:
        """How many of the bytes that a client offers next to take at once: those of one message."""
        return self._decoder.wanted(available)

    def feed(self, data: bytes) -> Message | None:
        """Take bytes of one message; the message if they complete it. Raises ProtocolError."""
        self.received = (self.received + len(data)) & _POSITION_MASK
        return self._decoder.feed(data)

    # -- what goes out ------------------------------------------------------------------------------------------------

    def reply(self, message: Message) -> None:
        self._replies += 1
        self._put(_Outgoing(message.encode(), None, None))

    def send_event(self, payload: bytes, cause: Connection | None = None) -> None:
        """Tell of a change. What waits already, and what is too much, is not told (send_event)."""
        if self.error or payload in self._events or len(payload) > XENSTORE_PAYLOAD_MAX:
            return
        limit = WAITING_MAX if self.privileged else self.quotas["memory"]
        if self.waiting_bytes + len(payload) > limit:
            if self.privileged:
                self._store.give_up(self)
            return
        if not payload.startswith(b"@"):
            self._events.add(payload)
        if cause is not None:
            if cause.privileged or not self.privileged:
                cause = None
            else:
                cause._caused += 1
        self._put(_Outgoing(Message(XS_WATCH_EVENT, 0, 0, payload).encode(), payload, cause))

    def _put(self, outgoing: _Outgoing) -> None:
        if self.error:
            return
        self._outgoing.append(outgoing)
        self.waiting_bytes += len(outgoing.data)
        self._store.active[self.number] = self

    def peek(self, limit: int) -> bytes:
        """The next bytes for the client, at most `limit`, all of one message."""
        return self._outgoing[0].data[self._offset : self._offset + limit] if self._outgoing else b""

    def drop(self, count: int) -> None:
        """The client has got that many of the bytes."""
        count = min(count, self.waiting_bytes)
        self.sent = (self.sent + count) & _POSITION_MASK
        self.waiting_bytes -= count
        self._offset += count
        while self._outgoing and self._offset >= len(self._outgoing[0].data):
            done = self._outgoing.popleft()
            self._offset -= len(done.data)
            self._done(done)

    def _done(self, outgoing: _Outgoing) -> None:
        if outgoing.event is None:
            self._replies -= 1
            return
        self._events.discard(outgoing.event)
        cause = outgoing.cause
        if cause is not None:
            cause._caused -= 1
            if cause._caused == CAUSED_MAX - 1 and not cause.error:
                self._store.active[cause.number] = cause  # its requests had to wait for this

    # -- what it has open ---------------------------------------------------------------------------------------------

    def start_transaction(self, transaction: Transaction) -> int:
        number = self.last_transaction % _POSITION_MASK + 1
        while number in self.transactions:
            number = number % _POSITION_MASK + 1
        self.last_transaction = number
        self.transactions[number] = transaction
        return number

    def add_watch(self, watch: Watch[Connection]) -> None:
        self.watches[watch.key] = watch
        self._store.watches.add(watch)

    def remove_watch(self, watch: Watch[Connection]) -> None:
        del self.watches[watch.key]
        self._store.watches.remove(watch)

    def forget_open(self) -> None:
        """End its watches and transactions."""
        for watch in list(self.watches.values()):
            self.remove_watch(watch)
        self.transactions.clear()

    def reset(self, error: int = XENSTORE_ERROR_NONE) -> None:
        """Be as a new connection is, or one that is not served any more because of an error."""
        self.forget_open()
        for outgoing in self._outgoing:
            self._done(outgoing)
        self._outgoing.clear()
        self._offset = self.waiting_bytes = 0
        self._decoder = Decoder()
        self.error = error

    # -- all of it ----------------------------------------------------------------------------------------------------

    def dump(self) -> tuple[Any, ...]:
        """The connection as plain data. Of the transactions only the numbers: they must be doomed."""
        return (
            (self.number, self.domid, self.serial, self.target, self.ring, self.received, self.sent, self.error),
            [
                (watch.path, watch.special, watch.depth, watch.text, watch.token, watch.home, watch.serial)
                for watch in self.watches.values()
            ],
            (list(self.transactions), self.last_transaction),
            (self._decoder.begun, self._offset, [(each.data, each.event) for each in self._outgoing]),
        )

    def load(self, plain: tuple[Any, ...]) -> None:
        """Be what `dump` made that data of."""
        numbers, watches, (transactions, self.last_transaction), (begun, self._offset, outgoing) = plain
        _, _, self.serial, self.target, self.ring, self.received, self.sent, self.error = numbers
        for each in watches:
            self.add_watch(Watch(self, *each))
        for number in transactions:
            self.transactions[number] = Transaction(self._store.tree)
            self.transactions[number].doomed = True
        self._decoder = Decoder(begun)
        for data, event in outgoing:
            self._put(_Outgoing(data, event, None))
            if event is None:
                self._replies += 1
            elif not event.startswith(b"@"):
                self._events.add(event)
        self.waiting_bytes -= self._offset
