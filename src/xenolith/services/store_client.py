"""A native domain's own connection to xenstore: requests as coroutines, watches as callbacks, over an ordinary ring.

Nothing here knows who keeps the store: a native domain or a Linux one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from xenolith.abi import errno
from xenolith.abi.errno import E2BIG, EAGAIN, ENOENT, XenError
from xenolith.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from xenolith.abi.io.xs_wire import (
    XENSTORE_CONNECTED,
    XENSTORE_RECONNECT,
    XENSTORE_RING_SIZE,
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_ERROR,
    XS_GET_PERMS,
    XS_INTRODUCE,
    XS_MKDIR,
    XS_READ,
    XS_RELEASE,
    XS_RESET_WATCHES,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
    XenstoreDomainInterface,
)
from xenolith.abi.types import PAGE_SIZE
from xenolith.hypervisor.native import NativeKernel, Page
from xenolith.services.tasks import Future
from xenolith.store.wire import Decoder, Message

_SIZE: Final = XENSTORE_RING_SIZE
_REQ_CONS: Final[int] = XenstoreDomainInterface.req_cons.offset >> 2  # type: ignore[attr-defined]
_REQ_PROD: Final = _REQ_CONS + 1
_RSP_CONS: Final = _REQ_CONS + 2
_RSP_PROD: Final = _REQ_CONS + 3
_CONNECTION: Final = _REQ_CONS + 5
_PEER: Final = "port of the store"
_OUTGOING: Final = "to the store"
_INCOMING: Final = "from the store"
"""What is kept for code that has to go on with the ring as it is."""
_NUMBERS: Final = 0x7FFF_FFFF
_MASK: Final = 0xFFFF_FFFF
Watcher = Callable[[str], None]
"""Told the path that has changed."""


class StoreClient:
    """Make it, have the store's domain told of `page` and `port` (XS_INTRODUCE), and use it.

    A store that nobody tells anew of the ring when the domain's code is started again has to be `remember`ed.
    Every coroutine raises XenError with the errno that the store answered.
    """

    def __init__(self, kernel: NativeKernel, store_domid: int) -> None:
        self._kernel = kernel
        peer = kernel.kept.get(_PEER)
        self.page: Page = kernel.allocate_page(clear=peer is None)
        self._bytes = self.page.view[:PAGE_SIZE]
        self._words = self._bytes.cast("I")
        kernel.grant_as(GNTTAB_RESERVED_XENSTORE, self.page.mfn, store_domid)
        self._outgoing = kernel.kept.get(_OUTGOING, bytearray())
        self._incoming = kernel.kept.get(_INCOMING, bytearray())
        self._decoder = Decoder(buffer=self._incoming)
        self._gathering = False
        self._waiting: dict[int, Future[bytes]] = {}
        self._last_request = 0
        self._watchers: dict[str, Watcher] = {}
        self._last_watch = 0
        self._events: deque[tuple[str, str]] = deque()
        if peer is None:
            # C xenstored begins with an empty ring when it is told of it, and says so then (xenstore-ring.txt).
            self._words[_CONNECTION] = XENSTORE_RECONNECT
            self.port = kernel.alloc_unbound(store_domid, self._service)
        else:
            self.port = kernel.bind_interdomain(store_domid, int(peer), self._service)
            self._go_on()

    def _go_on(self) -> None:
        """Have the store forget the watches and transactions of the code before; answers to that are not waited for."""
        self._last_request = self._last_watch = self._kernel.now_ns() & _NUMBERS
        self._request(XS_RESET_WATCHES, 0, b"\0")

    def remember(self) -> None:
        """Keep what is needed to go on with the same ring. The store has answered, and so has bound the port."""
        peer = bytearray(str(self._kernel.peer(self.port)).encode())
        self._kernel.kept |= {_PEER: peer, _OUTGOING: self._outgoing, _INCOMING: self._incoming}

    # -- requests -----------------------------------------------------------------------------------------------------

    async def read(self, path: str, transaction: int = 0) -> str:
        return (await self._ask(XS_READ, path, transaction)).decode("latin-1")

    async def read_or(self, path: str, default: str, transaction: int = 0) -> str:
        """The value, or `default` where there is no such node."""
        try:
            return await self.read(path, transaction)
        except XenError as error:
            if error.errno != ENOENT:
                raise
            return default

    async def read_each(self, paths: Sequence[str]) -> list[str]:
        """The values of several nodes, asked for at once; "" for one that is not there, or may not be read."""
        with self._gathered():
            answers = [self._ask(XS_READ, path, 0) for path in paths]
        values = []
        for answer in answers:
            try:
                values.append((await answer).decode("latin-1"))
            except XenError as error:
                if error.errno not in (ENOENT, errno.EACCES):
                    raise
                values.append("")
        return values

    async def write(self, path: str, value: str | int, transaction: int = 0) -> None:
        await self._request(XS_WRITE, transaction, _assignment(path, value))

    async def write_all(self, nodes: Iterable[tuple[str, str | int]], transaction: int = 0) -> None:
        """Write several nodes, in their order, without waiting for each. Raises the first error when all are done."""
        with self._gathered():
            answers = [self._request(XS_WRITE, transaction, _assignment(path, value)) for path, value in nodes]
        await _all(answers)

    async def make(self, path: str, transaction: int = 0) -> None:
        await self._ask(XS_MKDIR, path, transaction)

    async def make_all(self, nodes: Iterable[tuple[str, Iterable[str]]], transaction: int = 0) -> None:
        """Make nodes with these permissions, in their order; otherwise as `write_all`."""
        with self._gathered():
            answers = []
            for path, permissions in nodes:
                answers.append(self._ask(XS_MKDIR, path, transaction))
                answers.append(self._request(XS_SET_PERMS, transaction, _strings(path, *permissions)))
        await _all(answers)

    async def remove(self, path: str, transaction: int = 0) -> None:
        """Remove a node and all below it; nothing happens if it is not there."""
        try:
            await self._ask(XS_RM, path, transaction)
        except XenError as error:
            if error.errno != ENOENT:
                raise

    async def names(self, path: str, transaction: int = 0) -> list[str]:
        """The names of the nodes below; none if there is no such node."""
        try:
            payload = await self._ask(XS_DIRECTORY, path, transaction)
        except XenError as error:
            if error.errno == ENOENT:
                return []
            if error.errno != E2BIG:
                raise
            payload = await self._long_directory(path, transaction)
        return [name.decode("latin-1") for name in payload.split(b"\0") if name]

    async def _long_directory(self, path: str, transaction: int) -> bytes:
        """The names of more nodes than one answer can take, in parts (docs/misc/xenstore.txt, DIRECTORY_PART).

        It begins anew when the node's generation, with which each part begins, has changed.
        """
        names, generation = b"", b""
        while not names.endswith(b"\0\0"):
            part = await self._request(XS_DIRECTORY_PART, transaction, _strings(path, str(len(names))))
            now, _, more = part.partition(b"\0")
            names, generation = (names + more, now) if now == generation or not names else (b"", b"")
        return names

    async def permissions(self, path: str, transaction: int = 0) -> list[str]:
        payload = await self._ask(XS_GET_PERMS, path, transaction)
        return [name.decode() for name in payload.split(b"\0") if name]

    async def set_permissions(self, path: str, permissions: Iterable[str], transaction: int = 0) -> None:
        """As in ("n0", "r5"): the owner and what others may, then single domains."""
        await self._request(XS_SET_PERMS, transaction, _strings(path, *permissions))

    async def watch(self, path: str, watcher: Watcher) -> str:
        """Have `watcher` called now and after each change at or below `path`; returns what `unwatch` wants."""
        self._last_watch += 1
        token = str(self._last_watch)
        self._watchers[token] = watcher
        await self._request(XS_WATCH, 0, _strings(path, token))
        return token

    async def unwatch(self, path: str, token: str) -> None:
        self._watchers.pop(token, None)
        await self._request(XS_UNWATCH, 0, _strings(path, token))

    async def transaction(self, change: Callable[[int], Awaitable[None]]) -> None:
        """Carry out `change(transaction)`, again if others changed the same meanwhile, until it is done as one."""
        while True:
            number = int((await self._request(XS_TRANSACTION_START, 0, b"\0")).rstrip(b"\0"))
            try:
                await change(number)
            except Exception:
                await self._request(XS_TRANSACTION_END, number, b"F\0")
                raise
            try:
                await self._request(XS_TRANSACTION_END, number, b"T\0")
                return
            except XenError as error:
                if error.errno != EAGAIN:
                    raise

    async def introduce(self, domid: int, mfn: int, port: int) -> None:
        """Tell the store of another domain's ring. For privileged domains."""
        await self._request(XS_INTRODUCE, 0, _strings(str(domid), str(mfn), str(port)))

    async def release(self, domid: int) -> None:
        """Tell the store that a domain is gone. For privileged domains."""
        await self._request(XS_RELEASE, 0, _strings(str(domid)))

    def _ask(self, kind: int, path: str, transaction: int) -> Future[bytes]:
        return self._request(kind, transaction, _strings(path))

    def _request(self, kind: int, transaction: int, payload: bytes) -> Future[bytes]:
        self._last_request = (self._last_request + 1) & _MASK
        answer = self._waiting[self._last_request] = Future()
        self._outgoing += Message(kind, self._last_request, transaction, payload).encode()
        if not self._gathering:
            self._begin()
        return answer

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """What is asked for meanwhile goes out together at the end, with one notification."""
        self._gathering = True
        try:
            yield
        finally:
            self._gathering = False
            self._begin()

    def _begin(self) -> None:
        if self._send():
            self._kernel.notify(self.port)

    # -- the ring -----------------------------------------------------------------------------------------------------

    def _service(self) -> None:
        moved = True
        while moved:
            moved = self._receive()
            moved |= self._send()
            if moved:
                self._kernel.notify(self.port)

    def _send(self) -> bool:
        if self._words[_CONNECTION] != XENSTORE_CONNECTED:
            return False
        producer = self._words[_REQ_PROD]
        room = _SIZE - ((producer - self._words[_REQ_CONS]) & _MASK)
        data = self._outgoing[:room]
        if not data:
            return False
        start = producer % _SIZE
        first = min(len(data), _SIZE - start)
        self._bytes[start : start + first] = data[:first]
        self._bytes[: len(data) - first] = data[first:]
        self._words[_REQ_PROD] = (producer + len(data)) & _MASK
        del self._outgoing[: len(data)]
        return True

    def _receive(self) -> bool:
        moved = False
        while size := min((self._words[_RSP_PROD] - self._words[_RSP_CONS]) & _MASK, self._decoder.missing):
            consumer = self._words[_RSP_CONS]
            start = consumer % _SIZE
            first = min(size, _SIZE - start)
            data = bytes(self._bytes[_SIZE + start : _SIZE + start + first]) + bytes(
                self._bytes[_SIZE : _SIZE + size - first]
            )
            self._words[_RSP_CONS] = (consumer + size) & _MASK
            moved = True
            message = self._decoder.feed(data)
            if message is not None:
                self._dispatch(message)
        return moved

    def _dispatch(self, message: Message) -> None:
        if message.type == XS_WATCH_EVENT:
            path, token, *_ = message.strings()
            watcher = self._watchers.get(token.decode("latin-1"))
            if watcher is not None:
                watcher(path.decode("latin-1"))
            return
        answer = self._waiting.pop(message.req_id, None)
        if answer is None:
            return
        if message.type == XS_ERROR:
            name = message.payload.rstrip(b"\0").decode("latin-1")
            answer.set_error(XenError(getattr(errno, name, errno.EINVAL), "xenstore says so"))
        else:
            answer.set_result(message.payload)


async def _all(answers: Iterable[Future[bytes]]) -> None:
    """Wait for all of them; raises the first error then."""
    failure: XenError | None = None
    for answer in answers:
        try:
            await answer
        except XenError as error:
            failure = failure or error
    if failure is not None:
        raise failure


def _assignment(path: str, value: str | int) -> bytes:
    return path.encode("latin-1") + b"\0" + str(value).encode("latin-1")


def _strings(*texts: str) -> bytes:
    return b"".join(text.encode("latin-1") + b"\0" for text in texts)
