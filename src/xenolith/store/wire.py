"""The store's messages as bytes (io/xs_wire.h): taken out of a stream, and put into one."""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from xenolith.abi.errno import (
    E2BIG,
    EACCES,
    EAGAIN,
    EBUSY,
    EEXIST,
    EINVAL,
    EIO,
    EISCONN,
    EISDIR,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOSYS,
    ENOTEMPTY,
    EPERM,
    EROFS,
    XenError,
    name,
)
from xenolith.abi.io.xs_wire import XENSTORE_PAYLOAD_MAX, XS_ERROR

# Requests and a ring feature that Xen has got since 4.17 (docs/misc/xenstore.txt, docs/misc/xenstore-ring.txt).
XS_GET_FEATURE: Final = 23
XS_SET_FEATURE: Final = 24
XS_GET_QUOTA: Final = 25
XS_SET_QUOTA: Final = 26
XENSTORE_SERVER_FEATURE_WATCHDEPTH: Final = 4

_HEADER: Final = Struct("<4I")
HEADER_SIZE: Final = _HEADER.size
"""Bytes of struct xsd_sockmsg: type, req_id, tx_id, len."""
_ERRORS: Final = frozenset(
    (EINVAL, EACCES, EEXIST, EISDIR, ENOENT, ENOMEM, ENOSPC, EIO, ENOTEMPTY, ENOSYS, EROFS, EBUSY, EAGAIN, EISCONN)
) | {E2BIG, EPERM}
"""The errors that a client knows (xsd_errors); any other is told as EINVAL."""


class ProtocolError(Exception):
    """The stream cannot be understood from here on."""


class Message(NamedTuple):
    """One message; the answer to a request has its `req_id` and `tx_id`."""

    type: int
    req_id: int
    tx_id: int
    payload: bytes

    def encode(self) -> bytes:
        return _HEADER.pack(self.type, self.req_id, self.tx_id, len(self.payload)) + self.payload

    def answer(self, payload: bytes) -> Message:
        return Message(self.type, self.req_id, self.tx_id, payload)

    def refusal(self, error: XenError) -> Message:
        """The answer that says what was wrong, by the name of an error number."""
        told = error.errno if error.errno in _ERRORS else EINVAL
        return Message(XS_ERROR, self.req_id, self.tx_id, name(told).encode() + b"\0")

    def strings(self) -> list[bytes]:
        """The payload's strings, each ended by a NUL; what follows the last NUL is none."""
        return self.payload.split(b"\0")[:-1]

    def only_string(self) -> bytes:
        """The one string that the payload is. Raises XenError(EINVAL) for any other payload."""
        if self.payload.find(b"\0") != len(self.payload) - 1 or not self.payload:
            raise XenError(EINVAL, "not one string")
        return self.payload[:-1]


class Decoder:
    """Cuts a stream into messages. `buffer` is where what is not complete is held, for who must find it there again."""

    def __init__(self, begun: bytes = b"", buffer: bytearray | None = None) -> None:
        self._buffer = bytearray(begun) if buffer is None else buffer

    @property
    def begun(self) -> bytes:
        """What there is of a message that is not complete."""
        return bytes(self._buffer)

    @property
    def missing(self) -> int:
        """How many bytes must be fed to come one step further: never more than one message is taken in."""
        if len(self._buffer) < HEADER_SIZE:
            return HEADER_SIZE - len(self._buffer)
        return HEADER_SIZE + self._length() - len(self._buffer)

    def wanted(self, following: bytes) -> int:
        """How many of the bytes that follow belong to the message that is under way, or to the next one."""
        have = len(self._buffer)
        if have + len(following) < HEADER_SIZE:
            return len(following)
        header = bytes(self._buffer[:HEADER_SIZE]) + following[: max(HEADER_SIZE - have, 0)]
        return min(HEADER_SIZE + int(_HEADER.unpack(header)[3]) - have, len(following))

    def feed(self, data: bytes) -> Message | None:
        """Take bytes of one message; the message if they complete it. ProtocolError for one that is too long."""
        buffer = self._buffer
        buffer += data
        if len(buffer) < HEADER_SIZE:
            return None
        kind, req_id, tx_id, length = _HEADER.unpack_from(buffer)
        if length > XENSTORE_PAYLOAD_MAX:
            raise ProtocolError(f"a message of {length} bytes")
        if len(buffer) < HEADER_SIZE + length:
            return None
        message = Message(kind, req_id, tx_id, bytes(buffer[HEADER_SIZE:]))
        buffer.clear()
        return message

    def _length(self) -> int:
        length: int = _HEADER.unpack_from(self._buffer)[3]
        if length > XENSTORE_PAYLOAD_MAX:
            raise ProtocolError(f"a message of {length} bytes")
        return length
