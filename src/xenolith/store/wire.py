"""The store's messages as bytes (io/xs_wire.h): taken out of a stream, and put into one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from xenolith.abi.errno import XenError, name
from xenolith.abi.io.xs_wire import XENSTORE_PAYLOAD_MAX, XS_ERROR, XsdSockmsg

_HEADER_SIZE: Final = XsdSockmsg.sizeof()


class ProtocolError(Exception):
    """The stream cannot be understood from here on."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message; the answer to a request has its `req_id` and `tx_id`."""

    type: int
    req_id: int
    tx_id: int
    payload: bytes

    def encode(self) -> bytes:
        return bytes(XsdSockmsg(self.type, self.req_id, self.tx_id, len(self.payload))) + self.payload

    def answer(self, payload: bytes) -> Message:
        return Message(self.type, self.req_id, self.tx_id, payload)

    def refusal(self, error: XenError) -> Message:
        """The answer that says what was wrong, by the name of an error number."""
        return Message(XS_ERROR, self.req_id, self.tx_id, name(error.errno).encode() + b"\0")

    def strings(self) -> list[bytes]:
        """The payload's strings, each ended by a NUL; what follows the last NUL is the last string."""
        parts = self.payload.split(b"\0")
        return parts if parts[-1] else parts[:-1]


class Decoder:
    """Cuts a stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def missing(self) -> int:
        """How many bytes must be fed to come one step further: never more than one message is taken in."""
        if len(self._buffer) < _HEADER_SIZE:
            return _HEADER_SIZE - len(self._buffer)
        return _HEADER_SIZE + self._header().len - len(self._buffer)

    def feed(self, data: bytes) -> Message | None:
        """Take at most `missing` bytes; the message that they complete. ProtocolError for one that is too long."""
        self._buffer += data
        if self.missing:
            return None
        header = self._header()
        message = Message(header.type, header.req_id, header.tx_id, bytes(self._buffer[_HEADER_SIZE:]))
        self._buffer.clear()
        return message

    def _header(self) -> XsdSockmsg:
        header: XsdSockmsg = XsdSockmsg.from_buffer_copy(self._buffer[:_HEADER_SIZE])
        if header.len > XENSTORE_PAYLOAD_MAX:
            raise ProtocolError(f"a message of {header.len} bytes")
        return header
