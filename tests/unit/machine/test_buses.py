"""The buses route an access to its owner, cut wide accesses, and answer all ones where nobody is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.machine.buses import MmioBus, PortBus


class Cells:
    """A device whose registers are bytes of memory, and which records each access."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}
        self.accesses: list[tuple[int, int]] = []

    def read_port(self, port: int, size: int) -> int:
        self.accesses.append((port, size))
        return sum(self.bytes.get(port + at, 0) << 8 * at for at in range(size))

    def write_port(self, port: int, size: int, value: int) -> None:
        self.accesses.append((port, size))
        self.bytes.update({port + at: value >> 8 * at & 0xFF for at in range(size)})

    read_mmio = read_port
    write_mmio = write_port


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF)])
def test_an_unclaimed_port_reads_all_ones_and_ignores_writes(size: int, ones: int) -> None:
    ports = PortBus()
    ports.write(0x80, size, 0)
    assert ports.read(0x80, size) == ones
    assert ports.read(0xFFFF, size) == ones


def test_a_wide_access_to_a_byte_device_is_cut_into_bytes() -> None:
    ports, device = PortBus(), Cells()
    ports.claim(range(0x70, 0x72), device)
    ports.write(0x70, 2, 0xBEEF)
    assert device.accesses == [(0x70, 1), (0x71, 1)]
    assert ports.read(0x70, 2) == 0xBEEF


def test_a_wide_access_reaches_every_owner_and_the_gaps_between() -> None:
    ports, low, high = PortBus(), Cells(), Cells()
    ports.claim(range(0x100, 0x101), low)
    ports.claim(range(0x103, 0x104), high)
    ports.write(0x100, 4, 0x44332211)
    assert (low.bytes, high.bytes) == ({0x100: 0x11}, {0x103: 0x44})
    assert ports.read(0x100, 4) == 0x44FFFF11


def test_a_device_takes_accesses_up_to_its_width_whole() -> None:
    ports, device = PortBus(), Cells()
    ports.claim(range(0xCFC, 0xD00), device, width=4)
    ports.write(0xCFC, 4, 0x12345678)
    assert device.accesses == [(0xCFC, 4)]
    assert ports.read(0xCFE, 2) == 0x1234


def test_a_port_has_one_owner_until_it_is_released() -> None:
    ports, device = PortBus(), Cells()
    ports.claim(range(0x3F8, 0x400), device)
    with pytest.raises(ValueError, match="0x3f8"):
        ports.claim(range(0x3F0, 0x400), Cells())
    assert ports.owner(0x3F0) is None
    ports.release(range(0x3F8, 0x400))
    assert ports.owner(0x3F8) is None
    assert ports.read(0x3F8, 1) == 0xFF


@pytest.mark.parametrize("ports", [range(0), range(-1, 4), range(0xFFFF, 0x10001)])
def test_ports_outside_the_space_cannot_be_claimed(ports: range) -> None:
    with pytest.raises(ValueError, match="port space"):
        PortBus().claim(ports, Cells())


@given(port=st.integers(0, 0xFFFF), size=st.sampled_from([1, 2, 4]), value=st.integers(0, 0xFFFFFFFF))
def test_what_is_written_is_read_back_at_any_width(port: int, size: int, value: int) -> None:
    ports = PortBus()
    for byte in range(port, port + size):
        ports.claim(range(byte % 0x10000, byte % 0x10000 + 1), Cells())
    ports.write(port, size, value)
    assert ports.read(port, size) == value & (1 << 8 * size) - 1


def test_mmio_goes_to_the_owner_of_the_range_with_an_offset() -> None:
    mmio, device = MmioBus(), Cells()
    mmio.claim(range(0xFEC00000, 0xFEC01000), device)
    mmio.write(0xFEC00010, 4, 0x1_0000_0005)
    assert device.bytes[0x10] == 5
    assert mmio.read(0xFEC00010, 8) == 5


@pytest.mark.parametrize("maddr", [0, 0xFEBFFFFC, 0xFEC00FFE, 0xFEC01000, 1 << 60])
def test_mmio_without_one_owner_for_every_byte_reads_all_ones(maddr: int) -> None:
    mmio, device = MmioBus(), Cells()
    mmio.claim(range(0xFEC00000, 0xFEC01000), device)
    mmio.write(maddr, 4, 0)
    assert mmio.read(maddr, 4) == 0xFFFFFFFF
    assert device.accesses == []


@pytest.mark.parametrize("again", [(0x1000, 0x2000), (0xFFF, 0x1001), (0x1FFF, 0x3000), (0, 0x4000), (0x1800, 0x1801)])
def test_mmio_ranges_do_not_overlap(again: tuple[int, int]) -> None:
    mmio = MmioBus()
    mmio.claim(range(0x1000, 0x2000), Cells())
    with pytest.raises(ValueError, match="owner already"):
        mmio.claim(range(*again), Cells())


def test_mmio_ranges_may_touch_and_be_released() -> None:
    mmio = MmioBus()
    ranges = [range(0x2000, 0x3000), range(0x1000, 0x2000), range(0x3000, 0x3001)]
    for addresses in ranges:
        mmio.claim(addresses, Cells())
    assert mmio.ranges == sorted(ranges, key=lambda addresses: addresses.start)
    mmio.release(ranges[0])
    assert mmio.read(0x2000, 1) == 0xFF
    with pytest.raises(ValueError, match="not claimed"):
        mmio.release(range(0x1000, 0x1800))
    with pytest.raises(ValueError, match="empty"):
        mmio.claim(range(5, 5), Cells())
