"""Commands to a running machine, from another process."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

from xenolith.errors import UserError
from xenolith.toolstack.places import Place

Message = dict[str, Any]


class Call:
    """One command that a machine carries out. Close it, or use it in a `with`."""

    def __init__(self, place: Place, verb: str, **arguments: Any) -> None:
        self._place = place
        self.socket: socket.socket = place.connect()
        self._lines = self.socket.makefile("rb")
        self._left = False
        self._send({"verb": verb, "arguments": arguments})

    def _send(self, message: Message) -> None:
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            raise self._gone() from None

    def _gone(self) -> UserError:
        return UserError(f"the machine '{self._place.name}' is gone", "'xenolith machines' lists those that run")

    def type(self, data: bytes) -> None:
        """Keys for the console that this command shows."""
        self._send({"keys": data.decode("latin-1")})

    def leave(self) -> None:
        """End the command from here: `messages` ends too."""
        self._left = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def messages(self) -> Iterator[Message]:
        """What the machine tells, up to and with the result. UserError if it could not do it, or is gone."""
        while True:
            try:
                line = self._lines.readline()
            except OSError:
                line = b""
            if self._left:
                return
            if not line:
                raise self._gone()
            message: Message = json.loads(line)
            if "error" in message:
                raise UserError(message["error"], message.get("hint", ""))
            yield message
            if "result" in message:
                return

    def close(self) -> None:
        self._lines.close()
        self.socket.close()

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def call(place: Place, verb: str, told: Callable[[Message], None] = lambda message: None, **arguments: Any) -> Any:
    """Have a machine do something; its result. `told` gets what it tells meanwhile. UserError if it cannot."""
    with Call(place, verb, **arguments) as running:
        for message in running.messages():
            if "result" in message:
                return message["result"]
            told(message)
    raise AssertionError("a command ends with a result")
