"""mca: machine-check telemetry of a machine that never fails (xen/arch/x86/cpu/mcheck/mce.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EACCES, EINVAL, XenError
from xenolith.abi.hypercalls import HYPERVISOR_mca
from xenolith.abi.mca import (
    XEN_MC_ACK,
    XEN_MC_NODATA,
    XEN_MC_NONURGENT,
    XEN_MC_OK,
    XEN_MC_URGENT,
    XEN_MCA_INTERFACE_VERSION,
    McinfoLogicalCpu,
    XEN_MC_fetch,
    XEN_MC_notifydomain,
    XEN_MC_physcpuinfo,
    XenMc,
    XenMcFetch,
    XenMcPhyscpuinfo,
)
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.hypercalls.table import hypercall, operation, run_operation

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

_ARGUMENT: Final[int] = XenMc.u.offset
_VERSION: Final = slice(4, 8)
_URGENCIES: Final = (XEN_MC_NONURGENT, XEN_MC_URGENT)


@hypercall(HYPERVISOR_mca)
def mca(hv: Hypervisor, caller: Vcpu, vaddr: int) -> int:
    """Run one of the sub-operations, for the domain that drives the machine.

    Raises XenError: EPERM, EFAULT, EACCES for another interface version, or what the operation raises.
    """
    hv.policy.require(caller.domain, Capability.HARDWARE, "mca")
    header = hv.memory.read(caller, vaddr, _ARGUMENT)
    if int.from_bytes(header[_VERSION], "little") != XEN_MCA_INTERFACE_VERSION:
        raise XenError(EACCES, "another version of the machine-check interface")
    command = int.from_bytes(header[:4], "little")
    return run_operation(hv, caller, HYPERVISOR_mca, command, vaddr + _ARGUMENT)


@operation(HYPERVISOR_mca, XEN_MC_fetch, copy_back=True)
def fetch(hv: Hypervisor, caller: Vcpu, argument: XenMcFetch) -> None:
    """The oldest record of one urgency: there is never one. Raises XenError(EINVAL) for flags or a null buffer."""
    flags = argument.flags & (XEN_MC_NONURGENT | XEN_MC_URGENT | XEN_MC_ACK)
    if flags & ~XEN_MC_ACK not in _URGENCIES:
        raise XenError(EINVAL, f"machine-check flags {flags:#x}")
    argument.flags = XEN_MC_OK
    if not flags & XEN_MC_ACK:
        if not argument.data:
            raise XenError(EINVAL, "no buffer for a machine-check record")
        argument.flags = XEN_MC_NODATA
        argument.fetch_id = 0


@operation(HYPERVISOR_mca, XEN_MC_notifydomain, raw=True)
def notifydomain(hv: Hypervisor, caller: Vcpu, vaddr: int) -> None:
    """Raises XenError(EINVAL): Xen does not support it either."""
    raise XenError(EINVAL, "machine checks are not passed on")


@operation(HYPERVISOR_mca, XEN_MC_physcpuinfo, copy_back=True)
def physcpuinfo(hv: Hypervisor, caller: Vcpu, argument: XenMcPhyscpuinfo) -> None:
    """Describe up to `ncpus` processors at `info`, or only count them if that is null."""
    count = hv.engine.processors
    if argument.info:
        if not argument.ncpus:
            raise XenError(EINVAL, "no room for a processor")
        count = min(count, argument.ncpus)
        for number in range(count):
            record = _describe(hv, caller, number)
            hv.memory.write(caller, argument.info + number * McinfoLogicalCpu.sizeof(), record.to_bytes())
    argument.ncpus = count


def _describe(hv: Hypervisor, caller: Vcpu, number: int) -> McinfoLogicalCpu:
    cpuid = hv.cpuid_for(caller.domain)
    last_leaf, *vendor = cpuid.query(0, 0)
    signature = cpuid.query(1, 0)[0]
    brand = b"".join(word.to_bytes(4, "little") for leaf in range(3) for word in cpuid.query(0x8000_0002 + leaf, 0))
    return McinfoLogicalCpu(
        mc_cpunr=number,
        mc_chipid=number,
        mc_apicid=number,
        mc_ncores=1,
        mc_ncores_active=1,
        mc_nthreads=1,
        mc_cpuid_level=last_leaf,
        mc_family=signature >> 8 & 0xF,
        mc_model=signature >> 12 & 0xF0 | signature >> 4 & 0xF,
        mc_step=signature & 0xF,
        mc_vendorid=b"".join(vendor[at].to_bytes(4, "little") for at in (0, 2, 1)),
        mc_brandid=brand,
        mc_cache_alignment=64,
    )
