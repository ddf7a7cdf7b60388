"""domctl: PCI functions and interrupts that work for another domain than the one that drives the machine.

Facts are those of Xen 4.17's xen/drivers/passthrough/pci.c and iommu.c, xen/common/domctl.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.domctl import (
    XEN_DOMCTL_DEV_PCI,
    XEN_DOMCTL_DEV_RDM_RELAXED,
    XEN_DOMCTL_assign_device,
    XEN_DOMCTL_deassign_device,
    XEN_DOMCTL_get_device_group,
    XEN_DOMCTL_irq_permission,
    XEN_DOMCTL_test_assign_device,
    XenDomctlAssignDevice,
    XenDomctlGetDeviceGroup,
    XenDomctlIrqPermission,
)
from xenolith.abi.errno import EBUSY, EINVAL, ENODEV, XenError
from xenolith.abi.hypercalls import HYPERVISOR_domctl
from xenolith.hypervisor.hypercalls.table import operation
from xenolith.hypervisor.iommu import name
from xenolith.hypervisor.pirqs import NR_PIRQS

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

_DEVFN_AND_BUS: Final = 0xFFFF


@operation(HYPERVISOR_domctl, XEN_DOMCTL_assign_device)
def assign_device(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlAssignDevice) -> None:
    """Let a PCI function work for a domain; DOMID_IO for nobody, until it is given away.

    The caller drives it, or whoever does offers it by having put it into quarantine.

    Raises XenError: EINVAL for a domain that is dying or was made without an IOMMU, ENODEV, EBUSY, EPERM.
    """
    if argument.flags & ~XEN_DOMCTL_DEV_RDM_RELAXED:
        raise XenError(EINVAL, f"flags {argument.flags:#x}")
    if domain.is_dying or not domain.has_iommu:
        raise XenError(EINVAL, f"{domain} cannot have devices")
    where = _function(hv, argument)
    if not hv.iommu.can_be_assigned(where):
        raise XenError(EBUSY, f"PCI function {name(where)} works for another guest")
    if domain is hv.iommu.quarantine or not hv.iommu.is_offered(where):
        _require_driver(hv, caller, where, "XEN_DOMCTL_assign_device")
    hv.iommu.assign(where, domain)


@operation(HYPERVISOR_domctl, XEN_DOMCTL_test_assign_device)
def test_assign_device(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlAssignDevice) -> None:
    """Whether the function can be given to a domain. Raises XenError: ENODEV, EBUSY if it works for one."""
    where = _function(hv, argument)
    if not hv.iommu.can_be_assigned(where):
        raise XenError(EBUSY, f"PCI function {name(where)} works for a guest")


@operation(HYPERVISOR_domctl, XEN_DOMCTL_deassign_device)
def deassign_device(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlAssignDevice) -> None:
    """The function works for that domain no more. Raises XenError: EINVAL for flags, ENODEV, EPERM."""
    if argument.flags:
        raise XenError(EINVAL, f"flags {argument.flags:#x}")
    where = _function(hv, argument)
    _require_driver(hv, caller, where, "XEN_DOMCTL_deassign_device")
    hv.iommu.deassign(where, domain)


def _require_driver(hv: Hypervisor, caller: Vcpu, where: int, action: str) -> None:
    hv.policy.require_own(caller.domain, hv.iommu.configures(caller.domain, where), name(where), action)


def _function(hv: Hypervisor, argument: XenDomctlAssignDevice) -> int:
    """The function that is meant, if it is one. Raises XenError(ENODEV)."""
    if argument.dev != XEN_DOMCTL_DEV_PCI:
        raise XenError(ENODEV, f"kind of device {argument.dev}")
    where = argument.u.pci.machine_sbdf
    if where not in hv.iommu.functions():
        raise XenError(ENODEV, f"there is no PCI function {name(where & _DEVFN_AND_BUS)} that can be given away")
    return where


@operation(HYPERVISOR_domctl, XEN_DOMCTL_get_device_group, copy_back=True)
def get_device_group(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlGetDeviceGroup) -> None:
    """Each function has its own place in the IOMMU: no others go with it. Raises XenError(ENODEV)."""
    if argument.machine_sbdf not in hv.iommu.functions():
        raise XenError(ENODEV, f"there is no PCI function {argument.machine_sbdf:#x}")
    argument.num_sdevs = 0


@operation(HYPERVISOR_domctl, XEN_DOMCTL_irq_permission)
def irq_permission(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlIrqPermission) -> None:
    """Let a domain map the interrupt behind one of the caller's pirqs, or not. Raises XenError: EINVAL, EPERM."""
    if argument.pirq >= NR_PIRQS:
        raise XenError(EINVAL, f"pirq {argument.pirq}")
    irq = hv.pirqs.irq(caller.domain, argument.pirq)
    hv.policy.require_own(caller.domain, irq is not None, f"pirq {argument.pirq}", "XEN_DOMCTL_irq_permission")
    assert irq is not None
    domain.irqs = domain.irqs | {irq} if argument.allow_access else domain.irqs - {irq}
