"""Decompression of kernel payloads, chosen by magic number and bounded in size."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Final

from xenolith.errors import UserError

MAX_OUTPUT: Final = 1 << 30
"""Bytes: no kernel image is larger; more is refused instead of filling the memory."""

_LZ4_LEGACY_NUMBER: Final = 0x184C2102
_LZ4_LEGACY_BLOCK: Final = 8 << 20
_LZMA_MEMORY: Final = 512 << 20

_MAGICS: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x5d\0\0", "lzma"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (struct.pack("<I", _LZ4_LEGACY_NUMBER), "lz4"),
    (b"\x89LZO\0", "lzo"),
)
"""First bytes of each compression that Linux's build offers (Linux Documentation/arch/x86/boot.rst, payload_offset)."""


class _Corrupt(Exception):
    """The compressed data cannot be what was compressed; the reason is the argument."""


def compression(data: memoryview) -> str | None:
    """The name of the compression that `data` begins with, or None."""
    start = bytes(data[:8])
    return next((name for magic, name in _MAGICS if start.startswith(magic)), None)


def decompress(data: memoryview, name: str) -> bytes:
    """Decompress `data`, which may end in the 4 bytes of the output's length that Linux's build appends.

    UserError if the data is corrupt or cut off, longer than MAX_OUTPUT, or packed with a compression not supported.
    """
    if name not in _DECOMPRESSORS:
        raise UserError(
            f"the kernel is compressed with {name}, which Xenolith cannot unpack",
            "give the uncompressed vmlinux, or build the kernel with another compression",
        )
    try:
        output, rest = _DECOMPRESSORS[name](data)
    except _Corrupt as reason:
        raise UserError(f"the {name}-compressed kernel is corrupt: {reason}") from None
    if len(rest) == 4 and name != "gzip" and struct.unpack("<I", rest)[0] != len(output):
        raise UserError(
            f"the {name}-compressed kernel is corrupt: it unpacks to {len(output)} bytes, not to the length it states"
        )
    return output


def _finished(output: bytes, complete: bool) -> bytes:
    """Refuse an output that was stopped by the limit or by the end of the input."""
    if complete:
        return output
    if len(output) >= MAX_OUTPUT:
        raise _Corrupt(f"it unpacks to more than {MAX_OUTPUT >> 20} MiB")
    raise _Corrupt("the data ends too early")


def _gzip(data: memoryview) -> tuple[bytes, bytes]:
    stream = zlib.decompressobj(wbits=31)
    try:
        output = stream.decompress(data, MAX_OUTPUT)
    except zlib.error as error:
        raise _Corrupt(str(error)) from None
    return _finished(output, stream.eof), stream.unused_data


def _xz(data: memoryview) -> tuple[bytes, bytes]:
    return _lzma(data, lzma.FORMAT_XZ)


def _lzma_alone(data: memoryview) -> tuple[bytes, bytes]:
    return _lzma(data, lzma.FORMAT_ALONE)


def _lzma(data: memoryview, format_: int) -> tuple[bytes, bytes]:
    stream = lzma.LZMADecompressor(format_, memlimit=_LZMA_MEMORY)
    try:
        output = stream.decompress(data, MAX_OUTPUT)
    except lzma.LZMAError as error:
        raise _Corrupt(str(error)) from None
    return _finished(output, stream.eof), stream.unused_data


def _bzip2(data: memoryview) -> tuple[bytes, bytes]:
    stream = bz2.BZ2Decompressor()
    try:
        output = stream.decompress(data, MAX_OUTPUT)
    except OSError as error:
        raise _Corrupt(str(error)) from None
    return _finished(output, stream.eof), stream.unused_data


def _zstd(data: memoryview) -> tuple[bytes, bytes]:
    import zstandard

    # Linux packs with a window of up to 128 MiB (scripts/Makefile.lib, zstd22).
    stream = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    chunks, length = [], 0
    try:
        for start in range(0, len(data), 1 << 18):
            chunk = stream.decompress(data[start : start + (1 << 18)])
            length += len(chunk)
            if length > MAX_OUTPUT:
                raise _Corrupt(f"it unpacks to more than {MAX_OUTPUT >> 20} MiB")
            chunks.append(chunk)
            if stream.eof:
                return b"".join(chunks), stream.unused_data + bytes(data[start + (1 << 18) :])
    except zstandard.ZstdError as error:
        raise _Corrupt(str(error)) from None
    raise _Corrupt("the data ends too early")


def _lz4(data: memoryview) -> tuple[bytes, bytes]:
    """The legacy LZ4 frame: a magic number, then blocks of (packed size, data), each up to 8 MiB when unpacked."""
    import lz4.block

    chunks, length, offset = [], 0, 4
    # The four bytes after the last block are the output's length, not a block.
    while offset + 4 < len(data):
        size = struct.unpack_from("<I", data, offset)[0]
        offset += 4
        if size == _LZ4_LEGACY_NUMBER:
            continue
        if offset + size > len(data):
            raise _Corrupt("the data ends too early")
        try:
            chunk = lz4.block.decompress(data[offset : offset + size], uncompressed_size=_LZ4_LEGACY_BLOCK)
        except lz4.block.LZ4BlockError as error:
            raise _Corrupt(str(error)) from None
        chunks.append(chunk)
        offset += size
        length += len(chunk)
        if length > MAX_OUTPUT:
            raise _Corrupt(f"it unpacks to more than {MAX_OUTPUT >> 20} MiB")
    return b"".join(chunks), bytes(data[offset:])


_DECOMPRESSORS: Final[dict[str, Callable[[memoryview], tuple[bytes, bytes]]]] = {
    "gzip": _gzip,
    "xz": _xz,
    "lzma": _lzma_alone,
    "bzip2": _bzip2,
    "zstd": _zstd,
    "lz4": _lz4,
}
"""Each takes the data and returns what was packed and the bytes behind it."""
