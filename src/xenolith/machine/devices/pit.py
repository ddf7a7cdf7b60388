"""The 8254 interval timer at ports 0x40-0x43 and the control port 0x61: counters that the clock drives.

Source: Intel 8254 data sheet. Counting is binary; interrupts of channel 0 are not wired, because a hypervisor gives its
guests timers of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenolith.machine.buses import PortBus

if TYPE_CHECKING:
    from xenolith.machine.clock import Clock

PIT_HZ = 1_193_182
NS_PER_SECOND = 1_000_000_000

CHANNEL0 = 0x40
CONTROL = 0x43
SPEAKER = 0x61

_REFRESH_TOGGLE_NS = 15_085

SPEAKER_GATE2 = 1 << 0
SPEAKER_DATA = 1 << 1
SPEAKER_REFRESH = 1 << 4
SPEAKER_OUT2 = 1 << 5

_READ_BACK = 3
_LOW_BYTE, _HIGH_BYTE, _WORD = 1, 2, 3


class _Channel:
    """One counter. Times are in input ticks since it was loaded; a low gate stops the count."""

    def __init__(self) -> None:
        self.mode = 3
        self.access = _WORD
        self.reload = 0x10000
        self.loaded = True
        self.gate = True
        self._start_tick = 0
        self._stopped_at = 0
        self._low_byte: int | None = None
        self._latched: list[int] = []
        self._latched_status: int | None = None
        self._high_next = False

    def elapsed(self, tick: int) -> int:
        """Ticks counted since the load."""
        return tick - self._start_tick if self.gate else self._stopped_at

    def set_gate(self, gate: bool, tick: int) -> None:
        if gate and not self.gate:
            restarts = self.mode in (1, 2, 3, 5)
            self._start_tick = tick - (0 if restarts else self._stopped_at)
        elif self.gate and not gate:
            self._stopped_at = self.elapsed(tick)
        self.gate = gate

    def count(self, tick: int) -> int:
        """The counter as it is read: 16 bits, down from the reload value."""
        elapsed = self.elapsed(tick)
        if not self.loaded:
            return 0
        if self.mode == 2:
            return (self.reload - elapsed % self.reload) & 0xFFFF
        if self.mode == 3:
            return (self.reload - 2 * elapsed % self.reload) & 0xFFFE
        return (self.reload - elapsed) & 0xFFFF

    def output(self, tick: int) -> bool:
        """The level of OUT."""
        elapsed = self.elapsed(tick)
        if self.mode == 2:
            return elapsed % self.reload != self.reload - 1
        if self.mode == 3:
            return elapsed % self.reload < (self.reload + 1) // 2
        return self.loaded and elapsed >= self.reload

    def control(self, value: int, tick: int) -> None:
        self.access = value >> 4 & 3
        # Modes 6 and 7 are 2 and 3 again.
        self.mode = value >> 1 & 7 if value >> 1 & 7 < 6 else value >> 1 & 3
        self.loaded = False
        self._start_tick = tick
        self._low_byte = None
        self._latched.clear()
        self._high_next = False

    def latch_count(self, tick: int) -> None:
        if not self._latched:
            self._latched = self._bytes(self.count(tick))

    def latch_status(self, tick: int) -> None:
        if self._latched_status is None:
            self._latched_status = (
                (0x80 if self.output(tick) else 0) | (0 if self.loaded else 0x40) | self.access << 4 | self.mode << 1
            )

    def read(self, tick: int) -> int:
        if self._latched_status is not None:
            status, self._latched_status = self._latched_status, None
            return status
        if self._latched:
            return self._latched.pop(0)
        values = self._bytes(self.count(tick))
        if len(values) == 1:
            return values[0]
        self._high_next = not self._high_next
        return values[0 if self._high_next else 1]

    def write(self, value: int, tick: int) -> None:
        if self.access == _LOW_BYTE:
            self._load(value, tick)
        elif self.access == _HIGH_BYTE:
            self._load(value << 8, tick)
        elif self._low_byte is None:
            self._low_byte = value
        else:
            self._load(self._low_byte | value << 8, tick)
            self._low_byte = None

    def _bytes(self, count: int) -> list[int]:
        low, high = count & 0xFF, count >> 8
        return {_LOW_BYTE: [low], _HIGH_BYTE: [high]}.get(self.access, [low, high])

    def _load(self, value: int, tick: int) -> None:
        self.reload = value or 0x10000
        self.loaded = True
        self._start_tick = tick
        self._stopped_at = 0


class Pit:
    """The three channels and port 0x61, which gates channel 2 and shows its output."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._channels = [_Channel() for _ in range(3)]
        self._channels[2].set_gate(False, 0)
        self._speaker = 0

    def attach(self, ports: PortBus) -> None:
        """Claim ports 0x40-0x43 and 0x61."""
        ports.claim(range(CHANNEL0, CONTROL + 1), self)
        ports.claim(range(SPEAKER, SPEAKER + 1), self)

    def _tick(self) -> int:
        return self._clock.now_ns() * PIT_HZ // NS_PER_SECOND

    def read_port(self, port: int, size: int) -> int:
        if port == SPEAKER:
            return self._read_speaker()
        return 0xFF if port == CONTROL else self._channels[port - CHANNEL0].read(self._tick())

    def write_port(self, port: int, size: int, value: int) -> None:
        if port == SPEAKER:
            self._speaker = value & (SPEAKER_GATE2 | SPEAKER_DATA)
            self._channels[2].set_gate(bool(value & SPEAKER_GATE2), self._tick())
        elif port == CONTROL:
            self._write_control(value)
        else:
            self._channels[port - CHANNEL0].write(value, self._tick())

    def _read_speaker(self) -> int:
        refresh = SPEAKER_REFRESH if self._clock.now_ns() // _REFRESH_TOGGLE_NS & 1 else 0
        out2 = SPEAKER_OUT2 if self._channels[2].output(self._tick()) else 0
        return self._speaker | refresh | out2

    def _write_control(self, value: int) -> None:
        tick = self._tick()
        select = value >> 6
        if select != _READ_BACK:
            if value >> 4 & 3:
                self._channels[select].control(value, tick)
            else:
                self._channels[select].latch_count(tick)
            return
        for index, channel in enumerate(self._channels):
            if value & 2 << index:
                if not value & 0x20:
                    channel.latch_count(tick)
                if not value & 0x10:
                    channel.latch_status(tick)
