"""physdev_op: I/O privilege, interrupts and PCI devices (xen/arch/x86/physdev.c, xen/drivers/pci/physdev.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EBUSY, EDOM, EINVAL, ENODEV, ENOSYS, XenError
from xenolith.abi.hypercalls import HYPERVISOR_physdev_op, HYPERVISOR_physdev_op_compat
from xenolith.abi.physdev import (
    MAP_PIRQ_TYPE_GSI,
    MAP_PIRQ_TYPE_MSI,
    MAP_PIRQ_TYPE_MSI_SEG,
    MAP_PIRQ_TYPE_MULTI_MSI,
    XEN_PCI_MMCFG_RESERVED,
    PhysdevApic,
    PhysdevDbgpOp,
    PhysdevEoi,
    PhysdevGetFreePirq,
    PhysdevIrq,
    PhysdevIrqStatusQuery,
    PhysdevManagePci,
    PhysdevManagePciExt,
    PhysdevMapPirq,
    PhysdevOp,
    PHYSDEVOP_alloc_irq_vector,
    PHYSDEVOP_apic_read,
    PHYSDEVOP_apic_write,
    PHYSDEVOP_dbgp_op,
    PHYSDEVOP_eoi,
    PHYSDEVOP_get_free_pirq,
    PHYSDEVOP_irq_status_query,
    PHYSDEVOP_manage_pci_add,
    PHYSDEVOP_manage_pci_add_ext,
    PHYSDEVOP_manage_pci_remove,
    PHYSDEVOP_map_pirq,
    PHYSDEVOP_pci_device_add,
    PHYSDEVOP_pci_device_remove,
    PHYSDEVOP_pci_mmcfg_reserved,
    PHYSDEVOP_pirq_eoi_gmfn_v1,
    PHYSDEVOP_pirq_eoi_gmfn_v2,
    PHYSDEVOP_prepare_msix,
    PHYSDEVOP_release_msix,
    PHYSDEVOP_restore_msi,
    PHYSDEVOP_restore_msi_ext,
    PHYSDEVOP_set_iobitmap,
    PHYSDEVOP_set_iopl,
    PHYSDEVOP_setup_gsi,
    PHYSDEVOP_unmap_pirq,
    PhysdevPciDevice,
    PhysdevPciDeviceAdd,
    PhysdevPciMmcfgReserved,
    PhysdevPirqEoiGmfn,
    PhysdevRestoreMsi,
    PhysdevSetIobitmap,
    PhysdevSetIopl,
    PhysdevSetupGsi,
    PhysdevUnmapPirq,
    XENIRQSTAT_needs_eoi,
    XENIRQSTAT_shared,
)
from xenolith.abi.types import DOMID_SELF
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.frames import TYPE_WRITABLE
from xenolith.hypervisor.guest_memory import CANONICAL_LOW_END, HYPERVISOR_END
from xenolith.hypervisor.hypercalls.table import hypercall, operation, run_operation
from xenolith.hypervisor.pirqs import NR_PIRQS
from xenolith.machine.e820 import ECAM_BUSES, ECAM_START, IOAPIC_START
from xenolith.machine.interrupts import PINS, REDIRECTION
from xenolith.machine.pci_device import MAX_MSI_VECTORS

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu
    from xenolith.machine.interrupts import IoApic

_COMPAT_ARGUMENT: Final[int] = PhysdevOp.u.offset
_COMPAT_COMMANDS: Final = frozenset(
    (
        PHYSDEVOP_irq_status_query,
        PHYSDEVOP_set_iopl,
        PHYSDEVOP_set_iobitmap,
        PHYSDEVOP_apic_read,
        PHYSDEVOP_apic_write,
        PHYSDEVOP_alloc_irq_vector,
    )
)
_IOPL_MAX: Final = 3
_PORTS: Final = 65536
_BITMAP_BYTES: Final = _PORTS // 8
_MESSAGES: Final = (MAP_PIRQ_TYPE_MSI, MAP_PIRQ_TYPE_MSI_SEG, MAP_PIRQ_TYPE_MULTI_MSI)


@hypercall(HYPERVISOR_physdev_op)
def physdev_op(hv: Hypervisor, caller: Vcpu, command: int, vaddr: int) -> int:
    """Run one of the sub-operations. XenError(ENOSYS) for one that does not exist."""
    return run_operation(hv, caller, HYPERVISOR_physdev_op, command & 0xFFFFFFFF, vaddr)


@hypercall(HYPERVISOR_physdev_op_compat)
def physdev_op_compat(hv: Hypervisor, caller: Vcpu, vaddr: int) -> int:
    """The older form, whose argument holds the command: only the oldest sub-operations, else XenError(ENOSYS)."""
    command = int.from_bytes(hv.memory.read(caller, vaddr, 4), "little")
    if command not in _COMPAT_COMMANDS:
        raise XenError(ENOSYS, f"operation {command} in the older form")
    return physdev_op(hv, caller, command, vaddr + _COMPAT_ARGUMENT)


# -- the calling vCPU's I/O privilege ---------------------------------------------------------------------------------


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl)
def set_iopl(hv: Hypervisor, caller: Vcpu, argument: PhysdevSetIopl) -> None:
    """From level 1 on the kernel, from 3 on its user mode, may do I/O. Raises XenError(EINVAL) above 3."""
    if argument.iopl > _IOPL_MAX:
        raise XenError(EINVAL, f"I/O privilege level {argument.iopl}")
    caller.iopl = argument.iopl
    caller.show_iopl()


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_set_iobitmap)
def set_iobitmap(hv: Hypervisor, caller: Vcpu, argument: PhysdevSetIobitmap) -> None:
    """Which ports user mode may use. Raises XenError(EINVAL) for too many ports or an address not the guest's."""
    start, end = argument.bitmap, argument.bitmap + _BITMAP_BYTES
    if argument.nr_ports > _PORTS or (end > CANONICAL_LOW_END and start < HYPERVISOR_END) or end > 1 << 64:
        raise XenError(EINVAL, f"I/O bitmap of {argument.nr_ports} ports at {argument.bitmap:#x}")
    caller.io_bitmap_vaddr, caller.io_bitmap_ports = argument.bitmap, argument.nr_ports


