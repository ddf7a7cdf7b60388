"""A PCI device reaches memory as its IOMMU allows, interrupts by pin and by message, and can be reset."""

from __future__ import annotations

import pytest

from xenolith.machine.buses import MmioBus, PortBus
from xenolith.machine.pci import COMMAND, STATUS, BarKind, DmaFault, PciBus, intx_gsi
from xenolith.machine.pci_device import MSI, MSIX, PciDevice

MASTER, NO_INTX = 1 << 2, 1 << 10
TABLE_BAR = 4


class FlatMemory:
    """An IOMMU that lets everything through, and keeps the messages."""

    programs_messages = False

    def __init__(self) -> None:
        self.bytes = bytearray(4096)
        self.messages: list[tuple[int, int, int]] = []

    def open(self, where: int, maddr: int, length: int, write: bool) -> memoryview:
        if maddr + length > len(self.bytes):
            raise DmaFault("beyond memory")
        return memoryview(self.bytes)[maddr : maddr + length]

    def message(self, where: int, address: int, data: int) -> None:
        self.messages.append((where, address, data))


class Board:
    """Two devices of one kind that share an interrupt line."""

    def __init__(self, msi: int = 0, msix: int = 0) -> None:
        self.bus = PciBus(PortBus(), MmioBus())
        self.iommu = self.bus.iommu = FlatMemory()
        self.lines: list[tuple[int, bool]] = []
        self.bus.drive = lambda gsi, level: self.lines.append((gsi, level))
        self.device, self.other = (self.make(slot, msi, msix) for slot in (2, 10))
        self.bus.place_bars()

    def make(self, slot: int, msi: int, msix: int) -> PciDevice:
        device = PciDevice(0x1B36, 0x0010, 0x010802, interrupt_pin=1)
        device.add_function_reset()
        if msi:
            device.add_msi(msi)
        if msix:
            device.add_msix(msix, TABLE_BAR)
        self.bus.add(device, slot)
        return device

    def command(self, bits: int, device: PciDevice | None = None) -> None:
        self.bus.write_config((device or self.device).where, COMMAND, 2, bits)

    def capability(self, identifier: int) -> int:
        at = self.device.get(0x34, 1)
        while self.device.get(at, 1) != identifier:
            at = self.device.get(at + 1, 1)
        return at


def test_memory_is_for_bus_masters() -> None:
    board = Board()
    with pytest.raises(DmaFault, match="no bus master"):
        board.device.memory(0, 4)
    board.command(MASTER)
    board.device.memory(16, 4, write=True)[:] = b"data"
    assert board.iommu.bytes[16:20] == b"data"
    with pytest.raises(DmaFault, match="beyond"):
        board.device.memory(4094, 4)


def test_nothing_passes_before_somebody_is_in_charge() -> None:
    bus = PciBus(PortBus(), MmioBus())
    device = PciDevice(1, 2, 3)
    bus.add(device, 1)
    bus.write_config(device.where, COMMAND, 2, MASTER)
    with pytest.raises(DmaFault):
        device.memory(0, 1)


def test_a_shared_line_is_up_while_any_device_drives_it() -> None:
    board = Board()
    gsi = intx_gsi(2, 1)
    assert gsi == intx_gsi(10, 1)
    board.device.set_intx(True)
    board.other.set_intx(True)
    board.device.set_intx(False)
    assert board.lines == [(gsi, True)]
    board.other.set_intx(False)
    assert board.lines == [(gsi, True), (gsi, False)]


def test_software_can_switch_the_pin_off_and_still_sees_it() -> None:
    board = Board()
    board.device.set_intx(True)
    board.command(NO_INTX)
    assert board.lines[-1][1] is False
    assert board.device.get(STATUS, 2) & 1 << 3
    board.command(0)
    assert board.lines[-1][1] is True


def test_messages_of_msi_are_masked_and_come_later() -> None:
    board = Board(msi=4)
    board.command(MASTER)
    board.device.program_msi(0xFEE00000, 0x40, 4)
    board.device.interrupt(2)
    assert board.iommu.messages == []
    board.device.mask_msi(2, False)
    board.device.interrupt(2)
    assert board.iommu.messages == [(board.device.where, 0xFEE00000, 0x42)] * 2
    board.device.stop_msi()
    board.device.interrupt(2)
    assert len(board.iommu.messages) == 2


