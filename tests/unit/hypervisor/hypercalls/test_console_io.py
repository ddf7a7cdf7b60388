"""console_io: writing by anybody, reading by those who may."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.hypercalls.conftest import Machine
from xenolith.abi.console_io import CONSOLEIO_read, CONSOLEIO_write
from xenolith.abi.errno import E2BIG, EFAULT, ENOSYS, EPERM
from xenolith.hypervisor.domain import Domain

CALL = 18


def test_write(machine: Machine, guest: Domain) -> None:
    at = machine.buffer(guest)
    machine.ram.bytes[at : at + 6] = b"hello\n"
    assert machine.raw(guest, CALL, CONSOLEIO_write, 6, at) == 0
    assert machine.printed == [(1, b"hello\n")]


def test_long_writes_come_in_pieces_and_complete(machine: Machine, guest: Domain) -> None:
    at = machine.memory_of(guest)[0] << 12
    for index in range(10000):
        machine.ram.bytes[at + index] = index & 0xFF
    assert machine.raw(guest, CALL, CONSOLEIO_write, 10000, at) == 0
    assert b"".join(data for _, data in machine.printed) == bytes(index & 0xFF for index in range(10000))
    assert len(machine.printed) > 1


def test_write_of_nothing(machine: Machine, guest: Domain) -> None:
    assert machine.raw(guest, CALL, CONSOLEIO_write, 0, 0) == 0
    assert machine.printed == []


@pytest.mark.parametrize("count", [(1 << 20) + 1, 0x7FFF_FFFF, 0xFFFF_FFFF, (1 << 64) - 1])
def test_counts_are_bounded(machine: Machine, guest: Domain, count: int) -> None:
    assert machine.raw(guest, CALL, CONSOLEIO_write, count, machine.buffer(guest)) == -E2BIG
    assert machine.printed == []


def test_write_from_a_bad_address(machine: Machine, guest: Domain) -> None:
    assert machine.raw(guest, CALL, CONSOLEIO_write, 1, 1 << 40) == -EFAULT
    assert machine.raw(guest, CALL, CONSOLEIO_write, 4, machine.ram.size - 2) == -EFAULT


def test_reading_needs_the_console(machine: Machine, guest: Domain) -> None:
    machine.typed = b"secret"
    assert machine.raw(guest, CALL, CONSOLEIO_read, 16, machine.buffer(guest)) == -EPERM
    assert machine.typed == b"secret"


def test_read(machine: Machine, driver: Domain) -> None:
    machine.typed = b"typed"
    at = machine.buffer(driver)
    assert machine.raw(driver, CALL, CONSOLEIO_read, 3, at) == 3
    assert bytes(machine.ram.bytes[at : at + 4]) == b"typ\0"
    assert machine.raw(driver, CALL, CONSOLEIO_read, 16, at) == 2
    assert machine.raw(driver, CALL, CONSOLEIO_read, 16, at) == 0


def test_read_bounds(machine: Machine, driver: Domain) -> None:
    machine.typed = b"x"
    assert machine.raw(driver, CALL, CONSOLEIO_read, 0x8000_0000, machine.buffer(driver)) == -E2BIG
    assert machine.raw(driver, CALL, CONSOLEIO_read, 16, 1 << 40) == -EFAULT


def test_unknown_command(machine: Machine, guest: Domain, driver: Domain) -> None:
    assert machine.raw(driver, CALL, 2, 0, 0) == -ENOSYS
    assert machine.raw(guest, CALL, 2, 0, 0) == -EPERM
