"""vm_assist: which kinds there are, and that they are remembered."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.hypercalls.conftest import Machine
from xenolith.abi.errno import EINVAL, ENOSYS
from xenolith.abi.vm_assist import VMASST_CMD_disable, VMASST_CMD_enable
from xenolith.hypervisor.domain import Domain

CALL = 21
KINDS = [0, 1, 2, 3, 4, 5, 32]


@pytest.mark.parametrize("kind", KINDS)
def test_enable_and_disable(machine: Machine, guest: Domain, kind: int) -> None:
    assert machine.raw(guest, CALL, VMASST_CMD_enable, kind) == 0
    assert guest.vm_assist == 1 << kind
    assert machine.raw(guest, CALL, VMASST_CMD_disable, kind) == 0
    assert guest.vm_assist == 0


@pytest.mark.parametrize("kind", [6, 31, 33, 63, 64, 0xFFFF_FFFF])
def test_unknown_kinds(machine: Machine, guest: Domain, kind: int) -> None:
    assert machine.raw(guest, CALL, VMASST_CMD_enable, kind) == -EINVAL
    assert guest.vm_assist == 0


def test_unknown_command(machine: Machine, guest: Domain) -> None:
    assert machine.raw(guest, CALL, 2, 0) == -ENOSYS
