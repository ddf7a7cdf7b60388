"""A bus with one device, 1 MiB of memory that it may use, and what software does with both."""

from __future__ import annotations

from typing import Final

from xenolith.machine.buses import MmioBus, PortBus
from xenolith.machine.pci import BAR0, CAPABILITIES, COMMAND, DmaFault, PciBus, bdf
from xenolith.machine.pci_device import MSI, MSIX, PciDevice

MEMORY_BYTES: Final = 1 << 20
MEMORY_AND_MASTER: Final = 0x6
MESSAGE_ADDRESS: Final = 0xFEE0_0000
_SLOT: Final = 3
_ENABLE_MSIX: Final = 0x8000


class Board:
    """The device is a bus master, its registers are placed, and it interrupts by its pin until `use_msix`."""

    def __init__(self, device: PciDevice) -> None:
        self.memory = bytearray(MEMORY_BYTES)
        self.device = device
        self.messages: list[int] = []
        """The data of each interrupt message."""
        self.line = False
        self._mmio = MmioBus()
        self.bus = PciBus(PortBus(), self._mmio)
        self.bus.iommu = self
        self.bus.drive = lambda gsi, level: setattr(self, "line", level)
        self.bus.add(device, _SLOT)
        self.bus.place_bars()
        self._where = bdf(0, _SLOT, 0)
        self.write_config(COMMAND, 2, MEMORY_AND_MASTER)

    # -- the IOMMU ----------------------------------------------------------------------------------------------------

    programs_messages = False

    def open(self, where: int, maddr: int, length: int, write: bool) -> memoryview:
        if length < 0 or maddr + length > MEMORY_BYTES:
            raise DmaFault(f"{maddr:#x}")
        return memoryview(self.memory)[maddr : maddr + length]

    def message(self, where: int, address: int, data: int) -> None:
        assert address == MESSAGE_ADDRESS
        self.messages.append(data)

    # -- software -----------------------------------------------------------------------------------------------------

    def read_config(self, offset: int, size: int) -> int:
        return self.bus.read_config(self._where, offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.bus.write_config(self._where, offset, size, value)

    def capabilities(self) -> list[tuple[int, int]]:
        """The number and the offset of each capability."""
        found = []
        at = self.read_config(CAPABILITIES, 1)
        while at:
            found.append((self.read_config(at, 1), at))
            at = self.read_config(at + 1, 1)
        return found

    def capability(self, number: int) -> int:
        return next(at for found, at in self.capabilities() if found == number)

    def bar(self, index: int) -> int:
        return self.read_config(BAR0 + 4 * index, 4) & ~0xF

    def read(self, bar: int, offset: int, size: int) -> int:
        return self._mmio.read(self.bar(bar) + offset, size)

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        self._mmio.write(self.bar(bar) + offset, size, value)

    def use_msix(self) -> None:
        """Message N has the data 100 + N."""
        for vector in range(self.device.vectors[1]):
            self.device.program_msix(vector, MESSAGE_ADDRESS, 100 + vector, masked=False)
        self.write_config(self.capability(MSIX) + 2, 2, _ENABLE_MSIX)

    def use_msi(self) -> None:
        """One message, with the data 100."""
        self.device.program_msi(MESSAGE_ADDRESS, 100, 1)
        self.device.mask_msi(0, False)
        assert self.capability(MSI)

    def take_messages(self) -> list[int]:
        messages, self.messages = self.messages, []
        return messages

    def put(self, maddr: int, data: bytes) -> None:
        self.memory[maddr : maddr + len(data)] = data

    def word(self, maddr: int, size: int) -> int:
        return int.from_bytes(self.memory[maddr : maddr + size], "little")

    def set_word(self, maddr: int, size: int, value: int) -> None:
        self.put(maddr, value.to_bytes(size, "little"))
