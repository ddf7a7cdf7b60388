"""A PCI function that works by itself: it reads and writes memory, interrupts by pin or by message, and can be reset.

Source: PCI Local Bus Specification 3.0, 6.2.2 (command), 6.8 (MSI and MSI-X); Advanced Features ECN (function reset).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xenolith.machine.pci import COMMAND, CONFIG_BYTES, STATUS, BarKind, DmaFault, PciFunction

_COMMAND_MASTER: Final = 1 << 2
_COMMAND_NO_INTX: Final = 1 << 10
_STATUS_INTX: Final = 1 << 3

MSI: Final = 0x05
MSIX: Final = 0x11
_ADVANCED_FEATURES: Final = 0x13

# MSI: offsets in the capability, for 64-bit addresses and masks.
_MSI_CONTROL: Final = 2
_MSI_ADDRESS: Final = 4
_MSI_DATA: Final = 12
_MSI_MASK: Final = 16
_MSI_PENDING: Final = 20
_MSI_ENABLE: Final = 1 << 0
_MSI_CONTROL_FIXED: Final = 1 << 7 | 1 << 8
"""64-bit addresses, a mask for each message."""

# MSI-X: bits of the control word, a table entry, and where things are in the register space that they have alone.
_MSIX_CONTROL: Final = 2
_MSIX_ENABLE: Final = 1 << 15
_MSIX_MASK_ALL: Final = 1 << 14
_ENTRY_BYTES: Final = 16
_ENTRY_CONTROL: Final = 12
_MSIX_BAR_BYTES: Final = 4096
_PENDING_AT: Final = 2048
MAX_MSIX_VECTORS: Final = _PENDING_AT // _ENTRY_BYTES
MAX_MSI_VECTORS: Final = 32

# Advanced features: transactions-pending and function-level reset are there; writing the control byte's bit 0 resets.
_AF_BODY: Final = bytes((6, 0x03, 0, 0))
_AF_CONTROL: Final = 4


class _MsixTable:
    """The table of messages and the pending bits, in a base address register of their own."""

    def __init__(self, vectors: int, is_readonly: Callable[[], bool], changed: Callable[[], None]) -> None:
        self.vectors = vectors
        self._is_readonly = is_readonly
        self._changed = changed
        self.content = bytearray(_MSIX_BAR_BYTES)
        self.clear()

    def clear(self) -> None:
        self.content[:] = bytes(_MSIX_BAR_BYTES)
        for vector in range(self.vectors):
            self.content[vector * _ENTRY_BYTES + _ENTRY_CONTROL] = 1

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        return int.from_bytes(self.content[offset : offset + size], "little")

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        if offset + size <= self.vectors * _ENTRY_BYTES and not self._is_readonly():
            self.content[offset : offset + size] = value.to_bytes(size, "little")
            self._changed()

    def entry(self, vector: int) -> tuple[int, int, bool]:
        """Address, data, and whether it is masked."""
        entry = self.content[vector * _ENTRY_BYTES : (vector + 1) * _ENTRY_BYTES]
        return int.from_bytes(entry[:8], "little"), int.from_bytes(entry[8:12], "little"), bool(entry[12] & 1)

    def set_entry(self, vector: int, address: int, data: int, masked: bool) -> None:
        at = vector * _ENTRY_BYTES
        self.content[at : at + _ENTRY_BYTES] = (
            address.to_bytes(8, "little") + data.to_bytes(4, "little") + int(masked).to_bytes(4, "little")
        )

    def set_pending(self, vector: int, pending: bool) -> None:
        at, bit = _PENDING_AT + (vector >> 3), 1 << (vector & 7)
        self.content[at] = self.content[at] | bit if pending else self.content[at] & ~bit

    def take_ready(self) -> list[int]:
        """The vectors that wait and are not masked any more; they wait no more."""
        pending = int.from_bytes(self.content[_PENDING_AT : _PENDING_AT + MAX_MSIX_VECTORS // 8], "little")
        ready = [vector for vector in range(self.vectors) if pending >> vector & 1 and not self.entry(vector)[2]]
        for vector in ready:
            self.set_pending(vector, False)
        return ready


class PciDevice(PciFunction):
    """A function with everything that a driver expects of one.

    A device model inherits it, declares its registers (`add_bar` with itself), says how it interrupts (`add_msi`,
    `add_msix`, an interrupt pin), works through `memory`, `interrupt` and `set_intx`, and clears its state in `reset`.
    """

    _msi_at: int = 0
    _msix_at: int = 0
    _table: _MsixTable | None = None
    _reset_at: int = 0
    _intx_asserted: bool = False
    _placed: bytes = bytes(CONFIG_BYTES)

    # -- what a model declares ----------------------------------------------------------------------------------------

    def add_msi(self, vectors: int = 1) -> None:
        """It can send `vectors` different messages: a power of two up to 32."""
        control = _MSI_CONTROL_FIXED | (vectors.bit_length() - 1) << 1
        writable = (
            b"\x71\x00" + b"\xfc" + b"\xff" * 7 + b"\xff\xff\x00\x00" + ((1 << vectors) - 1).to_bytes(4, "little")
        )
        self._msi_at = self.add_capability(MSI, control.to_bytes(2, "little") + bytes(20), writable)

    def add_msix(self, vectors: int, bar: int) -> None:
        """It can send `vectors` (up to 128) different messages, kept in base address register `bar`."""
        self._table = _MsixTable(vectors, self._has_programmer, self._unmasked)
        self.add_bar(bar, _MSIX_BAR_BYTES, BarKind.MEMORY32, self._table)
        table, pending = bar.to_bytes(4, "little"), (_PENDING_AT | bar).to_bytes(4, "little")
        self._msix_at = self.add_capability(MSIX, (vectors - 1).to_bytes(2, "little") + table + pending, b"\x00\xc0")

    def add_function_reset(self) -> None:
        """Software can reset this function alone. (Whoever gives it away again does.)"""
        self._reset_at = self.add_capability(_ADVANCED_FEATURES, _AF_BODY)

    # -- memory -------------------------------------------------------------------------------------------------------

    def memory(self, maddr: int, length: int, write: bool = False) -> memoryview:
        """The `length` bytes of memory at bus address `maddr`, to be used before the device model returns.

        Raises DmaFault where the device may not go, or while software has not made it a bus master.
        """
        if self.bus is None or not self.get(COMMAND, 2) & _COMMAND_MASTER:
            raise DmaFault(f"function {self.where:#06x} is no bus master")
        return self.bus.iommu.open(self.where, maddr, length, write)

    # -- interrupts ---------------------------------------------------------------------------------------------------

    @property
    def message_vectors(self) -> int:
        """How many different messages software has it send now; 0 while it uses the interrupt pin."""
        if self._table is not None and self._msix_control & _MSIX_ENABLE:
            return self._table.vectors
        control = self._msi_control
        return 1 << (control >> 4 & 7) if control & _MSI_ENABLE else 0

    def interrupt(self, vector: int = 0) -> None:
        """Send message `vector`, if messages are on; it waits while it is masked."""
        if self._table is not None and self._msix_control & _MSIX_ENABLE:
            if vector < self._table.vectors:
                self._send_msix(self._table, vector)
        elif self._msi_control & _MSI_ENABLE:
            self._send_msi(vector)

    def set_intx(self, level: bool) -> None:
        """Drive the interrupt pin, which is quiet while messages are on or software has switched it off."""
        self._intx_asserted = level
        self._drive_pin()

    def _drive_pin(self) -> None:
        self.config[STATUS] = self.config[STATUS] & ~_STATUS_INTX | (_STATUS_INTX if self._intx_asserted else 0)
        quiet = self.get(COMMAND, 2) & _COMMAND_NO_INTX or self.message_vectors
        if self.bus is not None:
            self.bus.set_line(self, self._intx_asserted and not quiet)

    @property
    def _msi_control(self) -> int:
        return self.get(self._msi_at + _MSI_CONTROL, 2) if self._msi_at else 0

    @property
    def _msix_control(self) -> int:
        return self.get(self._msix_at + _MSIX_CONTROL, 2) if self._msix_at else 0

    def _send_msi(self, vector: int) -> None:
        vector %= 1 << (self._msi_control >> 4 & 7)
        at, bit = self._msi_at, 1 << vector
        if self.get(at + _MSI_MASK, 4) & bit:
            self._set_msi_pending(self.get(at + _MSI_PENDING, 4) | bit)
        else:
            self._send(self.get(at + _MSI_ADDRESS, 8), self.get(at + _MSI_DATA, 2) | vector)

    def _set_msi_pending(self, pending: int) -> None:
        self.config[self._msi_at + _MSI_PENDING : self._msi_at + _MSI_PENDING + 4] = pending.to_bytes(4, "little")

    def _send_msix(self, table: _MsixTable, vector: int) -> None:
        address, data, masked = table.entry(vector)
        if masked or self._msix_control & _MSIX_MASK_ALL:
            table.set_pending(vector, True)
        else:
            self._send(address, data)

    def _send(self, address: int, data: int) -> None:
        if self.bus is not None and self.get(COMMAND, 2) & _COMMAND_MASTER:
            self.bus.iommu.message(self.where, address, data)

    def _has_programmer(self) -> bool:
        return self.bus is not None and self.bus.iommu.programs_messages

    def _unmasked(self) -> None:
        """Send what waited for a mask that is gone."""
        if self._msi_control & _MSI_ENABLE:
            at = self._msi_at
            ready = self.get(at + _MSI_PENDING, 4) & ~self.get(at + _MSI_MASK, 4)
            self._set_msi_pending(self.get(at + _MSI_PENDING, 4) & ~ready)
            for vector in range(MAX_MSI_VECTORS):
                if ready >> vector & 1:
                    self._send_msi(vector)
        if self._table is not None and self._msix_control & (_MSIX_ENABLE | _MSIX_MASK_ALL) == _MSIX_ENABLE:
            for vector in self._table.take_ready():
                self._send_msix(self._table, vector)

    # -- for whoever is in charge of interrupts -----------------------------------------------------------------------

    @property
    def vectors(self) -> tuple[int, int]:
        """How many different messages it can send: by MSI, and by MSI-X."""
        return (
            1 << (self._msi_control >> 1 & 7) if self._msi_at else 0,
            self._table.vectors if self._table is not None else 0,
        )

    def program_msi(self, address: int, data: int, count: int) -> None:
        """Switch MSI on for `count` (a power of two) messages, with `data` and the numbers after it; all are masked."""
        at = self._msi_at
        self._put(at + _MSI_ADDRESS, 8, address)
        self._put(at + _MSI_DATA, 2, data)
        self._put(at + _MSI_MASK, 4, (1 << count) - 1)
        control = self._msi_control & ~0x70 | (count.bit_length() - 1) << 4 | _MSI_ENABLE
        self._put(at + _MSI_CONTROL, 2, control)
        self._drive_pin()

    def stop_msi(self) -> None:
        """Send no messages by MSI any more."""
        self._put(self._msi_at + _MSI_CONTROL, 2, self._msi_control & ~(_MSI_ENABLE | 0x70))
        self._set_msi_pending(0)
        self._drive_pin()

    def mask_msi(self, vector: int, masked: bool) -> None:
        """Hold message `vector` of MSI back, or no more."""
        mask = self.get(self._msi_at + _MSI_MASK, 4)
        self._put(self._msi_at + _MSI_MASK, 4, mask | 1 << vector if masked else mask & ~(1 << vector))
        self._unmasked()

    def program_msix(self, vector: int, address: int, data: int, masked: bool) -> None:
        """Write entry `vector` of the table of MSI-X."""
        if self._table is not None:
            self._table.set_entry(vector, address, data, masked)
            self._unmasked()

    def _put(self, offset: int, size: int, value: int) -> None:
        self.config[offset : offset + size] = value.to_bytes(size, "little")

    # -- configuration ------------------------------------------------------------------------------------------------

    def placed(self) -> None:
        self._placed = bytes(self.config)

    def write_config(self, offset: int, size: int, value: int) -> None:
        super().write_config(offset, size, value)
        if self._reset_at and offset <= self._reset_at + _AF_CONTROL < offset + size:
            if value >> 8 * (self._reset_at + _AF_CONTROL - offset) & 1:
                self.reset()
            return
        self._drive_pin()
        self._unmasked()

    def reset(self) -> None:
        """Be as firmware left it, with its registers in their places. Models clear their own state, too."""
        self.set_intx(False)
        self.config[:] = self._placed
        if self._table is not None:
            self._table.clear()
        if self.bus is not None:
            self.bus.remap(self)
