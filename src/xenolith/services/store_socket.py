"""Xenstore over a unix socket, where Xen's own tools find it by $XENSTORED_PATH: each of its clients is privileged."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from xenolith.store.connections import Connection
from xenolith.store.server import Store

_CLIENTS_MAX: Final = 256
_READ_SIZE: Final = 4096
_HELD_BACK: Final = 1 << 20
"""How many bytes may wait for a client before its requests have to wait until it has read some."""


class Outside(Protocol):
    """What the host does for sockets; it calls in the machine's own thread."""

    def watch_readable(self, fd: int, action: Callable[[], None]) -> None: ...

    def watch_writable(self, fd: int, action: Callable[[], None]) -> None: ...

    def unwatch(self, fd: int) -> None: ...


class StoreSocket:
    """Listens at `path`, where only this user gets in. `serve` is called after requests: others may have to be told.

    Raises OSError if the path cannot be had.
    """

    def __init__(self, store: Store, path: Path, outside: Outside, serve: Callable[[], None]) -> None:
        self._store = store
        self._outside = outside
        self._serve = serve
        self._path = path
        self.clients: dict[int, _Client] = {}
        """By the number of their connection."""
        self._listener = _listen(path)
        outside.watch_readable(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        if len(self.clients) >= _CLIENTS_MAX:
            peer.close()
            return
        connection = self._store.open(self._store.owner)
        self.clients[connection.number] = _Client(self._store, connection, peer, self._outside, self._served)

    def _served(self) -> None:
        for number in [number for number, client in self.clients.items() if client.is_closed]:
            del self.clients[number]
        self._serve()

    def close(self) -> None:
        """Listen no more, and let go of all clients."""
        self._outside.unwatch(self._listener.fileno())
        self._listener.close()
        self._path.unlink(missing_ok=True)
        for client in self.clients.values():
            client.let_go()
        self.clients.clear()


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen()
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


class _Client:
    """One socket. What was read and not yet taken is never more than one read; what waits is bounded by the store."""

    def __init__(
        self,
        store: Store,
        connection: Connection,
        peer: socket.socket,
        outside: Outside,
        served: Callable[[], None],
    ) -> None:
        self._store = store
        self._connection = connection
        self._socket = peer
        self._outside = outside
        self._served = served
        self._taken = b""
        self._is_reading = self._is_writing = False
        self.is_closed = False
        peer.setblocking(False)
        # One descriptor is watched for one thing.
        self._writer = os.dup(peer.fileno())
        self._go_on()

    def flush(self) -> None:
        """Send what waits, as far as it goes, and take requests that had to wait."""
        if not self.is_closed:
            self._give()
            self._take()
            self._go_on()

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close()
        else:
            self._taken += data
            self.flush()
        self._served()

    def _writable(self) -> None:
        self.flush()
        self._served()

    def _take(self) -> None:
        connection = self._connection
        while self._taken and connection.is_ready and connection.waiting_bytes < _HELD_BACK:
            wanted = connection.wanted(self._taken)
            data, self._taken = self._taken[:wanted], self._taken[wanted:]
            self._store.receive(connection, data)
            self._give()
        if connection.error:
            self._close()

    def _give(self) -> None:
        while not self.is_closed and (data := self._connection.peek(_HELD_BACK)):
            try:
                count = self._socket.send(data)
            except BlockingIOError:
                return
            except OSError:
                self._close()
                return
            self._store.sent(self._connection, count)

    def _go_on(self) -> None:
        """Wait for what there is to wait for: more requests only when those that came are done."""
        if self.is_closed:
            return
        if self._is_reading != (not self._taken):
            self._is_reading = not self._taken
            if self._is_reading:
                self._outside.watch_readable(self._socket.fileno(), self._readable)
            else:
                self._outside.unwatch(self._socket.fileno())
        if self._is_writing != bool(self._connection.waiting_bytes):
            self._is_writing = not self._is_writing
            if self._is_writing:
                self._outside.watch_writable(self._writer, self._writable)
            else:
                self._outside.unwatch(self._writer)

    def _close(self) -> None:
        if not self.is_closed:
            self.let_go()
            self._store.close(self._connection)

    def let_go(self) -> None:
        """Close the socket; the store is not told."""
        self.is_closed = True
        for fd, is_watched in ((self._socket.fileno(), self._is_reading), (self._writer, self._is_writing)):
            if is_watched:
                self._outside.unwatch(fd)
        with contextlib.suppress(OSError):
            os.close(self._writer)
        self._socket.close()
