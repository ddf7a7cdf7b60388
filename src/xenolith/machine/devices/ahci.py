"""An AHCI controller with one port and a disk at it.

Source: Serial ATA AHCI 1.3.1, 2 (PCI registers), 3.1 (controller registers), 10.7 (interrupts).
"""

from __future__ import annotations

from typing import Final

from xenolith.errors import UserError
from xenolith.machine.devices.ahci_disk import QUEUE_DEPTH, AtaDisk
from xenolith.machine.devices.ahci_port import Port
from xenolith.machine.devices.disk_work import DiskWork, Submit
from xenolith.machine.disk import Image
from xenolith.machine.pci import BarKind
from xenolith.machine.pci_device import PciDevice

_VENDOR: Final = 0x8086
_DEVICE: Final = 0x2922
"""That of an ICH9, like the rest of the machine."""
_CLASS: Final = 0x010601
_BAR: Final = 5
_BAR_BYTES: Final = 0x1000

# Registers (3.1).
CAP: Final = 0x00
GHC: Final = 0x04
IS: Final = 0x08
PI: Final = 0x0C
VS: Final = 0x10
PORT: Final = 0x100
_PORT_BYTES: Final = 0x80

_CAPABILITIES: Final = 1 << 31 | 1 << 30 | 1 << 24 | 3 << 20 | 1 << 18 | QUEUE_DEPTH - 1 << 8
"""64-bit addresses, queued commands, busy can be cleared, the third speed, AHCI only, command slots."""
_VERSION: Final = 0x00010301
_RESET: Final = 1 << 0
GHC_INTERRUPTS: Final = 1 << 1
_AHCI: Final = 1 << 31


class Ahci(PciDevice):
    """`image` as a disk behind an AHCI controller; `submit` has work done in other threads.

    UserError if the image cannot be written to, which an ATA disk has no way to say.
    """

    def __init__(self, image: Image, submit: Submit) -> None:
        if image.readonly:
            raise UserError("a disk behind AHCI cannot be read-only", "give it an overlay, or take nvme or virtio-blk")
        super().__init__(_VENDOR, _DEVICE, _CLASS, revision=2, interrupt_pin=1)
        self.add_bar(_BAR, _BAR_BYTES, BarKind.MEMORY32, self)
        self.add_msi()
        self.add_function_reset()
        self._interrupts = False
        self._status = 0
        work = DiskWork(image, self.memory, submit)
        disk = AtaDisk(image, work, lambda: self.where)
        self._port = Port(self.memory, disk, work, self._changed)

    def reset(self) -> None:
        super().reset()
        self._reset_controller()

    def _reset_controller(self) -> None:
        self._interrupts = False
        self._status = 0
        self._port.reset()
        self._changed(False)

    # -- registers ----------------------------------------------------------------------------------------------------

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        if size == 8:
            return self._read(offset) | self._read(offset + 4) << 32
        return self._read(offset & ~3) >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def _read(self, register: int) -> int:
        if PORT <= register < PORT + _PORT_BYTES:
            return self._port.read(register - PORT)
        interrupts = GHC_INTERRUPTS if self._interrupts else 0
        values = {CAP: _CAPABILITIES, GHC: _AHCI | interrupts, IS: self._status, PI: 1, VS: _VERSION}
        return values.get(register, 0)

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        """Registers take aligned accesses of 32 and 64 bits; others are ignored."""
        if size >= 4 and not offset & 3:
            for at in range(0, size, 4):
                self._write(offset + at, value >> 8 * at & 0xFFFFFFFF)

    def _write(self, register: int, value: int) -> None:
        if PORT <= register < PORT + _PORT_BYTES:
            self._port.write(register - PORT, value)
        elif register == GHC:
            if value & _RESET:
                self._reset_controller()
            else:
                self._interrupts = bool(value & GHC_INTERRUPTS)
                self._changed(False)
        elif register == IS:
            self._status &= ~value
            self._changed(False)

    # -- interrupts ---------------------------------------------------------------------------------------------------

    def _changed(self, is_event: bool) -> None:
        """Interrupt if there is something to tell that was not told, or that came now."""
        before = self._status
        if self._port.interrupts:
            self._status = 1
        level = self._interrupts and bool(self._status)
        if level and (is_event or not before):
            self.interrupt()
        self.set_intx(level)
