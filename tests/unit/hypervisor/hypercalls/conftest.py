"""A hypervisor without an engine whose machine is a PC, and callers of every kind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.unit.hypervisor.conftest import StandIn
from tests.unit.hypervisor.fake_cpu import FakeCpu
from tests.unit.hypervisor.support import Bench, Guest
from xenolith.abi.errno import XenError
from xenolith.abi.types import Struct
from xenolith.hypervisor.cpuid import CpuidPolicy
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.hypercalls import load_all
from xenolith.hypervisor.hypercalls.table import HANDLERS
from xenolith.hypervisor.pirqs import Pirqs
from xenolith.hypervisor.release import DEFAULT_RELEASE, RELEASES
from xenolith.machine.pc import Pc


class Processor:
    name = "unicorn"
    xcr0_mask = 0
    processors = 1

    def comes_first(self, cpu: object) -> bool:
        return False

    def host_cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        return (0, 0, 0, 0)


class Machine(StandIn):
    """What these hypercalls use of the hypervisor; `printed`, `clock_set` and `powered` are what came of it."""

    def __init__(self) -> None:
        super().__init__()
        load_all()
        self.engine = Processor()
        self.release = RELEASES[DEFAULT_RELEASE]
        self.command_line = "dom0_mem=64M"
        clock = SimpleNamespace(virtual=True, now_ns=lambda: 1_000_000, wall_ns=lambda: 1_704_067_200_000_000_000)
        self.pc = Pc(64 << 20, clock, 1, lambda data: None, lambda: None, lambda: None)
        self.pirqs = Pirqs(self)  # type: ignore[arg-type]
        self.pc.pci.iommu = self.iommu
        self.printed: list[tuple[int, bytes]] = []
        self.typed = b""
        self.clock_set: list[tuple[int, int, int]] = []
        self.powered: list[str] = []

    def console_write(self, domain: Domain, data: bytes) -> None:
        self.printed.append((domain.domid, data))

    def console_read(self, limit: int) -> bytes:
        data, self.typed = self.typed[:limit], self.typed[limit:]
        return data

    def set_wall_clock(self, seconds: int, nanoseconds: int, system_time_ns: int) -> None:
        self.clock_set.append((seconds, nanoseconds, system_time_ns))

    def power(self, action: str) -> None:
        self.powered.append(action)

    def cpuid_for(self, domain: Domain) -> CpuidPolicy:
        return CpuidPolicy(self.engine, domain)  # type: ignore[arg-type]

    # -- what only tests use ------------------------------------------------------------------------------------------

    def caller(self, domid: int = 1, capabilities: Capability = Capability.NONE) -> Domain:
        domain = self.create(domid, capabilities=capabilities)
        domain.vcpus[0].cpu = FakeCpu()  # type: ignore[assignment]
        return domain

    def buffer(self, domain: Domain) -> int:
        """The address of the domain's second frame, which is its own to write."""
        return self.memory_of(domain)[1] << 12

    def raw(self, domain: Domain, number: int, *arguments: int) -> int:
        """The hypercall with register arguments: its result, or the negative errno."""
        try:
            return HANDLERS[number](self, domain.vcpus[0], *arguments) or 0
        except XenError as error:
            return -error.errno

    def operation(self, domain: Domain, number: int, command: int, argument: Struct) -> int:
        """A sub-operation with its argument, which is updated: its result, or the negative errno."""
        try:
            return self.call(domain, number, command, argument)
        except XenError as error:
            return -error.errno


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def guest(machine: Machine) -> Domain:
    return machine.caller(1)


@pytest.fixture
def hv() -> Bench:
    """A hypervisor whose page tables are real."""
    return Bench(1024)


@pytest.fixture
def builder(hv: Bench) -> Guest:
    """A guest on it that makes others."""
    return hv.guest(16, capabilities=Capability.CREATE)


@pytest.fixture
def driver(machine: Machine) -> Domain:
    """A domain that drives the machine."""
    return machine.caller(0, Capability.ALL)
