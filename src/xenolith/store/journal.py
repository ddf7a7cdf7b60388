"""The store's journal: what has come to the store, in order, from which a new store becomes what the old one was.

Nothing but this happens to a store: it is begun, or loaded as it once was, and then told what the records say. The same
records make the same store, with the same answers waiting for the same clients, so a record that is written before
its effect begins is enough, wherever the code is interrupted.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

_HEADER: Final = Struct("<3I")
COMPACTED_BYTES: Final = 256 << 10
"""The journal is not made shorter before its records take that much."""


class Kind(enum.IntEnum):
    """What happened; to which connection or domain; and what data says more of it."""

    STATE = 1
    """The store as it was when the journal was begun, or made shorter (marshal)."""
    RECEIVED = 2
    """Bytes of a client's request."""
    SENT = 3
    """So many bytes have reached a client."""
    INTRODUCED = 4
    """A domain's ring: frame, port, req_cons, rsp_prod."""
    OUTCOME = 5
    """What came of an XS_INTRODUCE of a domain: an errno, and what INTRODUCED says."""
    OPENED = 6
    """A new connection that acts as a domain."""
    CLOSED = 7
    RECONNECTED = 8
    """A client has asked to begin anew."""
    FAILED = 9
    """A client is not served any more: XENSTORE_ERROR_*."""
    GONE = 10
    """A domain is no more."""
    SHUT_DOWN = 11
    """A domain has shut down."""
    PRIVILEGED = 12
    """A domain may do everything from now on, or no longer."""


class Record(NamedTuple):
    kind: int
    subject: int
    data: bytes


class Journal:
    """Records in `kept`, which somebody else keeps."""

    def __init__(self, kept: bytearray) -> None:
        self._kept = kept
        self._limit = COMPACTED_BYTES
        """How long it may become: the state at the beginning, and what the records may take."""

    @property
    def is_empty(self) -> bool:
        return not self._kept

    @property
    def is_long(self) -> bool:
        """Whether the records take so much that it is worth while to write down the state again."""
        return len(self._kept) > self._limit

    @property
    def is_very_long(self) -> bool:
        return len(self._kept) > 4 * self._limit

    def append(self, kind: Kind, subject: int, data: bytes = b"") -> None:
        # One operation on the array: it has the record or has not, whatever interrupts the code.
        self._kept += _HEADER.pack(kind, subject, len(data)) + data

    def begin(self, state: bytes) -> None:
        """Put a state in the place of all records."""
        self._kept[:] = _HEADER.pack(Kind.STATE, 0, len(state)) + state
        self._limit_records(len(self._kept))

    def records(self) -> Iterator[Record]:
        """Every record, the first of them the state."""
        at = 0
        while at < len(self._kept):
            kind, subject, size = _HEADER.unpack_from(self._kept, at)
            at += _HEADER.size
            yield Record(kind, subject, bytes(self._kept[at : at + size]))
            at += size
            if kind == Kind.STATE:
                self._limit_records(at)

    def _limit_records(self, base: int) -> None:
        self._limit = base + max(COMPACTED_BYTES, base // 4)
