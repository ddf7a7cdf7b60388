"""nmi_op: the guest's NMI handler (do_nmi_op in xen/common/kernel.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenolith.abi.errno import EINVAL, XenError
from xenolith.abi.hypercalls import HYPERVISOR_nmi_op
from xenolith.abi.nmi import XENNMI_register_callback, XENNMI_unregister_callback, XennmiCallback
from xenolith.abi.traps import CALLBACKTYPE_nmi
from xenolith.hypervisor.hypercalls.table import hypercall, operation, run_operation
from xenolith.hypervisor.msr import is_canonical
from xenolith.hypervisor.shared_state import Callback

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu


@hypercall(HYPERVISOR_nmi_op)
def nmi_op(hv: Hypervisor, caller: Vcpu, command: int, vaddr: int) -> int:
    """Run one of the sub-operations. XenError(ENOSYS) for one that does not exist."""
    return run_operation(hv, caller, HYPERVISOR_nmi_op, command & 0xFFFFFFFF, vaddr)


@operation(HYPERVISOR_nmi_op, XENNMI_register_callback)
def register_callback(hv: Hypervisor, caller: Vcpu, callback: XennmiCallback) -> None:
    """The same as callback_op with CALLBACKTYPE_nmi. Raises XenError(EINVAL) for an address that is not canonical."""
    if not is_canonical(callback.handler_address):
        raise XenError(EINVAL, f"NMI handler at {callback.handler_address:#x}")
    caller.callbacks[CALLBACKTYPE_nmi] = Callback(callback.handler_address)


@operation(HYPERVISOR_nmi_op, XENNMI_unregister_callback, raw=True)
def unregister_callback(hv: Hypervisor, caller: Vcpu, vaddr: int) -> None:
    """The guest takes no more NMIs."""
    caller.callbacks[CALLBACKTYPE_nmi] = Callback()
