"""sysctl: the trace buffers, which `xentrace` asks for (tb_control in Xen 4.17's xen/common/trace.c)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EINVAL, XenError
from xenolith.abi.hypercalls import HYPERVISOR_sysctl
from xenolith.abi.sysctl import (
    XEN_SYSCTL_tbuf_op,
    XEN_SYSCTL_TBUFOP_disable,
    XEN_SYSCTL_TBUFOP_enable,
    XEN_SYSCTL_TBUFOP_get_info,
    XEN_SYSCTL_TBUFOP_set_cpu_mask,
    XEN_SYSCTL_TBUFOP_set_evt_mask,
    XEN_SYSCTL_TBUFOP_set_size,
    XenSysctlTbufOp,
)
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.hypercalls.scheduling import all_processors, read_bits
from xenolith.hypervisor.hypercalls.table import operation

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_tbuf_op, copy_back=True, needs=Capability.CONTROL)
def tbuf_op(hv: Hypervisor, caller: Vcpu, argument: XenSysctlTbufOp) -> None:
    """Raises XenError: EINVAL for no such command, EPERM unless one controls all domains, or what it raises."""
    hv.policy.require_own(
        caller.domain, caller.domain.targets is None, "control over all domains", "XEN_SYSCTL_tbuf_op"
    )
    command = _COMMANDS.get(argument.cmd)
    if command is None:
        raise XenError(EINVAL, f"trace buffer operation {argument.cmd}")
    command(hv, caller, argument)


def _get_info(hv: Hypervisor, caller: Vcpu, argument: XenSysctlTbufOp) -> None:
    tracing = hv.tracing
    argument.evt_mask, argument.buffer_mfn, argument.size = tracing.event_mask, tracing.info_mfn, tracing.info_bytes


def _set_cpu_mask(hv: Hypervisor, caller: Vcpu, argument: XenSysctlTbufOp) -> None:
    """Which processors are traced. Raises XenError(EFAULT)."""
    hv.tracing.traced_processors = read_bits(hv, caller, argument.cpu_mask, all_processors(hv))


def _set_event_mask(hv: Hypervisor, caller: Vcpu, argument: XenSysctlTbufOp) -> None:
    hv.tracing.event_mask = argument.evt_mask


def _set_size(hv: Hypervisor, caller: Vcpu, argument: XenSysctlTbufOp) -> None:
    """Raises XenError: EINVAL, EBUSY, ENOMEM."""
    hv.tracing.allocate(argument.size)


def _enable(hv: Hypervisor, caller: Vcpu, argument: XenSysctlTbufOp) -> None:
    """Raises XenError(EINVAL) without buffers."""
    hv.tracing.enable()


def _disable(hv: Hypervisor, caller: Vcpu, argument: XenSysctlTbufOp) -> None:
    hv.tracing.disable()


_COMMANDS: Final[dict[int, Callable[[Hypervisor, Vcpu, XenSysctlTbufOp], None]]] = {
    XEN_SYSCTL_TBUFOP_get_info: _get_info,
    XEN_SYSCTL_TBUFOP_set_cpu_mask: _set_cpu_mask,
    XEN_SYSCTL_TBUFOP_set_evt_mask: _set_event_mask,
    XEN_SYSCTL_TBUFOP_set_size: _set_size,
    XEN_SYSCTL_TBUFOP_enable: _enable,
    XEN_SYSCTL_TBUFOP_disable: _disable,
}
