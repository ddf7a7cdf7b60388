"""A client of the store without a ring: requests as calls, answers and events as they would come out of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import pytest

from xenolith.abi.io.xs_wire import (
    XS_DIRECTORY,
    XS_ERROR,
    XS_GET_PERMS,
    XS_MKDIR,
    XS_READ,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenolith.store.connections import Connection
from xenolith.store.server import Store
from xenolith.store.wire import Decoder, Message

OWNER = 1
"""The domain that runs the store."""


class Refused(Exception):
    """The store's answer was an error."""


class Client:
    """Reads what waits for its connection whenever it makes a request; events stay until they are asked for."""

    def __init__(self, store: Store, connection: Connection) -> None:
        self.store = store
        self.connection = connection
        self._events: deque[tuple[str, str]] = deque()
        self._answers: deque[Message] = deque()
        self._decoder = Decoder()

    def request(self, kind: int, payload: bytes, transaction: int = 0) -> bytes:
        """The answer's payload. Raises Refused with the name of an error."""
        self.send(Message(kind, 7, transaction, payload))
        self.collect()
        answer = self._answers.popleft()
        assert (answer.req_id, answer.tx_id) == (7, transaction)
        if answer.type == XS_ERROR:
            raise Refused(answer.payload[:-1].decode())
        assert answer.type == kind
        return answer.payload

    def send(self, message: Message) -> None:
        data = message.encode()
        while data:
            wanted = self.connection.wanted(data)
            self.store.receive(self.connection, data[:wanted])
            data = data[wanted:]

    def collect(self) -> None:
        while data := self.connection.peek(1 << 20):
            self.store.sent(self.connection, len(data))
            message = self._decoder.feed(data)
            assert message is not None
            if message.type == XS_WATCH_EVENT:
                path, token = message.strings()
                self._events.append((path.decode(), token.decode()))
            else:
                self._answers.append(message)

    def events(self) -> list[tuple[str, str]]:
        """The events that have come since the last time: path and token."""
        self.collect()
        events = list(self._events)
        self._events.clear()
        return events

    def strings(self, kind: int, *texts: str, transaction: int = 0) -> bytes:
        return self.request(kind, b"".join(text.encode() + b"\0" for text in texts), transaction)

    def read(self, path: str, transaction: int = 0) -> bytes:
        return self.strings(XS_READ, path, transaction=transaction)

    def write(self, path: str, value: bytes | str, transaction: int = 0) -> None:
        data = value if isinstance(value, bytes) else value.encode()
        assert self.request(XS_WRITE, path.encode() + b"\0" + data, transaction) == b"OK\0"

    def make(self, path: str, transaction: int = 0) -> None:
        assert self.strings(XS_MKDIR, path, transaction=transaction) == b"OK\0"

    def remove(self, path: str, transaction: int = 0) -> None:
        assert self.strings(XS_RM, path, transaction=transaction) == b"OK\0"

    def names(self, path: str, transaction: int = 0) -> list[str]:
        return [name.decode() for name in self.strings(XS_DIRECTORY, path, transaction=transaction).split(b"\0")[:-1]]

    def permissions(self, path: str) -> list[str]:
        return [each.decode() for each in self.strings(XS_GET_PERMS, path).split(b"\0")[:-1]]

    def set_permissions(self, path: str, permissions: Iterable[str], transaction: int = 0) -> None:
        assert self.strings(XS_SET_PERMS, path, *permissions, transaction=transaction) == b"OK\0"

    def watch(self, path: str, token: str, *depth: str) -> None:
        assert self.strings(XS_WATCH, path, token, *depth) == b"OK\0"

    def unwatch(self, path: str, token: str) -> None:
        assert self.strings(XS_UNWATCH, path, token) == b"OK\0"

    def start(self) -> int:
        return int(self.request(XS_TRANSACTION_START, b"\0")[:-1])

    def end(self, transaction: int, commit: bool = True) -> None:
        assert self.request(XS_TRANSACTION_END, b"T\0" if commit else b"F\0", transaction) == b"OK\0"


def refusal(client: Client, kind: int, payload: bytes, transaction: int = 0) -> str:
    """The error that a request is answered with."""
    with pytest.raises(Refused) as caught:
        client.request(kind, payload, transaction)
    return str(caught.value)


def tools(store: Store) -> Client:
    """A privileged client."""
    return Client(store, store.open(store.owner))


def guest(store: Store, domid: int) -> Client:
    """A domain with a home of its own, as a toolstack makes it."""
    home = f"/local/domain/{domid}"
    maker = tools(store)
    maker.make(home)
    maker.set_permissions(home, [f"n{store.owner}", f"r{domid}"])
    maker.make(f"{home}/data")
    maker.set_permissions(f"{home}/data", [f"n{domid}"])
    store.close(maker.connection)
    return Client(store, store.introduce(domid))