def test_messages_silence_the_pin() -> None:
    board = Board(msi=1)
    board.device.set_intx(True)
    board.device.program_msi(0xFEE00000, 0x40, 1)
    assert board.lines[-1][1] is False
    assert board.device.message_vectors == 1


def test_messages_of_msix_are_masked_one_by_one_and_all_together() -> None:
    board = Board(msix=8)
    board.command(MASTER)
    control = board.capability(MSIX) + 2
    board.bus.write_config(board.device.where, control, 2, 1 << 15 | 1 << 14)
    board.device.program_msix(3, 0xFEE00000, 0x77, masked=False)
    board.device.interrupt(3)
    board.device.interrupt(4)
    assert board.iommu.messages == []
    board.bus.write_config(board.device.where, control, 2, 1 << 15)
    assert board.iommu.messages == [(board.device.where, 0xFEE00000, 0x77)]
    board.device.program_msix(4, 0xFEE00000, 0x78, masked=False)
    assert board.iommu.messages[-1][2] == 0x78
    board.device.interrupt(8)
    assert len(board.iommu.messages) == 2


def test_software_reads_and_writes_the_table_where_it_was_placed() -> None:
    board = Board(msix=8)
    place = board.bus._mmio.ranges[0]
    assert len(place) == 4096
    mmio = board.bus._mmio
    mmio.write(place.start + 16, 4, 0xFEE00000)
    assert mmio.read(place.start + 16, 4) == 0xFEE00000
    assert mmio.read(place.start + 28, 4) == 1
    mmio.write(place.start + 2048, 4, 0xFFFFFFFF)
    assert mmio.read(place.start + 2048, 4) == 0
    board.iommu.programs_messages = True
    mmio.write(place.start + 16, 4, 0)
    assert mmio.read(place.start + 16, 4) == 0xFEE00000


def test_a_reset_leaves_what_firmware_left() -> None:
    board = Board(msi=1, msix=8)
    board.command(MASTER)
    placed = bytes(board.device.config[0x10:0x28])
    board.device.program_msi(0xFEE00000, 0x40, 1)
    board.device.program_msix(0, 0xFEE00000, 0x77, masked=False)
    board.bus.write_config(board.device.where, 0x10 + 4 * TABLE_BAR, 4, 0xD0000000)
    board.device.set_intx(True)
    board.bus.write_config(board.device.where, board.device._reset_at + 4, 1, 1)
    assert board.device.config[0x10:0x28] == placed
    assert not board.device.get(COMMAND, 2) & MASTER
    assert board.device.message_vectors == 0
    assert board.lines[-1:] in ([], [(intx_gsi(2, 1), False)])
    board.command(MASTER)
    board.device.interrupt(0)
    assert board.iommu.messages == []


def test_firmware_gives_each_register_pages_of_its_own() -> None:
    bus = PciBus(PortBus(), MmioBus())

    class Window(PciDevice):
        def read_bar(self, bar: int, offset: int, size: int) -> int:
            return bar

        def write_bar(self, bar: int, offset: int, size: int, value: int) -> None: ...

    devices = []
    for slot in (1, 2):
        device = Window(1, 2, 3)
        device.add_bar(0, 16, BarKind.MEMORY64, device)
        device.add_bar(2, 0x20000, BarKind.MEMORY32, device)
        device.add_bar(3, 32, BarKind.IO, device)
        bus.add(device, slot)
        devices.append(device)
    bus.place_bars()
    placed = [device.bar_range(bar) for device in devices for bar in device.bars]
    pages = [part.start >> 12 for part in placed if part is not None]
    assert len(placed) == len(set(pages)) + 1 == 6  # the two of I/O share a page number
    assert all(part is not None and part.start % len(part) == 0 for part in placed)


def test_the_capability_of_msi_tells_what_it_can() -> None:
    board = Board(msi=8)
    control = board.device.get(board.capability(MSI) + 2, 2)
    assert control == 3 << 1 | 1 << 7 | 1 << 8
    assert board.device.vectors == (8, 0)
