"""domctl and sysctl: how much of the processor each domain gets, on which processor, and the pool that this is in.

All processors are in pool 0, under a scheduler that takes credit2's parameters. Facts are those of Xen 4.17's
xen/common/sched/{core,credit2,cpupool}.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.domctl import (
    XEN_SCHEDULER_CREDIT2,
    XEN_VCPUAFFINITY_HARD,
    XEN_VCPUAFFINITY_SOFT,
    XEN_DOMCTL_getnodeaffinity,
    XEN_DOMCTL_getvcpuaffinity,
    XEN_DOMCTL_SCHEDOP_getinfo,
    XEN_DOMCTL_SCHEDOP_getvcpuinfo,
    XEN_DOMCTL_SCHEDOP_putinfo,
    XEN_DOMCTL_scheduler_op,
    XEN_DOMCTL_setnodeaffinity,
    XEN_DOMCTL_setvcpuaffinity,
    XenctlBitmap,
    XenDomctlNodeaffinity,
    XenDomctlSchedulerOp,
    XenDomctlVcpuaffinity,
)
from xenolith.abi.errno import EBUSY, EINVAL, ENOENT, ENOSYS, EOPNOTSUPP, ESRCH, XenError
from xenolith.abi.hypercalls import HYPERVISOR_domctl, HYPERVISOR_sysctl
from xenolith.abi.sysctl import (
    XEN_SYSCTL_CPU_HOTPLUG_OFFLINE,
    XEN_SYSCTL_CPU_HOTPLUG_ONLINE,
    XEN_SYSCTL_CPUPOOL_OP_ADDCPU,
    XEN_SYSCTL_CPUPOOL_OP_DESTROY,
    XEN_SYSCTL_CPUPOOL_OP_FREEINFO,
    XEN_SYSCTL_CPUPOOL_OP_INFO,
    XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN,
    XEN_SYSCTL_CPUPOOL_OP_RMCPU,
    XEN_SYSCTL_SCHED_RATELIMIT_MAX,
    XEN_SYSCTL_SCHED_RATELIMIT_MIN,
    XEN_SYSCTL_cpu_hotplug,
    XEN_SYSCTL_cpupool_op,
    XEN_SYSCTL_SCHEDOP_getinfo,
    XEN_SYSCTL_SCHEDOP_putinfo,
    XEN_SYSCTL_scheduler_op,
    XenSysctlCpuHotplug,
    XenSysctlCpupoolOp,
    XenSysctlSchedulerOp,
)
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.hypercalls.domctl_vcpu import find_vcpu
from xenolith.hypervisor.hypercalls.table import operation

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

_NODE: Final = 1
"""A bitmap with the only node in it."""
_LOOKS_ON: Final = Capability.CONTROL | Capability.CREATE | Capability.STORE
"""What lets a domain know of all others: any of these."""
_LONGEST_BITMAP: Final = 1 << 15
"""Bits: more than any Xen has processors."""


# -- bitmaps -----------------------------------------------------------------------------------------------------------


def all_processors(hv: Hypervisor) -> int:
    """A bitmap of the processors that there are."""
    return (1 << hv.engine.processors) - 1


def read_bits(hv: Hypervisor, caller: Vcpu, bitmap: XenctlBitmap, among: int) -> int:
    """Of a bitmap in guest memory what is `among` these bits. Raises XenError(EFAULT)."""
    count = min(bitmap.nr_bits, among.bit_length())
    data = hv.memory.read(caller, bitmap.bitmap, count + 7 >> 3) if count else b""
    return int.from_bytes(data, "little") & (1 << count) - 1 & among


def _write_bits(hv: Hypervisor, caller: Vcpu, bitmap: XenctlBitmap, bits: int) -> None:
    """Fill a bitmap in guest memory. Raises XenError(EFAULT)."""
    count = min(bitmap.nr_bits, _LONGEST_BITMAP)
    if count:
        hv.memory.write(caller, bitmap.bitmap, (bits & (1 << count) - 1).to_bytes(count + 7 >> 3, "little"))


# -- domains -----------------------------------------------------------------------------------------------------------


@operation(HYPERVISOR_domctl, XEN_DOMCTL_scheduler_op, copy_back=True)
def scheduler_op(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlSchedulerOp) -> None:
    """Weight and cap (percent of a processor, 0 for none) of a domain; a weight of 0 changes none.

    Raises XenError(EINVAL) for another scheduler, or parameters of single vCPUs, which credit2 has not.
    """
    if argument.sched_id != XEN_SCHEDULER_CREDIT2 or argument.cmd > XEN_DOMCTL_SCHEDOP_getvcpuinfo:
        raise XenError(EINVAL, f"operation {argument.cmd} of scheduler {argument.sched_id}")
    parameters = argument.u.credit2
    if argument.cmd == XEN_DOMCTL_SCHEDOP_getinfo:
        parameters.weight, parameters.cap = domain.weight, domain.cap
    elif argument.cmd == XEN_DOMCTL_SCHEDOP_putinfo:
        domain.weight = parameters.weight or domain.weight
        hv.scheduler.set_cap(domain, parameters.cap)
    else:
        raise XenError(EINVAL, "credit2 has no parameters of single vCPUs")


@operation(HYPERVISOR_domctl, XEN_DOMCTL_setvcpuaffinity)
def setvcpuaffinity(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlVcpuaffinity) -> None:
    """Where a vCPU may and where it should run; what comes of it is written into the bitmaps.

    Raises XenError: EINVAL for no processor that is there, ESRCH, EFAULT.
    """
    vcpu, present = _affine_vcpu(domain, argument), all_processors(hv)
    hard, soft = vcpu.hard_affinity & present, vcpu.soft_affinity & present
    if argument.flags & XEN_VCPUAFFINITY_SOFT:
        soft = read_bits(hv, caller, argument.cpumap_soft, present)
    if argument.flags & XEN_VCPUAFFINITY_HARD:
        hard = read_bits(hv, caller, argument.cpumap_hard, present)
        if not hard:
            raise XenError(EINVAL, "on no processor that is there")
        _write_bits(hv, caller, argument.cpumap_hard, hard)
    vcpu.hard_affinity, vcpu.soft_affinity = hard, soft
    hv.reschedule = True
    if argument.flags & XEN_VCPUAFFINITY_SOFT:
        _write_bits(hv, caller, argument.cpumap_soft, soft & hard)


@operation(HYPERVISOR_domctl, XEN_DOMCTL_getvcpuaffinity)
def getvcpuaffinity(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlVcpuaffinity) -> None:
    """Raises XenError: EINVAL, ESRCH, EFAULT."""
    vcpu = _affine_vcpu(domain, argument)
    if argument.flags & XEN_VCPUAFFINITY_HARD:
        _write_bits(hv, caller, argument.cpumap_hard, vcpu.hard_affinity & all_processors(hv))
    if argument.flags & XEN_VCPUAFFINITY_SOFT:
        _write_bits(hv, caller, argument.cpumap_soft, vcpu.soft_affinity & all_processors(hv))


def _affine_vcpu(domain: Domain, argument: XenDomctlVcpuaffinity) -> Vcpu:
    vcpu = find_vcpu(domain, argument.vcpu)
    hard_missing = argument.flags & XEN_VCPUAFFINITY_HARD and not argument.cpumap_hard.bitmap
    soft_missing = argument.flags & XEN_VCPUAFFINITY_SOFT and not argument.cpumap_soft.bitmap
    if not argument.flags or hard_missing or soft_missing:
        raise XenError(EINVAL, "neither hard nor soft affinity, or no bitmap for it")
    return vcpu


@operation(HYPERVISOR_domctl, XEN_DOMCTL_setnodeaffinity)
def setnodeaffinity(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlNodeaffinity) -> None:
    """There is one node, which must be among them. Raises XenError: EINVAL, EFAULT."""
    if not read_bits(hv, caller, argument.nodemap, _NODE):
        raise XenError(EINVAL, "on no node that is there")


@operation(HYPERVISOR_domctl, XEN_DOMCTL_getnodeaffinity)
def getnodeaffinity(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlNodeaffinity) -> None:
    """Raises XenError(EFAULT)."""
    _write_bits(hv, caller, argument.nodemap, _NODE)


# -- the machine -------------------------------------------------------------------------------------------------------


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_scheduler_op, copy_back=True, needs=Capability.CONTROL)
def global_scheduler_op(hv: Hypervisor, caller: Vcpu, argument: XenSysctlSchedulerOp) -> None:
    """How long (us) a vCPU runs at least before another that wakes may take its place: it may always.

    Raises XenError: EINVAL, ESRCH for another pool, EOPNOTSUPP for such a time.
    """
    if argument.cmd not in (XEN_SYSCTL_SCHEDOP_getinfo, XEN_SYSCTL_SCHEDOP_putinfo):
        raise XenError(EINVAL, f"scheduler operation {argument.cmd}")
    if argument.cpupool_id:
        raise XenError(ESRCH, f"there is no CPU pool {argument.cpupool_id}")
    if argument.sched_id != XEN_SCHEDULER_CREDIT2:
        raise XenError(EINVAL, f"the scheduler is not {argument.sched_id}")
    limit = argument.u.sched_credit2.ratelimit_us
    if argument.cmd == XEN_SYSCTL_SCHEDOP_getinfo:
        argument.u.sched_credit2.ratelimit_us = 0
    elif limit and not XEN_SYSCTL_SCHED_RATELIMIT_MIN <= limit <= XEN_SYSCTL_SCHED_RATELIMIT_MAX:
        raise XenError(EINVAL, f"a rate limit of {limit} us")
    elif limit:
        raise XenError(EOPNOTSUPP, "vCPUs that wake do not wait")


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_cpupool_op, copy_back=True, needs=_LOOKS_ON)
def cpupool_op(hv: Hypervisor, caller: Vcpu, argument: XenSysctlCpupoolOp) -> None:
    """There is pool 0, which has all processors and domains, and there is no other.

    Raises XenError: ENOENT for another pool, ESRCH for no domain, EBUSY for changes of pool 0, EFAULT, ENOSYS.
    """
    if argument.op == XEN_SYSCTL_CPUPOOL_OP_FREEINFO:
        _write_bits(hv, caller, argument.cpumap, 0)
        return
    if argument.op not in _POOL_OPERATIONS:
        raise XenError(ENOSYS, f"CPU pool operation {argument.op}")
    if argument.op == XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN:
        _check_moved(hv, caller, argument.domid)
    if argument.cpupool_id:
        raise XenError(ENOENT, f"there is no CPU pool {argument.cpupool_id}")
    if argument.op == XEN_SYSCTL_CPUPOOL_OP_INFO:
        argument.sched_id, argument.n_dom = XEN_SCHEDULER_CREDIT2, len(hv.domains)
        _write_bits(hv, caller, argument.cpumap, all_processors(hv))
    elif argument.op != XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN:
        raise XenError(EBUSY, "pool 0 keeps its processors")


_POOL_OPERATIONS: Final = frozenset(
    (
        XEN_SYSCTL_CPUPOOL_OP_ADDCPU,
        XEN_SYSCTL_CPUPOOL_OP_DESTROY,
        XEN_SYSCTL_CPUPOOL_OP_INFO,
        XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN,
        XEN_SYSCTL_CPUPOOL_OP_RMCPU,
    )
)


def _check_moved(hv: Hypervisor, caller: Vcpu, domid: int) -> None:
    domain = hv.domains.get(domid)
    if domain is None:
        raise XenError(ESRCH, f"domain {domid} does not exist")
    if domain is caller.domain:
        raise XenError(EINVAL, "a domain does not move itself")
    hv.policy.require_control(caller.domain, domain, "XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN")


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_cpu_hotplug, needs=Capability.HARDWARE)
def cpu_hotplug(hv: Hypervisor, caller: Vcpu, argument: XenSysctlCpuHotplug) -> None:
    """Processors are on line and stay so. Raises XenError: EBUSY, EINVAL, EOPNOTSUPP for threads."""
    if argument.op not in (XEN_SYSCTL_CPU_HOTPLUG_ONLINE, XEN_SYSCTL_CPU_HOTPLUG_OFFLINE):
        raise XenError(EOPNOTSUPP, "processors have no threads")
    if argument.cpu >= hv.engine.processors or argument.op == XEN_SYSCTL_CPU_HOTPLUG_OFFLINE:
        raise XenError(EINVAL, "no such processor, or one that is needed")
    raise XenError(EBUSY, "processors are on line")
