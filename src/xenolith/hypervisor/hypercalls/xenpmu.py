"""xenpmu_op: no performance counters, as in a Xen that was not booted with `vpmu` (xen/arch/x86/cpu/vpmu.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenolith.abi.errno import EOPNOTSUPP, XenError
from xenolith.abi.hypercalls import HYPERVISOR_xenpmu_op
from xenolith.hypervisor.hypercalls.table import hypercall

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu


@hypercall(HYPERVISOR_xenpmu_op)
def xenpmu_op(hv: Hypervisor, caller: Vcpu, command: int, vaddr: int) -> int:
    """Raises XenError(EOPNOTSUPP), whatever is asked."""
    raise XenError(EOPNOTSUPP, "there are no performance counters")
