"""9P2000.L on the wire: message types, flags, and how fields are read and written.

The numbers are those of Linux' include/net/9p/9p.h; the messages are described in diod's protocol.md. All integers are
little-endian, and error numbers and open flags are Linux' own.
"""

from __future__ import annotations

from errno import EINVAL
from struct import Struct
from typing import Any, Final

VERSION: Final = b"9P2000.L"
UNKNOWN_VERSION: Final = b"unknown"

# Types of requests; an answer's type is its request's plus one, or Rlerror.
Rlerror: Final = 7
Tstatfs: Final = 8
Tlopen: Final = 12
Tlcreate: Final = 14
Tsymlink: Final = 16
Tmknod: Final = 18
Trename: Final = 20
Treadlink: Final = 22
Tgetattr: Final = 24
Tsetattr: Final = 26
Treaddir: Final = 40
Tfsync: Final = 50
Tlock: Final = 52
Tgetlock: Final = 54
Tlink: Final = 70
Tmkdir: Final = 72
Trenameat: Final = 74
Tunlinkat: Final = 76
Tversion: Final = 100
Tattach: Final = 104
Tflush: Final = 108
Twalk: Final = 110
Tread: Final = 116
Twrite: Final = 118
Tclunk: Final = 120
Tremove: Final = 122

NOFID: Final = 0xFFFF_FFFF
MAX_WALK: Final = 16
"""Names in one Twalk (P9_MAXWELEM)."""
IO_HEADER: Final = 24
"""Bytes of a message with data that both ends leave for its other fields (P9_IOHDRSZ, P9_READDIRHDRSZ)."""

QTDIR: Final = 0x80
QTSYMLINK: Final = 0x02

GETATTR_BASIC: Final = 0x7FF

SETATTR_MODE: Final = 0x1
SETATTR_UID: Final = 0x2
SETATTR_GID: Final = 0x4
SETATTR_SIZE: Final = 0x8
SETATTR_ATIME: Final = 0x10
SETATTR_MTIME: Final = 0x20
SETATTR_ATIME_SET: Final = 0x80
SETATTR_MTIME_SET: Final = 0x100

AT_REMOVEDIR: Final = 0x200

LOCK_TYPE_UNLCK: Final = 2
LOCK_SUCCESS: Final = 0
LOCK_BLOCKED: Final = 1

STATFS_MAGIC: Final = 0x0102_1997
"""What statfs says that a file system is which is reached by 9P (V9FS_MAGIC)."""

_HEADER: Final = Struct("<IBH")
_LENGTH: Final = Struct("<H")
QID: Final = Struct("<BIQ")
"""Type, version and path of a qid."""


class Request:
    """A request's fields, taken from it one after another. Raises OSError(EINVAL) where it is too short for one.

    `message` is as long as its own first field says, and at least as long as a header.
    """

    def __init__(self, message: bytes) -> None:
        _, self.type, self.tag = _HEADER.unpack_from(message)
        self._message = message
        self._at = _HEADER.size

    def take(self, layout: Struct) -> tuple[Any, ...]:
        """The next fields, numbers."""
        return layout.unpack(self._bytes(layout.size))

    def text(self) -> bytes:
        """A string: its length and its bytes."""
        (length,) = self.take(_LENGTH)
        return bytes(self._bytes(length))

    def name(self) -> bytes:
        """A string that names something in a directory. OSError(EINVAL) if it is no such name."""
        name = self.text()
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
            raise OSError(EINVAL, "this is no name of a file")
        return name

    def data(self, length: int) -> memoryview:
        """Bytes whose length was a field before."""
        return self._bytes(length)

    def _bytes(self, length: int) -> memoryview:
        start, self._at = self._at, self._at + length
        if self._at > len(self._message):
            raise OSError(EINVAL, "the request is too short")
        return memoryview(self._message)[start : self._at]


def text(value: bytes) -> bytes:
    """A string as it is written."""
    return _LENGTH.pack(len(value)) + value


def answer(request: Request, payload: bytes) -> bytes:
    """The message that answers a request."""
    return _HEADER.pack(_HEADER.size + len(payload), request.type + 1 & 0xFF, request.tag) + payload


def refusal(request: Request, errno: int) -> bytes:
    """The message that says what was wrong with a request."""
    return _HEADER.pack(_HEADER.size + 4, Rlerror, request.tag) + errno.to_bytes(4, "little")
