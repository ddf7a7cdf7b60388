"""The high precision event timer: a counter of 100 MHz, and three comparators that interrupt when it reaches them.

Source: Intel, IA-PC HPET (High Precision Event Timers) Specification, revision 1.0a.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from xenolith.machine.clock import Clock

HPET_BYTES: Final = 1024
TIMERS: Final = 3
_TICK_NS: Final = 10
_FEMTOSECONDS: Final = 1_000_000

CAPABILITIES, CONFIGURATION, STATUS, COUNTER = 0x000, 0x010, 0x020, 0x0F0
TIMER_AT: Final = 0x100
TIMER_BYTES: Final = 0x20
_COMPARATOR: Final = 8

EVENT_BLOCK: Final = 0x8086_A201
"""The lower half of the capabilities: Intel's, three comparators, 64 bits, legacy routes, revision 1."""
ENABLE: Final = 1 << 0
LEGACY: Final = 1 << 1
_LEGACY_GSIS: Final = (2, 8)
"""With legacy routes the first comparator is in place of the interval timer, the second in that of the clock chip."""

# Bits of a comparator's configuration.
LEVEL: Final = 1 << 1
INTERRUPT: Final = 1 << 2
PERIODIC: Final = 1 << 3
_CAN_DO: Final = 1 << 4 | 1 << 5
"""It can be periodic, and has 64 bits."""
SET_VALUE: Final = 1 << 6
NARROW: Final = 1 << 8
ROUTE: Final = 0x3E00
_ROUTE_SHIFT: Final = 9
_WRITABLE: Final = LEVEL | INTERRUPT | PERIODIC | SET_VALUE | NARROW | ROUTE
GSIS: Final = (2, 10, 11)
"""Where a comparator's interrupt can go: what no other device of the PC drives."""
_ROUTES: Final = sum(1 << gsi for gsi in GSIS) << 32
_LONG: Final = (1 << 64) - 1


