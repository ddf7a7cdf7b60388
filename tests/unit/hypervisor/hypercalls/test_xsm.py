"""xsm_op, of which there is nothing."""

from __future__ import annotations

from tests.unit.hypervisor.hypercalls.conftest import Machine
from xenolith.abi.errno import ENOSYS
from xenolith.hypervisor.domain import Domain


def test_there_are_no_labels(machine: Machine, driver: Domain) -> None:
    assert machine.raw(driver, 27, machine.buffer(driver)) == -ENOSYS
    assert not machine.unimplemented
