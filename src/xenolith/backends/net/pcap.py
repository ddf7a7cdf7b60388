"""Files that tcpdump and wireshark read: the format of pcap-savefile(5), with nanoseconds."""

from __future__ import annotations

import struct
from typing import Final

_MAGIC_NANOSECONDS: Final = 0xA1B2_3C4D
_LINKTYPE_ETHERNET: Final = 1
_LONGEST: Final = 0x40000

HEADER: Final = struct.pack("<IHHiIII", _MAGIC_NANOSECONDS, 2, 4, 0, 0, _LONGEST, _LINKTYPE_ETHERNET)
"""What a file begins with."""


def record(data: bytes, when_ns: int) -> bytes:
    """One packet that was seen at `when_ns` since 1970."""
    seconds, nanoseconds = divmod(when_ns, 10**9)
    return struct.pack("<IIII", seconds, nanoseconds, len(data), len(data)) + data