# -- interrupts of the calling domain ---------------------------------------------------------------------------------


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_eoi)
def eoi(hv: Hypervisor, caller: Vcpu, argument: PhysdevEoi) -> None:
    """The interrupt has been handled. Raises XenError(EINVAL) if the domain has no such pirq."""
    domain = caller.domain
    state = hv.pirqs.of(domain)
    if argument.irq not in state.irqs:
        raise XenError(EINVAL, f"there is no pirq {argument.irq}")
    if state.unmasks and (port := domain.events.port_of_pirq(argument.irq)):
        domain.events.unmask(port)
    hv.pirqs.eoi(domain, argument.irq)


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_irq_status_query, copy_back=True)
def irq_status_query(hv: Hypervisor, caller: Vcpu, argument: PhysdevIrqStatusQuery) -> None:
    """Every interrupt needs its end, as far as this old way of asking goes. Raises XenError(EINVAL)."""
    if argument.irq >= NR_PIRQS:
        raise XenError(EINVAL, f"there is no pirq {argument.irq}")
    argument.flags = XENIRQSTAT_needs_eoi
    if hv.pirqs.is_shared(caller.domain, argument.irq):
        argument.flags |= XENIRQSTAT_shared


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_pirq_eoi_gmfn_v1)
def pirq_eoi_gmfn_v1(hv: Hypervisor, caller: Vcpu, argument: PhysdevPirqEoiGmfn) -> None:
    """As version 2, and an end of interrupt also unmasks the port."""
    _set_eoi_page(hv, caller, argument.gmfn)
    hv.pirqs.of(caller.domain).unmasks = True


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_pirq_eoi_gmfn_v2)
def pirq_eoi_gmfn_v2(hv: Hypervisor, caller: Vcpu, argument: PhysdevPirqEoiGmfn) -> None:
    """Keep in the domain's frame `gmfn` one bit for each pirq that needs its end of interrupt."""
    _set_eoi_page(hv, caller, argument.gmfn)


