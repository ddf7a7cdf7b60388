"""The I/O APIC: 24 interrupt pins, each with a redirection entry that masks it and says edge or level.

Source: Intel 82093AA I/O APIC data sheet; the EOI register of the later version 0x20.
"""

from __future__ import annotations

from collections.abc import Callable

PINS = 24
VERSION = 0x20

# Index registers.
ID = 0x00
VERSION_AND_PINS = 0x01
ARBITRATION = 0x02
REDIRECTION = 0x10

# Bits of a redirection entry.
REMOTE_IRR = 1 << 14
LEVEL = 1 << 15
MASKED = 1 << 16
ACTIVE_LOW = 1 << 13
_READ_ONLY = 1 << 12 | REMOTE_IRR
_WRITABLE = 0xFF000000_0001FFFF & ~_READ_ONLY

# The memory-mapped window.
_SELECT = 0x00
_DATA = 0x10
_EOI = 0x40


class IoApic:
    """The I/O APIC whose pin numbers are GSIs 0 to 23.

    `deliver(gsi)` is called once for each interrupt: at the rising edge of an edge-triggered pin, or when a level pin
    is asserted and its previous interrupt has had its `eoi`. A pin asserted while masked is remembered and delivered
    when it is unmasked, so that no interrupt is lost. Polarity is stored for the reader: devices assert pins logically.
    """

    def __init__(self, apic_id: int = 0) -> None:
        self.deliver: Callable[[int], None] = lambda gsi: None
        self._id = apic_id
        self._select = 0
        self._entries = [MASKED] * PINS
        self._asserted = [False] * PINS
        self._edge_latched = [False] * PINS

    def raise_pin(self, pin: int) -> None:
        """Assert `pin` (0 to 23)."""
        if self._asserted[pin]:
            return
        self._asserted[pin] = True
        self._edge_latched[pin] = True
        self._service(pin)

    def lower_pin(self, pin: int) -> None:
        """Deassert `pin`. A level interrupt that was not yet delivered goes away; an edge stays remembered."""
        self._asserted[pin] = False

    def line(self, pin: int) -> Callable[[bool], None]:
        """The wire from a device to `pin`: call it with the level."""
        return lambda level: self.raise_pin(pin) if level else self.lower_pin(pin)

    def eoi(self, gsi: int) -> None:
        """The interrupt of `gsi` has been handled: a level pin that is still asserted is delivered again."""
        if self._entries[gsi] & REMOTE_IRR:
            self._entries[gsi] &= ~REMOTE_IRR
            self._service(gsi)

    def entry(self, pin: int) -> int:
        """The 64-bit redirection entry of `pin`."""
        return self._entries[pin]

    def route(self, pin: int, vector: int, *, level: bool, active_low: bool, masked: bool) -> None:
        """Write the redirection entry of `pin` in one step."""
        entry = vector & 0xFF | (LEVEL if level else 0) | (ACTIVE_LOW if active_low else 0) | (MASKED if masked else 0)
        self._write_entry(pin, entry)

    def set_masked(self, pin: int, masked: bool) -> None:
        """Mask or unmask `pin`."""
        self._write_entry(pin, self._entries[pin] & ~MASKED | (MASKED if masked else 0))

    def read_register(self, index: int) -> int:
        """The 32-bit register `index`; an index that does not exist reads 0."""
        if index in (ID, ARBITRATION):
            return self._id << 24
        if index == VERSION_AND_PINS:
            return (PINS - 1) << 16 | VERSION
        pin, high = divmod(index - REDIRECTION, 2)
        return self._entries[pin] >> 32 * high & 0xFFFFFFFF if 0 <= pin < PINS else 0

    def write_register(self, index: int, value: int) -> None:
        """Write the 32-bit register `index`; read-only registers and bits keep their value."""
        if index == ID:
            self._id = value >> 24 & 0xF
        pin, high = divmod(index - REDIRECTION, 2)
        if 0 <= pin < PINS:
            keep = 0xFFFFFFFF << (0 if high else 32)
            self._write_entry(pin, self._entries[pin] & keep | (value & 0xFFFFFFFF) << 32 * high)

    def read_mmio(self, offset: int, size: int) -> int:
        """The memory-mapped window: index at 0, data at 0x10. Only aligned 32-bit accesses answer."""
        if size != 4:
            return 0
        if offset == _SELECT:
            return self._select
        return self.read_register(self._select) if offset == _DATA else 0

    def write_mmio(self, offset: int, size: int, value: int) -> None:
        """The memory-mapped window: index at 0, data at 0x10, end of interrupt by vector at 0x40."""
        if size != 4:
            return
        if offset == _SELECT:
            self._select = value & 0xFF
        elif offset == _DATA:
            self.write_register(self._select, value)
        elif offset == _EOI:
            for pin in range(PINS):
                if self._entries[pin] & 0xFF == value & 0xFF:
                    self.eoi(pin)

    def _write_entry(self, pin: int, entry: int) -> None:
        read_only = self._entries[pin] & _READ_ONLY if entry & LEVEL else 0
        self._entries[pin] = entry & _WRITABLE | read_only
        self._service(pin)

    def _service(self, pin: int) -> None:
        entry = self._entries[pin]
        pending = self._asserted[pin] if entry & LEVEL else self._edge_latched[pin]
        if not pending or entry & (MASKED | REMOTE_IRR):
            return
        self._edge_latched[pin] = False
        if entry & LEVEL:
            self._entries[pin] |= REMOTE_IRR
        self.deliver(pin)
