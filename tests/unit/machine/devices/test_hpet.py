"""The event timer: it counts, interrupts when it is to, and random registers do it no harm."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenolith.machine.devices.hpet import (
    CAPABILITIES,
    CONFIGURATION,
    COUNTER,
    ENABLE,
    INTERRUPT,
    LEGACY,
    LEVEL,
    NARROW,
    PERIODIC,
    SET_VALUE,
    STATUS,
    TIMER_AT,
    Hpet,
)

MILLISECOND = 100_000
"""In ticks."""


class Bench:
    virtual = True

    def __init__(self) -> None:
        self.ns = 5_000_000
        self.lines: list[tuple[int, bool]] = []
        self.hpet = Hpet(self, lambda gsi, level: self.lines.append((gsi, level)))

    def now_ns(self) -> int:
        return self.ns

    def wall_ns(self) -> int:
        return self.ns

    def read(self, register: int) -> int:
        return self.hpet.read_mmio(register, 8)

    def write(self, register: int, value: int) -> None:
        self.hpet.write_mmio(register, 8, value)

    def timer(self, number: int, configuration: int, *comparators: int, gsi: int = 10) -> None:
        at = TIMER_AT + 0x20 * number
        self.write(at, configuration | gsi << 9)
        for comparator in comparators:
            self.write(at + 8, comparator)

    def pass_ticks(self, ticks: int) -> list[tuple[int, bool]]:
        """Let time pass, with a look at each deadline; what the lines did."""
        end = self.ns + 10 * ticks
        while (due := self.hpet.deadline()) is not None and due <= end:
            self.ns = max(self.ns, due)
            self.hpet.poll()
        self.ns = end
        lines, self.lines = self.lines, []
        return lines


@pytest.fixture
def bench() -> Bench:
    return Bench()


PULSE = [(10, True), (10, False)]


def test_it_says_what_it_can_do(bench: Bench) -> None:
    assert bench.read(CAPABILITIES) == 10_000_000 << 32 | 0x8086A201
    assert bench.hpet.read_mmio(CAPABILITIES + 4, 4) == 10_000_000
    for number in range(3):
        assert bench.read(TIMER_AT + 0x20 * number) == 0xC04 << 32 | 0x30
    assert bench.read(TIMER_AT + 0x60) == 0


def test_it_counts_while_it_is_on(bench: Bench) -> None:
    bench.pass_ticks(50)
    assert bench.read(COUNTER) == 0
    bench.write(CONFIGURATION, ENABLE)
    bench.pass_ticks(50)
    bench.write(COUNTER, 7)
    assert bench.read(COUNTER) == 50, "it is not set while it runs"
    bench.write(CONFIGURATION, 0)
    bench.pass_ticks(50)
    assert bench.read(COUNTER) == 50
    bench.hpet.write_mmio(COUNTER + 4, 4, 3)
    bench.write(CONFIGURATION, ENABLE)
    bench.pass_ticks(1)
    assert bench.read(COUNTER) == 3 << 32 | 51


def test_a_comparator_interrupts_once(bench: Bench) -> None:
    bench.write(CONFIGURATION, ENABLE)
    bench.timer(0, INTERRUPT, 1000)
    assert bench.pass_ticks(999) == []
    assert bench.pass_ticks(1) == PULSE
    assert bench.pass_ticks(10 * MILLISECOND) == []


def test_without_permission_it_does_not(bench: Bench) -> None:
    bench.write(CONFIGURATION, ENABLE)
    bench.timer(0, 0, 1000)
    assert bench.hpet.deadline() is None
    bench.timer(0, INTERRUPT, 1000, gsi=3)
    assert bench.pass_ticks(2000) == [], "there is no such route"
    bench.write(CONFIGURATION, 0)
    bench.timer(0, INTERRUPT, 5000)
    assert bench.hpet.deadline() is None


def test_a_period_comes_again_and_again(bench: Bench) -> None:
    bench.write(CONFIGURATION, ENABLE)
    bench.timer(1, INTERRUPT | PERIODIC | SET_VALUE, 500, 1000)
    assert bench.pass_ticks(499) == []
    assert bench.pass_ticks(1) == PULSE
    assert bench.pass_ticks(999) == []
    assert bench.pass_ticks(3001) == PULSE * 4
    bench.ns += 10 * 1_000_000
    bench.hpet.poll()
    assert bench.lines == PULSE, "what was missed is not made up for"


def test_a_level_stays_until_it_is_ended(bench: Bench) -> None:
    bench.write(CONFIGURATION, ENABLE)
    bench.timer(2, INTERRUPT | LEVEL, 100, gsi=11)
    assert bench.pass_ticks(100) == [(11, True)]
    assert bench.read(STATUS) == 4
    bench.write(STATUS, 3)
    assert bench.lines == []
    bench.write(STATUS, 4)
    assert bench.lines == [(11, False)]
    assert bench.read(STATUS) == 0


def test_legacy_routes(bench: Bench) -> None:
    bench.write(CONFIGURATION, ENABLE | LEGACY)
    assert bench.hpet.replaces_legacy_interrupts
    for number in range(3):
        bench.timer(number, INTERRUPT, 100)
    assert [gsi for gsi, level in bench.pass_ticks(100) if level] == [2, 8, 10]


def test_a_narrow_comparator_sees_half_of_the_counter(bench: Bench) -> None:
    bench.hpet.write_mmio(COUNTER + 4, 4, 1)
    bench.write(CONFIGURATION, ENABLE)
    bench.timer(0, INTERRUPT | NARROW, 5 << 32 | 100)
    assert bench.read(TIMER_AT + 8) == 100
    assert bench.pass_ticks(100) == PULSE


WRITES = st.tuples(
    st.integers(0, 0x30).map(lambda word: 8 * word) | st.integers(0, 1023),
    st.sampled_from((1, 2, 4, 8)),
    st.integers(0, (1 << 64) - 1) | st.integers(0, 1000),
)


@settings(deadline=None)
@given(st.lists(WRITES, max_size=40))
def test_random_registers_harm_nobody(writes: list[tuple[int, int, int]]) -> None:
    bench = Bench()
    for offset, size, value in writes:
        bench.hpet.write_mmio(offset, size, value & (1 << 8 * size) - 1)
        bench.hpet.read_mmio(offset, size)
        bench.ns += 12345
        bench.hpet.poll()
        due = bench.hpet.deadline()
        assert due is None or due > bench.ns - 10
