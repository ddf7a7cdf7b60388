"""physdev_op: I/O privilege, interrupts and PCI devices."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.hypervisor.hypercalls.conftest import Machine
from xenolith.abi.errno import EBUSY, EEXIST, EFAULT, EINVAL, ENODEV, ENOSYS, EPERM, ESRCH
from xenolith.abi.physdev import (
    MAP_PIRQ_TYPE_GSI,
    MAP_PIRQ_TYPE_MSI,
    MAP_PIRQ_TYPE_MULTI_MSI,
    PhysdevApic,
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
)
from xenolith.abi.types import DOMID_SELF
from xenolith.hypervisor import ioports
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.frames import TYPE_L1
from xenolith.machine.e820 import ECAM_BUSES, ECAM_START, IOAPIC_START

CALL, COMPAT = 33, 19
DISK = 16


@pytest.mark.parametrize(
    "command",
    [
        PHYSDEVOP_setup_gsi,
        PHYSDEVOP_map_pirq,
        PHYSDEVOP_unmap_pirq,
        PHYSDEVOP_alloc_irq_vector,
        PHYSDEVOP_apic_read,
        PHYSDEVOP_apic_write,
        PHYSDEVOP_manage_pci_add,
        PHYSDEVOP_manage_pci_add_ext,
        PHYSDEVOP_manage_pci_remove,
        PHYSDEVOP_pci_device_add,
        PHYSDEVOP_pci_device_remove,
        PHYSDEVOP_pci_mmcfg_reserved,
        PHYSDEVOP_prepare_msix,
        PHYSDEVOP_release_msix,
        PHYSDEVOP_restore_msi,
        PHYSDEVOP_restore_msi_ext,
        PHYSDEVOP_dbgp_op,
    ],
)
def test_the_machine_is_not_everybodys(machine: Machine, guest: Domain, command: int) -> None:
    assert machine.raw(guest, CALL, command, machine.buffer(guest)) == -EPERM


@pytest.mark.parametrize("command", [0, 11, 32, 0xFFFF_FFFF])
def test_unknown_operations(machine: Machine, driver: Domain, command: int) -> None:
    assert machine.raw(driver, CALL, command, machine.buffer(driver)) == -ENOSYS


@pytest.mark.parametrize("command", [5, 6, 7, 12, 17, 23, 28])
def test_bad_addresses(machine: Machine, guest: Domain, command: int) -> None:
    assert machine.raw(guest, CALL, command, 1 << 40) == -EFAULT


# -- I/O privilege ----------------------------------------------------------------------------------------------------


def test_iopl(machine: Machine, guest: Domain) -> None:
    for level in (3, 0, 1):
        assert machine.operation(guest, CALL, PHYSDEVOP_set_iopl, PhysdevSetIopl(iopl=level)) == 0
        assert guest.vcpus[0].iopl == level
    assert machine.operation(guest, CALL, PHYSDEVOP_set_iopl, PhysdevSetIopl(iopl=4)) == -EINVAL
    assert guest.vcpus[0].iopl == 1


def test_iobitmap(machine: Machine, guest: Domain) -> None:
    vcpu = guest.vcpus[0]
    vcpu.kernel_mode = False
    argument = PhysdevSetIobitmap(bitmap=machine.buffer(guest), nr_ports=65536)
    assert not ioports.permitted(machine, vcpu, 0x80, 1)  # type: ignore[arg-type]
    assert machine.operation(guest, CALL, PHYSDEVOP_set_iobitmap, argument) == 0
    assert ioports.permitted(machine, vcpu, 0x80, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bitmap", "ports"),
    [
        (0x1000, 65537),
        (0xFFFF_8000_0000_0000, 1),
        (0x0000_7FFF_FFFF_F000, 1),
        (0xFFFF_FFFF_FFFF_F000, 1),
        (0x0001_0000_0000_0000, 1),
    ],
)
def test_impossible_bitmaps(machine: Machine, guest: Domain, bitmap: int, ports: int) -> None:
    argument = PhysdevSetIobitmap(bitmap=bitmap, nr_ports=ports)
    assert machine.operation(guest, CALL, PHYSDEVOP_set_iobitmap, argument) == -EINVAL


def test_the_older_form(machine: Machine, guest: Domain, driver: Domain) -> None:
    def compat(domain: Domain, argument: PhysdevOp) -> int:
        at = machine.buffer(domain)
        machine.ram.bytes[at : at + PhysdevOp.sizeof()] = argument.to_bytes()
        return machine.raw(domain, COMPAT, at)

    argument = PhysdevOp(cmd=PHYSDEVOP_set_iopl)
    argument.u.set_iopl.iopl = 2
    assert compat(guest, argument) == 0
    assert guest.vcpus[0].iopl == 2
    assert compat(guest, PhysdevOp(cmd=PHYSDEVOP_apic_read)) == -EPERM
    assert compat(driver, PhysdevOp(cmd=PHYSDEVOP_map_pirq)) == -ENOSYS
    assert machine.raw(guest, COMPAT, 1 << 40) == -EFAULT


# -- ends of interrupts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [PHYSDEVOP_pirq_eoi_gmfn_v1, PHYSDEVOP_pirq_eoi_gmfn_v2])
def test_eoi_page(machine: Machine, guest: Domain, command: int) -> None:
    mfn = machine.memory_of(guest)[0]
    assert machine.operation(guest, CALL, command, PhysdevPirqEoiGmfn(gmfn=mfn)) == 0
    assert guest.pirq_eoi_mfn == mfn
    assert machine.frames.type_count[mfn] == 1
    assert machine.pirqs.of(guest).unmasks is (command == PHYSDEVOP_pirq_eoi_gmfn_v1)
    assert machine.operation(guest, CALL, command, PhysdevPirqEoiGmfn(gmfn=mfn)) == -EBUSY
    assert machine.frames.type_count[mfn] == 1


def test_eoi_page_must_be_writable_memory_of_the_domain(machine: Machine, guest: Domain, driver: Domain) -> None:
    table = machine.memory_of(guest)[0]
    machine.frames.get_page_and_type(table, guest.domid, TYPE_L1)
    for mfn in (table, machine.memory_of(driver)[0], 0, 1 << 40, (1 << 64) - 1):
        result = machine.operation(guest, CALL, PHYSDEVOP_pirq_eoi_gmfn_v2, PhysdevPirqEoiGmfn(gmfn=mfn))
        assert result == -EINVAL
    assert guest.pirq_eoi_mfn == 0


def mapped(machine: Machine, driver: Domain) -> int:
    """A port of the driver, bound to a level-triggered GSI."""
    setup = PhysdevSetupGsi(gsi=DISK, triggering=1, polarity=1)
    assert machine.operation(driver, CALL, PHYSDEVOP_setup_gsi, setup) == 0
    argument = PhysdevMapPirq(domid=DOMID_SELF, type=MAP_PIRQ_TYPE_GSI, index=DISK, pirq=-1)
    assert machine.operation(driver, CALL, PHYSDEVOP_map_pirq, argument) == 0
    assert argument.pirq == DISK
    return driver.events.bind_pirq(DISK, True)


def test_eoi(machine: Machine, driver: Domain) -> None:
    mapped(machine, driver)
    machine.pc.ioapic.raise_pin(DISK)
    assert machine.pc.ioapic.entry(DISK) >> 14 & 1
    machine.pc.ioapic.lower_pin(DISK)
    assert machine.operation(driver, CALL, PHYSDEVOP_eoi, PhysdevEoi(irq=DISK)) == 0
    assert not machine.pc.ioapic.entry(DISK) >> 14 & 1


def test_eoi_of_version_1_unmasks(machine: Machine, driver: Domain) -> None:
    gmfn = PhysdevPirqEoiGmfn(gmfn=machine.memory_of(driver)[0])
    machine.operation(driver, CALL, PHYSDEVOP_pirq_eoi_gmfn_v1, gmfn)
    port = mapped(machine, driver)
    mask = (driver.shared_info_mfn << 12) + 2048 + 512 + (port >> 3)
    machine.ram.bytes[mask] |= 1 << (port & 7)
    assert machine.operation(driver, CALL, PHYSDEVOP_eoi, PhysdevEoi(irq=DISK)) == 0
    assert not machine.ram.bytes[mask] >> (port & 7) & 1


@pytest.mark.parametrize("irq", [0, DISK, 256, 0xFFFF_FFFF])
def test_eoi_of_what_is_not_there(machine: Machine, guest: Domain, irq: int) -> None:
    assert machine.operation(guest, CALL, PHYSDEVOP_eoi, PhysdevEoi(irq=irq)) == -EINVAL


def test_irq_status(machine: Machine, driver: Domain) -> None:
    mapped(machine, driver)
    argument = PhysdevIrqStatusQuery(irq=DISK)
    assert machine.operation(driver, CALL, PHYSDEVOP_irq_status_query, argument) == 0
    assert argument.flags == 1
    second = machine.caller(2, Capability.ALL)
    machine.pirqs.map_gsi(second, DISK, DISK)
    second.events.bind_pirq(DISK, True)
    assert machine.operation(driver, CALL, PHYSDEVOP_irq_status_query, argument) == 0
    assert argument.flags == 3
    assert machine.operation(driver, CALL, PHYSDEVOP_irq_status_query, PhysdevIrqStatusQuery(irq=256)) == -EINVAL


def test_free_pirq(machine: Machine, guest: Domain) -> None:
    numbers = set()
    for kind in (MAP_PIRQ_TYPE_GSI, MAP_PIRQ_TYPE_MSI, MAP_PIRQ_TYPE_MSI):
        argument = PhysdevGetFreePirq(type=kind)
        assert machine.operation(guest, CALL, PHYSDEVOP_get_free_pirq, argument) == 0
        numbers.add(argument.pirq)
    assert numbers == {16, 255, 254}


# -- interrupts of the machine ----------------------------------------------------------------------------------------


def test_setup_gsi(machine: Machine, driver: Domain) -> None:
    mapped(machine, driver)
    assert machine.pc.ioapic.entry(DISK) >> 13 & 7 == 0b101
    for gsi, result in ((DISK, -EEXIST), (-1, -EINVAL), (24, -EINVAL)):
        assert machine.operation(driver, CALL, PHYSDEVOP_setup_gsi, PhysdevSetupGsi(gsi=gsi)) == result


@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({"domid": 99, "type": MAP_PIRQ_TYPE_GSI}, -ESRCH),
        ({"domid": DOMID_SELF, "type": MAP_PIRQ_TYPE_GSI, "index": 24}, -EINVAL),
        ({"domid": DOMID_SELF, "type": MAP_PIRQ_TYPE_GSI, "index": -1}, -EINVAL),
        ({"domid": DOMID_SELF, "type": MAP_PIRQ_TYPE_MSI}, -ENODEV),
        ({"domid": DOMID_SELF, "type": MAP_PIRQ_TYPE_MULTI_MSI, "table_base": 1}, -EINVAL),
        ({"domid": DOMID_SELF, "type": 9}, -EINVAL),
    ],
)
def test_map_errors(machine: Machine, driver: Domain, fields: dict[str, int], result: int) -> None:
    assert machine.operation(driver, CALL, PHYSDEVOP_map_pirq, PhysdevMapPirq(**fields)) == result


def test_mapping_for_another_domain_needs_control(machine: Machine, driver: Domain, guest: Domain) -> None:
    hardware_only = machine.caller(3, Capability.HARDWARE)
    argument = PhysdevMapPirq(domid=guest.domid, type=MAP_PIRQ_TYPE_GSI, index=DISK, pirq=-1)
    assert machine.operation(hardware_only, CALL, PHYSDEVOP_map_pirq, argument) == -EPERM
    assert machine.operation(driver, CALL, PHYSDEVOP_map_pirq, argument) == 0
    assert machine.pirqs.of(guest).irqs == {DISK: DISK}


def test_unmap(machine: Machine, driver: Domain) -> None:
    mapped(machine, driver)
    argument: Any = PhysdevUnmapPirq(domid=DOMID_SELF, pirq=DISK)
    assert machine.operation(driver, CALL, PHYSDEVOP_unmap_pirq, argument) == 0
    assert machine.operation(driver, CALL, PHYSDEVOP_unmap_pirq, argument) == -EINVAL
    assert machine.operation(driver, CALL, PHYSDEVOP_unmap_pirq, PhysdevUnmapPirq(domid=99)) == -ESRCH


def test_vectors_are_their_interrupts(machine: Machine, driver: Domain) -> None:
    argument = PhysdevIrq(irq=9)
    assert machine.operation(driver, CALL, PHYSDEVOP_alloc_irq_vector, argument) == 0
    assert argument.vector == 9


def test_io_apic(machine: Machine, driver: Domain) -> None:
    read = PhysdevApic(apic_physbase=IOAPIC_START, reg=1)
    assert machine.operation(driver, CALL, PHYSDEVOP_apic_read, read) == 0
    assert read.value == 23 << 16 | 0x20
    write = PhysdevApic(apic_physbase=IOAPIC_START, reg=0x10 + 2 * DISK, value=0xA0FF)
    assert machine.operation(driver, CALL, PHYSDEVOP_apic_write, write) == 0
    assert machine.pc.ioapic.entry(DISK) >> 13 == 0b1101, "level, active low, and masked until it is bound"
    assert machine.pirqs.of(driver).irqs == {DISK: DISK}


@pytest.mark.parametrize(
    ("base", "reg", "result"),
    [
        (IOAPIC_START + 4096, 0x10, -EINVAL),
        (0, 0x10, -EINVAL),
        (IOAPIC_START, 0x40, -EINVAL),
        (IOAPIC_START, 0xFFFF_FFFE, -EINVAL),
        (IOAPIC_START, 0x11, 0),
        (IOAPIC_START, 0x00, 0),
    ],
)
def test_io_apic_writes_that_change_nothing(machine: Machine, driver: Domain, base: int, reg: int, result: int) -> None:
    before = [machine.pc.ioapic.entry(pin) for pin in range(24)]
    argument = PhysdevApic(apic_physbase=base, reg=reg, value=0xFFFF_FFFF)
    assert machine.operation(driver, CALL, PHYSDEVOP_apic_write, argument) == result
    assert [machine.pc.ioapic.entry(pin) for pin in range(24)] == before
    assert machine.pc.ioapic.read_register(0) == 0


def test_io_apic_that_does_not_exist(machine: Machine, driver: Domain) -> None:
    argument = PhysdevApic(apic_physbase=0xFEC1_0000, reg=1)
    assert machine.operation(driver, CALL, PHYSDEVOP_apic_read, argument) == -EINVAL


# -- PCI --------------------------------------------------------------------------------------------------------------


def test_devices_are_announced_and_removed(machine: Machine, driver: Domain) -> None:
    device = PhysdevPciDevice(seg=0, bus=0, devfn=0xF8)
    assert machine.operation(driver, CALL, PHYSDEVOP_pci_device_remove, device) == -ENODEV
    assert machine.operation(driver, CALL, PHYSDEVOP_restore_msi_ext, device) == -ENODEV
    assert machine.operation(driver, CALL, PHYSDEVOP_pci_device_add, PhysdevPciDeviceAdd(bus=0, devfn=0xF8)) == 0
    assert machine.operation(driver, CALL, PHYSDEVOP_restore_msi_ext, device) == 0
    assert machine.operation(driver, CALL, PHYSDEVOP_pci_device_remove, device) == 0
    assert machine.pirqs.devices == set()


def test_devices_in_the_older_form(machine: Machine, driver: Domain) -> None:
    device = PhysdevManagePci(bus=0, devfn=8)
    assert machine.operation(driver, CALL, PHYSDEVOP_manage_pci_add, device) == 0
    assert machine.operation(driver, CALL, PHYSDEVOP_restore_msi, PhysdevRestoreMsi(bus=0, devfn=8)) == 0
    assert machine.operation(driver, CALL, PHYSDEVOP_manage_pci_remove, device) == 0
    assert machine.operation(driver, CALL, PHYSDEVOP_manage_pci_remove, device) == -ENODEV
    assert machine.operation(driver, CALL, PHYSDEVOP_manage_pci_add_ext, PhysdevManagePciExt(is_extfn=2)) == -EINVAL
    assert machine.operation(driver, CALL, PHYSDEVOP_manage_pci_add_ext, PhysdevManagePciExt(is_extfn=1)) == 0


def test_no_device_has_message_tables(machine: Machine, driver: Domain) -> None:
    for command in (PHYSDEVOP_prepare_msix, PHYSDEVOP_release_msix):
        assert machine.operation(driver, CALL, command, PhysdevPciDevice()) == -ENODEV


@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({}, 0),
        ({"flags": 0}, 0),
        ({"flags": 2}, -EINVAL),
        ({"segment": 1}, -ENODEV),
        ({"end_bus": ECAM_BUSES}, -ENODEV),
        ({"address": ECAM_START + 4096}, -ENODEV),
    ],
)
def test_configuration_area(machine: Machine, driver: Domain, fields: dict[str, int], result: int) -> None:
    area = {"address": ECAM_START, "segment": 0, "start_bus": 0, "end_bus": ECAM_BUSES - 1, "flags": 1}
    argument = PhysdevPciMmcfgReserved(**area | fields)
    assert machine.operation(driver, CALL, PHYSDEVOP_pci_mmcfg_reserved, argument) == result


def test_debug_port(machine: Machine, driver: Domain) -> None:
    assert machine.raw(driver, CALL, PHYSDEVOP_dbgp_op, machine.buffer(driver)) == 0
