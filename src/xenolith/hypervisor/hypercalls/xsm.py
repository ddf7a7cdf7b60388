"""xsm_op: there is no labelled policy, as in a Xen without Flask (do_xsm_op of xen/xsm/dummy.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenolith.abi.errno import ENOSYS, XenError
from xenolith.abi.hypercalls import HYPERVISOR_xsm_op
from xenolith.hypervisor.hypercalls.table import hypercall

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu


@hypercall(HYPERVISOR_xsm_op)
def xsm_op(hv: Hypervisor, caller: Vcpu, vaddr: int) -> int:
    """Raises XenError(ENOSYS), from which tools learn that domains have no labels."""
    raise XenError(ENOSYS, "there is no labelled policy")
