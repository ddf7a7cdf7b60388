"""Physical interrupts: from a pin of the I/O APIC to an event channel, and back by the end of interrupt."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.hypercalls.conftest import Machine
from xenolith.abi.errno import EBUSY, EEXIST, EINVAL, ENOSPC, EPERM, XenError
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.pirqs import NR_PIRQS, Pirqs

SERIAL, DISK, OTHER = 4, 16, 17


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def driver(machine: Machine) -> Domain:
    return machine.caller(0, Capability.ALL)


def errno(machine: Machine, act: str, *arguments: object, **options: bool) -> int:
    with pytest.raises(XenError) as caught:
        getattr(machine.pirqs, act)(*arguments, **options)
    return caught.value.errno


def level(machine: Machine, domain: Domain, gsi: int = DISK, share: bool = True) -> int:
    """A port of the domain, bound to a level-triggered `gsi`."""
    if not machine.pirqs._lines[gsi].bound:
        machine.pirqs.setup_gsi(gsi, level=True, active_low=True)
    machine.pirqs.map_gsi(domain, gsi, gsi)
    return domain.events.bind_pirq(gsi, share)


def take(machine: Machine, domain: Domain, port: int) -> bool:
    """Whether `port` was pending; it is not afterwards."""
    at = (domain.shared_info_mfn << 12) + 2048 + (port >> 3)
    pending = bool(machine.ram.bytes[at] >> (port & 7) & 1)
    machine.ram.bytes[at] &= ~(1 << (port & 7)) & 0xFF
    return pending


def test_an_edge_becomes_an_event(machine: Machine, driver: Domain) -> None:
    machine.pirqs.setup_gsi(SERIAL, level=False, active_low=False)
    assert machine.pirqs.map_gsi(driver, SERIAL, SERIAL) == SERIAL
    port = driver.events.bind_pirq(SERIAL, False)
    for _ in range(2):
        machine.pc.ioapic.raise_pin(SERIAL)
        machine.pc.ioapic.lower_pin(SERIAL)
        assert take(machine, driver, port)


def test_a_level_comes_again_after_its_end(machine: Machine, driver: Domain) -> None:
    port = level(machine, driver)
    machine.pc.ioapic.raise_pin(DISK)
    assert take(machine, driver, port)
    assert not take(machine, driver, port)
    machine.pirqs.eoi(driver, DISK)
    assert take(machine, driver, port)
    machine.pc.ioapic.lower_pin(DISK)
    machine.pirqs.eoi(driver, DISK)
    assert not take(machine, driver, port)


def test_a_shared_level_waits_for_all(machine: Machine, driver: Domain) -> None:
    second = machine.caller(2, Capability.HARDWARE)
    first_port, second_port = level(machine, driver), level(machine, second)
    machine.pc.ioapic.raise_pin(DISK)
    assert take(machine, driver, first_port)
    assert take(machine, second, second_port)
    machine.pirqs.eoi(driver, DISK)
    machine.pirqs.eoi(driver, DISK)
    assert not take(machine, driver, first_port)
    machine.pirqs.eoi(second, DISK)
    assert take(machine, driver, first_port)
    assert machine.pirqs.is_shared(driver, DISK)


def test_a_domain_that_goes_ends_its_interrupt(machine: Machine, driver: Domain) -> None:
    second = machine.caller(2, Capability.HARDWARE)
    port, other = level(machine, driver), level(machine, second)
    machine.pc.ioapic.raise_pin(DISK)
    take(machine, driver, port)
    machine.pirqs.eoi(driver, DISK)
    second.events.close(other)
    assert take(machine, driver, port)
    assert not machine.pirqs.is_shared(driver, DISK)


def test_an_unbound_line_is_masked_and_remembers(machine: Machine, driver: Domain) -> None:
    port = level(machine, driver)
    driver.events.close(port)
    machine.pc.ioapic.raise_pin(DISK)
    assert not take(machine, driver, port)
    port = driver.events.bind_pirq(DISK, True)
    machine.pirqs.eoi(driver, DISK)  # as Linux does after binding
    assert take(machine, driver, port)


def test_sharing_needs_both_sides(machine: Machine, driver: Domain) -> None:
    second = machine.caller(2, Capability.HARDWARE)
    level(machine, driver, share=False)
    machine.pirqs.map_gsi(second, DISK, DISK)
    assert errno(machine, "bind", second, DISK, True) == EBUSY
    level(machine, driver, OTHER)
    machine.pirqs.map_gsi(second, OTHER, OTHER)
    assert errno(machine, "bind", second, OTHER, False) == EBUSY


def test_only_mapped_numbers_are_bound(machine: Machine, driver: Domain) -> None:
    guest = machine.caller(2)
    with pytest.raises(XenError) as caught:
        guest.events.bind_pirq(DISK, True)
    assert caught.value.errno == EPERM
    number = machine.pirqs.reserve(driver, for_messages=False)
    assert errno(machine, "bind", driver, DISK, True) == EINVAL
    assert errno(machine, "bind", driver, number, True) == EINVAL


def test_mapping(machine: Machine, driver: Domain) -> None:
    pirqs = machine.pirqs
    assert pirqs.map_gsi(driver, DISK, -1) == DISK
    assert pirqs.map_gsi(driver, DISK, -1) == DISK
    assert pirqs.map_gsi(driver, DISK, DISK) == DISK
    assert errno(machine, "map_gsi", driver, DISK, OTHER) == EEXIST
    assert errno(machine, "map_gsi", driver, OTHER, DISK) == EINVAL
    assert errno(machine, "map_gsi", driver, OTHER, NR_PIRQS) == EINVAL
    for gsi in (-1, 24, 1 << 30):
        assert errno(machine, "map_gsi", driver, gsi, -1) == EINVAL


def test_unmapping(machine: Machine, driver: Domain) -> None:
    level(machine, driver)
    machine.pirqs.unmap(driver, DISK)
    assert not machine.pirqs.is_bound(driver, DISK)
    assert errno(machine, "unmap", driver, DISK) == EINVAL
    assert errno(machine, "eoi", driver, DISK) == EINVAL


def test_a_line_in_use_is_not_set_up_again(machine: Machine, driver: Domain) -> None:
    level(machine, driver)
    assert errno(machine, "setup_gsi", DISK, level=False, active_low=False) == EEXIST
    assert errno(machine, "setup_gsi", 24, level=False, active_low=False) == EINVAL
    machine.pirqs.write_entry(driver, DISK, 0)
    assert machine.pc.ioapic.entry(DISK) >> 15 & 1


def test_reserved_numbers_run_out(machine: Machine, driver: Domain) -> None:
    numbers = [machine.pirqs.reserve(driver, for_messages=True) for _ in range(NR_PIRQS - 24)]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) == 24
    assert errno(machine, "reserve", driver, for_messages=True) == ENOSPC
    assert machine.pirqs.reserve(driver, for_messages=False) == 16


def test_flags_say_what_needs_an_end(machine: Machine, driver: Domain) -> None:
    driver.pirq_eoi_mfn = machine.memory_of(driver)[0]
    flags = machine.ram.frame(driver.pirq_eoi_mfn)
    port = level(machine, driver)
    assert flags[DISK >> 3] >> (DISK & 7) & 1
    machine.pirqs.setup_gsi(SERIAL, level=False, active_low=False)
    machine.pirqs.map_gsi(driver, SERIAL, SERIAL)
    driver.events.bind_pirq(SERIAL, False)
    assert not flags[SERIAL >> 3] >> (SERIAL & 7) & 1
    driver.events.close(port)
    assert not flags[DISK >> 3] >> (DISK & 7) & 1


def test_a_machine_without_an_io_apic(machine: Machine, driver: Domain) -> None:
    machine.pc = None  # type: ignore[assignment]
    pirqs = Pirqs(machine)  # type: ignore[arg-type]
    with pytest.raises(XenError):
        pirqs.setup_gsi(DISK, level=True, active_low=True)
