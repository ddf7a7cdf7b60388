"""set_debugreg and get_debugreg."""

from __future__ import annotations

from tests.unit.hypervisor.hypercalls.conftest import Machine
from xenolith.abi.errno import ENODEV, EPERM
from xenolith.hypervisor.domain import Domain

SET, GET = 8, 9


def test_set_and_get(machine: Machine, guest: Domain) -> None:
    assert machine.raw(guest, SET, 0, 0x40_0000) == 0
    assert machine.raw(guest, GET, 0) == 0x40_0000


def test_errors(machine: Machine, guest: Domain) -> None:
    assert machine.raw(guest, SET, 0, 0xFFFF_8000_0000_0000) == -EPERM
    assert machine.raw(guest, SET, 7, 1 << 13) == -EPERM
    assert machine.raw(guest, SET, 8, 0) == -ENODEV
    assert machine.raw(guest, GET, 0xFFFF_FFFF) == -ENODEV