def _set_eoi_page(hv: Hypervisor, caller: Vcpu, mfn: int) -> None:
    """Raises XenError: EINVAL for a frame that is not the domain's or not writable, EBUSY if it has one already."""
    domain = caller.domain
    hv.frames.get_page_and_type(mfn, domain.domid, TYPE_WRITABLE)
    if domain.pirq_eoi_mfn:
        hv.frames.put_page_and_type(mfn)
        raise XenError(EBUSY, "the domain has a page for ends of interrupts")
    domain.pirq_eoi_mfn = mfn


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_get_free_pirq, copy_back=True)
def get_free_pirq(hv: Hypervisor, caller: Vcpu, argument: PhysdevGetFreePirq) -> None:
    """Reserve a number. Raises XenError(ENOSPC) if there is none."""
    argument.pirq = hv.pirqs.reserve(caller.domain, for_messages=argument.type != MAP_PIRQ_TYPE_GSI)


# -- interrupts of the machine ----------------------------------------------------------------------------------------


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_setup_gsi, needs=Capability.HARDWARE)
def setup_gsi(hv: Hypervisor, caller: Vcpu, argument: PhysdevSetupGsi) -> None:
    """Say how a line is driven. Raises XenError: EINVAL, EEXIST while it is in use."""
    hv.pirqs.setup_gsi(argument.gsi, level=bool(argument.triggering), active_low=bool(argument.polarity))


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_map_pirq, copy_back=True)
def map_pirq(hv: Hypervisor, caller: Vcpu, argument: PhysdevMapPirq) -> None:
    """Map a GSI, or messages of a PCI function, to pirqs of a domain. (A function of another bus has no device here.)

    Raises XenError: what `Pirqs.map_gsi`, `map_msi` and `map_msix` raise, EDOM for an impossible number of messages.
    """
    is_own = argument.domid in (DOMID_SELF, caller.domain.domid)
    if not (is_own and argument.type == MAP_PIRQ_TYPE_GSI and argument.index in caller.domain.irqs):
        hv.policy.require(caller.domain, Capability.HARDWARE, "PHYSDEVOP_map_pirq")
    domain = hv.domain_by_id(caller, argument.domid)
    if not _is_lent(hv, caller, domain, argument):
        hv.policy.require_target(caller.domain, domain, "map a physical interrupt")
    if argument.type == MAP_PIRQ_TYPE_GSI:
        argument.pirq = hv.pirqs.map_gsi(domain, argument.index, argument.pirq)
    elif argument.type in _MESSAGES:
        argument.pirq = _map_messages(hv, domain, argument)
    else:
        raise XenError(EINVAL, f"kind of interrupt {argument.type}")


def _is_lent(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: PhysdevMapPirq) -> bool:
    """Whether it is the interrupt of a device that the caller drives and that works for the domain."""
    lent = hv.iommu.lends(caller.domain, domain)
    if argument.type == MAP_PIRQ_TYPE_GSI:
        return argument.index in [function.gsi for function in lent]
    return (argument.bus & 0xFF) << 8 | argument.devfn & 0xFF in [function.where for function in lent]


