"""domctl: how one domain makes, inspects and ends others: the edge, where structure, target and right are checked.

The operations are in the modules domctl_*. What Xen does not know it takes for an operation of its
IOMMU, which does not know it either: EOPNOTSUPP. Facts are those of Xen 4.17's xen/common/domctl.c and
xen/arch/x86/domctl.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.domctl import (
    XEN_DOMCTL_assign_device,
    XEN_DOMCTL_createdomain,
    XEN_DOMCTL_deassign_device,
    XEN_DOMCTL_getdomaininfo,
    XEN_DOMCTL_iomem_permission,
    XEN_DOMCTL_ioport_permission,
    XEN_DOMCTL_test_assign_device,
    XenDomctl,
)
from xenolith.abi.errno import EACCES, EINVAL, ENOSYS, EOPNOTSUPP, ESRCH, XenError
from xenolith.abi.hypercalls import BY_NUMBER, HYPERVISOR_domctl
from xenolith.abi.types import DOMID_FIRST_RESERVED, DOMID_IO
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.hypercalls.table import OPERATIONS, BoundOperation, Continuation, Reported, hypercall

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

_DEVICE_OPERATIONS: Final = (XEN_DOMCTL_assign_device, XEN_DOMCTL_test_assign_device, XEN_DOMCTL_deassign_device)
"""These are also for DOMID_IO, which stands for nobody; who may do them is decided by the device."""
_LENDING: Final = (XEN_DOMCTL_iomem_permission, XEN_DOMCTL_ioport_permission)
"""Who drives a device that works for a domain lends it what belongs to the device, without controlling that domain."""
_ARGUMENT: Final[int] = XenDomctl.u.offset
_DECLARED: Final = frozenset(operation.number for operation in BY_NUMBER[HYPERVISOR_domctl].operations)


@hypercall(HYPERVISOR_domctl)
def domctl(hv: Hypervisor, caller: Vcpu, vaddr: int) -> int:
    """Run one operation on the domain that the structure names.

    Raises XenError: EFAULT, EACCES for another interface version, ESRCH, EPERM, or what the operation raises.
    """
    data = bytearray(hv.memory.read(caller, vaddr, XenDomctl.sizeof()))
    op = XenDomctl.from_buffer(data)
    if op.interface_version != hv.release.domctl:
        raise XenError(EACCES, f"domctl interface version {op.interface_version:#x}")
    bound = OPERATIONS.get((HYPERVISOR_domctl, op.cmd))
    if bound is not None and op.cmd == XEN_DOMCTL_createdomain:
        bound.handler(hv, caller, op)
    else:
        domain = _target(hv, caller, op, f"XEN_DOMCTL {op.cmd}" if bound is None else bound.name)
        if bound is None:
            hv.count_unimplemented(HYPERVISOR_domctl, op.cmd)
            raise XenError(ENOSYS if op.cmd in _DECLARED else EOPNOTSUPP, f"domctl {op.cmd}")
        if any(hv.engine.comes_first(vcpu.cpu) for vcpu in domain.vcpus):
            raise Continuation  # until what they have done at the same time is dealt with
        try:
            _run(hv, caller, bound, domain, data)
        except Reported:
            hv.memory.write(caller, vaddr, bytes(data))
            raise
        op.domain = domain.domid
    if bound.copy_back:
        hv.memory.write(caller, vaddr, bytes(data))
    return 0


def _target(hv: Hypervisor, caller: Vcpu, op: XenDomctl, action: str) -> Domain:
    """The domain that an operation is about, if the caller controls it."""
    if op.domain == DOMID_IO and op.cmd in _DEVICE_OPERATIONS:
        return hv.iommu.quarantine
    domain = hv.domains.get(op.domain)
    if op.cmd == XEN_DOMCTL_getdomaininfo:
        domain = domain or _next_domain(hv, op.domain)
        if caller.domain.can(Capability.STORE):
            return domain
    if domain is None:
        raise XenError(ESRCH, f"domain {op.domain} does not exist")
    if op.cmd in _LENDING and hv.iommu.lends(caller.domain, domain):
        return domain
    hv.policy.require_control(caller.domain, domain, action)
    return domain


def _next_domain(hv: Hypervisor, domid: int) -> Domain:
    """To be told of a domain that does not exist is to be told of the next that does."""
    if domid >= DOMID_FIRST_RESERVED:
        raise XenError(EINVAL, f"domid {domid:#x} is no domain's")
    following = min((number for number in hv.domains if number > domid), default=None)
    if following is None:
        raise XenError(ESRCH, f"there is no domain from {domid} on")
    return hv.domains[following]


def _run(hv: Hypervisor, caller: Vcpu, bound: BoundOperation, domain: Domain, data: bytearray) -> None:
    if bound.argument is None:
        bound.handler(hv, caller, domain)
    else:
        bound.handler(hv, caller, domain, bound.argument.from_buffer(data, _ARGUMENT))
