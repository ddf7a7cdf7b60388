"""Domains that a description gives a part of the hardware have that part, and nothing else of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from xenolith.abi.errno import EPERM, XenError
from xenolith.abi.x86_64 import PAGE_PRESENT, PAGE_RW, PAGE_USER
from xenolith.errors import UserError
from xenolith.hypervisor import ioports
from xenolith.hypervisor.domain import Domain
from xenolith.machine.pci import BarKind, PciFunction
from xenolith.toolstack.config import DomainConfig, MachineConfig
from xenolith.toolstack.machine import Machine
from xenolith.toolstack.rights import rights

SCRATCH = 0x3FF
PM_TIMER = 0x608
CARD = 0x8000_1800
"""The configuration address of slot 3."""
CARD_PORTS = range(0xC000, 0xC020)
CARD_MEMORY = range(0xE000_0000, 0xE000_2000)
NONE = 0xFFFF_FFFF


class Registers:
    def read_bar(self, bar: int, offset: int, size: int) -> int:
        return 0x5A

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        pass


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A PC with a card in slot 3, and the services that every machine has."""
    everything = rights(["hardware", "store", "create", "console"]).capabilities
    services = DomainConfig("all", memory=4 << 20, capabilities=everything, services=("store", "console", "builder"))
    machine = Machine(MachineConfig(memory=64 << 20, domains=[services]))
    assert machine.pc is not None
    card = PciFunction(0x1234, 0x5678, 0x020000)
    card.add_bar(0, len(CARD_PORTS), BarKind.IO, Registers())
    card.add_bar(1, len(CARD_MEMORY), BarKind.MEMORY32, Registers())
    machine.pc.pci.add(card, 3)
    for offset, value in ((0x10, CARD_PORTS.start), (0x14, CARD_MEMORY.start), (0x04, 3)):
        machine.pc.pci.write_config(3 << 3, offset, 4, value)
    machine.power_on({})
    yield machine
    machine.close()


def driver(machine: Machine, hardware: Any) -> Domain:
    given = rights({"hardware": hardware})
    config = DomainConfig("driver", memory=4 << 20, capabilities=given.capabilities, services=("block",))
    object.__setattr__(config, "hardware", given.hardware)
    return machine.start_service(config)


def configuration(machine: Machine, domain: Domain, address: int) -> int:
    ioports.write(machine.hv, domain.vcpus[0], 0xCF8, 4, address)
    return ioports.read(machine.hv, domain.vcpus[0], 0xCFC, 4)


def port(machine: Machine, domain: Domain, number: int, size: int = 1) -> int:
    return ioports.read(machine.hv, domain.vcpus[0], number, size)


def map_device(machine: Machine, domain: Domain, maddr: int) -> None:
    entry = maddr | PAGE_PRESENT | PAGE_RW | PAGE_USER | 1 << 63
    machine.hv.pagetables.get_l1e(entry, domain, domain)


def test_all_of_it(machine: Machine) -> None:
    domain = driver(machine, True)
    assert configuration(machine, domain, CARD) == 0x5678_1234
    assert port(machine, domain, PM_TIMER, 4) != NONE
    assert port(machine, domain, CARD_PORTS.start) == 0x5A
    map_device(machine, domain, CARD_MEMORY.start)


def test_only_ports(machine: Machine) -> None:
    domain = driver(machine, {"ports": ["0x3f8-0x3ff"]})
    ioports.write(machine.hv, domain.vcpus[0], SCRATCH, 1, 0x77)
    assert port(machine, domain, SCRATCH) == 0x77
    assert port(machine, domain, PM_TIMER, 4) == NONE
    assert port(machine, domain, CARD_PORTS.start) == 0xFF
    assert port(machine, domain, 0x42) == 0
    assert configuration(machine, domain, CARD) == NONE
    with pytest.raises(XenError) as refused:
        map_device(machine, domain, CARD_MEMORY.start)
    assert refused.value.errno == EPERM


def test_only_memory(machine: Machine) -> None:
    domain = driver(machine, {"memory": ["0xe0001000-0xe0001fff"]})
    map_device(machine, domain, CARD_MEMORY.start + 0x1000)
    with pytest.raises(XenError):
        map_device(machine, domain, CARD_MEMORY.start)
    assert port(machine, domain, SCRATCH) == 0xFF


def test_a_device_comes_with_what_it_decodes(machine: Machine) -> None:
    domain = driver(machine, {"devices": ["00:03.0"]})
    assert configuration(machine, domain, CARD) == 0x5678_1234
    assert configuration(machine, domain, 0x8000_0000) == NONE
    assert port(machine, domain, CARD_PORTS.stop - 1) == 0x5A
    assert port(machine, domain, SCRATCH) == 0xFF
    map_device(machine, domain, CARD_MEMORY.start + 0x1000)
    standing = machine.hv.policy.standing(domain)
    assert standing.port_ranges == ((CARD_PORTS.start, CARD_PORTS.stop - 1),)
    assert standing.iomem_ranges == ((CARD_MEMORY.start >> 12, CARD_MEMORY.stop - 1 >> 12),)


@pytest.mark.parametrize(
    ("hardware", "reason"),
    [
        ({"devices": ["00:09.0"]}, "no PCI function 09.0"),
        ({"memory": ["0x100000-0x1fffff"]}, "not memory of devices"),
        ({"memory": ["0xdffff000-0xfffffffff"]}, "not memory of devices"),
    ],
)
def test_what_the_machine_does_not_have(machine: Machine, hardware: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        driver(machine, hardware)
