"""A 9P2000.L client without a transport: it writes requests and reads answers, and knows nothing better."""

from __future__ import annotations

import struct
from typing import Any

from xenolith.backends.ninepfs import protocol
from xenolith.backends.ninepfs.server import Server

ROOT = 1
UID = 0xFFFF_FFFF
"""No user: files are left to whom they belong."""


class Refused(Exception):
    """Rlerror, with its number."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


def message(kind: int, layout: str, *fields: Any, tag: int = 7) -> bytes:
    """A request. In `layout` a letter of struct is a number, "s" a string with its length, "d" bytes as they are."""
    parts = []
    for letter, value in zip(layout, fields, strict=True):
        if letter == "s":
            parts.append(struct.pack("<H", len(value)) + value)
        else:
            parts.append(value if letter == "d" else struct.pack("<" + letter, value))
    payload = b"".join(parts)
    return struct.pack("<IBH", 7 + len(payload), kind, tag) + payload


def payload(answer: bytes, kind: int, tag: int = 7) -> bytes:
    """What an answer to a request of a type has; raises Refused."""
    size, answered, answered_tag = struct.unpack_from("<IBH", answer)
    assert (size, answered_tag) == (len(answer), tag)
    if answered == protocol.Rlerror:
        raise Refused(struct.unpack_from("<I", answer, 7)[0])
    assert answered == kind + 1
    return answer[7:]


class Client:
    """Requests to a server, one after another."""

    def __init__(self, server: Server, msize: int = 65536) -> None:
        self.server = server
        self._requests = 0
        if msize:
            self.ask(protocol.Tversion, "Is", msize, protocol.VERSION)
            self.ask(protocol.Tattach, "IIssI", ROOT, protocol.NOFID, b"root", b"", UID)

    def ask(self, kind: int, layout: str = "", *fields: Any) -> bytes:
        self._requests += 1
        answer = self.server.answer(self._requests.to_bytes(8, "little"), message(kind, layout, *fields))
        self.server.delivered()
        return payload(answer, kind)

    def walk(self, new: int, *names: bytes, fid: int = ROOT) -> int:
        """How many names were gone along."""
        layout, fields = "IIH" + "s" * len(names), (fid, new, len(names), *names)
        return int.from_bytes(self.ask(protocol.Twalk, layout, *fields)[:2], "little")

    def open(self, fid: int, *names: bytes, flags: int = 0) -> int:
        assert self.walk(fid, *names) == len(names)
        self.ask(protocol.Tlopen, "II", fid, flags)
        return fid

    def create(self, fid: int, *names: bytes, flags: int = 2, mode: int = 0o644) -> int:
        self.walk(fid, *names[:-1])
        self.ask(protocol.Tlcreate, "IsIII", fid, names[-1], flags, mode, UID)
        return fid

    def read(self, fid: int, offset: int = 0, count: int = 8192) -> bytes:
        answer = self.ask(protocol.Tread, "IQI", fid, offset, count)
        assert int.from_bytes(answer[:4], "little") == len(answer) - 4
        return answer[4:]

    def write(self, fid: int, data: bytes, offset: int = 0) -> int:
        return int.from_bytes(self.ask(protocol.Twrite, "IQId", fid, offset, len(data), data), "little")

    def clunk(self, fid: int) -> None:
        self.ask(protocol.Tclunk, "I", fid)

    def attributes(self, fid: int) -> dict[str, int]:
        answer = struct.unpack_from("<QBIQIIIQQQQQQQQQQQ", self.ask(protocol.Tgetattr, "IQ", fid, 0x7FF))
        names = "valid type version path mode uid gid nlink rdev size blksize blocks atime atime_ns mtime mtime_ns"
        return dict(zip(names.split(), answer, strict=False))

    def entries(self, fid: int, count: int = 8192, offset: int = 0, limit: int = 1 << 30) -> list[tuple[int, bytes]]:
        """Cookies and names of a directory, from a cookie on, by as many requests as it takes (at most `limit`)."""
        found: list[tuple[int, bytes]] = []
        while limit and (data := self.ask(protocol.Treaddir, "IQI", fid, offset, count)[4:]):
            limit -= 1
            while data:
                offset, _, length = struct.unpack_from("<QBH", data, 13)
                found.append((offset, data[24 : 24 + length]))
                data = data[24 + length :]
        return found
