"""The real-time clock: time, alarms and flags follow the clock; software can set them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.machine.buses import PortBus
from xenolith.machine.devices.rtc import (
    B_24_HOURS,
    B_ALARM,
    B_BINARY,
    B_PERIODIC,
    B_SET,
    B_UPDATE_ENDED,
    CENTURY,
    CMOS_BYTES,
    DAY,
    HOURS,
    HOURS_ALARM,
    MINUTES,
    MINUTES_ALARM,
    MONTH,
    SECONDS,
    SECONDS_ALARM,
    WEEKDAY,
    YEAR,
    A,
    B,
    C,
    D,
    Rtc,
    cmos_contents,
)

if TYPE_CHECKING:
    from ..conftest import HandClock, Wire

NS_PER_SECOND = 1_000_000_000


@pytest.fixture
def rtc(clock: HandClock, wire: Wire) -> Rtc:
    return Rtc(clock, wire, cmos_contents(512 << 20, 0))


def bcd(value: int) -> int:
    return value // 10 << 4 | value % 10


def read_time(rtc: Rtc) -> list[int]:
    return [rtc.read_cmos(register) for register in (CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS)]


def test_time_reads_as_decimal_digits_at_power_on(rtc: Rtc) -> None:
    assert read_time(rtc) == [0x20, 0x20, 0x09, 0x13, 1, 0x12, 0x26, 0x40]
    assert rtc.read_cmos(D) == 0x80
    assert rtc.read_cmos(B) == B_24_HOURS


def test_time_reads_in_binary_and_in_twelve_hours(rtc: Rtc, clock: HandClock) -> None:
    rtc.write_cmos(B, B_BINARY)
    assert read_time(rtc) == [20, 20, 9, 13, 1, 12 | 0x80, 26, 40]
    clock.advance(12 * 3600)
    assert rtc.read_cmos(HOURS) == 12
    clock.advance(3600)
    assert rtc.read_cmos(HOURS) == 1


def test_the_ports_reach_the_registers(rtc: Rtc) -> None:
    ports = PortBus()
    rtc.attach(ports)
    ports.write(0x70, 1, 0x80 | MONTH)
    assert ports.read(0x71, 1) == 0x09
    assert ports.read(0x70, 1) == MONTH
    ports.write(0x70, 1, 0x50)
    ports.write(0x71, 1, 0x77)
    assert ports.read(0x71, 1) == 0x77


@given(
    st.datetimes(datetime(1980, 1, 1), datetime(2200, 1, 1)),
    st.sampled_from([0, B_BINARY, B_24_HOURS, B_BINARY | B_24_HOURS]),
    st.integers(0, 100_000),
)
def test_a_time_that_software_sets_reads_back_and_runs_on(
    new_clock: type[HandClock], new_wire: type[Wire], moment: datetime, mode: int, later: int
) -> None:
    clock = new_clock()
    rtc = Rtc(clock, new_wire(), {})
    code = (lambda value: value) if mode & B_BINARY else bcd
    hour = moment.hour if mode & B_24_HOURS else (moment.hour % 12 or 12)
    pm = 0 if mode & B_24_HOURS or moment.hour < 12 else 0x80
    rtc.write_cmos(B, B_SET | mode)
    for register, value in {
        SECONDS: code(moment.second),
        MINUTES: code(moment.minute),
        HOURS: code(hour) | pm,
        DAY: code(moment.day),
        MONTH: code(moment.month),
        YEAR: code(moment.year % 100),
        CENTURY: code(moment.year // 100),
    }.items():
        rtc.write_cmos(register, value)
    assert rtc.read_cmos(SECONDS) == code(moment.second)
    rtc.write_cmos(B, mode)
    rtc.write_cmos(B, B_BINARY | B_24_HOURS)
    clock.advance(later)
    now = datetime.fromtimestamp(moment.replace(tzinfo=UTC, microsecond=0).timestamp() + later, UTC)
    weekday = now.isoweekday() % 7 + 1
    assert read_time(rtc) == [
        now.year // 100,
        now.year % 100,
        now.month,
        now.day,
        weekday,
        now.hour,
        now.minute,
        now.second,
    ]


@pytest.mark.parametrize(
    ("register", "value"), [(MONTH, 0x13), (DAY, 0), (CENTURY, 0xFF), (HOURS, 0x24), (SECONDS, 0x60)]
)
def test_a_time_that_does_not_exist_changes_nothing(rtc: Rtc, register: int, value: int) -> None:
    before = read_time(rtc)
    rtc.write_cmos(register, value)
    assert read_time(rtc) == before


def test_setting_one_register_while_running_keeps_the_others(rtc: Rtc) -> None:
    rtc.write_cmos(HOURS, 0x15)
    assert read_time(rtc) == [0x20, 0x20, 0x09, 0x13, 1, 0x15, 0x26, 0x40]


def test_update_in_progress_warns_before_each_second(rtc: Rtc, clock: HandClock) -> None:
    assert rtc.read_cmos(A) == 0x26
    clock.advance(0.9999)
    assert rtc.read_cmos(A) == 0xA6
    assert rtc.read_cmos(SECONDS) == 0x40
    clock.advance(0.0001)
    assert rtc.read_cmos(A) == 0x26
    assert rtc.read_cmos(SECONDS) == 0x41


def test_flags_tell_what_happened_since_they_were_read(rtc: Rtc, clock: HandClock, wire: Wire) -> None:
    assert rtc.read_cmos(C) == 0
    clock.advance(0.5)
    assert rtc.read_cmos(C) == B_PERIODIC
    clock.advance(0.5)
    assert rtc.read_cmos(C) == B_PERIODIC | B_UPDATE_ENDED
    assert rtc.read_cmos(C) == 0
    assert wire.rises == 0


def test_an_alarm_interrupts_at_its_time(rtc: Rtc, clock: HandClock, wire: Wire) -> None:
    for register, value in {HOURS_ALARM: 0x12, MINUTES_ALARM: 0x27, SECONDS_ALARM: 0x05}.items():
        rtc.write_cmos(register, value)
    rtc.write_cmos(B, B_24_HOURS | B_ALARM)
    assert rtc.deadline() == 25 * NS_PER_SECOND
    clock.advance(24.9)
    rtc.poll()
    assert not wire.level
    clock.advance(0.1)
    rtc.poll()
    assert wire.level
    assert rtc.deadline() is None
    assert rtc.read_cmos(C) & (0x80 | B_ALARM) == 0x80 | B_ALARM
    assert not wire.level
    assert rtc.deadline() == (25 + 86400) * NS_PER_SECOND


@pytest.mark.parametrize(
    ("hour", "minute", "second", "after"),
    [(0xFF, 0xFF, 0xFF, 1), (0xC0, 0xFF, 0x00, 20), (0xFF, 0x00, 0x00, 33 * 60 + 20), (0x12, 0x26, 0x40, 86400)],
)
def test_alarms_that_do_not_care_repeat(rtc: Rtc, hour: int, minute: int, second: int, after: int) -> None:
    for register, value in {HOURS_ALARM: hour, MINUTES_ALARM: minute, SECONDS_ALARM: second}.items():
        rtc.write_cmos(register, value)
    rtc.write_cmos(B, B_24_HOURS | B_ALARM)
    assert rtc.deadline() == after * NS_PER_SECOND


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.integers(0, 86400))
def test_any_alarm_is_found_within_a_day_or_never(
    new_clock: type[HandClock], new_wire: type[Wire], hour: int, minute: int, second: int, start: int
) -> None:
    clock = new_clock()
    clock.advance(start)
    rtc = Rtc(clock, new_wire(), {})
    rtc.write_cmos(B, B_24_HOURS | B_BINARY | B_ALARM)
    for register, value in {HOURS_ALARM: hour, MINUTES_ALARM: minute, SECONDS_ALARM: second}.items():
        rtc.write_cmos(register, value)
    possible = all(value < limit or value >= 0xC0 for value, limit in ((hour, 24), (minute, 60), (second, 60)))
    due = rtc.deadline()
    assert (due is not None) == possible
    if due is not None:
        assert 0 < due - clock.now_ns() <= 86400 * NS_PER_SECOND
        moment = datetime.fromtimestamp((new_clock.BOOT_SECOND * NS_PER_SECOND + due) // NS_PER_SECOND, UTC)
        for wanted, value in ((hour, moment.hour), (minute, moment.minute), (second, moment.second)):
            assert wanted >= 0xC0 or wanted == value


def test_the_periodic_interrupt_has_its_rate(rtc: Rtc, clock: HandClock, wire: Wire) -> None:
    rtc.write_cmos(A, 0x2F)
    rtc.write_cmos(B, B_24_HOURS | B_PERIODIC)
    for tick in range(1, 5):
        due = rtc.deadline()
        assert due == tick * NS_PER_SECOND // 2
        clock.ns = due
        rtc.poll()
        assert wire.rises == tick
        rtc.read_cmos(C)


def test_update_interrupts_come_each_second_but_not_while_set(rtc: Rtc, clock: HandClock) -> None:
    rtc.write_cmos(B, B_24_HOURS | B_UPDATE_ENDED)
    clock.advance(0.25)
    assert rtc.deadline() == NS_PER_SECOND
    rtc.write_cmos(B, B_24_HOURS | B_SET | B_UPDATE_ENDED)
    assert rtc.deadline() is None
    clock.advance(10)
    assert not rtc.read_cmos(C) & B_UPDATE_ENDED


def test_a_disabled_clock_has_no_deadline(rtc: Rtc) -> None:
    assert rtc.deadline() is None


def test_firmware_left_the_memory_sizes_and_a_checksum(rtc: Rtc) -> None:
    assert rtc.read_cmos(0x15) | rtc.read_cmos(0x16) << 8 == 640
    assert rtc.read_cmos(0x34) | rtc.read_cmos(0x35) << 8 == (512 - 16) << 4
    checksum = sum(rtc.read_cmos(register) for register in range(0x10, 0x2E))
    assert rtc.read_cmos(0x2E) << 8 | rtc.read_cmos(0x2F) == checksum
    high = cmos_contents(3 << 30, 5 << 30)
    assert (high[0x5B], high[0x5C], high[0x5D]) == (0, 0x40, 1)


@given(st.lists(st.tuples(st.integers(0, CMOS_BYTES - 1), st.integers(0, 255), st.integers(0, 10**12)), max_size=40))
def test_no_sequence_of_accesses_raises(
    new_clock: type[HandClock], new_wire: type[Wire], accesses: list[tuple[int, int, int]]
) -> None:
    clock = new_clock()
    rtc = Rtc(clock, new_wire(), {})
    for register, value, step in accesses:
        rtc.write_cmos(register, value)
        clock.ns += step
        rtc.poll()
        due = rtc.deadline()
        assert due is None or due >= clock.now_ns()
        assert 0 <= rtc.read_cmos(register) <= 0xFF
