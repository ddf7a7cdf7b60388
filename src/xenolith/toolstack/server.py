"""The machine's control socket: each connection is one command, answered by JSON lines until its result has come.

To the machine: {"verb": …, "arguments": {…}}, then, for a console, {"keys": …}. From it: {"progress": …}, {"data": …},
{"row": …}, and at last {"result": …} or {"error": …, "hint": …}. Texts of consoles are bytes as Latin-1.

Threads only carry lines; whatever a command does, it does in the machine's own thread.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import socketserver
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from xenolith.errors import UserError

_LINES_WAITING: Final = 10_000
"""Lines for a client that does not read; beyond them it is cut off."""
_LONGEST_LINE: Final = 1 << 20
Message = dict[str, Any]


class Conversation:
    """One command being carried out. `keys` gets what is typed at a console; `gone` is called when the client is."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._outgoing: queue.Queue[Message | None] = queue.Queue(_LINES_WAITING)
        self.keys: Callable[[bytes], None] = lambda data: None
        self.gone: Callable[[], None] = lambda: None

    def send(self, **message: Any) -> None:
        """A line for the client."""
        try:
            self._outgoing.put_nowait(message)
        except queue.Full:
            self.cut()

    def finish(self, **message: Any) -> None:
        """The last line."""
        self.send(**message)
        with contextlib.suppress(queue.Full):
            self._outgoing.put_nowait(None)

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def carry(self) -> None:
        """Send lines until the last one; in a thread of its own."""
        with contextlib.suppress(OSError):
            while (message := self._outgoing.get()) is not None:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
        self.cut()


Verb = Callable[[Conversation, Message], Awaitable[Any]]


class Server:
    """Listens at `path`. `post` has something done in the machine's thread, and `spawn` runs a coroutine there.

    `verb(name)` is what a command does, or None.
    """

    def __init__(
        self,
        path: Path,
        post: Callable[[Callable[[], None]], None],
        spawn: Callable[[Any], Any],
        verb: Callable[[str], Verb | None],
    ) -> None:
        self._post = post
        self._spawn = spawn
        self._verb = verb
        self._conversations: set[Conversation] = set()
        server = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                server._serve(self.connection, self.rfile)

        class Listener(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that went away

        self._listener = Listener(str(path), Handler)
        threading.Thread(target=self._listener.serve_forever, name="xenolith-control", daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        for conversation in list(self._conversations):
            conversation.finish(error="the machine was switched off", hint="")

    # -- threads of connections ---------------------------------------------------------------------------------------

    def _serve(self, connection: socket.socket, lines: Any) -> None:
        conversation = Conversation(connection)
        carrier = threading.Thread(target=conversation.carry, daemon=True)
        carrier.start()
        begun = False
        while line := lines.readline(_LONGEST_LINE):
            try:
                message = json.loads(line)
            except ValueError:
                conversation.finish(error="the command is no JSON", hint="")
                break
            if not begun:
                self._post(partial(self._begin, conversation, message))
                begun = True
            elif isinstance(message, dict) and "keys" in message:
                data = str(message["keys"]).encode("latin-1", "replace")
                self._post(partial(_type, conversation, data))
        self._post(partial(self._end, conversation))
        carrier.join()

    # -- the machine's thread -----------------------------------------------------------------------------------------

    def _begin(self, conversation: Conversation, message: Message) -> None:
        self._conversations.add(conversation)
        verb = self._verb(str(message.get("verb")))
        if verb is None:
            conversation.finish(error=f"the machine knows no verb '{message.get('verb')}'", hint="")
            return
        try:
            self._spawn(self._carry_out(verb, conversation, message.get("arguments") or {}))
        except UserError as error:
            conversation.finish(error=error.message, hint=error.hint)

    async def _carry_out(self, verb: Verb, conversation: Conversation, arguments: Message) -> None:
        try:
            result = await verb(conversation, arguments)
        except UserError as error:
            conversation.finish(error=error.message, hint=error.hint)
        except Exception as error:
            conversation.finish(error=f"this is a bug of Xenolith: {error!r}", hint="see the machine's log")
            raise
        except GeneratorExit:
            conversation.finish(error="the service that did this is being started again", hint="try once more")
            raise
        else:
            conversation.finish(result=result)

    def _end(self, conversation: Conversation) -> None:
        self._conversations.discard(conversation)
        conversation.gone()
        conversation.finish()


def _type(conversation: Conversation, data: bytes) -> None:
    conversation.keys(data)
