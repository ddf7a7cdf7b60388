"""Devices reach their domain's memory and nobody else's; their messages become events of that domain alone."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.hypercalls.conftest import Machine
from tests.unit.hypervisor.test_pirqs import take
from xenolith.abi.errno import EBUSY, EEXIST, EINVAL, ENODEV, XenError
from xenolith.abi.grant_table import GNTMAP_device_map, GNTMAP_host_map, GNTMAP_readonly
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.frames import FLAG_EXECUTABLE, TYPE_L1, TYPE_SEG_DESC, TYPE_WRITABLE
from xenolith.hypervisor.pirqs import FIRST_MESSAGE, MESSAGE_ADDRESS
from xenolith.machine.pci import COMMAND, DmaFault
from xenolith.machine.pci_device import PciDevice

SLOT = 3
WHERE = SLOT << 3


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def driver(machine: Machine) -> Domain:
    return machine.caller(0, Capability.ALL)


@pytest.fixture
def guest(machine: Machine) -> Domain:
    domain = machine.caller(1)
    domain.has_iommu = True
    return domain


@pytest.fixture
def device(machine: Machine, driver: Domain) -> PciDevice:
    device = PciDevice(0x1B36, 0x0010, 0x010802, interrupt_pin=1)
    device.add_msi(4)
    device.add_msix(8, 4)
    machine.pc.pci.add(device, SLOT)
    machine.pc.pci.place_bars()
    machine.pc.pci.write_config(WHERE, COMMAND, 2, 0x6)
    return device


def errno(act: object, *arguments: object) -> int:
    with pytest.raises(XenError) as caught:
        act(*arguments)  # type: ignore[operator]
    return caught.value.errno


def log(machine: Machine) -> str:
    return machine.log.read(1 << 16)[0].decode()


# -- memory -----------------------------------------------------------------------------------------------------------


def test_a_device_uses_the_memory_of_its_domain(machine: Machine, driver: Domain, device: PciDevice) -> None:
    maddr = machine.memory_of(driver)[0] << 12
    device.memory(maddr + 8, 4, write=True)[:] = b"data"
    assert machine.ram.bytes[maddr + 8 : maddr + 12] == b"data"
    assert bytes(device.memory(maddr + 8, 4)) == b"data"


@pytest.mark.parametrize("write", [False, True])
def test_not_that_of_others(machine: Machine, guest: Domain, device: PciDevice, write: bool) -> None:
    mfn = machine.memory_of(guest)[0]
    told: list[dict[str, object]] = []
    machine.publish = lambda kind, **data: told.append({"kind": kind} | data)  # type: ignore[method-assign]
    with pytest.raises(DmaFault):
        device.memory(mfn << 12, 512, write)
    assert told == [
        {"kind": "dma_fault", "function": "0000:00:03.0", "domid": 0, "maddr": mfn << 12, "length": 512, "write": write}
    ]
    assert "IOMMU: PCI function 0000:00:03.0 of d0" in log(machine)


def test_the_end_counts_as_the_start(machine: Machine, driver: Domain, guest: Domain, device: PciDevice) -> None:
    own, foreign = machine.memory_of(driver)[-1], machine.memory_of(guest)[0]
    assert foreign > own
    with pytest.raises(DmaFault):
        device.memory((own << 12) + 4000, ((foreign - own) << 12) - 4000 + 1)
    for maddr, length in ((machine.ram.size - 4, 8), (1 << 60, 1), (0, 16), ((1 << 64) - 1, 1)):
        with pytest.raises(DmaFault):
            device.memory(maddr, length)


@pytest.mark.parametrize("kind", [TYPE_L1, TYPE_SEG_DESC])
def test_tables_can_be_read_and_not_written(machine: Machine, driver: Domain, device: PciDevice, kind: int) -> None:
    mfn = machine.memory_of(driver)[0]
    machine.frames.get_page_and_type(mfn, driver.domid, kind)
    device.memory(mfn << 12, 4096)
    with pytest.raises(DmaFault):
        device.memory(mfn << 12, 1, write=True)
    machine.frames.put_page_and_type(mfn)
    device.memory(mfn << 12, 1, write=True)
    machine.frames.get_page_and_type(mfn, driver.domid, TYPE_WRITABLE)
    device.memory(mfn << 12, 1, write=True)


def test_granted_memory_while_it_is_mapped(machine: Machine, driver: Domain, guest: Domain, device: PciDevice) -> None:
    mfn = machine.memory_of(guest)[0]
    guest.grants.grant(9, driver.domid, mfn)
    readonly, _ = driver.grants.map_grant(guest.domid, 9, GNTMAP_device_map | GNTMAP_readonly)
    device.memory(mfn << 12, 4096)
    with pytest.raises(DmaFault):
        device.memory(mfn << 12, 1, write=True)
    both, _ = driver.grants.map_grant(guest.domid, 9, GNTMAP_device_map | GNTMAP_host_map)
    device.memory(mfn << 12, 1, write=True)
    driver.grants.unmap_grant(both, mfn << 12, lambda mapping: None)
    with pytest.raises(DmaFault):
        device.memory(mfn << 12, 1, write=True)
    driver.grants.unmap_grant(readonly, mfn << 12, None)
    with pytest.raises(DmaFault):
        device.memory(mfn << 12, 1)


def test_code_that_a_device_overwrites_is_forgotten(machine: Machine, driver: Domain, device: PciDevice) -> None:
    mfn = machine.memory_of(driver)[0]
    machine.frames.flags[mfn] |= FLAG_EXECUTABLE
    forgotten: list[tuple[int, int]] = []
    machine.frames.invalidate_code = lambda maddr, size: forgotten.append((maddr, size))
    device.memory((mfn << 12) + 5, 1)
    assert forgotten == []
    device.memory((mfn << 12) + 5, 1, write=True)
    assert forgotten == [(mfn << 12, 4096)]


def test_refusals_are_not_told_for_ever(machine: Machine, guest: Domain, device: PciDevice) -> None:
    told: list[str] = []
    machine.publish = lambda kind, **data: told.append(kind)  # type: ignore[method-assign]
    for _ in range(100):
        with pytest.raises(DmaFault):
            device.memory(machine.memory_of(guest)[0] << 12, 1)
    assert log(machine).count("IOMMU") == len(told) == 64


# -- whose ------------------------------------------------------------------------------------------------------------


def test_an_assigned_device_works_for_the_guest(
    machine: Machine, driver: Domain, guest: Domain, device: PciDevice
) -> None:
    machine.iommu.assign(WHERE, guest)
    device.memory(machine.memory_of(guest)[0] << 12, 1, write=True)
    with pytest.raises(DmaFault):
        device.memory(machine.memory_of(driver)[0] << 12, 1)
    assert machine.iommu.configures(driver, WHERE)
    assert errno(machine.iommu.assign, WHERE, driver) == EBUSY
    assert errno(machine.iommu.deassign, WHERE, driver) == ENODEV
    machine.iommu.deassign(WHERE, guest)
    device.memory(machine.memory_of(driver)[0] << 12, 1)


def test_in_quarantine_it_reaches_nothing_and_comes_back_to_it(
    machine: Machine, driver: Domain, guest: Domain, device: PciDevice
) -> None:
    machine.iommu.assign(WHERE, machine.iommu.quarantine)
    with pytest.raises(DmaFault):
        device.memory(machine.memory_of(driver)[0] << 12, 1)
    machine.iommu.assign(WHERE, guest)
    machine.iommu.deassign(WHERE, guest)
    assert machine.iommu.owner(WHERE) is machine.iommu.quarantine
    machine.iommu.deassign(WHERE, machine.iommu.quarantine)
    assert machine.iommu.owner(WHERE) is driver


def test_a_dying_guest_gives_it_back_reset(machine: Machine, driver: Domain, guest: Domain, device: PciDevice) -> None:
    machine.iommu.assign(WHERE, guest)
    pirq = machine.pirqs.map_msix(guest, WHERE, 0, -1)
    guest.is_dying = True
    machine.iommu.release(guest)
    assert machine.iommu.owner(WHERE) is driver
    assert machine.pirqs.irq(guest, pirq) is None
    with pytest.raises(DmaFault, match="no bus master"):
        device.memory(machine.memory_of(driver)[0] << 12, 1)


def test_what_a_description_gives_is_nobody_elses(machine: Machine, driver: Domain, device: PciDevice) -> None:
    owner = machine.caller(2, Capability.HARDWARE)
    owner.pci_functions = frozenset({WHERE})
    machine.iommu.give(WHERE, owner)
    assert machine.iommu.owner(WHERE) is owner
    assert machine.iommu.configures(owner, WHERE)
    assert not machine.iommu.configures(driver, WHERE)
    assert not machine.iommu.configures(owner, 0xF8)
    assert errno(machine.iommu.give, WHERE, driver) == EBUSY


# -- messages ---------------------------------------------------------------------------------------------------------


def test_a_message_becomes_an_event(machine: Machine, driver: Domain, device: PciDevice) -> None:
    machine.pc.pci.write_config(WHERE, device._msix_at + 2, 2, 1 << 15)
    pirq = machine.pirqs.map_msix(driver, WHERE, 5, -1)
    device.interrupt(5)
    port = driver.events.bind_pirq(pirq, False)
    assert take(machine, driver, port)  # it waited for somebody to bind it
    device.interrupt(5)
    assert take(machine, driver, port)
    device.interrupt(4)
    assert not take(machine, driver, port)


def test_software_cannot_write_messages(machine: Machine, driver: Domain, device: PciDevice) -> None:
    pirq = machine.pirqs.map_msix(driver, WHERE, 2, -1)
    assert pirq > 0
    (table,) = (bar.mapped for bar in device.bars)
    assert table is not None
    before = bytes(machine.pc.mmio.read(at, 1) for at in table)
    machine.pc.mmio.write(table.start + 2 * 16, 8, 0xFEE1_0000)
    assert bytes(machine.pc.mmio.read(at, 1) for at in table) == before


def test_several_messages_of_msi_are_pirqs_in_a_row(machine: Machine, driver: Domain, device: PciDevice) -> None:
    first = machine.pirqs.map_msi(driver, WHERE, 3, -1)
    ports = [driver.events.bind_pirq(first + index, False) for index in range(3)]
    device.interrupt(2)
    assert [take(machine, driver, port) for port in ports] == [False, False, True]
    assert machine.pirqs.irq(driver, first) == FIRST_MESSAGE
    assert errno(machine.pirqs.map_msi, driver, WHERE, 1, -1) == EEXIST
    for index in range(3):
        machine.pirqs.unmap(driver, first + index)
    assert device.message_vectors == 0
    assert machine.pirqs.map_msi(driver, WHERE, 4, first - 1) == first - 1


def test_impossible_messages(machine: Machine, driver: Domain, guest: Domain, device: PciDevice) -> None:
    assert errno(machine.pirqs.map_msi, driver, WHERE, 5, -1) == EINVAL
    assert errno(machine.pirqs.map_msi, driver, WHERE, 0, -1) == EINVAL
    assert errno(machine.pirqs.map_msi, driver, WHERE, 1, 3) == EINVAL
    assert errno(machine.pirqs.map_msi, guest, WHERE, 1, -1) == ENODEV
    assert errno(machine.pirqs.map_msix, driver, WHERE, 8, -1) == EINVAL
    assert errno(machine.pirqs.map_msix, driver, 0, 0, -1) == ENODEV
    machine.pirqs.map_msix(driver, WHERE, 7, -1)
    assert errno(machine.pirqs.map_msix, driver, WHERE, 7, -1) == EEXIST
    plain = PciDevice(1, 2, 3)
    machine.pc.pci.add(plain, 9)
    assert errno(machine.pirqs.map_msi, driver, 9 << 3, 1, -1) == ENODEV
    assert errno(machine.pirqs.map_msix, driver, 9 << 3, 0, -1) == ENODEV


def test_a_device_cannot_send_the_messages_of_another(machine: Machine, driver: Domain, device: PciDevice) -> None:
    pirq = machine.pirqs.map_msix(driver, WHERE, 0, -1)
    port = driver.events.bind_pirq(pirq, False)
    data = machine.pirqs.irq(driver, pirq)
    assert data is not None
    for where, address, sent in (
        (9 << 3, MESSAGE_ADDRESS, data),
        (WHERE, 0xFEE01000, data),
        (WHERE, MESSAGE_ADDRESS, 99),
    ):
        machine.iommu.message(where, address, sent)
        assert not take(machine, driver, port)
    assert log(machine).count("not its own") == 3
    machine.iommu.message(WHERE, MESSAGE_ADDRESS, data)
    assert take(machine, driver, port)


def test_messages_are_restored_after_a_reset(machine: Machine, driver: Domain, device: PciDevice) -> None:
    pirq = machine.pirqs.map_msix(driver, WHERE, 1, -1)
    port = driver.events.bind_pirq(pirq, False)
    device.reset()
    machine.pirqs.restore_messages(WHERE)
    machine.pc.pci.write_config(WHERE, COMMAND, 2, 0x6)
    machine.pc.pci.write_config(WHERE, device._msix_at + 2, 2, 1 << 15)
    device.interrupt(1)
    assert take(machine, driver, port)
