"""How much a guest may send: so many bytes in each interval, as Linux's netback counts them."""

from __future__ import annotations

from typing import Final

_LEAST_BURST: Final = 128 << 10
"""Bytes that may be saved up, if not more are given at once: two packets of the longest kind pass together."""


class Credit:
    """`size` bytes are given every `interval_ns`, from `now_ns` on."""

    def __init__(self, size: int, interval_ns: int, now_ns: int) -> None:
        self._size = size
        self._interval_ns = interval_ns
        self._left = size
        self._started_ns = now_ns

    @property
    def next_ns(self) -> int:
        """When credit is given the next time."""
        return self._started_ns + self._interval_ns

    def take(self, size: int, now_ns: int) -> bool:
        """Whether `size` bytes may be sent now; then they count as sent."""
        intervals = (now_ns - self._started_ns) // self._interval_ns
        if intervals > 0:
            # A packet that is longer than all that may be saved up must not wait for ever.
            limit = max(_LEAST_BURST, self._size, size)
            self._left = min(self._left + intervals * self._size, limit)
            self._started_ns += intervals * self._interval_ns
        if size > self._left:
            return False
        self._left -= size
        return True


def parse_rate(text: str, now_ns: int) -> Credit | None:
    """The credit of xenstore's `rate` node, "bytes,microseconds"; None without a limit, or for what netback ignores."""
    size, _, interval = text.partition(",")
    if not size.isdecimal() or not interval.isdecimal() or not int(size) or not int(interval):
        return None
    return Credit(int(size), int(interval) * 1000, now_ns)
