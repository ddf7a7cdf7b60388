"""The interval timer counts down by the clock, and drivers can latch, read back and gate it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.machine.buses import PortBus
from xenolith.machine.devices.pit import PIT_HZ, Pit

if TYPE_CHECKING:
    from ..conftest import HandClock


class Timer:
    """The timer on a bus, with the clock that drives it, and helpers that program it as drivers do."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.ports = PortBus()
        Pit(clock).attach(self.ports)

    def load(self, channel: int, mode: int, count: int) -> None:
        self.ports.write(0x43, 1, channel << 6 | 0x30 | mode << 1)
        self.ports.write(0x40 + channel, 1, count & 0xFF)
        self.ports.write(0x40 + channel, 1, count >> 8)

    def word(self, channel: int) -> int:
        return self.ports.read(0x40 + channel, 1) | self.ports.read(0x40 + channel, 1) << 8

    def latched(self, channel: int) -> int:
        self.ports.write(0x43, 1, channel << 6)
        return self.word(channel)

    def run(self, ticks: int) -> None:
        self.clock.ns = -(-(self.clock.ns * PIT_HZ // 10**9 + ticks) * 10**9 // PIT_HZ)


@pytest.fixture
def timer(clock: HandClock) -> Timer:
    return Timer(clock)


def test_a_rate_generator_counts_down_and_reloads(timer: Timer) -> None:
    timer.load(0, 2, 1000)
    assert timer.word(0) == 1000
    timer.run(999)
    assert timer.word(0) == 1
    timer.run(1)
    assert timer.word(0) == 1000


def test_a_square_wave_counts_by_two(timer: Timer) -> None:
    timer.load(0, 3, 1000)
    timer.run(10)
    assert timer.word(0) == 980
    timer.run(490)
    assert timer.word(0) == 1000


def test_a_terminal_count_runs_through_zero(timer: Timer) -> None:
    timer.load(0, 0, 100)
    timer.run(101)
    assert timer.word(0) == 0xFFFF


def test_a_latched_count_stands_still_until_it_is_read(timer: Timer) -> None:
    timer.load(0, 2, 0x8000)
    timer.ports.write(0x43, 1, 0x00)
    timer.run(5000)
    timer.ports.write(0x43, 1, 0x00)
    assert timer.word(0) == 0x8000
    assert timer.word(0) == 0x8000 - 5000


def test_one_byte_accesses(timer: Timer) -> None:
    timer.ports.write(0x43, 1, 0x14)
    timer.ports.write(0x40, 1, 200)
    timer.run(50)
    assert timer.ports.read(0x40, 1) == timer.ports.read(0x40, 1) == 150
    timer.ports.write(0x43, 1, 0x24)
    timer.ports.write(0x40, 1, 0x10)
    assert timer.ports.read(0x40, 1) == 0x10


def test_zero_means_65536(timer: Timer) -> None:
    timer.load(0, 2, 0)
    timer.run(1)
    assert timer.word(0) == 0xFFFF


def test_the_read_back_command_latches_status_then_count(timer: Timer) -> None:
    timer.load(1, 2, 500)
    timer.run(20)
    timer.ports.write(0x43, 1, 0xC4)
    assert timer.ports.read(0x41, 1) == 0xB4
    timer.run(7)
    assert timer.word(1) == 480
    assert timer.word(1) == 473


def test_the_gate_of_channel_2_stops_its_count(timer: Timer) -> None:
    timer.load(2, 0, 0xFFFF)
    timer.run(100)
    assert timer.latched(2) == 0xFFFF
    timer.ports.write(0x61, 1, 0x01)
    timer.run(100)
    assert timer.latched(2) == 0xFFFF - 100
    timer.ports.write(0x61, 1, 0x00)
    timer.run(100)
    timer.ports.write(0x61, 1, 0x01)
    assert timer.latched(2) == 0xFFFF - 100


def test_port_61_shows_the_end_of_the_count(timer: Timer) -> None:
    timer.ports.write(0x61, 1, 0x01)
    timer.load(2, 0, 1000)
    assert not timer.ports.read(0x61, 1) & 0x20
    timer.run(1000)
    assert timer.ports.read(0x61, 1) & 0x23 == 0x21


def test_port_61_toggles_with_the_memory_refresh(timer: Timer, clock: HandClock) -> None:
    seen = set()
    for _ in range(10):
        seen.add(timer.ports.read(0x61, 1) & 0x10)
        clock.ns += 15_000
    assert seen == {0, 0x10}


def test_a_driver_can_measure_a_clock_against_it(timer: Timer, clock: HandClock) -> None:
    """Count down 10 ms on channel 2, as a kernel does to calibrate its processor's clock."""
    timer.ports.write(0x61, 1, 0x01)
    timer.load(2, 0, PIT_HZ // 100)
    start = clock.now_ns()
    while not timer.ports.read(0x61, 1) & 0x20:
        clock.ns += 1000
    assert abs(clock.now_ns() - start - 10_000_000) < 5000


@given(st.sampled_from([0, 2, 4]), st.integers(1, 0xFFFF), st.lists(st.integers(0, 10**6), max_size=30))
def test_a_count_never_goes_up_between_reloads(
    new_clock: type[HandClock], mode: int, reload: int, steps: list[int]
) -> None:
    clock = new_clock()
    timer = Timer(clock)
    timer.load(0, mode, reload)
    ticks = 0
    for step in steps:
        clock.ns += step
        ticks = clock.ns * PIT_HZ // 10**9
        expected = reload - (ticks % reload if mode == 2 else ticks)
        assert timer.latched(0) == expected & 0xFFFF


@given(st.lists(st.tuples(st.sampled_from([0x40, 0x41, 0x42, 0x43, 0x61]), st.integers(0, 255), st.booleans())))
def test_no_sequence_of_accesses_raises(new_clock: type[HandClock], accesses: list[tuple[int, int, bool]]) -> None:
    clock = new_clock()
    timer = Timer(clock)
    for port, value, is_write in accesses:
        clock.ns += 12_345
        if is_write:
            timer.ports.write(port, 1, value)
        else:
            assert 0 <= timer.ports.read(port, 1) <= 0xFF
