from __future__ import annotations

import bz2
import gzip
import lzma
import struct

import lz4.block
import pytest
import zstandard

from xenolith.errors import UserError
from xenolith.loader import payload

KERNEL = b"\x7fELF" + bytes(range(256)) * 300


def pack_lz4(data: bytes) -> bytes:
    block = lz4.block.compress(data, store_size=False)
    return struct.pack("<II", 0x184C2102, len(block)) + block


PACKERS = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    "lz4": pack_lz4,
}


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("with_length", [False, True])
def test_each_compression(name: str, with_length: bool) -> None:
    packed = memoryview(PACKERS[name](KERNEL) + (struct.pack("<I", len(KERNEL)) if with_length else b""))
    assert payload.compression(packed) == name
    assert payload.decompress(packed, name) == KERNEL


@pytest.mark.parametrize("name", PACKERS)
def test_a_cut_payload_is_corrupt(name: str) -> None:
    packed = PACKERS[name](KERNEL)
    with pytest.raises(UserError, match=rf"{name}-compressed kernel is corrupt"):
        payload.decompress(memoryview(packed[: len(packed) // 2]), name)


@pytest.mark.parametrize("name", ["gzip", "xz", "bzip2", "zstd"])
def test_a_damaged_payload_is_corrupt(name: str) -> None:
    packed = bytearray(PACKERS[name](KERNEL))
    packed[len(packed) // 2] ^= 0x55
    with pytest.raises(UserError, match="corrupt"):
        payload.decompress(memoryview(packed), name)


@pytest.mark.parametrize("name", ["xz", "lzma", "bzip2", "zstd", "lz4"])
def test_the_stated_length_is_checked(name: str) -> None:
    packed = PACKERS[name](KERNEL) + struct.pack("<I", len(KERNEL) + 1)
    with pytest.raises(UserError, match="not to the length it states"):
        payload.decompress(memoryview(packed), name)


@pytest.mark.parametrize("name", PACKERS)
def test_the_output_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "MAX_OUTPUT", 1 << 20)
    with pytest.raises(UserError, match="more than 1 MiB"):
        payload.decompress(memoryview(PACKERS[name](bytes(2 << 20))), name)


def test_several_lz4_blocks() -> None:
    blocks = pack_lz4(KERNEL) + pack_lz4(KERNEL[::-1])[4:] + struct.pack("<I", 2 * len(KERNEL))
    assert payload.decompress(memoryview(blocks), "lz4") == KERNEL + KERNEL[::-1]


def test_lzo_is_refused_with_advice() -> None:
    packed = memoryview(b"\x89LZO\0\r\n\x1a\n")
    assert payload.compression(packed) == "lzo"
    with pytest.raises(UserError, match="lzo") as caught:
        payload.decompress(packed, "lzo")
    assert "vmlinux" in caught.value.hint


def test_plain_data_has_no_compression() -> None:
    assert payload.compression(memoryview(KERNEL)) is None
    assert payload.compression(memoryview(b"")) is None
