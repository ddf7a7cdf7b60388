"""nmi_op: the callback that is also callback_op's."""

from __future__ import annotations

from tests.unit.hypervisor.hypercalls.conftest import Machine
from xenolith.abi.errno import EFAULT, EINVAL, ENOSYS
from xenolith.abi.nmi import XENNMI_register_callback, XENNMI_unregister_callback, XennmiCallback
from xenolith.abi.traps import CALLBACKTYPE_nmi
from xenolith.hypervisor.domain import Domain

CALL = 28
HANDLER = 0xFFFF_FFFF_8100_0000


def test_register_and_unregister(machine: Machine, guest: Domain) -> None:
    callbacks = guest.vcpus[0].callbacks
    assert machine.operation(guest, CALL, XENNMI_register_callback, XennmiCallback(handler_address=HANDLER)) == 0
    assert callbacks[CALLBACKTYPE_nmi].address == HANDLER
    assert machine.raw(guest, CALL, XENNMI_unregister_callback, 0) == 0
    assert CALLBACKTYPE_nmi not in callbacks
    assert machine.raw(guest, CALL, XENNMI_unregister_callback, 0) == 0


def test_errors(machine: Machine, guest: Domain) -> None:
    bad = XennmiCallback(handler_address=1 << 50)
    assert machine.operation(guest, CALL, XENNMI_register_callback, bad) == -EINVAL
    assert machine.raw(guest, CALL, XENNMI_register_callback, 1 << 40) == -EFAULT
    assert machine.raw(guest, CALL, 2, 0) == -ENOSYS
