"""PCI: configuration space reached by ports 0xcf8/0xcfc and by ECAM, functions with base address registers, bridges.

Source: PCI Local Bus Specification 3.0, chapter 6; PCI Express Base Specification, section 7.2.2 (ECAM).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

from xenolith.machine.buses import ALL_ONES, MmioBus, PortBus
from xenolith.machine.e820 import PCI_WINDOWS
from xenolith.machine.ram import PAGE_SIZE

CONFIG_BYTES = 256
"""Bytes of configuration space that a function implements; the extended space above reads 0."""
EXTENDED_CONFIG_BYTES = 4096

# Offsets in a type 0 header.
COMMAND = 0x04
STATUS = 0x06
BAR0 = 0x10
CAPABILITIES = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D
BARS = 6

COMMAND_IO = 1 << 0
COMMAND_MEMORY = 1 << 1
COMMAND_WRITABLE = 0x0547
"""I/O, memory, bus master, parity response, SERR, INTx disable."""
STATUS_CAPABILITIES = 1 << 4

CONFIG_ADDRESS = 0xCF8
CONFIG_DATA = 0xCFC
CONFIG_ENABLE = 1 << 31

FIRST_PCI_GSI = 16
PCI_GSIS = 8

_FIRMWARE_PORTS: Final = range(0xC000, 0x10000)
"""Where firmware places base address registers for I/O."""


def bdf(bus: int, slot: int, function: int) -> int:
    """The 16-bit bus, device and function number, as it stands in configuration addresses."""
    return bus << 8 | slot << 3 | function


def intx_gsi(slot: int, pin: int) -> int:
    """The GSI that interrupt pin `pin` (1 is INTA, 4 is INTD) of device `slot` on bus 0 is wired to."""
    return FIRST_PCI_GSI + (slot + pin - 1) % PCI_GSIS


class BarKind(Enum):
    """What a base address register decodes; the value is its read-only low bits."""

    IO = 0x1
    MEMORY32 = 0x0
    MEMORY64 = 0x4


class DmaFault(Exception):
    """A device's access to memory was refused: nothing was read or written, and the device sees an aborted access."""


class Iommu(Protocol):
    """What stands between devices and memory, and between devices and processors."""

    programs_messages: bool
    """Whether it alone writes the tables of interrupt messages, in which software's writes then change nothing."""

    def open(self, where: int, maddr: int, length: int, write: bool) -> memoryview:
        """The `length` bytes of memory at `maddr`, for function `where` to use at once. Raises DmaFault."""

    def message(self, where: int, address: int, data: int) -> None:
        """Function `where` has written the 32-bit `data` to the address of an interrupt message."""


class NoIommu:
    """Nobody has taken charge of devices yet, as when a machine is switched on: nothing passes."""

    programs_messages = False

    def open(self, where: int, maddr: int, length: int, write: bool) -> memoryview:
        raise DmaFault(f"function {where:#06x} has no memory yet")

    def message(self, where: int, address: int, data: int) -> None:
        pass


class BarDevice(Protocol):
    """What answers behind a base address register. `offset` counts bytes from its start."""

    def read_bar(self, bar: int, offset: int, size: int) -> int: ...

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None: ...


class _Bar:
    """One base address register, and itself the device that the buses see at its present place."""

    def __init__(self, index: int, length: int, kind: BarKind, device: BarDevice) -> None:
        self.index = index
        self.length = length
        self.kind = kind
        self.device = device
        self.mapped: range | None = None

    def read_mmio(self, offset: int, size: int) -> int:
        return self.device.read_bar(self.index, offset, size)

    def write_mmio(self, offset: int, size: int, value: int) -> None:
        self.device.write_bar(self.index, offset, size, value)

    def read_port(self, port: int, size: int) -> int:
        return self.device.read_bar(self.index, port % self.length, size)

    def write_port(self, port: int, size: int, value: int) -> None:
        self.device.write_bar(self.index, port % self.length, size, value)


