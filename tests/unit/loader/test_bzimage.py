from __future__ import annotations

import pytest

from tests.unit.loader.elf_maker import make_bzimage
from xenolith.errors import UserError
from xenolith.loader import bzimage


def test_the_payload_and_the_version_are_found() -> None:
    image = memoryview(make_bzimage(b"kernel", version="6.1.0 (somebody)"))
    assert bzimage.is_bzimage(image)
    boot = bzimage.parse(image)
    assert bytes(boot.payload) == b"kernel"
    assert boot.version == "6.1.0 (somebody)"
    assert boot.protocol == 0x20F


def test_no_version() -> None:
    image = bytearray(make_bzimage(b"kernel"))
    image[0x20E:0x210] = bytes(2)
    assert bzimage.parse(memoryview(image)).version == ""


def test_zero_setup_sectors_mean_four() -> None:
    image = bytearray(make_bzimage(b"kernel"))
    image[0x1F1] = 0
    image[0x800:0x800] = bytes(512)
    assert bytes(bzimage.parse(memoryview(image)).payload) == b"kernel"


@pytest.mark.parametrize("length", [0x210, 0x24F])
def test_a_cut_header(length: int) -> None:
    image = memoryview(make_bzimage(b"kernel"))[:length]
    assert bzimage.is_bzimage(image)
    with pytest.raises(UserError, match="setup header"):
        bzimage.parse(image)


def test_a_cut_payload() -> None:
    with pytest.raises(UserError, match="cut off"):
        bzimage.parse(memoryview(make_bzimage(b"kernel"))[:-1])


def test_an_empty_payload() -> None:
    with pytest.raises(UserError, match="no payload"):
        bzimage.parse(memoryview(make_bzimage(b"")))


def test_an_old_protocol() -> None:
    with pytest.raises(UserError, match=r"2\.07"):
        bzimage.parse(memoryview(make_bzimage(b"kernel", protocol=0x207)))


@pytest.mark.parametrize("data", [b"", b"\x7fELF", bytes(4096)])
def test_other_files(data: bytes) -> None:
    assert not bzimage.is_bzimage(memoryview(data))