class _Timer:
    """A comparator. `next` is when it is reached, in ticks that never start again; None while it waits for nothing."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.configuration = 0
        self.comparator = _LONG
        self.period = 0
        self.next: int | None = None

    @property
    def mask(self) -> int:
        return (1 << 32) - 1 if self.configuration & NARROW else _LONG

    @property
    def repeats(self) -> bool:
        return bool(self.configuration & PERIODIC)


class Hpet:
    """`line(gsi, level)` drives an interrupt. At `deadline()` its owner calls `poll()`."""

    def __init__(self, clock: Clock, line: Callable[[int, bool], None]) -> None:
        self._clock = clock
        self._line = line
        self._configuration = 0
        self._status = 0
        self._start_ns = 0
        """When it was switched on, as if it had counted from 0 since then."""
        self._stopped_at = 0
        self._ticks_before = 0
        """Ticks that were taken out of the counter by setting it."""
        self._timers = [_Timer(number) for number in range(TIMERS)]

    @property
    def replaces_legacy_interrupts(self) -> bool:
        """Whether the interval timer and the clock chip are cut off their interrupts."""
        return bool(self._configuration & LEGACY)

    # -- time ---------------------------------------------------------------------------------------------------------

    @property
    def _runs(self) -> bool:
        return bool(self._configuration & ENABLE)

    def _ticks(self) -> int:
        """Ticks since power-on, while it was on."""
        return (self._clock.now_ns() - self._start_ns) // _TICK_NS if self._runs else self._stopped_at

    def counter(self) -> int:
        """The main counter."""
        return self._ticks() - self._ticks_before & _LONG

    def deadline(self) -> int | None:
        """The system time (ns) at which `poll` must be called for an interrupt to be in time, or None."""
        if not self._runs:
            return None
        waited = [timer.next for timer in self._timers if timer.next is not None]
        return self._start_ns + min(waited) * _TICK_NS if waited else None

    def poll(self) -> None:
        """Interrupt for the comparators that the counter has reached."""
        now = self._ticks()
        for timer in self._timers:
            if timer.next is None or timer.next > now or not self._runs:
                continue
            step = timer.period if timer.repeats else timer.mask + 1
            missed = (now - timer.next) // step + 1
            timer.next += missed * step
            if timer.repeats:
                timer.comparator = timer.comparator + missed * step & timer.mask
            self._fire(timer)

    def _fire(self, timer: _Timer) -> None:
        gsi = self._gsi(timer)
        if gsi is None:
            return
        if timer.configuration & LEVEL:
            self._status |= 1 << timer.number
            self._line(gsi, True)
        else:
            self._line(gsi, True)
            self._line(gsi, False)

    def _gsi(self, timer: _Timer) -> int | None:
        if self.replaces_legacy_interrupts and timer.number < len(_LEGACY_GSIS):
            return _LEGACY_GSIS[timer.number]
        gsi = (timer.configuration & ROUTE) >> _ROUTE_SHIFT
        return gsi if gsi in GSIS else None

    def _arm(self, timer: _Timer) -> None:
        """The comparator, its configuration or the counter has changed."""
        if not timer.configuration & INTERRUPT or (timer.repeats and not timer.period):
            timer.next = None
            return
        ahead = timer.comparator - self.counter() & timer.mask
        timer.next = self._ticks() + (ahead or timer.mask + 1)

    # -- registers ----------------------------------------------------------------------------------------------------

    def read_mmio(self, offset: int, size: int) -> int:
        """A read of the register block, of whole registers or halves of them."""
        shift = 8 * (offset % 8)
        return self._read(offset & ~7) >> shift & (1 << 8 * size) - 1

    def write_mmio(self, offset: int, size: int, value: int) -> None:
        """A write of the register block: what is not written of a register stays."""
        if size not in (4, 8) or offset % size:
            return
        shift, register = 8 * (offset % 8), offset & ~7
        mask = (1 << 8 * size) - 1 << shift
        self.poll()
        self._write(register, self._read(register) & ~mask | value << shift & mask, mask)

    def _read(self, register: int) -> int:
        if register == CAPABILITIES:
            return _TICK_NS * _FEMTOSECONDS << 32 | EVENT_BLOCK
        if register == CONFIGURATION:
            return self._configuration
        if register == STATUS:
            return self._status
        if register == COUNTER:
            return self.counter()
        timer, what = self._timer(register)
        if timer is None:
            return 0
        if what == 0:
            return timer.configuration | _CAN_DO | _ROUTES
        return timer.comparator & timer.mask if what == _COMPARATOR else 0

    def _write(self, register: int, value: int, mask: int) -> None:
        if register == CONFIGURATION:
            self._configure(value & (ENABLE | LEGACY))
        elif register == STATUS:
            self._end_levels(value & mask)
        elif register == COUNTER and not self._runs:
            self._ticks_before = self._stopped_at - value
        else:
            timer, what = self._timer(register)
            if timer is not None and what == 0:
                self._configure_timer(timer, value & _WRITABLE)
            elif timer is not None and what == _COMPARATOR:
                self._set_comparator(timer, value & timer.mask)
        for timer in self._timers:
            if register in (CONFIGURATION, COUNTER):
                self._arm(timer)

    def _timer(self, register: int) -> tuple[_Timer | None, int]:
        number, what = divmod(register - TIMER_AT, TIMER_BYTES)
        return (self._timers[number], what) if 0 <= number < TIMERS else (None, 0)

    def _configure(self, value: int) -> None:
        ticks = self._ticks()
        self._configuration = value
        if self._runs:
            self._start_ns = self._clock.now_ns() - ticks * _TICK_NS
        else:
            self._stopped_at = ticks

    def _end_levels(self, bits: int) -> None:
        for timer in self._timers:
            bit = 1 << timer.number
            gsi = self._gsi(timer)
            if bits & self._status & bit and gsi is not None:
                self._line(gsi, False)
        self._status &= ~bits

    def _configure_timer(self, timer: _Timer, value: int) -> None:
        self._end_levels(1 << timer.number)
        timer.configuration = value
        timer.comparator &= timer.mask
        self._arm(timer)

    def _set_comparator(self, timer: _Timer, value: int) -> None:
        """A periodic one is set to its first value if that was announced, and else told its period."""
        if not timer.repeats or timer.configuration & SET_VALUE:
            timer.comparator = value
        if timer.repeats:
            timer.period = value
        timer.configuration &= ~SET_VALUE
        self._arm(timer)
