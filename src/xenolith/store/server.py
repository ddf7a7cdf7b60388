"""The store as its clients see it: one connection for each domain, requests answered, watchers told of changes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from xenolith.abi.errno import E2BIG, EACCES, EBUSY, EEXIST, EINVAL, ENOENT, ENOSPC, ENOSYS, XenError
from xenolith.abi.io.xs_wire import (
    XENSTORE_PAYLOAD_MAX,
    XS_CONTROL,
    XS_DIRECTORY,
    XS_GET_DOMAIN_PATH,
    XS_GET_PERMS,
    XS_INTRODUCE,
    XS_IS_DOMAIN_INTRODUCED,
    XS_MKDIR,
    XS_READ,
    XS_RELEASE,
    XS_RESET_WATCHES,
    XS_RESUME,
    XS_RM,
    XS_SET_PERMS,
    XS_SET_TARGET,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenolith.store.transactions import Change, Transaction
from xenolith.store.tree import Path, Permission, Tree, parse_path, path_bytes
from xenolith.store.watches import Watch
from xenolith.store.wire import Message

WATCHES_MAX: Final = 128
"""How many watches a domain may have."""
TRANSACTIONS_MAX: Final = 10
"""How many transactions of a domain may be open."""
WAITING_MAX: Final = 1 << 20
"""How many bytes may wait for a domain that does not read them; more events than that, and its connection is cut."""

_OK: Final = b"OK\0"
_DOMID_DIGITS: Final = 5


def domain_path(domid: int) -> Path:
    """Where what belongs to a domain is."""
    return ("local", "domain", str(domid))


class Store:
    """The tree and those connected to it. `privileged` is the domain that runs the store."""

    def __init__(self, privileged: int) -> None:
        self.tree = Tree(privileged)
        self._connections: dict[int, Connection] = {}

    def connect(self, domid: int) -> Connection:
        """Introduce a domain. Raises XenError(EEXIST) for one that is."""
        if domid in self._connections:
            raise XenError(EEXIST, f"domain {domid} is introduced")
        connection = self._connections[domid] = Connection(self, domid)
        return connection

    def disconnect(self, domid: int) -> None:
        """A domain is gone: its watches and transactions with it."""
        self._connections.pop(domid, None)

    def is_introduced(self, domid: int) -> bool:
        return domid in self._connections

    def write(self, path: Path, value: str) -> None:
        """Write as the domain that runs the store."""
        self.tree.write(self.tree.privileged, path, value.encode())
        self.tell([path])

    def make(self, path: Path, permissions: tuple[Permission, ...]) -> None:
        """Make a node as the domain that runs the store, and set its permissions."""
        self.tree.make(self.tree.privileged, path)
        self.tree.set_permissions(self.tree.privileged, path, permissions)
        self.tell([path])

    def tell(self, changed: list[Path], before: Tree | None = None) -> None:
        """Send the events of nodes that changed. `before` is the tree in which those are that have gone."""
        for connection in self._connections.values():
            for path in changed:
                connection.notice(path, before or self.tree)


class Connection:
    """A domain's connection: `handle` takes a request, `waiting` has what is to be sent to the domain."""

    def __init__(self, store: Store, domid: int) -> None:
        self._store = store
        self.domid = domid
        self.home = domain_path(domid)
        self.waiting: deque[bytes] = deque()
        self.waiting_bytes = 0
        self.overflowed = False
        """Whether events were lost because the domain did not read."""
        self._watches: list[Watch] = []
        self._transactions: dict[int, Transaction] = {}
        self._last_transaction = 0

    def handle(self, request: Message) -> None:
        """Do what a request asks for, and answer it."""
        try:
            payload = self._answer(request)
            if len(payload) > XENSTORE_PAYLOAD_MAX:
                raise XenError(E2BIG, f"an answer of {len(payload)} bytes")
        except XenError as error:
            self._send(request.refusal(error))
            return
        self._send(request.answer(payload))
        if request.type == XS_WATCH:
            self._send_event(self._watches[-1].event())

    def _answer(self, request: Message) -> bytes:
        operation = _OPERATIONS.get(request.type)
        if operation is None:
            raise XenError(EACCES if request.type in _PRIVILEGED else ENOSYS, f"request {request.type}")
        transaction = None
        if request.tx_id:
            transaction = self._transactions.get(request.tx_id)
            if transaction is None:
                raise XenError(ENOENT, f"transaction {request.tx_id}")
        return operation(self, request, transaction)

    def _send(self, message: Message) -> None:
        data = message.encode()
        self.waiting.append(data)
        self.waiting_bytes += len(data)

    def take(self, limit: int) -> bytes:
        """The next bytes for the domain, at most `limit`."""
        if not self.waiting or not limit:
            return b""
        data = self.waiting.popleft()
        if len(data) > limit:
            self.waiting.appendleft(data[limit:])
        self.waiting_bytes -= min(len(data), limit)
        return data[:limit]

    # -- watches ------------------------------------------------------------------------------------------------------

    def notice(self, changed: Path, tree: Tree) -> None:
        """Send an event to each watch that covers a node, if the domain may see the node or what it is in."""
        for watch in self._watches:
            if watch.covers(changed) and (
                tree.may(self.domid, changed, "r") or tree.may(self.domid, changed[:-1], "r")
            ):
                self._send_event(watch.event(changed))

    def _send_event(self, payload: bytes) -> None:
        if self.waiting_bytes + len(payload) > WAITING_MAX:
            self.overflowed = True
            return
        self._send(Message(XS_WATCH_EVENT, 0, 0, payload))

    def _two_strings(self, request: Message) -> tuple[bytes, bytes]:
        strings = request.strings()
        if len(strings) != 2:
            raise XenError(EINVAL, f"{len(strings)} strings")
        return strings[0], strings[1]

    def _find_watch(self, text: bytes, token: bytes) -> Watch | None:
        return next((watch for watch in self._watches if watch.text == text and watch.token == token), None)

    def _watch(self, request: Message, _: Transaction | None) -> bytes:
        text, token = self._two_strings(request)
        if self._find_watch(text, token):
            raise XenError(EEXIST)
        path = None if text.startswith(b"@") else parse_path(text, self.home)
        if len(self._watches) >= WATCHES_MAX:
            raise XenError(E2BIG, f"{WATCHES_MAX} watches")
        self._watches.append(Watch(path, () if text.startswith(b"/") else self.home, text, token))
        return _OK

    def _unwatch(self, request: Message, _: Transaction | None) -> bytes:
        watch = self._find_watch(*self._two_strings(request))
        if watch is None:
            raise XenError(ENOENT)
        self._watches.remove(watch)
        return _OK

    def _reset_watches(self, request: Message, _: Transaction | None) -> bytes:
        self._watches.clear()
        self._transactions.clear()
        return _OK

    # -- the tree -----------------------------------------------------------------------------------------------------

    def _path(self, text: bytes) -> Path:
        return parse_path(text, self.home)

    def _only_path(self, request: Message) -> Path:
        strings = request.strings()
        if len(strings) != 1:
            raise XenError(EINVAL, f"{len(strings)} strings")
        return self._path(strings[0])

    def _look(self, request: Message, transaction: Transaction | None) -> tuple[Tree, Path]:
        """The tree and the node that a request is about, for one that only looks."""
        path = self._only_path(request)
        if transaction is None:
            return self._store.tree, path
        transaction.access(path)
        return transaction.tree, path

    def _change(self, transaction: Transaction | None, path: Path, change: Change) -> bytes:
        if transaction is not None:
            transaction.access(path)
            transaction.change(change)
            return _OK
        before = self._store.tree.snapshot()
        changed = change(self._store.tree)
        self._tell(changed, before)
        return _OK

    def _tell(self, changed: list[Path], before: Tree) -> None:
        """Send events; what is still there is judged as it is now, what has gone as it was."""
        tree = self._store.tree
        for path in changed:
            self._store.tell([path], tree if tree.node(path) is not None else before)

    def _read(self, request: Message, transaction: Transaction | None) -> bytes:
        tree, path = self._look(request, transaction)
        return tree.read(self.domid, path)

    def _directory(self, request: Message, transaction: Transaction | None) -> bytes:
        tree, path = self._look(request, transaction)
        return b"".join(name.encode("latin-1") + b"\0" for name in tree.names(self.domid, path))

    def _get_permissions(self, request: Message, transaction: Transaction | None) -> bytes:
        tree, path = self._look(request, transaction)
        return b"".join(bytes(permission) + b"\0" for permission in tree.permissions(self.domid, path))

    def _write(self, request: Message, transaction: Transaction | None) -> bytes:
        text, found, value = request.payload.partition(b"\0")
        if not found:
            raise XenError(EINVAL, "no value")
        path = self._path(text)

        def change(tree: Tree) -> list[Path]:
            tree.write(self.domid, path, value)
            return [path]

        return self._change(transaction, path, change)

    def _make(self, request: Message, transaction: Transaction | None) -> bytes:
        path = self._only_path(request)
        return self._change(transaction, path, lambda tree: [path] if tree.make(self.domid, path) else [])

    def _remove(self, request: Message, transaction: Transaction | None) -> bytes:
        path = self._only_path(request)
        return self._change(transaction, path, lambda tree: tree.remove(self.domid, path))

    def _set_permissions(self, request: Message, transaction: Transaction | None) -> bytes:
        text, *rest = request.strings() or [b""]
        path = self._path(text)
        permissions = tuple(map(Permission.parse, rest))

        def change(tree: Tree) -> list[Path]:
            tree.set_permissions(self.domid, path, permissions)
            return [path]

        return self._change(transaction, path, change)

    # -- transactions -------------------------------------------------------------------------------------------------

    def _start(self, request: Message, transaction: Transaction | None) -> bytes:
        if transaction is not None:
            raise XenError(EBUSY)
        if len(self._transactions) >= TRANSACTIONS_MAX:
            raise XenError(ENOSPC, f"{TRANSACTIONS_MAX} transactions")
        number = self._last_transaction % 0xFFFF_FFFF + 1
        while number in self._transactions:
            number = number % 0xFFFF_FFFF + 1
        self._last_transaction = number
        self._transactions[number] = Transaction(self._store.tree)
        return b"%d\0" % number

    def _end(self, request: Message, transaction: Transaction | None) -> bytes:
        if transaction is None:
            raise XenError(ENOENT, "no transaction")
        if request.payload not in (b"T\0", b"F\0"):
            raise XenError(EINVAL, "neither T nor F")
        del self._transactions[request.tx_id]
        if request.payload == b"T\0":
            before = self._store.tree.snapshot()
            self._tell(transaction.commit(self._store.tree), before)
        return _OK

    # -- domains ------------------------------------------------------------------------------------------------------

    def _domid(self, request: Message) -> int:
        strings = request.strings()
        if len(strings) != 1 or not strings[0].isdigit() or len(strings[0]) > _DOMID_DIGITS:
            raise XenError(EINVAL, "no domid")
        return int(strings[0])

    def _domain_path(self, request: Message, _: Transaction | None) -> bytes:
        return path_bytes(domain_path(self._domid(request))) + b"\0"

    def _is_introduced(self, request: Message, _: Transaction | None) -> bytes:
        return b"T\0" if self._store.is_introduced(self._domid(request)) else b"F\0"


_Operation = Callable[[Connection, Message, Transaction | None], bytes]
_OPERATIONS: Final[dict[int, _Operation]] = {
    XS_DIRECTORY: Connection._directory,
    XS_READ: Connection._read,
    XS_GET_PERMS: Connection._get_permissions,
    XS_WATCH: Connection._watch,
    XS_UNWATCH: Connection._unwatch,
    XS_TRANSACTION_START: Connection._start,
    XS_TRANSACTION_END: Connection._end,
    XS_GET_DOMAIN_PATH: Connection._domain_path,
    XS_WRITE: Connection._write,
    XS_MKDIR: Connection._make,
    XS_RM: Connection._remove,
    XS_SET_PERMS: Connection._set_permissions,
    XS_IS_DOMAIN_INTRODUCED: Connection._is_introduced,
    XS_RESET_WATCHES: Connection._reset_watches,
}
_PRIVILEGED: Final = frozenset((XS_CONTROL, XS_INTRODUCE, XS_RELEASE, XS_RESUME, XS_SET_TARGET))
"""Requests that no guest may make."""
