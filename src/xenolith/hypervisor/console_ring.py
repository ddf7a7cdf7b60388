"""The hypervisor's own log, which `xl dmesg` shows: the last bytes of it, counted from power-on.

Facts are those of read_console_ring and guest_printk in Xen 4.17's xen/drivers/char/console.c.
"""

from __future__ import annotations

from typing import Final

RING_BYTES: Final = 1 << 16
_LONGEST_LINE: Final = 1024
_COUNT_MASK: Final = 0xFFFF_FFFF
_NEWLINE: Final = b"\n"


class ConsoleRing:
    """A ring of `size` bytes. What it forgets is what was written first."""

    def __init__(self, size: int = RING_BYTES) -> None:
        self._size = size
        self._data = bytearray()
        self._written = 0
        self._cleared = 0
        self._lines: dict[int, bytes] = {}

    def write(self, text: str) -> None:
        """A line of the hypervisor's."""
        self._append(b"(XEN) " + text.encode("utf-8", "replace") + _NEWLINE)

    def write_guest(self, domid: int, data: bytes) -> None:
        """What a domain prints: it is kept line by line, each with the domain's number before it."""
        *lines, rest = (self._lines.pop(domid, b"") + data).split(_NEWLINE)
        while len(rest) > _LONGEST_LINE:
            lines.append(rest[:_LONGEST_LINE])
            rest = rest[_LONGEST_LINE:]
        for line in lines:
            self._append(b"(d%d) " % domid + line + _NEWLINE)
        if rest:
            self._lines[domid] = rest

    def forget(self, domid: int) -> None:
        """A domain is gone: what it has not ended with a newline is a line too."""
        if rest := self._lines.pop(domid, b""):
            self._append(b"(d%d) " % domid + rest + _NEWLINE)

    def _append(self, data: bytes) -> None:
        self._data += data
        self._written += len(data)
        if len(self._data) > 2 * self._size:
            del self._data[: -self._size]

    def read(self, limit: int, index: int | None = None, clear: bool = False) -> tuple[bytes, int]:
        """At most `limit` bytes of what was not cleared, and the count of all bytes up to their end, in 32 bits.

        With `index`, a count that was returned before, only what came after it. `clear` makes what is returned, and all
        before it, be forgotten.
        """
        start = max(self._cleared, self._written - min(len(self._data), self._size))
        if index is not None:
            ahead = (index - start) & _COUNT_MASK
            start += ahead if ahead <= self._written - start else 0
        end = min(self._written, start + limit)
        first = len(self._data) - (self._written - start)
        if clear:
            self._cleared = end
        return bytes(self._data[first : first + end - start]), end & _COUNT_MASK