def _map_messages(hv: Hypervisor, domain: Domain, argument: PhysdevMapPirq) -> int:
    segment, bus = argument.bus >> 16 if argument.type != MAP_PIRQ_TYPE_MSI else 0, argument.bus & 0xFFFF
    if argument.type == MAP_PIRQ_TYPE_MULTI_MSI:
        if argument.table_base:
            raise XenError(EINVAL, "several messages from a table")
        if not 1 <= argument.entry_nr <= MAX_MSI_VECTORS:
            raise XenError(EDOM, f"{argument.entry_nr} messages")
    _announced(hv, segment & 0xFFFF, bus & 0xFF, argument.devfn & 0xFF)
    where = (bus & 0xFF) << 8 | argument.devfn & 0xFF
    if argument.table_base:
        return hv.pirqs.map_msix(domain, where, argument.entry_nr, argument.pirq)
    count = argument.entry_nr if argument.type == MAP_PIRQ_TYPE_MULTI_MSI else 1
    return hv.pirqs.map_msi(domain, where, count, argument.pirq)


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_unmap_pirq, needs=Capability.HARDWARE)
def unmap_pirq(hv: Hypervisor, caller: Vcpu, argument: PhysdevUnmapPirq) -> None:
    """Whoever lends a device to a domain may take its interrupts back. Raises XenError: ESRCH, EPERM, EINVAL."""
    domain = hv.domain_by_id(caller, argument.domid)
    lent = hv.iommu.lends(caller.domain, domain)
    if not hv.pirqs.is_of(domain, argument.pirq, lent):
        hv.policy.require_target(caller.domain, domain, "unmap a physical interrupt")
    hv.pirqs.unmap(domain, argument.pirq)


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_alloc_irq_vector, copy_back=True, needs=Capability.HARDWARE)
def alloc_irq_vector(hv: Hypervisor, caller: Vcpu, argument: PhysdevIrq) -> None:
    """Vectors are the hypervisor's affair; the guest gets its own number back."""
    argument.vector = argument.irq


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_apic_read, copy_back=True, needs=Capability.HARDWARE)
def apic_read(hv: Hypervisor, caller: Vcpu, argument: PhysdevApic) -> None:
    """Read a register. Raises XenError(EINVAL) if there is no I/O APIC at that address."""
    argument.value = _ioapic(hv, argument.apic_physbase).read_register(argument.reg)


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_apic_write, needs=Capability.HARDWARE)
def apic_write(hv: Hypervisor, caller: Vcpu, argument: PhysdevApic) -> None:
    """Write the first half of a redirection entry; all other registers ignore it. Raises XenError(EINVAL)."""
    _ioapic(hv, argument.apic_physbase)
    if argument.reg < REDIRECTION or argument.reg & 1:
        return
    pin = (argument.reg - REDIRECTION) // 2
    if pin >= PINS:
        raise XenError(EINVAL, f"there is no I/O APIC pin {pin}")
    hv.pirqs.write_entry(caller.domain, pin, argument.value)


def _ioapic(hv: Hypervisor, maddr: int) -> IoApic:
    if hv.pc is None or maddr != IOAPIC_START:
        raise XenError(EINVAL, f"there is no I/O APIC at {maddr:#x}")
    return hv.pc.ioapic


# -- PCI --------------------------------------------------------------------------------------------------------------


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_manage_pci_add, needs=Capability.HARDWARE)
def manage_pci_add(hv: Hypervisor, caller: Vcpu, argument: PhysdevManagePci) -> None:
    """A device of segment 0 is there."""
    hv.pirqs.devices.add((0, argument.bus, argument.devfn))


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_manage_pci_add_ext, needs=Capability.HARDWARE)
def manage_pci_add_ext(hv: Hypervisor, caller: Vcpu, argument: PhysdevManagePciExt) -> None:
    """The same, and what kind of function it is. Raises XenError(EINVAL) for flags other than 0 and 1."""
    if argument.is_extfn > 1 or argument.is_virtfn > 1:
        raise XenError(EINVAL, "kind of PCI function")
    hv.pirqs.devices.add((0, argument.bus, argument.devfn))


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_manage_pci_remove, needs=Capability.HARDWARE)
def manage_pci_remove(hv: Hypervisor, caller: Vcpu, argument: PhysdevManagePci) -> None:
    """A device of segment 0 went away. Raises XenError(ENODEV) if it was not announced."""
    hv.pirqs.devices.remove(_announced(hv, 0, argument.bus, argument.devfn))


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_pci_device_add, needs=Capability.HARDWARE)
def pci_device_add(hv: Hypervisor, caller: Vcpu, argument: PhysdevPciDeviceAdd) -> None:
    """A device is there. There is one memory node, so its proximity domain is not looked at."""
    hv.pirqs.devices.add((argument.seg, argument.bus, argument.devfn))


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_pci_device_remove, needs=Capability.HARDWARE)
def pci_device_remove(hv: Hypervisor, caller: Vcpu, argument: PhysdevPciDevice) -> None:
    """A device went away. Raises XenError(ENODEV) if it was not announced."""
    hv.pirqs.devices.remove(_announced(hv, argument.seg, argument.bus, argument.devfn))


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_restore_msi, needs=Capability.HARDWARE)
def restore_msi(hv: Hypervisor, caller: Vcpu, argument: PhysdevRestoreMsi) -> None:
    """Program the messages of a device anew. Raises XenError(ENODEV) for a device that was not announced."""
    _restore(hv, 0, argument.bus, argument.devfn)


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_restore_msi_ext, needs=Capability.HARDWARE)
def restore_msi_ext(hv: Hypervisor, caller: Vcpu, argument: PhysdevPciDevice) -> None:
    """Program the messages of a device anew. Raises XenError(ENODEV) for a device that was not announced."""
    _restore(hv, argument.seg, argument.bus, argument.devfn)


