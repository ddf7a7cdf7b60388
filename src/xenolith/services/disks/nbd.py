"""A client of NBD servers, which know the disk formats and the networks that Xenolith does not.

Written here because the `nbd` module of libnbd is not on PyPI, and because little is needed: the fixed newstyle
handshake with NBD_OPT_GO, simple replies, and four commands (doc/proto.md of the NBD project).
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import parse_qs, unquote, urlsplit

from xenolith.errors import UserError
from xenolith.machine.disk import SECTOR_SIZE
from xenolith.services.disks.file import advance

_MAGIC: Final = b"NBDMAGIC"
_OPTION_MAGIC: Final = b"IHAVEOPT"
_REPLY_MAGIC: Final = 0x0003_E889_0455_65A9
_FIXED_NEWSTYLE: Final = 1
_NO_ZEROES: Final = 2
_OPT_GO: Final = 7
_REP_ACK: Final = 1
_REP_INFO: Final = 3
_REP_ERROR: Final = 1 << 31
_INFO_EXPORT: Final = 0
_INFO_BLOCK_SIZE: Final = 3
_SEND_FLUSH: Final = 1 << 2
_SEND_TRIM: Final = 1 << 5
_READ_ONLY: Final = 1 << 1
_REQUEST: Final = struct.Struct(">IHHQQI")
_REQUEST_MAGIC: Final = 0x2560_9513
_REPLY: Final = struct.Struct(">IIQ")
_SIMPLE_REPLY_MAGIC: Final = 0x6744_6698
_READ, _WRITE, _FLUSH, _TRIM = 0, 1, 3, 4
_IOV_MAX: Final = 1024
_LONGEST_TEXT: Final = 1 << 16
_TIMEOUT_S: Final = 60.0
"""How long a server may be silent before what was asked of it has failed."""
_START_S: Final = 10.0
_MOST_AT_ONCE: Final = 1 << 30

_PACKAGES: Final = {
    "qemu-nbd": "apt install qemu-utils",
    "nbdkit": "apt install nbdkit nbdkit-plugin-curl",
}


class NbdImage:
    """An Image behind a connected socket to an NBD server. `server`, if any, is ours and ends with it.

    Raises UserError if the server does not have the export, or does not speak the protocol.
    """

    def __init__(self, connection: socket.socket, export: str, readonly: bool, server: Server | None = None) -> None:
        self._socket = connection
        self._server = server
        self._lock = threading.Lock()
        self._cookie = 0
        self.size = 0
        self.physical_sector_size = SECTOR_SIZE
        self._flags = 0
        connection.settimeout(_TIMEOUT_S)
        try:
            self._handshake(export)
        except OSError as error:
            raise UserError(f"the NBD server does not serve '{export}': {error}") from None
        self.size -= self.size % SECTOR_SIZE
        self.readonly = readonly or bool(self._flags & _READ_ONLY)
        self.discard_granularity = self.physical_sector_size if self._flags & _SEND_TRIM and not self.readonly else 0
        if not readonly and self.readonly:
            raise UserError(f"the NBD server lets nobody write to '{export}'", "attach the disk read-only")

    # -- Image --------------------------------------------------------------------------------------------------------

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._command(_READ, offset, sum(map(len, buffers)), into=buffers)

    def readv_at_once(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        return False

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._command(_WRITE, offset, sum(map(len, buffers)), data=buffers)

    def writev_at_once(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        return False

    def flush(self) -> None:
        if self._flags & _SEND_FLUSH:
            self._command(_FLUSH, 0, 0)

    def discard(self, offset: int, length: int) -> None:
        while length:
            part = min(length, _MOST_AT_ONCE)
            self._command(_TRIM, offset, part)
            offset, length = offset + part, length - part

    def measure(self) -> int:
        return self.size

    def close(self) -> None:
        self._socket.close()
        if self._server is not None:
            self._server.close()

    # -- the protocol -------------------------------------------------------------------------------------------------

    def _command(
        self, kind: int, offset: int, length: int, data: Sequence[memoryview] = (), into: Sequence[memoryview] = ()
    ) -> None:
        with self._lock:
            self._cookie += 1
            header = _REQUEST.pack(_REQUEST_MAGIC, 0, kind, self._cookie, offset, length)
            try:
                self._send([memoryview(header), *data])
                magic, error, cookie = _REPLY.unpack(self._receive(_REPLY.size))
                if (magic, cookie) != (_SIMPLE_REPLY_MAGIC, self._cookie):
                    raise OSError(errno.EPROTO, "the NBD server answers something else")
                if not error:
                    for buffer in into:
                        self._receive_into(buffer)
            except OSError:
                self._socket.close()  # whoever comes next must not take the rest of this answer for another
                raise
        if error:
            raise OSError(error, os.strerror(error))

    def _handshake(self, export: str) -> None:
        if self._receive(16) != _MAGIC + _OPTION_MAGIC:
            raise OSError(errno.EPROTO, "not an NBD server")
        flags = int.from_bytes(self._receive(2), "big") & (_FIXED_NEWSTYLE | _NO_ZEROES)
        if not flags & _FIXED_NEWSTYLE:
            raise OSError(errno.EPROTO, "an NBD server that is too old")
        name = export.encode()
        payload = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, _INFO_BLOCK_SIZE)
        option = _OPTION_MAGIC + struct.pack(">II", _OPT_GO, len(payload)) + payload
        self._send([memoryview(struct.pack(">I", flags) + option)])
        while not self._take_option_reply():
            pass

    def _take_option_reply(self) -> bool:
        """Take one answer to NBD_OPT_GO; True for the last."""
        magic, _, kind, length = struct.unpack(">QIII", self._receive(20))
        if magic != _REPLY_MAGIC or length > _LONGEST_TEXT:
            raise OSError(errno.EPROTO, "the NBD server answers something else")
        content = self._receive(length)
        if kind & _REP_ERROR:
            raise OSError(errno.ENOENT, content.decode("utf-8", "replace") or f"NBD error {kind & ~_REP_ERROR}")
        if kind == _REP_INFO and length >= 12 and content[:2] == _INFO_EXPORT.to_bytes(2, "big"):
            self.size, self._flags = struct.unpack_from(">QH", content, 2)
        elif kind == _REP_INFO and length >= 14 and content[:2] == _INFO_BLOCK_SIZE.to_bytes(2, "big"):
            minimum, preferred, _ = struct.unpack_from(">III", content, 2)
            if minimum > SECTOR_SIZE:
                raise OSError(errno.EINVAL, f"the server wants blocks of {minimum} bytes")
            self.physical_sector_size = max(SECTOR_SIZE, min(preferred, 4096))
        return bool(kind == _REP_ACK)

    def _send(self, buffers: Sequence[memoryview]) -> None:
        while buffers:
            buffers = advance(buffers, self._socket.sendmsg(buffers[:_IOV_MAX]))

    def _receive(self, length: int) -> bytearray:
        content = bytearray(length)
        self._receive_into(memoryview(content))
        return content

    def _receive_into(self, buffer: memoryview) -> None:
        while buffer:
            done = self._socket.recv_into(buffer)
            if not done:
                raise OSError(errno.ECONNRESET, "the NBD server is gone")
            buffer = buffer[done:]


class Server:
    """A server process of our own, which serves one disk over a socket in a directory of its own.

    Both programs end by themselves when their only client is gone, so that none is left if we are killed. A server
    that still writes what it has is waited for before the next one for the same disk starts.
    """

    _ending: ClassVar[dict[str, threading.Thread]] = {}

    def __init__(self, program: str, arguments: Sequence[str], what: str) -> None:
        path = shutil.which(program)
        if path is None:
            raise UserError(f"{what} needs {program}, which is not installed", _PACKAGES[program])
        before = self._ending.get(what)
        if before is not None:
            before.join()
        self._what = what
        self._directory = Path(tempfile.mkdtemp(prefix="xenolith-nbd-"))
        self._socket_path = self._directory / "socket"
        self._errors = (self._directory / "errors").open("w+b")
        command = [path, *(str(self._socket_path) if word == "{socket}" else word for word in arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors)

    def connect(self) -> socket.socket:
        """Raises UserError, with what the server has said."""
        deadline = time.monotonic() + _START_S
        connection = socket.socket(socket.AF_UNIX)
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                connection.connect(str(self._socket_path))
            except OSError:
                time.sleep(0.01)
            else:
                return connection
        connection.close()
        self._errors.seek(0)
        said = self._errors.read(_LONGEST_TEXT).decode("utf-8", "replace").strip().splitlines()
        self.close()
        raise UserError(f"{self._what} cannot be served: {said[-1] if said else 'its server does not start'}")

    def close(self) -> None:
        """The connection is closed: let the server write what it has, and end. Does not wait for that."""
        ending = self._ending[self._what] = threading.Thread(target=self._end, name="xenolith-nbd", daemon=True)
        ending.start()

    def _end(self) -> None:
        try:
            self._process.wait(_START_S)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()
        self._errors.close()
        with suppress(OSError):
            shutil.rmtree(self._directory)
        if self._ending.get(self._what) is threading.current_thread():
            del self._ending[self._what]


def serve(program: str, arguments: Sequence[str], what: str, readonly: bool) -> NbdImage:
    """The disk that `program` serves on the socket in place of "{socket}". `what` names it. Raises UserError."""
    server = Server(program, arguments, what)
    connection = server.connect()
    try:
        return NbdImage(connection, "", readonly, server)
    except UserError as error:
        connection.close()
        server.close()
        raise UserError(f"{what} cannot be served: {error.message}", error.hint) from None


def connect(url: str, readonly: bool) -> NbdImage:
    """The disk at nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH. Raises UserError."""
    parts = urlsplit(url)
    try:
        if parts.scheme == "nbd+unix":
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(parse_qs(parts.query).get("socket", [""])[0])
        else:
            connection = socket.create_connection((parts.hostname or "localhost", parts.port or 10809), _START_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, ValueError) as error:
        raise UserError(f"there is no NBD server at {url}: {error}") from None
    try:
        return NbdImage(connection, unquote(parts.path).removeprefix("/"), readonly)
    except BaseException:
        connection.close()
        raise