class PciFunction:
    """One function's configuration space: bytes, and for each byte the mask of bits that software may write.

    `class_code` is the 24-bit class, subclass and programming interface.
    """

    def __init__(
        self,
        vendor: int,
        device: int,
        class_code: int,
        *,
        revision: int = 0,
        subsystem_vendor: int = 0,
        subsystem: int = 0,
        interrupt_pin: int = 0,
    ) -> None:
        self.config = bytearray(CONFIG_BYTES)
        self.writable = bytearray(CONFIG_BYTES)
        self.bars: list[_Bar] = []
        self.where = 0
        """Its bus, device and function number, once it is on a bus."""
        self.bus: PciBus | None = None
        self._capability_end = 0x40
        self._last_capability = CAPABILITIES
        self.set(0x00, 2, vendor)
        self.set(0x02, 2, device)
        self.set(COMMAND, 2, 0, COMMAND_WRITABLE)
        self.set(0x08, 1, revision)
        self.set(0x09, 3, class_code)
        self.set(0x2C, 2, subsystem_vendor)
        self.set(0x2E, 2, subsystem)
        self.set(INTERRUPT_LINE, 1, 0xFF, 0xFF)
        self.set(INTERRUPT_PIN, 1, interrupt_pin)

    def get(self, offset: int, size: int) -> int:
        """The `size` bytes at `offset`, as the device itself reads them; 0 beyond the implemented space."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def set(self, offset: int, size: int, value: int, writable: int = 0) -> None:
        """Give the `size` bytes at `offset` a value and say which bits software may change."""
        self.config[offset : offset + size] = value.to_bytes(size, "little")
        self.writable[offset : offset + size] = writable.to_bytes(size, "little")

    def add_bar(self, index: int, length: int, kind: BarKind, device: BarDevice) -> None:
        """Declare base address register `index` of `length` bytes: a power of two from 16 (memory) or 4 (I/O)."""
        least = 4 if kind is BarKind.IO else 16
        slots = 2 if kind is BarKind.MEMORY64 else 1
        if length < least or length & (length - 1) or not 0 <= index <= BARS - slots:
            raise ValueError(f"no base address register {index} of {length} bytes can be")
        size = 4 * slots
        mask = (1 << 8 * size) - length
        self.set(BAR0 + 4 * index, size, kind.value, mask)
        self.bars.append(_Bar(index, length, kind, device))

    def add_capability(self, identifier: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability of `body` bytes after its two-byte header; returns the offset of the header.

        `writable` masks `body` from its start. ValueError when the configuration space is full.
        """
        start, end = self._capability_end, self._capability_end + 2 + len(body)
        if end > CONFIG_BYTES:
            raise ValueError("no room for another capability")
        self.set(start, 2, identifier)
        self.config[start + 2 : end] = body
        self.writable[start + 2 : start + 2 + len(writable)] = writable
        self.config[self._last_capability] = start
        self.config[STATUS] |= STATUS_CAPABILITIES
        self._last_capability = start + 1
        self._capability_end = (end + 3) & ~3
        return start

    @property
    def gsi(self) -> int | None:
        """The GSI of its interrupt pin, if it has one."""
        pin = self.get(INTERRUPT_PIN, 1)
        return intx_gsi(self.where >> 3 & 31, pin) if pin else None

    def attached(self, bus: PciBus, where: int) -> None:
        """It is on `bus` now, as function `where`."""
        self.bus, self.where = bus, where

    def placed(self) -> None:
        """Firmware has done with it: software will find it as it is now."""

    def read_config(self, offset: int, size: int) -> int:
        """A configuration read by software."""
        return self.get(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """A configuration write by software: only writable bits change."""
        for at in range(offset, min(offset + size, CONFIG_BYTES)):
            mask = self.writable[at]
            self.config[at] = self.config[at] & ~mask | value & mask
            value >>= 8

    def bar_range(self, bar: _Bar) -> range | None:
        """Where `bar` decodes now, or None while the command register has it off."""
        enable = COMMAND_IO if bar.kind is BarKind.IO else COMMAND_MEMORY
        if not self.get(COMMAND, 2) & enable:
            return None
        address = self.get(BAR0 + 4 * bar.index, 8 if bar.kind is BarKind.MEMORY64 else 4)
        start = address & -bar.length
        return range(start, start + bar.length)


class PciBus:
    """Bus 0 with its functions, reached by configuration ports and by the ECAM window.

    A base address register that software places over something else stays unmapped, and reads all ones, until it moves.
    """

    def __init__(self, ports: PortBus, mmio: MmioBus) -> None:
        self._ports = ports
        self._mmio = mmio
        self._functions: dict[int, PciFunction] = {}
        self._asserted: dict[int, set[int]] = {}
        self.iommu: Iommu = NoIommu()
        self.drive: Callable[[int, bool], None] = lambda gsi, level: None
        """Where the interrupt lines lead: called with a GSI and its new level."""

    def add(self, function: PciFunction, slot: int, number: int = 0) -> None:
        """Put `function` at device `slot` (0 to 31), function `number` (0 to 7). ValueError if the place is taken."""
        where = bdf(0, slot, number)
        if not (0 <= slot < 32 and 0 <= number < 8) or where in self._functions:
            raise ValueError(f"PCI device {slot:02x}.{number} cannot be added")
        self._functions[where] = function
        function.attached(self, where)
        if function.gsi is not None:
            function.config[INTERRUPT_LINE] = function.gsi

    def remove(self, where: int) -> None:
        """Function `where` is gone: nothing answers in its place any more, and it reaches nothing."""
        function = self._functions.pop(where)
        for bar in function.bars:
            self._unmap(bar)
        self.set_line(function, False)
        function.bus = None

    def place_bars(self) -> None:
        """Give every base address register a place and switch the functions on, as firmware does before software runs.

        Each is on pages of its own, so that it can be given away alone. ValueError if there is not room for all.
        """
        free = {BarKind.IO: _FIRMWARE_PORTS.start, BarKind.MEMORY32: PCI_WINDOWS[0].start}
        ends = {BarKind.IO: _FIRMWARE_PORTS.stop, BarKind.MEMORY32: PCI_WINDOWS[0].stop}
        for function in self._functions.values():
            for bar in function.bars:
                kind = BarKind.IO if bar.kind is BarKind.IO else BarKind.MEMORY32
                least = 1 if kind is BarKind.IO else PAGE_SIZE
                size = max(bar.length, least)
                start = -(-free[kind] // size) * size
                if start + size > ends[kind]:
                    raise ValueError("no room for all base address registers")
                self.write_config(function.where, BAR0 + 4 * bar.index, 4, start)
                free[kind] = start + size
            if function.bars:
                self.write_config(function.where, COMMAND, 2, COMMAND_IO | COMMAND_MEMORY)
            function.placed()

    def set_line(self, function: PciFunction, level: bool) -> None:
        """A function drives the line that its pin is wired to, which stays up while any function drives it."""
        gsi = function.gsi
        if gsi is None:
            return
        drivers = self._asserted.setdefault(gsi, set())
        before = bool(drivers)
        (drivers.add if level else drivers.discard)(function.where)
        if bool(drivers) != before:
            self.drive(gsi, level)

    @property
    def functions(self) -> dict[int, PciFunction]:
        """The functions by their bus, device and function number."""
        return dict(self._functions)

    def read_config(self, where: int, offset: int, size: int) -> int:
        """Read `size` bytes at `offset` of function `where` (see `bdf`); all ones where there is no function."""
        function = self._functions.get(where)
        return ALL_ONES[size] if function is None else function.read_config(offset, size)

    def write_config(self, where: int, offset: int, size: int, value: int) -> None:
        """Write `size` bytes at `offset` of function `where`; ignored where there is no function."""
        if function := self._functions.get(where):
            function.write_config(offset, size, value)
            if offset < BAR0 + 4 * BARS:
                self.remap(function)

    def remap(self, function: PciFunction) -> None:
        """The base address registers or the command register of `function` have changed."""
        for bar in function.bars:
            wanted = function.bar_range(bar)
            if wanted != bar.mapped:
                self._unmap(bar)
                bar.mapped = wanted if wanted is not None and self._map(bar, wanted) else None

    def _unmap(self, bar: _Bar) -> None:
        if bar.mapped is not None:
            (self._ports if bar.kind is BarKind.IO else self._mmio).release(bar.mapped)
            bar.mapped = None

    def _map(self, bar: _Bar, wanted: range) -> bool:
        try:
            if bar.kind is BarKind.IO:
                self._ports.claim(wanted, bar, width=4)
            else:
                self._mmio.claim(wanted, bar)
        except ValueError:
            return False
        return True

    # The ECAM window: bus in bits 20 to 27 of the offset, device, function, register below.

    def read_mmio(self, offset: int, size: int) -> int:
        """A read of the ECAM window."""
        return self.read_config(offset >> 12, offset % EXTENDED_CONFIG_BYTES, size)

    def write_mmio(self, offset: int, size: int, value: int) -> None:
        """A write of the ECAM window."""
        self.write_config(offset >> 12, offset % EXTENDED_CONFIG_BYTES, size, value)


class PciConfigPorts:
    """Configuration mechanism 1: a 32-bit address latch at 0xcf8 and its data window at 0xcfc-0xcff.

    The latch answers 32-bit accesses only: narrower ones at 0xcf8 are not PCI's.
    """

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus
        self.address = 0

    def attach(self, ports: PortBus) -> None:
        """Claim the address latch and the data window."""
        ports.claim(range(CONFIG_ADDRESS, CONFIG_ADDRESS + 1), self, width=4)
        ports.claim(range(CONFIG_DATA, CONFIG_DATA + 4), self, width=4)

    def read_port(self, port: int, size: int) -> int:
        if port == CONFIG_ADDRESS:
            return self.address if size == 4 else ALL_ONES[size]
        if not self.address & CONFIG_ENABLE or port + size > CONFIG_DATA + 4:
            return ALL_ONES[size]
        return self._bus.read_config(self.address >> 8 & 0xFFFF, self._register(port), size)

    def write_port(self, port: int, size: int, value: int) -> None:
        if port == CONFIG_ADDRESS:
            if size == 4:
                self.address = value & ~0x7F000003
        elif self.address & CONFIG_ENABLE and port + size <= CONFIG_DATA + 4:
            self._bus.write_config(self.address >> 8 & 0xFFFF, self._register(port), size, value)

    def _register(self, port: int) -> int:
        return self.address & 0xFC | port & 3


def host_bridge() -> PciFunction:
    """The memory controller hub of a Q35 chipset (device 00.0)."""
    return PciFunction(0x8086, 0x29C0, 0x060000)


# Registers of the LPC bridge (Intel I/O controller hub 9 data sheet, chapter 13).
_LPC_PMBASE = 0x40
_LPC_ACPI_CONTROL = 0x44
_LPC_ACPI_ENABLE = 0x80


def lpc_bridge(pm_base: int) -> PciFunction:
    """The ISA bridge of an ICH9 (device 1f.0), which says that its power-management ports start at `pm_base`."""
    bridge = PciFunction(0x8086, 0x2918, 0x060100, revision=2)
    bridge.set(_LPC_PMBASE, 4, pm_base | 1)
    bridge.set(_LPC_ACPI_CONTROL, 1, _LPC_ACPI_ENABLE)
    return bridge
