"""xenpmu_op, of which there is nothing."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.hypercalls.conftest import Machine
from xenolith.abi.errno import EOPNOTSUPP
from xenolith.hypervisor.domain import Domain


@pytest.mark.parametrize("command", [0, 4, 5, 99])
def test_there_are_no_counters(machine: Machine, guest: Domain, command: int) -> None:
    assert machine.raw(guest, 40, command, 1 << 40) == -EOPNOTSUPP
