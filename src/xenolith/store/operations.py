"""What each request of the wire protocol does (docs/misc/xenstore.txt; C xenstored's wire_funcs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from xenolith.abi.errno import E2BIG, EACCES, EBUSY, EEXIST, EINVAL, ENOENT, ENOMEM, ENOSPC, XenError
from xenolith.abi.io.xs_wire import (
    XENSTORE_PAYLOAD_MAX,
    XENSTORE_REL_PATH_MAX,
    XS_CONTROL,
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
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
    XS_WRITE,
)
from xenolith.abi.types import DOMID_FIRST_RESERVED, DOMID_SELF
from xenolith.store import control, quotas
from xenolith.store.transactions import Changing, Transaction
from xenolith.store.tree import Change, Node, Path, Permission, Permissions, Tree, parse_path, permits
from xenolith.store.watches import Watch
from xenolith.store.wire import (
    XENSTORE_SERVER_FEATURE_WATCHDEPTH,
    XS_GET_FEATURE,
    XS_GET_QUOTA,
    XS_SET_FEATURE,
    XS_SET_QUOTA,
    Message,
)

if TYPE_CHECKING:
    from xenolith.store.connections import Connection
    from xenolith.store.server import Store

_OK: Final = b"OK\0"
_NUMBER_DIGITS: Final = 20


class Request(NamedTuple):
    """A message, from whom it came, and the transaction of which it is a part."""

    store: Store
    connection: Connection
    message: Message
    transaction: Transaction | None

    @property
    def tree(self) -> Tree:
        """The tree as the client sees it."""
        return self.store.tree if self.transaction is None else self.transaction.tree

    def path(self, text: bytes) -> Path:
        """Raises XenError(EINVAL)."""
        connection = self.connection
        return parse_path(text, connection.home, None if connection.privileged else connection.quotas["path-max"])

    def look(self, text: bytes) -> Node:
        """The node that the client wants to read, one of the special ones included. Raises XenError."""
        special = self.special_permissions(text)
        if special is not None:
            if not permits(self.connection, special, "r"):
                raise XenError(ENOENT)
            return Node(b"", special, {}, 0, 0)
        path = self.path(text)
        if self.transaction is not None:
            self.transaction.access(self.connection, path)
        return self.tree.get(self.connection, path, "r")

    def special_permissions(self, text: bytes) -> Permissions | None:
        return self.store.specials.get(text.decode("latin-1")) if text.startswith(b"@") else None

    def change(self, path: Path, change: Changing) -> bytes:
        """Make a change now, or when the transaction comes true."""
        if self.transaction is None:
            self.store.tell(change(self.store.tree), self.connection)
            return _OK
        self._check_memory()
        self.transaction.access(self.connection, path)
        self.transaction.change(change, len(self.message.payload))
        return _OK

    def _check_memory(self) -> None:
        connection = self.connection
        held = sum(each.size for each in connection.transactions.values()) + len(self.message.payload)
        if not connection.privileged and held > connection.quotas["memory"]:
            raise XenError(ENOMEM, f"transactions of {held} bytes")


# -- the tree ---------------------------------------------------------------------------------------------------------


def _read(request: Request) -> bytes:
    return request.look(request.message.only_string()).value


def _directory(request: Request) -> bytes:
    return _names(request.look(request.message.only_string()))


def _names(node: Node) -> bytes:
    return b"".join(name.encode("latin-1") + b"\0" for name in node.children)


def _directory_part(request: Request) -> bytes:
    """The generation count, and of the list of names as many whole names from an offset on as there is room for; an
    empty one is behind the last."""
    strings = request.message.strings()
    if len(strings) != 2:
        raise XenError(EINVAL, f"{len(strings)} strings")
    node = request.look(strings[0])
    generation = b"%d\0" % node.stamp
    rest = _names(node)[_number(strings[1]) :]
    room = XENSTORE_PAYLOAD_MAX - len(generation) - 1
    if len(rest) <= room:
        return generation + rest + b"\0"
    return generation + rest[: rest.rfind(b"\0", 0, room) + 1]


def _get_permissions(request: Request) -> bytes:
    node = request.look(request.message.only_string())
    return b"".join(bytes(permission) + b"\0" for permission in node.permissions)


def _write(request: Request) -> bytes:
    text, found, value = request.message.payload.partition(b"\0")
    if not found:
        raise XenError(EINVAL, "no value")
    connection, path = request.connection, request.path(text)

    def change(tree: Tree) -> list[Change]:
        return tree.write(connection, path, value)

    return request.change(path, change)


def _make(request: Request) -> bytes:
    connection, path = request.connection, request.path(request.message.only_string())
    return request.change(path, lambda tree: tree.make(connection, path))


def _remove(request: Request) -> bytes:
    connection, path = request.connection, request.path(request.message.only_string())
    return request.change(path, lambda tree: tree.remove(connection, path))


def _set_permissions(request: Request) -> bytes:
    strings = request.message.strings()
    if len(strings) < 2:
        raise XenError(EINVAL, "no permissions")
    connection, permissions = request.connection, tuple(map(Permission.parse, strings[1:]))
    if not connection.privileged and len(permissions) > connection.quotas["permissions"]:
        raise XenError(ENOSPC, f"{len(permissions)} permissions")
    if strings[0].startswith(b"@"):
        return _set_special_permissions(request, strings[0], permissions)
    path = request.path(strings[0])
    return request.change(path, lambda tree: tree.set_permissions(connection, path, permissions))


def _set_special_permissions(request: Request, text: bytes, permissions: Permissions) -> bytes:
    present = request.special_permissions(text)
    if present is None:
        raise XenError(EINVAL, f"no special node {text!r}")
    if not permits(request.connection, present, "o"):
        raise XenError(EACCES, "only its owner sets permissions")
    request.store.specials[text.decode("latin-1")] = permissions
    return _OK


# -- watches ----------------------------------------------------------------------------------------------------------


def _watch(request: Request) -> bytes:
    strings = request.message.strings()
    connection = request.connection
    features = request.store.state_of(connection.domid).features
    if len(strings) not in ((2, 3) if features & XENSTORE_SERVER_FEATURE_WATCHDEPTH else (2,)):
        raise XenError(EINVAL, f"{len(strings)} strings")
    special, path, home = _watched(request, strings[0])
    depth = _number(strings[2]) if len(strings) == 3 else None
    watch = Watch(connection, path, special, depth, strings[0], strings[1], home, request.store.next_serial())
    if watch.key in connection.watches:
        raise XenError(EEXIST)
    if not connection.privileged:
        _check_watch_quota(connection, len(request.message.payload))
    connection.add_watch(watch)
    return _OK


def _watched(request: Request, text: bytes) -> tuple[bool, Path, Path]:
    """What a watch is for: whether it is for a special name, the path, and as how much of that the client left out."""
    if text.startswith(b"@"):
        if len(text) > XENSTORE_REL_PATH_MAX:
            raise XenError(EINVAL, f"a name of {len(text)} bytes")
        return True, tuple(text.decode("latin-1").split("/")), ()
    return False, request.path(text), () if text.startswith(b"/") else request.connection.home


def _check_watch_quota(connection: Connection, size: int) -> None:
    if len(connection.watches) >= connection.quotas["watches"]:
        raise XenError(E2BIG, f"{len(connection.watches)} watches")
    held = sum(len(watch.text) + len(watch.token) for watch in connection.watches.values())
    if held + size > connection.quotas["memory"]:
        raise XenError(ENOMEM, f"watches of {held} bytes")


def _unwatch(request: Request) -> bytes:
    strings = request.message.strings()
    if len(strings) not in (2, 3):
        raise XenError(EINVAL, f"{len(strings)} strings")
    special, path, _ = _watched(request, strings[0])
    watch = request.connection.watches.get((special, path, strings[1]))
    if watch is None:
        raise XenError(ENOENT)
    request.connection.remove_watch(watch)
    return _OK


def _reset_watches(request: Request) -> bytes:
    request.connection.forget_open()
    return _OK


# -- transactions -----------------------------------------------------------------------------------------------------


def _start(request: Request) -> bytes:
    connection = request.connection
    if request.transaction is not None:
        raise XenError(EBUSY)
    if not connection.privileged and len(connection.transactions) >= connection.quotas["transactions"]:
        raise XenError(ENOSPC, f"{len(connection.transactions)} transactions")
    return b"%d\0" % connection.start_transaction(Transaction(request.store.tree))


def _end(request: Request) -> bytes:
    payload = request.message.only_string()
    if payload not in (b"T", b"F"):
        raise XenError(EINVAL, "neither T nor F")
    if request.transaction is None:
        raise XenError(ENOENT, "no transaction")
    del request.connection.transactions[request.message.tx_id]
    if payload == b"T":
        request.store.tell(request.transaction.commit(request.store.tree), request.connection)
    return _OK


# -- domains ----------------------------------------------------------------------------------------------------------


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > _NUMBER_DIGITS:
        raise XenError(EINVAL, "no number")
    return int(text)


def _domid(text: bytes) -> int:
    domid = _number(text)
    if domid >= DOMID_FIRST_RESERVED:
        raise XenError(EINVAL, f"domain {domid}")
    return domid


def _introduced(request: Request, text: bytes) -> int:
    """The domid of a domain that is introduced. Raises XenError(EINVAL or ENOENT)."""
    domid = _domid(text)
    if not request.store.is_introduced(domid):
        raise XenError(ENOENT, f"domain {domid} is not introduced")
    return domid


def _introduce(request: Request) -> bytes:
    strings = request.message.strings()
    if len(strings) < 3:
        raise XenError(EINVAL, f"{len(strings)} strings")
    domid, port = _domid(strings[0]), _number(strings[2])
    # The frame is a signed number for some clients, and of no use where there is a grant of it.
    frame = int(strings[1]) if strings[1].isdigit() and len(strings[1]) < _NUMBER_DIGITS else 0
    if not 0 < port < 1 << 32:
        raise XenError(EINVAL, f"port {port}")
    request.store.introduce_by_request(domid, frame, port)
    return _OK


def _release(request: Request) -> bytes:
    request.store.release_by_request(_introduced(request, request.message.only_string()))
    return _OK


def _resume(request: Request) -> bytes:
    request.store.state_of(_introduced(request, request.message.only_string())).shut_down = False
    return _OK


def _set_target(request: Request) -> bytes:
    strings = request.message.strings()
    if len(strings) < 2:
        raise XenError(EINVAL, f"{len(strings)} strings")
    domid, target = (_introduced(request, text) for text in strings[:2])
    request.store.connections[domid].target = target
    return _OK


def _domain_path(request: Request) -> bytes:
    return b"/local/domain/%d\0" % _number(request.message.only_string())


def _is_introduced(request: Request) -> bytes:
    domid = _number(request.message.only_string())
    return b"T\0" if domid == DOMID_SELF or request.store.is_introduced(domid) else b"F\0"


# -- features and quotas ----------------------------------------------------------------------------------------------


def _get_feature(request: Request) -> bytes:
    strings = request.message.strings()
    store = request.store
    if not strings or not strings[0]:
        return b"%d\0" % store.features
    domid = _domid(strings[0])
    if domid not in store.domains:
        raise XenError(ENOENT, f"domain {domid}")
    return b"%d\0" % store.domains[domid].features


def _set_feature(request: Request) -> bytes:
    strings = request.message.strings()
    if len(strings) != 2:
        raise XenError(EINVAL, f"{len(strings)} strings")
    domid, features = _domid(strings[0]), _number(strings[1])
    if request.store.is_introduced(domid):
        raise XenError(EBUSY, f"domain {domid} is introduced")
    if features & ~request.store.features:
        raise XenError(EINVAL, f"features {features:#x}")
    request.store.state_of(domid).features = features
    return _OK


def _get_quota(request: Request) -> bytes:
    """The names of all quotas; a limit that holds for all; or a domain's."""
    strings = [text for text in request.message.strings() if text]
    store = request.store
    if not strings:
        return " ".join(store.limits).encode() + b"\0"
    name = quotas.known(strings[-1])
    if len(strings) == 1:
        return b"%d\0" % store.limits[name]
    if len(strings) > 2:
        raise XenError(EINVAL, f"{len(strings)} strings")
    domid = _domid(strings[0])
    if domid not in store.domains:
        raise XenError(ENOENT, f"domain {domid}")
    return b"%d\0" % store.domains[domid].quotas.own.get(name, store.limits[name])


