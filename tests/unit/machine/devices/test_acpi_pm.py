"""The ACPI fixed hardware: sleep, the timer, the power button, event enables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.machine.buses import PortBus
from xenolith.machine.devices.acpi_pm import (
    GPE0,
    GPE0_BYTES,
    PM1_CONTROL,
    PM1_ENABLE,
    PM1_STATUS,
    PM_BASE,
    PM_TIMER,
    AcpiPm,
)

if TYPE_CHECKING:
    from ..conftest import HandClock, Wire


class Power:
    """The power-management block on a bus, and how often the machine was turned off."""

    def __init__(self, clock: HandClock, wire: Wire) -> None:
        self.offs = 0
        self.wire = wire
        self.ports = PortBus()
        self.pm = AcpiPm(clock, wire, self.off)
        self.pm.attach(self.ports)

    def off(self) -> None:
        self.offs += 1


@pytest.fixture
def power(clock: HandClock, wire: Wire) -> Power:
    return Power(clock, wire)


def test_entering_s5_powers_off(power: Power) -> None:
    power.ports.write(PM1_CONTROL, 2, 5 << 10)
    assert power.offs == 0
    power.ports.write(PM1_CONTROL, 2, 5 << 10 | 1 << 13)
    assert power.offs == 1


@pytest.mark.parametrize("sleep_type", [0, 1, 2, 3, 4, 6, 7])
def test_no_other_sleep_state_exists(power: Power, sleep_type: int) -> None:
    power.ports.write(PM1_CONTROL, 2, sleep_type << 10 | 1 << 13)
    assert power.offs == 0


def test_the_upper_byte_alone_can_power_off(power: Power) -> None:
    power.ports.write(PM1_CONTROL + 1, 1, 0x34)
    assert power.offs == 1


def test_the_machine_is_always_in_acpi_mode(power: Power) -> None:
    assert power.ports.read(PM1_CONTROL, 2) == 1
    power.ports.write(PM1_CONTROL, 2, 0)
    assert power.ports.read(PM1_CONTROL, 2) == 1


def test_the_timer_runs_at_its_frequency(power: Power, clock: HandClock) -> None:
    assert power.ports.read(PM_TIMER, 4) == 0
    clock.advance(1)
    assert power.ports.read(PM_TIMER, 4) == 3_579_545
    assert power.ports.read(PM_TIMER, 1) == 3_579_545 & 0xFF
    clock.advance(1199)
    assert power.ports.read(PM_TIMER, 4) == 1200 * 3_579_545 & 0xFFFFFFFF
    power.ports.write(PM_TIMER, 4, 0)
    assert power.ports.read(PM_TIMER, 4) != 0


def test_the_power_button_raises_the_sci_until_it_is_acknowledged(power: Power) -> None:
    power.pm.press_power_button()
    assert not power.wire.level
    power.ports.write(PM1_ENABLE, 2, 0x0100)
    assert power.wire.level
    assert power.ports.read(PM1_STATUS, 4) == 0x01000100
    power.ports.write(PM1_STATUS, 2, 0x0001)
    assert power.wire.level
    power.ports.write(PM1_STATUS, 2, 0x0100)
    assert not power.wire.level
    assert power.ports.read(PM1_STATUS, 2) == 0


def test_only_enables_that_exist_are_kept(power: Power) -> None:
    power.ports.write(PM1_ENABLE, 2, 0xFFFF)
    assert power.ports.read(PM1_ENABLE, 2) == 0x0721


def test_general_purpose_events_can_be_enabled_and_never_happen(power: Power) -> None:
    for at in range(GPE0_BYTES):
        power.ports.write(GPE0 + at, 1, 0xFF)
    half = GPE0_BYTES // 2
    assert [power.ports.read(GPE0 + at, 1) for at in range(GPE0_BYTES)] == [0] * half + [0xFF] * half
    assert not power.wire.level


@given(st.lists(st.tuples(st.integers(0, 0x2F), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF)), max_size=40))
def test_no_access_raises_and_every_value_fits_its_size(
    new_clock: type[HandClock], new_wire: type[Wire], accesses: list[tuple[int, int, int]]
) -> None:
    power = Power(new_clock(), new_wire())
    for offset, size, value in accesses:
        power.ports.write(PM_BASE + offset, size, value)
        assert 0 <= power.ports.read(PM_BASE + offset, size) < 1 << 8 * size
