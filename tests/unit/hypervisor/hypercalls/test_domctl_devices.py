"""domctl and physdev_op: PCI functions that work for others, and their messages, as hypercalls see them."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.hypercalls.conftest import Machine
from xenolith.abi import domctl as abi
from xenolith.abi.errno import EBUSY, EDOM, EEXIST, EINVAL, ENODEV, EPERM
from xenolith.abi.hypercalls import HYPERVISOR_domctl
from xenolith.abi.physdev import (
    MAP_PIRQ_TYPE_GSI,
    MAP_PIRQ_TYPE_MSI,
    MAP_PIRQ_TYPE_MSI_SEG,
    MAP_PIRQ_TYPE_MULTI_MSI,
    PhysdevMapPirq,
    PHYSDEVOP_map_pirq,
    PHYSDEVOP_pci_device_add,
    PHYSDEVOP_prepare_msix,
    PHYSDEVOP_release_msix,
    PHYSDEVOP_unmap_pirq,
    PhysdevPciDevice,
    PhysdevPciDeviceAdd,
    PhysdevUnmapPirq,
)
from xenolith.abi.types import DOMID_IO, DOMID_SELF
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.machine.pci_device import PciDevice

PHYSDEV = 33
SLOT = 3
TABLE_BAR = 4
WHERE = SLOT << 3


@pytest.fixture
def device(machine: Machine, driver: Domain) -> PciDevice:
    device = PciDevice(0x1B36, 0x0010, 0x010802, interrupt_pin=1)
    device.add_msi(4)
    device.add_msix(8, TABLE_BAR)
    machine.pc.pci.add(device, SLOT)
    machine.pc.pci.place_bars()
    assert machine.operation(driver, PHYSDEV, PHYSDEVOP_pci_device_add, PhysdevPciDeviceAdd(devfn=WHERE)) == 0
    return device


@pytest.fixture
def user(machine: Machine, driver: Domain) -> Domain:
    """A guest that may have devices."""
    domain = machine.caller(7)
    domain.creator, domain.has_iommu = driver.domid, True
    return domain


def domctl(machine: Machine, caller: Domain, command: int, domid: int, **fields: int) -> int:
    op = abi.XenDomctl(cmd=command, interface_version=abi.XEN_DOMCTL_INTERFACE_VERSION, domain=domid)
    if command == abi.XEN_DOMCTL_irq_permission:
        op.u.irq_permission.pirq = fields["pirq"]
        op.u.irq_permission.allow_access = fields["allow"]
    else:
        op.u.assign_device.dev = fields.get("dev", abi.XEN_DOMCTL_DEV_PCI)
        op.u.assign_device.flags = fields.get("flags", 0)
        op.u.assign_device.u.pci.machine_sbdf = fields.get("sbdf", WHERE)
    at = machine.buffer(caller)
    machine.memory.write(caller.vcpus[0], at, op.to_bytes())
    return machine.raw(caller, HYPERVISOR_domctl, at)


def assign(machine: Machine, caller: Domain, domid: int, **fields: int) -> int:
    return domctl(machine, caller, abi.XEN_DOMCTL_assign_device, domid, **fields)


def test_a_device_is_given_and_taken_back(machine: Machine, driver: Domain, user: Domain, device: PciDevice) -> None:
    test = abi.XEN_DOMCTL_test_assign_device
    assert domctl(machine, driver, test, user.domid) == 0
    assert assign(machine, driver, user.domid, flags=abi.XEN_DOMCTL_DEV_RDM_RELAXED) == 0
    assert domctl(machine, driver, test, user.domid) == -EBUSY
    assert assign(machine, driver, DOMID_IO) == -EBUSY
    assert machine.iommu.owner(WHERE) is user
    assert domctl(machine, driver, abi.XEN_DOMCTL_deassign_device, user.domid) == 0
    assert domctl(machine, driver, abi.XEN_DOMCTL_deassign_device, user.domid) == -ENODEV
    assert machine.iommu.owner(WHERE) is driver


def test_quarantine_by_hypercall(machine: Machine, driver: Domain, device: PciDevice) -> None:
    assert assign(machine, driver, DOMID_IO) == 0
    assert machine.iommu.owner(WHERE) is machine.iommu.quarantine
    assert domctl(machine, driver, abi.XEN_DOMCTL_deassign_device, DOMID_IO) == 0
    assert machine.iommu.owner(WHERE) is driver


@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({"flags": 2}, -EINVAL),
        ({"dev": abi.XEN_DOMCTL_DEV_DT}, -ENODEV),
        ({"sbdf": 0x10000 | WHERE}, -ENODEV),
        ({"sbdf": 0xF8}, -ENODEV),
        ({"sbdf": 0xFFFFFFFF}, -ENODEV),
    ],
)
def test_wrong_assignments(
    machine: Machine, driver: Domain, user: Domain, device: PciDevice, fields: dict[str, int], result: int
) -> None:
    assert assign(machine, driver, user.domid, **fields) == result
    assert machine.iommu.owner(WHERE) is driver


def test_only_to_domains_that_can_have_devices(
    machine: Machine, driver: Domain, user: Domain, device: PciDevice
) -> None:
    user.has_iommu = False
    assert assign(machine, driver, user.domid) == -EINVAL
    user.has_iommu, user.is_dying = True, True
    assert assign(machine, driver, user.domid) == -EINVAL


def test_nobody_gives_away_what_is_not_his(machine: Machine, driver: Domain, user: Domain, device: PciDevice) -> None:
    builder = machine.caller(3, Capability.CONTROL)
    assert assign(machine, builder, user.domid) == -EPERM
    assert assign(machine, builder, DOMID_IO) == -EPERM
    helper = machine.caller(4, Capability.HARDWARE)
    assert assign(machine, helper, user.domid) == -EPERM, "it has the device and not the domain"


def test_an_interrupt_may_be_given_away(machine: Machine, driver: Domain, user: Domain) -> None:
    gsi, permission = 17, abi.XEN_DOMCTL_irq_permission
    argument = PhysdevMapPirq(domid=DOMID_SELF, type=MAP_PIRQ_TYPE_GSI, index=gsi, pirq=gsi)
    assert domctl(machine, driver, permission, user.domid, pirq=256, allow=1) == -EINVAL
    assert domctl(machine, driver, permission, user.domid, pirq=gsi, allow=1) == -EPERM, "it is not mapped"
    machine.pirqs.map_gsi(driver, gsi, gsi)
    assert machine.operation(user, PHYSDEV, PHYSDEVOP_map_pirq, argument) == -EPERM
    assert domctl(machine, driver, permission, user.domid, pirq=gsi, allow=1) == 0
    assert machine.operation(user, PHYSDEV, PHYSDEVOP_map_pirq, argument) == 0
    machine.pirqs.unmap(user, gsi)
    assert domctl(machine, driver, permission, user.domid, pirq=gsi, allow=0) == 0
    assert machine.operation(user, PHYSDEV, PHYSDEVOP_map_pirq, argument) == -EPERM


# -- messages ---------------------------------------------------------------------------------------------------------


def map_pirq(machine: Machine, caller: Domain, **fields: int) -> tuple[int, int]:
    values = {"domid": DOMID_SELF, "index": -1, "pirq": -1, "devfn": WHERE} | fields
    argument = PhysdevMapPirq(**values)  # type: ignore[arg-type]
    return machine.operation(caller, PHYSDEV, PHYSDEVOP_map_pirq, argument), argument.pirq


def test_messages_as_linux_maps_them(machine: Machine, driver: Domain, device: PciDevice) -> None:
    assert map_pirq(machine, driver, type=MAP_PIRQ_TYPE_MSI_SEG, table_base=0xC0000000, entry_nr=2) == (0, 255)
    assert map_pirq(machine, driver, type=MAP_PIRQ_TYPE_MSI_SEG, table_base=0xC0000000, entry_nr=2)[0] == -EEXIST
    assert map_pirq(machine, driver, type=MAP_PIRQ_TYPE_MSI, table_base=0xC0000000, entry_nr=3) == (0, 254)
    assert map_pirq(machine, driver, type=MAP_PIRQ_TYPE_MULTI_MSI, entry_nr=4) == (0, 250)


@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({"type": MAP_PIRQ_TYPE_MULTI_MSI, "entry_nr": 0}, -EDOM),
        ({"type": MAP_PIRQ_TYPE_MULTI_MSI, "entry_nr": 33}, -EDOM),
        ({"type": MAP_PIRQ_TYPE_MULTI_MSI, "entry_nr": 8}, -EINVAL),
        ({"type": MAP_PIRQ_TYPE_MSI_SEG, "bus": 1 << 16}, -ENODEV),
        ({"type": MAP_PIRQ_TYPE_MSI_SEG, "bus": 1}, -ENODEV),
        ({"type": MAP_PIRQ_TYPE_MSI_SEG, "devfn": 0x50}, -ENODEV),
        ({"type": MAP_PIRQ_TYPE_MSI_SEG, "table_base": 1, "entry_nr": 8}, -EINVAL),
        ({"type": MAP_PIRQ_TYPE_MSI_SEG, "table_base": 1, "entry_nr": -1}, -EINVAL),
    ],
)
def test_impossible_messages(
    machine: Machine, driver: Domain, device: PciDevice, fields: dict[str, int], result: int
) -> None:
    assert map_pirq(machine, driver, **fields)[0] == result
    assert not machine.pirqs.has_messages(WHERE)


def test_messages_go_to_whom_the_device_works_for(
    machine: Machine, driver: Domain, user: Domain, device: PciDevice
) -> None:
    machine.iommu.assign(WHERE, user)
    assert map_pirq(machine, driver, type=MAP_PIRQ_TYPE_MSI)[0] == -ENODEV
    assert map_pirq(machine, driver, type=MAP_PIRQ_TYPE_MSI, domid=user.domid) == (0, 255)
    assert machine.pirqs.irq(user, 255) is not None


def test_msix_is_prepared_while_nobody_uses_it(machine: Machine, driver: Domain, device: PciDevice) -> None:
    argument = PhysdevPciDevice(devfn=WHERE)
    for command in (PHYSDEVOP_prepare_msix, PHYSDEVOP_release_msix):
        assert machine.operation(driver, PHYSDEV, command, argument) == 0
        assert machine.operation(driver, PHYSDEV, command, PhysdevPciDevice(devfn=0xF8)) == -ENODEV
    assert map_pirq(machine, driver, type=MAP_PIRQ_TYPE_MSI)[0] == 0
    assert machine.operation(driver, PHYSDEV, PHYSDEVOP_prepare_msix, argument) == -EBUSY


# -- lending ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def builder(machine: Machine, user: Domain) -> Domain:
    """It has made the guest, and has no hardware."""
    domain = machine.caller(3, Capability.CREATE)
    user.creator = domain.domid
    return domain


@pytest.fixture
def lender(machine: Machine, device: PciDevice) -> Domain:
    """It has the device and controls nobody."""
    domain = machine.caller(4, Capability.HARDWARE)
    domain.pci_functions = frozenset({WHERE})
    domain.iomem_ranges = [(0xC0000, 0xDFFFF)]
    machine.iommu.give(WHERE, domain)
    return domain


def permit(machine: Machine, caller: Domain, domid: int, first: int, count: int = 1) -> int:
    op = abi.XenDomctl(
        cmd=abi.XEN_DOMCTL_iomem_permission, interface_version=abi.XEN_DOMCTL_INTERFACE_VERSION, domain=domid
    )
    op.u.iomem_permission.first_mfn, op.u.iomem_permission.nr_mfns, op.u.iomem_permission.allow_access = first, count, 1
    at = machine.buffer(caller)
    machine.memory.write(caller.vcpus[0], at, op.to_bytes())
    return machine.raw(caller, HYPERVISOR_domctl, at)


def test_a_builder_takes_what_is_offered(machine: Machine, builder: Domain, lender: Domain, user: Domain) -> None:
    assert assign(machine, builder, user.domid) == -EPERM, "nobody offers it yet"
    assert assign(machine, lender, DOMID_IO) == 0
    assert assign(machine, lender, user.domid) == -EPERM, "its lender has no say over guests"
    assert assign(machine, builder, user.domid) == 0
    assert domctl(machine, builder, abi.XEN_DOMCTL_deassign_device, user.domid) == -EPERM


def test_a_lender_lends_what_belongs_to_the_device_and_nothing_else(
    machine: Machine, builder: Domain, lender: Domain, user: Domain, device: PciDevice
) -> None:
    table = next(bar for bar in device.bars if bar.index == TABLE_BAR)
    assert table.mapped is not None
    frame = table.mapped.start >> 12
    assert permit(machine, lender, user.domid, frame) == -EPERM
    assert map_pirq(machine, lender, type=MAP_PIRQ_TYPE_MSI, domid=user.domid)[0] == -EPERM
    assert assign(machine, lender, DOMID_IO) == 0
    assert assign(machine, builder, user.domid) == 0
    assert permit(machine, lender, user.domid, frame + 1) == -EPERM, "the lender's own, and not the device's"
    assert permit(machine, lender, user.domid, frame, 2) == -EPERM
    assert permit(machine, lender, user.domid, frame) == 0
    assert user.iomem_ranges == [(frame, frame)]
    assert map_pirq(machine, lender, type=MAP_PIRQ_TYPE_MSI, domid=user.domid) == (0, 255)
    line = {"domid": user.domid, "type": MAP_PIRQ_TYPE_GSI}
    assert map_pirq(machine, lender, index=device.gsi or 0, **line) == (0, device.gsi)
    assert map_pirq(machine, lender, index=16, **line)[0] == -EPERM


def test_a_lender_takes_back_its_devices_interrupts_only(
    machine: Machine, builder: Domain, lender: Domain, user: Domain, device: PciDevice
) -> None:
    assert assign(machine, lender, DOMID_IO) == 0
    assert assign(machine, builder, user.domid) == 0
    machine.pirqs.map_gsi(user, 16, 16)
    assert map_pirq(machine, lender, type=MAP_PIRQ_TYPE_MSI, domid=user.domid) == (0, 255)
    for pirq, result in ((255, 0), (16, -EPERM), (200, -EPERM)):
        argument = PhysdevUnmapPirq(domid=user.domid, pirq=pirq)
        assert machine.operation(lender, PHYSDEV, PHYSDEVOP_unmap_pirq, argument) == result