def _set_quota(request: Request) -> bytes:
    strings = request.message.strings()
    if len(strings) not in (2, 3):
        raise XenError(EINVAL, f"{len(strings)} strings")
    name, value = quotas.parse_value(*strings[-2:])
    if len(strings) == 2:
        request.store.limits[name] = value
    else:
        request.store.state_of(_domid(strings[0])).quotas.own[name] = value
    return _OK


def _control(request: Request) -> bytes:
    return control.carry_out(request.store, request.message.strings())


class Operation(NamedTuple):
    name: str
    carry_out: Callable[[Request], bytes]
    no_transaction: bool = False
    """Whether its tx_id is ignored."""
    privileged: bool = False
    """Whether no guest may make it."""


OPERATIONS: Final[dict[int, Operation]] = {
    XS_CONTROL: Operation("CONTROL", _control, privileged=True),
    XS_DIRECTORY: Operation("DIRECTORY", _directory),
    XS_READ: Operation("READ", _read),
    XS_GET_PERMS: Operation("GET_PERMS", _get_permissions),
    XS_WATCH: Operation("WATCH", _watch, no_transaction=True),
    XS_UNWATCH: Operation("UNWATCH", _unwatch, no_transaction=True),
    XS_TRANSACTION_START: Operation("TRANSACTION_START", _start),
    XS_TRANSACTION_END: Operation("TRANSACTION_END", _end),
    XS_INTRODUCE: Operation("INTRODUCE", _introduce, privileged=True),
    XS_RELEASE: Operation("RELEASE", _release, privileged=True),
    XS_GET_DOMAIN_PATH: Operation("GET_DOMAIN_PATH", _domain_path),
    XS_WRITE: Operation("WRITE", _write),
    XS_MKDIR: Operation("MKDIR", _make),
    XS_RM: Operation("RM", _remove),
    XS_SET_PERMS: Operation("SET_PERMS", _set_permissions),
    XS_IS_DOMAIN_INTRODUCED: Operation("IS_DOMAIN_INTRODUCED", _is_introduced, privileged=True),
    XS_RESUME: Operation("RESUME", _resume, privileged=True),
    XS_SET_TARGET: Operation("SET_TARGET", _set_target, privileged=True),
    XS_RESET_WATCHES: Operation("RESET_WATCHES", _reset_watches),
    XS_DIRECTORY_PART: Operation("DIRECTORY_PART", _directory_part),
    XS_GET_FEATURE: Operation("GET_FEATURE", _get_feature, privileged=True),
    XS_SET_FEATURE: Operation("SET_FEATURE", _set_feature, privileged=True),
    XS_GET_QUOTA: Operation("GET_QUOTA", _get_quota, privileged=True),
    XS_SET_QUOTA: Operation("SET_QUOTA", _set_quota, privileged=True),
}
