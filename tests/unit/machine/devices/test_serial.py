"""The 16550A: what drivers probe, what they send and receive, and when it interrupts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.machine.buses import PortBus
from xenolith.machine.devices.serial import (
    COM1,
    DATA,
    FCR,
    IER,
    IIR,
    LCR,
    LSR,
    MCR,
    MSR,
    SCRATCH,
    Serial,
)

if TYPE_CHECKING:
    from ..conftest import Wire


class Line:
    """A serial port on a bus, its wire, and what came out of it."""

    def __init__(self, wire: Wire) -> None:
        self.sent = bytearray()
        self.wire = wire
        self.ports = PortBus()
        self.serial = Serial(self.sent.extend, wire)
        self.serial.attach(self.ports, COM1)

    def read(self, register: int) -> int:
        return self.ports.read(COM1 + register, 1)

    def write(self, register: int, value: int) -> None:
        self.ports.write(COM1 + register, 1, value)

    def open(self, interrupts: int, fcr: int = 0x01) -> None:
        """What a driver does at open: 8n1, FIFO on, OUT2, then the interrupts it wants."""
        self.write(LCR, 0x03)
        self.write(FCR, fcr)
        self.write(MCR, 0x0B)
        self.write(IER, interrupts)


@pytest.fixture
def line(wire: Wire) -> Line:
    return Line(wire)


def test_what_the_guest_writes_goes_to_the_sink(line: Line) -> None:
    for byte in b"hello":
        assert line.read(LSR) & 0x60 == 0x60
        line.write(DATA, byte)
    assert line.sent == b"hello"


def test_the_divisor_latch_hides_data_and_interrupt_enable(line: Line) -> None:
    line.write(IER, 0x05)
    line.write(LCR, 0x83)
    line.write(DATA, 0x01)
    line.write(IER, 0x02)
    assert (line.read(DATA), line.read(IER)) == (1, 2)
    line.write(LCR, 0x03)
    assert line.read(IER) == 0x05
    assert line.sent == b""


def test_a_driver_recognises_a_16550a_and_nothing_newer(line: Line) -> None:
    line.write(IER, 0xFF)
    assert line.read(IER) == 0x0F, "no XScale unit enable, no sleep mode"
    line.write(IER, 0)
    assert line.read(IIR) == 0x01
    line.write(FCR, 0x01)
    assert line.read(IIR) >> 6 == 3
    line.write(FCR, 0x21)
    assert not line.read(IIR) & 0x20, "no 64-byte FIFO"
    line.write(SCRATCH, 0xA5)
    assert line.read(SCRATCH) == 0xA5


def test_loopback_turns_outputs_to_inputs_and_data_round(line: Line) -> None:
    line.write(MCR, 0x1A)
    assert line.read(MSR) & 0xF0 == 0x90
    line.write(DATA, 0x42)
    assert line.sent == b""
    assert line.read(DATA) == 0x42


def test_a_peer_is_always_connected_and_modem_changes_are_told_once(line: Line) -> None:
    assert line.read(MSR) == 0xB0
    line.write(MCR, 0x10)
    assert line.read(MSR) & 0x0F == 0x0B
    assert line.read(MSR) & 0x0F == 0


def test_received_data_interrupts_and_is_acknowledged_by_reading(line: Line) -> None:
    line.open(0x01)
    line.serial.feed(b"ab")
    assert line.wire.level
    assert line.read(IIR) & 0x0F == 0x04
    assert [line.read(DATA), line.read(DATA)] == list(b"ab")
    assert not line.wire.level
    assert line.read(IIR) & 0x0F == 0x01


def test_bytes_below_the_trigger_level_arrive_as_a_timeout(line: Line) -> None:
    line.open(0x01, fcr=0x81)
    line.serial.feed(b"1234567")
    assert line.read(IIR) & 0x0F == 0x0C
    line.serial.feed(b"8")
    assert line.read(IIR) & 0x0F == 0x04


def test_enabling_the_transmit_interrupt_raises_it_and_reading_its_cause_ends_it(line: Line) -> None:
    line.open(0x02)
    assert line.wire.level
    assert line.read(IIR) & 0x0F == 0x02
    assert not line.wire.level
    line.write(DATA, 0x41)
    assert line.wire.level
    assert line.wire.rises == 2


def test_each_byte_sent_raises_an_edge(line: Line) -> None:
    line.open(0x02)
    for byte in b"xyz":
        line.write(DATA, byte)
    assert line.wire.rises == 4


def test_out2_gates_the_wire(line: Line) -> None:
    line.open(0x01)
    line.write(MCR, 0x03)
    line.serial.feed(b"a")
    assert not line.wire.level
    line.write(MCR, 0x0B)
    assert line.wire.level


def test_nothing_arrives_until_the_guest_is_ready_and_nothing_is_lost_by_opening(line: Line) -> None:
    line.serial.feed(b"typed early")
    assert not line.read(LSR) & 1
    line.write(FCR, 0x07)
    line.open(0x01)
    received = bytearray()
    while line.read(LSR) & 1:
        received.append(line.read(DATA))
    assert received == b"typed early"


def test_loopback_overruns_a_full_fifo_and_tells_it_once(line: Line) -> None:
    line.open(0x04)
    line.write(MCR, 0x1B)
    for byte in range(20):
        line.write(DATA, byte)
    assert line.serial.waiting == 16
    assert line.read(IIR) & 0x0F == 0x06
    assert line.read(LSR) & 0x02
    assert not line.read(LSR) & 0x02
    assert line.read(IIR) & 0x0F == 0x01
    assert [line.read(DATA) for _ in range(16)] == list(range(16))
    assert line.sent == b""


def test_an_empty_receiver_reads_zero_and_says_so(line: Line) -> None:
    assert line.read(DATA) == 0
    assert not line.read(LSR) & 0x01


def test_clearing_the_receiver_drops_the_fifo_but_not_what_still_waits(line: Line) -> None:
    line.open(0x01)
    line.serial.feed(bytes(range(20)))
    line.write(FCR, 0x03)
    assert line.serial.waiting == 4
    assert line.read(DATA) == 16


def test_without_its_fifo_one_byte_is_held(line: Line) -> None:
    line.open(0x01, fcr=0)
    line.serial.feed(b"ab")
    assert line.read(IIR) == 0x04
    assert [line.read(DATA), line.read(DATA)] == list(b"ab")


REGISTERS = st.sampled_from([IER, IIR, LCR, MCR, LSR, MSR, SCRATCH])


@given(st.lists(st.one_of(st.binary(max_size=40), st.tuples(REGISTERS, st.integers(0, 255))), max_size=40))
def test_no_byte_is_lost_in_either_direction(new_wire: type[Wire], steps: list[bytes | tuple[int, int]]) -> None:
    """Bytes fed and sent arrive in order whatever else software does, except FIFO resets and loopback."""
    line = Line(new_wire())
    line.write(FCR, 0x01)
    fed, received, sent = bytearray(), bytearray(), bytearray()
    for step in steps:
        if isinstance(step, bytes):
            fed += step
            line.serial.feed(step)
            line.write(LCR, 0x03)
            if line.read(LSR) & 1:
                received.append(line.read(DATA))
            line.write(DATA, len(step))
            sent.append(len(step))
        else:
            register, value = step
            line.read(register)
            line.write(register, {FCR: value & ~0x02 | 0x01, MCR: value & ~0x10}.get(register, value))
    line.write(LCR, 0x03)
    line.write(MCR, 0x02)
    while line.read(LSR) & 1:
        received.append(line.read(DATA))
    assert (received, line.sent) == (fed, sent)


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 255), st.booleans()), max_size=60))
def test_no_access_raises_and_every_register_is_a_byte(
    new_wire: type[Wire], accesses: list[tuple[int, int, bool]]
) -> None:
    line = Line(new_wire())
    line.serial.feed(b"some")
    for register, value, is_write in accesses:
        if is_write:
            line.write(register, value)
        else:
            assert 0 <= line.read(register) <= 0xFF
