"""domctl: which frames of a domain a tool has to copy once more, when it copies a domain that runs.

Xen learns that from shadow page tables. Here guests run on their own, whose dirty bits are the guest's to keep, so that
every frame that a domain has is called dirty: more frames than need be, so that nothing is missed, and a tool stops
copying again when it sees that it comes to no end. Facts are those of Xen 4.17's xen/arch/x86/mm/paging.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

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
from xenolith.hypervisor.hypercalls.table import operation

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
        if domain.logs_dirty:
            raise XenError(EINVAL, f"{domain} tells of dirty frames already")
        domain.logs_dirty = True
    elif op == XEN_DOMCTL_SHADOW_OP_OFF:
        domain.logs_dirty = False
    elif op in (XEN_DOMCTL_SHADOW_OP_CLEAN, XEN_DOMCTL_SHADOW_OP_PEEK):
        if mode & ~XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL:
            raise XenError(EINVAL, f"mode {mode:#x}")
        _tell(hv, caller, domain, argument)
    elif op == XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION:
        argument.mb = 0
    elif op != XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION:
        raise XenError(EINVAL, f"shadow operation {op}")


def _tell(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlShadowOp) -> None:
    """Write the bitmap, one bit for each frame number of the guest's own, if there is a place for it."""
    dirty = _frame_numbers(hv, domain) if domain.logs_dirty else np.empty(0, dtype=np.uint64)
    argument.stats.fault_count, argument.stats.dirty_count = 0, len(dirty)
    if not argument.dirty_bitmap:
        return
    for first in range(0, argument.pages, _PIECE * 8):
        count = min(argument.pages - first, _PIECE * 8)
        bits = np.zeros(count, dtype=np.uint8)
        bits[dirty[(dirty >= first) & (dirty < first + count)] - first] = 1
        hv.memory.write(caller, argument.dirty_bitmap + first // 8, np.packbits(bits, bitorder="little").tobytes())


def _frame_numbers(hv: Hypervisor, domain: Domain) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """What the machine-to-physical table says of the domain's frames."""
    numbers = np.frombuffer(hv.m2p, dtype=np.uint64)[np.array(hv.frames.owned_by(domain.domid), dtype=np.int64)]
    return numbers[numbers < hv.frames.total + domain.max_frames]
