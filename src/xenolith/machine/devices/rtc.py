"""The MC146818 real-time clock at ports 0x70/0x71, with CMOS memory, alarm and interrupts, driven by the wall clock.

Source: Motorola MC146818A data sheet; PC/AT CMOS map for the bytes that firmware fills in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from xenolith.machine.buses import PortBus

if TYPE_CHECKING:
    from xenolith.machine.clock import Clock

INDEX = 0x70
DATA = 0x71
RTC_IRQ = 8
CMOS_BYTES = 128
NS_PER_SECOND = 1_000_000_000

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
WEEKDAY, DAY, MONTH, YEAR, A, B, C, D = range(6, 14)
CENTURY = 0x32
_TIME_REGISTERS = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)
_ALARM_REGISTERS = (SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM)

A_UPDATE_IN_PROGRESS = 1 << 7
A_DEFAULT = 0x26
B_SET = 1 << 7
B_PERIODIC = 1 << 6
B_ALARM = 1 << 5
B_UPDATE_ENDED = 1 << 4
B_BINARY = 1 << 2
B_24_HOURS = 1 << 1
_INTERRUPTS = B_PERIODIC | B_ALARM | B_UPDATE_ENDED
"""Enable bits in register B; the flags in register C stand at the same places."""
C_REQUEST = 1 << 7
D_VALID = 1 << 7

HOUR_PM = 1 << 7
_ALARM_ANY = 0xC0

_UPDATE_WARNING_NS = 244_141
_ALARM_STEPS = 24 + 60 + 60
_LAST_YEAR = 9000
"""Software may not set the clock so near the end of the calendar that it could run off it."""


def cmos_contents(low_ram_bytes: int, high_ram_bytes: int) -> dict[int, int]:
    """The bytes that PC firmware leaves in CMOS: equipment, memory below and above 4 GiB, the checksum."""
    extended_kib = min(low_ram_bytes // 1024 - 1024, 0xFFFF)
    above_16_mib = max(low_ram_bytes - (16 << 20), 0) >> 16
    cmos = {0x14: 0x02, **_word(0x15, 640), **_word(0x17, extended_kib), **_word(0x30, extended_kib)}
    cmos |= _word(0x34, above_16_mib)
    high = high_ram_bytes >> 16
    cmos |= {0x5B + at: high >> 8 * at & 0xFF for at in range(3)}
    checksum = sum(cmos.get(register, 0) for register in range(0x10, 0x2E))
    return cmos | {0x2E: checksum >> 8, 0x2F: checksum & 0xFF}


def _word(register: int, value: int) -> dict[int, int]:
    return {register: value & 0xFF, register + 1: value >> 8}


class Rtc:
    """The clock and its 128 bytes of CMOS memory. `line(level)` is the wire of IRQ 8.

    Time comes from `clock.wall_ns()` plus what software changed by setting it. Interrupts need the owner's help: at
    `deadline()` it calls `poll()`.
    """

    def __init__(self, clock: Clock, line: Callable[[bool], None], cmos: Mapping[int, int]) -> None:
        self._clock = clock
        self._line = line
        self._index = 0
        self._offset_ns = 0
        self._memory = bytearray(CMOS_BYTES)
        for register, value in cmos.items():
            self._memory[register] = value
        self._memory[A] = A_DEFAULT
        self._memory[B] = B_24_HOURS
        self._memory[D] = D_VALID
        self._flags = 0
        self._seen_ns = self._wall_ns()

    def attach(self, ports: PortBus) -> None:
        """Claim ports 0x70 and 0x71."""
        ports.claim(range(INDEX, DATA + 1), self)

    def read_port(self, port: int, size: int) -> int:
        return self._index if port == INDEX else self.read_cmos(self._index)

    def write_port(self, port: int, size: int, value: int) -> None:
        if port == INDEX:
            self._index = value % CMOS_BYTES
        else:
            self.write_cmos(self._index, value)

    def read_cmos(self, register: int) -> int:
        """The byte at `register` (0 to 127)."""
        if register == A:
            return self._memory[A] | (A_UPDATE_IN_PROGRESS if self._update_in_progress() else 0)
        if register == C:
            return self._take_flags()
        if register in _TIME_REGISTERS and not self._stopped:
            return self._encoded_time()[register]
        return self._memory[register]

    def write_cmos(self, register: int, value: int) -> None:
        """Write the byte at `register` (0 to 127); C and D are read-only."""
        if register == A:
            self.poll()
            self._memory[A] = value & ~A_UPDATE_IN_PROGRESS & 0xFF
        elif register == B:
            self._write_control(value)
        elif register in _TIME_REGISTERS:
            self._write_time(register, value)
        elif register not in (C, D):
            self.poll()
            self._memory[register] = value

    def deadline(self) -> int | None:
        """The system time (ns) at which an enabled interrupt is next due, or None."""
        enabled = self._memory[B] & _INTERRUPTS
        if not enabled or self._flags & enabled:
            return None
        wall = self._wall_ns()
        due = [at for event, at in self._next_events(self._seen_ns) if event & enabled]
        return self._clock.now_ns() + max(min(due) - wall, 0) if due else None

    def poll(self) -> None:
        """Bring the flags and the interrupt wire up to the present."""
        now = self._wall_ns()
        for event, at in self._next_events(self._seen_ns):
            if at <= now:
                self._flags |= event
        self._seen_ns = now
        self._line(bool(self._flags & self._memory[B] & _INTERRUPTS))

    @property
    def _stopped(self) -> bool:
        return bool(self._memory[B] & B_SET)

    def _wall_ns(self) -> int:
        return self._clock.wall_ns() + self._offset_ns

    def _update_in_progress(self) -> bool:
        return not self._stopped and self._wall_ns() % NS_PER_SECOND >= NS_PER_SECOND - _UPDATE_WARNING_NS

    def _take_flags(self) -> int:
        self.poll()
        requested = C_REQUEST if self._flags & self._memory[B] & _INTERRUPTS else 0
        flags, self._flags = self._flags | requested, 0
        self._line(False)
        return flags

    def _write_control(self, value: int) -> None:
        self.poll()
        was_stopped = self._stopped
        if value & B_SET and not was_stopped:
            for register, encoded in self._encoded_time().items():
                self._memory[register] = encoded
        if value & B_SET:
            value &= ~B_UPDATE_ENDED
        self._memory[B] = value
        if was_stopped and not self._stopped:
            self._set_time_from_registers()
        self.poll()

    def _write_time(self, register: int, value: int) -> None:
        if not self._stopped:
            for index, encoded in self._encoded_time().items():
                self._memory[index] = encoded
        self._memory[register] = value
        if not self._stopped:
            self._set_time_from_registers()

    def _encoded_time(self) -> dict[int, int]:
        """The time registers as they read now, by the data mode of register B."""
        now = datetime.fromtimestamp(self._wall_ns() // NS_PER_SECOND, UTC)
        return {
            SECONDS: self._encode(now.second),
            MINUTES: self._encode(now.minute),
            HOURS: self._encode_hour(now.hour),
            WEEKDAY: self._encode(now.isoweekday() % 7 + 1),
            DAY: self._encode(now.day),
            MONTH: self._encode(now.month),
            YEAR: self._encode(now.year % 100),
            CENTURY: self._encode(now.year // 100),
        }

    def _set_time_from_registers(self) -> None:
        """Take the time that software wrote; registers that name no moment leave the time as it was."""
        year = self._decode(CENTURY) * 100 + self._decode(YEAR)
        if year > _LAST_YEAR:
            return
        try:
            moment = datetime(
                year,
                self._decode(MONTH),
                self._decode(DAY),
                self._decode_hour(HOURS),
                self._decode(MINUTES),
                self._decode(SECONDS),
                tzinfo=UTC,
            )
        except ValueError:
            return
        self._offset_ns = int(moment.timestamp()) * NS_PER_SECOND - self._clock.wall_ns()
        self._seen_ns = self._wall_ns()

    def _encode(self, value: int) -> int:
        return value if self._memory[B] & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, register: int) -> int:
        value = self._memory[register]
        return value if self._memory[B] & B_BINARY else (value >> 4) * 10 + (value & 0xF)

    def _encode_hour(self, hour: int) -> int:
        if self._memory[B] & B_24_HOURS:
            return self._encode(hour)
        return self._encode(hour % 12 or 12) | (HOUR_PM if hour >= 12 else 0)

    def _decode_hour(self, register: int) -> int:
        if self._memory[B] & B_24_HOURS:
            return self._decode(register)
        raw = self._memory[register]
        clock_hour = raw & ~HOUR_PM if self._memory[B] & B_BINARY else (raw >> 4 & 7) * 10 + (raw & 0xF)
        return clock_hour % 12 + (12 if raw & HOUR_PM else 0)

    def _next_events(self, after_ns: int) -> Iterator[tuple[int, int]]:
        """Each interrupt flag with the first wall time (ns) after `after_ns` that sets it."""
        if rate := self._memory[A] & 0xF:
            # Rates 1 and 2 are those of 8 and 9 (data sheet, table 5).
            period = NS_PER_SECOND << (rate + 6 if rate < 3 else rate - 1)
            count = (after_ns << 15) // period + 1
            yield B_PERIODIC, -(-count * period >> 15)
        if self._stopped:
            return
        second = after_ns // NS_PER_SECOND
        yield B_UPDATE_ENDED, (second + 1) * NS_PER_SECOND
        if (alarm := self._next_alarm(second)) is not None:
            yield B_ALARM, alarm * NS_PER_SECOND

    def _next_alarm(self, second: int) -> int | None:
        """The first second after `second` (since the epoch) that matches the alarm registers, or None."""
        any_value = [self._memory[register] >= _ALARM_ANY for register in _ALARM_REGISTERS]
        any_second, any_minute, any_hour = any_value
        hour = self._decode_hour(HOURS_ALARM)
        minute, seconds = self._decode(MINUTES_ALARM), self._decode(SECONDS_ALARM)
        at = second + 1
        for _ in range(_ALARM_STEPS):
            if not any_hour and at // 3600 % 24 != hour:
                at += 3600 - at % 3600
            elif not any_minute and at // 60 % 60 != minute:
                at += 60 - at % 60
            elif not any_second and at % 60 != seconds:
                at += 1
            else:
                return at
        return None
