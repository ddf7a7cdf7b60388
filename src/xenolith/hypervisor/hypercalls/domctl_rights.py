"""domctl: what of the hardware a domain may touch, and what its frames are. Nobody gives away what it has not itself.

Facts are those of Xen 4.17's xen/common/domctl.c and xen/arch/x86/domctl.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.domctl import (
    XEN_DOMCTL_PFINFO_LPINTAB,
    XEN_DOMCTL_PFINFO_LTAB_SHIFT,
    XEN_DOMCTL_PFINFO_XTAB,
    XEN_DOMCTL_getpageframeinfo3,
    XEN_DOMCTL_iomem_permission,
    XEN_DOMCTL_ioport_permission,
    XEN_DOMCTL_memory_mapping,
    XenDomctlGetpageframeinfo3,
    XenDomctlIomemPermission,
    XenDomctlIoportPermission,
    XenDomctlMemoryMapping,
)
from xenolith.abi.errno import E2BIG, EINVAL, XenError
from xenolith.abi.hypercalls import HYPERVISOR_domctl
from xenolith.hypervisor import hardware, ranges
from xenolith.hypervisor.cpuid import PHYSICAL_ADDRESS_BITS
from xenolith.hypervisor.frames import FLAG_PINNED, FLAG_SHARED, TYPE_L1, TYPE_L4
from xenolith.hypervisor.hypercalls.table import operation

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

_PORTS: Final = 1 << 16
_U64: Final = 1 << 64
_U32: Final = 1 << 32
_MOST_FRAMES: Final = 1024


@operation(HYPERVISOR_domctl, XEN_DOMCTL_ioport_permission)
def ioport_permission(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlIoportPermission) -> None:
    """Let a domain use ports, or not. Raises XenError: EINVAL, EPERM for ports that the caller has not."""
    first, end = argument.first_port, (argument.first_port + argument.nr_ports) % _U32
    if not first < end <= _PORTS:
        raise XenError(EINVAL, f"ports {first:#x} to {end:#x}")
    own = caller.domain.port_ranges
    if not hv.policy.controls(caller.domain, domain):
        own = hardware.of_functions(hv.iommu.lends(caller.domain, domain)).ports
    what = f"ports {first:#x} to {end - 1:#x}"
    hv.policy.require_own(caller.domain, ranges.contains(own, first, end - 1), what, "XEN_DOMCTL_ioport_permission")
    change = ranges.with_added if argument.allow_access else ranges.without
    domain.port_ranges = change(domain.port_ranges, first, end - 1)


@operation(HYPERVISOR_domctl, XEN_DOMCTL_iomem_permission)
def iomem_permission(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlIomemPermission) -> None:
    """Let a domain map frames of devices, or not; what it has mapped stays. Raises XenError: EINVAL, EPERM."""
    first, last = argument.first_mfn, (argument.first_mfn + argument.nr_mfns - 1) % _U64
    if last < first:
        raise XenError(EINVAL, f"{argument.nr_mfns} frames from {first:#x}")
    own = caller.domain.iomem_ranges
    if not hv.policy.controls(caller.domain, domain):
        own = hardware.of_functions(hv.iommu.lends(caller.domain, domain)).frames
    _require_frames(hv, caller.domain, own, first, last, "XEN_DOMCTL_iomem_permission")
    change = ranges.with_added if argument.allow_access else ranges.without
    domain.iomem_ranges = change(domain.iomem_ranges, first, last)


def _require_frames(hv: Hypervisor, subject: Domain, own: ranges.Ranges, first: int, last: int, action: str) -> None:
    has = ranges.contains(own, first, last)
    hv.policy.require_own(subject, has, f"device frames {first:#x} to {last:#x}", action)


@operation(HYPERVISOR_domctl, XEN_DOMCTL_memory_mapping)
def memory_mapping(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlMemoryMapping) -> None:
    """A PV domain maps device frames itself: it is only checked that it might. Raises XenError: EINVAL, EPERM."""
    first, last = argument.first_mfn, (argument.first_mfn + argument.nr_mfns - 1) % _U64
    last_gfn = (argument.first_gfn + argument.nr_mfns - 1) % _U64
    if last < first or last >> PHYSICAL_ADDRESS_BITS - 12 or last_gfn < argument.first_gfn:
        raise XenError(EINVAL, f"{argument.nr_mfns} frames from {first:#x} at {argument.first_gfn:#x}")
    for owner in (caller.domain, domain):
        _require_frames(hv, caller.domain, owner.iomem_ranges, first, last, "XEN_DOMCTL_memory_mapping")


@operation(HYPERVISOR_domctl, XEN_DOMCTL_getpageframeinfo3)
def getpageframeinfo3(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlGetpageframeinfo3) -> None:
    """Replace a list of the domain's frames by what each of them is. Raises XenError: E2BIG above 1024, EFAULT."""
    if argument.num > _MOST_FRAMES:
        raise XenError(E2BIG, f"{argument.num} frames")
    mfns = memoryview(hv.memory.read(caller, argument.array, argument.num * 8)).cast("Q") if argument.num else ()
    kinds = b"".join(_kind(hv, domain, mfn).to_bytes(8, "little") for mfn in mfns)
    if kinds:
        hv.memory.write(caller, argument.array, kinds)


def _kind(hv: Hypervisor, domain: Domain, mfn: int) -> int:
    """XEN_DOMCTL_PFINFO_*."""
    frames = hv.frames
    if mfn >= frames.total or frames.owner[mfn] != domain.domid or frames.flags[mfn] & FLAG_SHARED:
        return XEN_DOMCTL_PFINFO_XTAB
    kind = frames.type[mfn]
    level = kind << XEN_DOMCTL_PFINFO_LTAB_SHIFT if TYPE_L1 <= kind <= TYPE_L4 else 0
    return level | (XEN_DOMCTL_PFINFO_LPINTAB if frames.flags[mfn] & FLAG_PINNED else 0)
