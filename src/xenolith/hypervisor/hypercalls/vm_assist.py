"""vm_assist: a domain asks for more than the ABI's minimum (vm_assist() in xen/common/kernel.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EINVAL, ENOSYS, XenError
from xenolith.abi.hypercalls import HYPERVISOR_vm_assist
from xenolith.abi.vm_assist import (
    VMASST_CMD_disable,
    VMASST_CMD_enable,
    VMASST_TYPE_4gb_segments,
    VMASST_TYPE_4gb_segments_notify,
    VMASST_TYPE_architectural_iopl,
    VMASST_TYPE_m2p_strict,
    VMASST_TYPE_pae_extended_cr3,
    VMASST_TYPE_runstate_update_flag,
    VMASST_TYPE_writable_pagetables,
)
from xenolith.hypervisor.hypercalls.table import hypercall

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

KINDS: Final = frozenset(
    (
        VMASST_TYPE_4gb_segments,
        VMASST_TYPE_4gb_segments_notify,
        VMASST_TYPE_writable_pagetables,
        VMASST_TYPE_pae_extended_cr3,
        VMASST_TYPE_architectural_iopl,
        VMASST_TYPE_runstate_update_flag,
        VMASST_TYPE_m2p_strict,
    )
)
"""What a 64-bit PV domain may ask for (NATIVE_VM_ASSIST_VALID)."""


@hypercall(HYPERVISOR_vm_assist)
def vm_assist(hv: Hypervisor, caller: Vcpu, command: int, kind: int) -> int:
    """Enable or disable assistance of `kind`. Raises XenError: EINVAL for an unknown kind, ENOSYS for a command."""
    command &= 0xFFFFFFFF
    kind &= 0xFFFFFFFF
    if kind not in KINDS:
        raise XenError(EINVAL, f"there is no assistance {kind}")
    domain = caller.domain
    if command == VMASST_CMD_enable:
        domain.vm_assist |= 1 << kind
    elif command == VMASST_CMD_disable:
        domain.vm_assist &= ~(1 << kind)
    else:
        raise XenError(ENOSYS, f"there is no vm_assist command {command}")
    for vcpu in domain.vcpus:
        vcpu.show_iopl()
    return 0
