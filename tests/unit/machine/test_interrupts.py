"""The I/O APIC delivers each interrupt once, in edge and in level mode, masked or not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.machine.interrupts import LEVEL, MASKED, PINS, REMOTE_IRR, IoApic


@pytest.fixture
def delivered() -> list[int]:
    return []


@pytest.fixture
def ioapic(delivered: list[int]) -> IoApic:
    apic = IoApic()
    apic.deliver = delivered.append
    return apic


def open_pin(apic: IoApic, pin: int, *, level: bool) -> None:
    apic.route(pin, 0x40 + pin, level=level, active_low=False, masked=False)


def test_every_pin_is_masked_at_reset(ioapic: IoApic, delivered: list[int]) -> None:
    for pin in range(PINS):
        ioapic.raise_pin(pin)
        assert ioapic.entry(pin) == MASKED
    assert delivered == []


def test_an_edge_is_delivered_at_each_rise(ioapic: IoApic, delivered: list[int]) -> None:
    open_pin(ioapic, 4, level=False)
    for _ in range(3):
        ioapic.raise_pin(4)
        ioapic.raise_pin(4)
        ioapic.lower_pin(4)
    assert delivered == [4, 4, 4]


def test_an_edge_while_masked_is_delivered_once_at_unmask(ioapic: IoApic, delivered: list[int]) -> None:
    for _ in range(2):
        ioapic.raise_pin(4)
        ioapic.lower_pin(4)
    open_pin(ioapic, 4, level=False)
    ioapic.set_masked(4, True)
    ioapic.set_masked(4, False)
    assert delivered == [4]


def test_a_level_waits_for_the_end_of_interrupt(ioapic: IoApic, delivered: list[int]) -> None:
    open_pin(ioapic, 9, level=True)
    ioapic.raise_pin(9)
    assert ioapic.entry(9) & REMOTE_IRR
    ioapic.lower_pin(9)
    ioapic.raise_pin(9)
    assert delivered == [9]
    ioapic.eoi(9)
    assert delivered == [9, 9]
    ioapic.lower_pin(9)
    ioapic.eoi(9)
    assert delivered == [9, 9]
    assert not ioapic.entry(9) & REMOTE_IRR


def test_a_level_that_went_away_while_masked_is_not_delivered(ioapic: IoApic, delivered: list[int]) -> None:
    ioapic.route(9, 0x49, level=True, active_low=True, masked=True)
    ioapic.raise_pin(9)
    ioapic.lower_pin(9)
    ioapic.set_masked(9, False)
    assert delivered == []
    ioapic.set_masked(9, True)
    ioapic.raise_pin(9)
    ioapic.set_masked(9, False)
    assert delivered == [9]


def test_masking_a_level_in_service_keeps_it_in_service(ioapic: IoApic, delivered: list[int]) -> None:
    open_pin(ioapic, 9, level=True)
    ioapic.raise_pin(9)
    ioapic.set_masked(9, True)
    ioapic.eoi(9)
    assert delivered == [9]
    ioapic.set_masked(9, False)
    assert delivered == [9, 9]


def test_an_end_of_interrupt_for_an_edge_or_an_idle_pin_is_harmless(ioapic: IoApic, delivered: list[int]) -> None:
    open_pin(ioapic, 4, level=False)
    ioapic.raise_pin(4)
    ioapic.eoi(4)
    ioapic.eoi(9)
    assert delivered == [4]


def test_registers_by_index_and_by_window(ioapic: IoApic) -> None:
    assert ioapic.read_register(1) == 0x00170020
    ioapic.write_mmio(0x00, 4, 0x10 + 2 * 9)
    ioapic.write_mmio(0x10, 4, 0xFFFFFFFF)
    ioapic.write_register(0x11 + 2 * 9, 0x03FFFFFF)
    assert ioapic.read_mmio(0x10, 4) == 0x0001AFFF
    assert ioapic.entry(9) == 0x03000000_0001AFFF
    ioapic.write_register(0, 0x0F000000)
    assert ioapic.read_register(0) == 0x0F000000
    assert ioapic.read_mmio(0x00, 1) == ioapic.read_mmio(0x20, 4) == 0


def test_the_end_of_interrupt_register_takes_a_vector(ioapic: IoApic, delivered: list[int]) -> None:
    open_pin(ioapic, 9, level=True)
    ioapic.raise_pin(9)
    ioapic.write_mmio(0x40, 4, 0x49)
    assert delivered == [9, 9]


@given(st.integers(-1, 0x200), st.integers(0, 0xFFFFFFFF))
def test_no_index_is_out_of_bounds_and_read_only_bits_stay(index: int, value: int) -> None:
    apic = IoApic()
    apic.write_register(index, value)
    apic.read_register(index)
    for pin in range(PINS):
        assert not apic.entry(pin) & (REMOTE_IRR | 1 << 12)


@given(st.lists(st.sampled_from(["raise", "lower", "eoi", "mask", "unmask"]), max_size=40))
def test_a_level_device_is_always_heard_in_the_end(steps: list[str]) -> None:
    apic, delivered = IoApic(), list[int]()
    apic.deliver = delivered.append
    apic.route(9, 0x49, level=True, active_low=False, masked=False)
    actions = {
        "raise": lambda: apic.raise_pin(9),
        "lower": lambda: apic.lower_pin(9),
        "eoi": lambda: apic.eoi(9),
        "mask": lambda: apic.set_masked(9, True),
        "unmask": lambda: apic.set_masked(9, False),
    }
    for step in steps:
        actions[step]()
    apic.set_masked(9, False)
    apic.lower_pin(9)
    apic.eoi(9)
    before = len(delivered)
    apic.raise_pin(9)
    assert len(delivered) == before + 1
    assert apic.entry(9) & LEVEL