def _restore(hv: Hypervisor, segment: int, bus: int, devfn: int) -> None:
    _announced(hv, segment, bus, devfn)
    hv.pirqs.restore_messages(bus << 8 | devfn)


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_prepare_msix, needs=Capability.HARDWARE)
def prepare_msix(hv: Hypervisor, caller: Vcpu, argument: PhysdevPciDevice) -> None:
    """The caller will give a device with MSI-X away. Raises XenError: ENODEV if it is none, EBUSY while it is used."""
    _require_msix(hv, argument)


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_release_msix, needs=Capability.HARDWARE)
def release_msix(hv: Hypervisor, caller: Vcpu, argument: PhysdevPciDevice) -> None:
    """The caller has the device back. Raises XenError: ENODEV if there is none, EBUSY while messages are mapped."""
    _require_msix(hv, argument)


def _require_msix(hv: Hypervisor, argument: PhysdevPciDevice) -> None:
    _announced(hv, argument.seg, argument.bus, argument.devfn)
    where = argument.bus << 8 | argument.devfn
    function = hv.iommu.functions().get(where)
    if function is None or not function.vectors[1]:
        raise XenError(ENODEV, f"PCI function {where:#06x} has no MSI-X")
    if hv.pirqs.has_messages(where):
        raise XenError(EBUSY, f"PCI function {where:#06x} sends messages")


def _announced(hv: Hypervisor, segment: int, bus: int, devfn: int) -> tuple[int, int, int]:
    if (segment, bus, devfn) not in hv.pirqs.devices:
        raise XenError(ENODEV, f"PCI device {segment:04x}:{bus:02x}:{devfn:02x} was not announced")
    return (segment, bus, devfn)


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_pci_mmcfg_reserved, needs=Capability.HARDWARE)
def pci_mmcfg_reserved(hv: Hypervisor, caller: Vcpu, argument: PhysdevPciMmcfgReserved) -> None:
    """The firmware reserves a configuration area, so that it may be used.

    Raises XenError: EINVAL for unknown flags, ENODEV if the machine has no such area.
    """
    if argument.flags & ~XEN_PCI_MMCFG_RESERVED:
        raise XenError(EINVAL, f"configuration area flags {argument.flags:#x}")
    area = (argument.address, argument.segment, argument.start_bus, argument.end_bus)
    if hv.pc is None or area != (ECAM_START, 0, 0, ECAM_BUSES - 1):
        raise XenError(ENODEV, f"there is no configuration area at {argument.address:#x}")


@operation(HYPERVISOR_physdev_op, PHYSDEVOP_dbgp_op, needs=Capability.HARDWARE)
def dbgp_op(hv: Hypervisor, caller: Vcpu, argument: PhysdevDbgpOp) -> None:
    """The hypervisor's console is on no USB debug port, so its controller may be reset freely."""
