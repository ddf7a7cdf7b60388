"""set_debugreg and get_debugreg (xen/arch/x86/pv/misc-hypercalls.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenolith.abi.hypercalls import HYPERVISOR_get_debugreg, HYPERVISOR_set_debugreg
from xenolith.hypervisor import debug_registers
from xenolith.hypervisor.hypercalls.table import hypercall

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu


@hypercall(HYPERVISOR_set_debugreg)
def set_debugreg(hv: Hypervisor, caller: Vcpu, number: int, value: int) -> int:
    """Set a debug register. Raises XenError: EPERM for a value that a guest may not have, ENODEV for a number."""
    debug_registers.put(caller, number & 0xFFFFFFFF, value)
    return 0


@hypercall(HYPERVISOR_get_debugreg)
def get_debugreg(hv: Hypervisor, caller: Vcpu, number: int) -> int:
    """The value of a debug register. Raises XenError(ENODEV) for a number that does not exist."""
    return debug_registers.get(caller, number & 0xFFFFFFFF)
