"""XS_CONTROL: what an administrator asks of the store by name (xenstored_control.c), as far as it applies here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from xenolith.abi.errno import EINVAL, ENOENT, XenError
from xenolith.store import quotas

if TYPE_CHECKING:
    from xenolith.store.server import Store

_OK: Final = b"OK\0"


class _Command(NamedTuple):
    carry_out: Callable[[Store, list[bytes]], bytes]
    parameters: str


def carry_out(store: Store, strings: list[bytes]) -> bytes:
    """The answer to a command and its parameters. Raises XenError."""
    command = _COMMANDS.get(strings[0].decode("latin-1")) if strings else None
    if command is None:
        raise XenError(EINVAL, "no such command")
    return command.carry_out(store, strings[1:])


def _check(store: Store, parameters: list[bytes]) -> bytes:
    _expect(parameters, 0)
    store.check()
    return _OK


def _help(_: Store, parameters: list[bytes]) -> bytes:
    _expect(parameters, 0)
    return "".join(f"{name}\t{command.parameters}\n" for name, command in _COMMANDS.items()).encode() + b"\0"


def _log(store: Store, parameters: list[bytes]) -> bytes:
    _expect(parameters, 1)
    if parameters[0] not in (b"on", b"off"):
        raise XenError(EINVAL, "neither on nor off")
    store.is_tracing = parameters[0] == b"on"
    return _OK


def _print(store: Store, parameters: list[bytes]) -> bytes:
    _expect(parameters, 1)
    store.log("control: " + parameters[0].decode("latin-1"))
    return _OK


def _quota(store: Store, parameters: list[bytes]) -> bytes:
    """The limits that hold for all; what a domain has; or a new limit."""
    if not parameters:
        return ("Quota settings:\n" + "".join(quotas.lines(store.limits))).encode() + b"\0"
    if parameters[0] == b"set":
        _expect(parameters, 3)
        name, value = quotas.parse_value(*parameters[1:])
        store.limits[name] = value
        return _OK
    _expect(parameters, 1)
    return _usage(store, int(parameters[0]) if parameters[0].isdigit() and len(parameters[0]) < 6 else -1)


def _usage(store: Store, domid: int) -> bytes:
    if domid not in store.known:
        raise XenError(ENOENT, f"domain {domid}")
    connection = store.connections.get(domid)
    values = {
        "nodes": store.tree.nodes[domid],
        "watches": len(connection.watches) if connection else 0,
        "transactions": len(connection.transactions) if connection else 0,
        "outstanding": connection.outstanding if connection else 0,
        "memory": store.tree.memory[domid] + (connection.waiting_bytes if connection else 0),
    }
    lines = (f"{name:<16}: {value:8}\n" for name, value in values.items())
    return f"Domain {domid}:\n{''.join(lines)}\0".encode()


def _expect(parameters: list[bytes], count: int) -> None:
    if len(parameters) != count:
        raise XenError(EINVAL, f"{len(parameters)} parameters")


_COMMANDS: Final = {
    "check": _Command(_check, ""),
    "log": _Command(_log, "on|off"),
    "quota": _Command(_quota, "[set <name> <val>|<domid>]"),
    "print": _Command(_print, "<string>"),
    "help": _Command(_help, ""),
}
