"""The fixed ACPI hardware: power-management events and control, the PM timer, general-purpose events.

Source: ACPI 6.4, section 4.8. The machine is always in ACPI mode: there is no SMI command port. The ports lie as on an
ICH9, from 0x600.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xenolith.machine.buses import PortBus

if TYPE_CHECKING:
    from xenolith.machine.clock import Clock

PM_BASE = 0x600
PM1_STATUS = PM_BASE
PM1_ENABLE = PM_BASE + 2
PM1_CONTROL = PM_BASE + 4
PM_TIMER = PM_BASE + 8
GPE0 = PM_BASE + 0x20
GPE0_BYTES = 16
SCI_IRQ = 9

PM_TIMER_HZ = 3_579_545
NS_PER_SECOND = 1_000_000_000

PM1_POWER_BUTTON = 1 << 8
PM1_ENABLES = 0x0721
"""Enable bits that exist: timer, global lock, power and sleep button, RTC."""
SCI_ENABLE = 1 << 0
SLEEP_TYPE_SHIFT = 10
SLEEP_ENABLE = 1 << 13
S5_SLEEP_TYPE = 5
_CONTROL_STORED = 0x1C06
"""Bits of PM1 control that read back: bus master reload, global lock release, sleep type."""


class AcpiPm:
    """The PM1 block, the PM timer and GPE block 0 (which has no events). `line(level)` is the wire of the SCI."""

    def __init__(self, clock: Clock, line: Callable[[bool], None], power_off: Callable[[], None]) -> None:
        self._clock = clock
        self._line = line
        self._power_off = power_off
        self._status = 0
        self._enable = 0
        self._control = SCI_ENABLE
        self._gpe_enable = bytearray(GPE0_BYTES // 2)

    def attach(self, ports: PortBus) -> None:
        """Claim the PM1, timer and GPE ports."""
        ports.claim(range(PM1_STATUS, PM1_CONTROL), self, width=2)
        ports.claim(range(PM1_CONTROL, PM1_CONTROL + 2), self, width=2)
        ports.claim(range(PM_TIMER, PM_TIMER + 4), self, width=4)
        ports.claim(range(GPE0, GPE0 + GPE0_BYTES), self)

    def timer(self) -> int:
        """The PM timer: 32 bits at 3.579545 MHz."""
        return self._clock.now_ns() * PM_TIMER_HZ // NS_PER_SECOND & 0xFFFFFFFF

    def press_power_button(self) -> None:
        """The user asks the machine to shut down: an operating system that listens is told by SCI."""
        self._status |= PM1_POWER_BUTTON
        self._update_line()

    def write_control(self, value: int) -> None:
        """Write PM1 control: with the sleep enable bit, the S5 sleep type powers off; no other sleep state exists."""
        self._control = value & _CONTROL_STORED | SCI_ENABLE
        if value & SLEEP_ENABLE and value >> SLEEP_TYPE_SHIFT & 7 == S5_SLEEP_TYPE:
            self._power_off()

    def read_port(self, port: int, size: int) -> int:
        if port >= GPE0:
            at = port - GPE0 - GPE0_BYTES // 2
            return self._gpe_enable[at] if at >= 0 else 0
        base, value = self._register(port)
        return value >> 8 * (port - base) & (1 << 8 * size) - 1

    def write_port(self, port: int, size: int, value: int) -> None:
        if port >= GPE0:
            if (at := port - GPE0 - GPE0_BYTES // 2) >= 0:
                self._gpe_enable[at] = value
            return
        base, before = self._register(port)
        shift = 8 * (port - base)
        mask = (1 << 8 * size) - 1 << shift
        written = value << shift & mask
        if base == PM1_STATUS:
            self._status &= ~written
        elif base == PM1_ENABLE:
            self._enable = (before & ~mask | written) & PM1_ENABLES
        elif base == PM1_CONTROL:
            self.write_control(before & ~mask | written)
        self._update_line()

    def _update_line(self) -> None:
        self._line(bool(self._status & self._enable))

    def _register(self, port: int) -> tuple[int, int]:
        """The base port of the register that `port` is part of, and the register's value."""
        if port >= PM_TIMER:
            return PM_TIMER, self.timer()
        if port >= PM1_CONTROL:
            return PM1_CONTROL, self._control
        return (PM1_ENABLE, self._enable) if port >= PM1_ENABLE else (PM1_STATUS, self._status)
