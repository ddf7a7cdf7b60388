"""domctl: which frames of a domain a tool has to copy once more, when it copies a domain that runs.

Facts are those of Xen 4.17's xen/arch/x86/mm/paging.c (paging_domctl, paging_log_dirty_op).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.domctl import (
    XEN_DOMCTL_SHADOW_ENABLE_LOG_DIRTY,
    XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL,
    XEN_DOMCTL_SHADOW_OP_CLEAN,
    XEN_DOMCTL_SHADOW_OP_ENABLE,
    XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY,
    XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION,
    XEN_DOMCTL_SHADOW_OP_OFF,
    XEN_DOMCTL_SHADOW_OP_PEEK,
    XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION,
    XEN_DOMCTL_shadow_op,
    XenDomctlShadowOp,
)
from xenolith.abi.errno import EINVAL, XenError
from xenolith.abi.hypercalls import HYPERVISOR_domctl
from xenolith.hypervisor.dirty_log import DirtyLog
from xenolith.hypervisor.hypercalls.table import Continuation, operation

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

_PIECE: Final = 4096
"""Bytes of the bitmap that are written at a time."""


@operation(HYPERVISOR_domctl, XEN_DOMCTL_shadow_op, copy_back=True)
def shadow_op(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlShadowOp) -> None:
    """Begin or end to tell of dirty frames, and tell. There is never memory for shadows, which there are not.

    Raises XenError: EINVAL for oneself, a domain without vCPUs, what has begun already, or another mode; EFAULT.
    """
    if domain is caller.domain or not domain.vcpus:
        raise XenError(EINVAL, "oneself, or a domain without vCPUs")
    if domain.is_dying:
        return
    op, mode = argument.op, argument.mode
    if op == XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY or (
        op == XEN_DOMCTL_SHADOW_OP_ENABLE and mode & XEN_DOMCTL_SHADOW_ENABLE_LOG_DIRTY
    ):
        _begin(hv, domain)
    elif op == XEN_DOMCTL_SHADOW_OP_OFF:
        domain.dirty_log = None
    elif op in (XEN_DOMCTL_SHADOW_OP_CLEAN, XEN_DOMCTL_SHADOW_OP_PEEK):
        if mode & ~XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL:
            raise XenError(EINVAL, f"mode {mode:#x}")
        _tell(hv, caller, domain, argument)
    elif op == XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION:
        argument.mb = 0
    elif op != XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION:
        raise XenError(EINVAL, f"shadow operation {op}")


def _begin(hv: Hypervisor, domain: Domain) -> None:
    """Look at everything once, in parts."""
    if domain.dirty_log is None:
        domain.dirty_log = DirtyLog(hv, domain)
    elif domain.dirty_log.has_begun:
        raise XenError(EINVAL, f"{domain} tells of dirty frames already")
    if not domain.dirty_log.look():
        raise Continuation


def _tell(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlShadowOp) -> None:
    """Write the bitmap, one bit for each frame number of the guest's own, if there is a place for it."""
    log = domain.dirty_log
    if log is not None and not log.look():
        raise Continuation
    argument.stats.fault_count, argument.stats.dirty_count = 0, 0 if log is None else len(log.dirty)
    if argument.dirty_bitmap:
        for first in range(0, argument.pages, _PIECE * 8):
            count = min(argument.pages - first, _PIECE * 8)
            bits = bytes(-(-count // 8)) if log is None else log.bits(first, count)
            hv.memory.write(caller, argument.dirty_bitmap + first // 8, bits)
    if log is not None and argument.op == XEN_DOMCTL_SHADOW_OP_CLEAN:
        log.clean()
