"""The bzImage envelope of Linux on x86: its setup header, and where the kernel proper lies in it."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from xenolith.errors import UserError

_SECTOR: Final = 512
_BOOT_FLAG: Final = 0x1FE
_HEADER_MAGIC: Final = 0x202
_MIN_PROTOCOL: Final = 0x208
"""The first boot protocol that says where the payload is."""
_HEADER_END: Final = 0x250


class BzImage(NamedTuple):
    """A checked bzImage: `payload` is the kernel as the build packed it, `version` the line that `file` shows."""

    protocol: int
    version: str
    payload: memoryview


def is_bzimage(data: memoryview) -> bool:
    """Whether `data` begins with a Linux boot sector and setup header."""
    return bytes(data[_HEADER_MAGIC : _HEADER_MAGIC + 4]) == b"HdrS" and bytes(data[_BOOT_FLAG:0x200]) == b"\x55\xaa"


def parse(data: memoryview) -> BzImage:
    """Read the setup header (Linux Documentation/arch/x86/boot.rst).

    UserError if the file is cut off, or so old that its header does not say where the payload is.
    """
    if len(data) < _HEADER_END:
        raise UserError("the bzImage is cut off inside its setup header")
    protocol, _, _, version_at = struct.unpack_from("<HIHH", data, 0x206)
    if protocol < _MIN_PROTOCOL:
        raise UserError(f"the bzImage has boot protocol {protocol >> 8}.{protocol & 0xFF:02}; 2.08 or later is needed")
    start = (data[0x1F1] or 4) * _SECTOR + _SECTOR
    offset, length = struct.unpack_from("<II", data, 0x248)
    if start + offset + length > len(data):
        raise UserError("the bzImage is cut off: its payload reaches beyond the end of the file")
    if length == 0:
        raise UserError("the bzImage has no payload")
    return BzImage(protocol, _version(data, version_at), data[start + offset : start + offset + length])


def _version(data: memoryview, pointer: int) -> str:
    """The NUL-terminated kernel version; `pointer` counts from the end of the boot sector, 0 means none."""
    if pointer == 0:
        return ""
    text = bytes(data[pointer + _SECTOR : pointer + _SECTOR + 256])
    return text.split(b"\0")[0].decode("ascii", "replace")
