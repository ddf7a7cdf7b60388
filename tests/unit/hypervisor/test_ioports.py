"""Port I/O: who may, what is arbitrated, and what stands behind it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.hypervisor.conftest import StandIn
from tests.unit.hypervisor.fake_cpu import FakeCpu
from xenolith.abi.vm_assist import VMASST_TYPE_architectural_iopl
from xenolith.hypervisor import ioports
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.vcpu import Vcpu
from xenolith.machine.pc import Pc

PM_TIMER = 0x608
COM1_SCRATCH = 0x3FF
HOST_BRIDGE_IDS = 0x29C0_8086


@pytest.fixture
def machine(hv: StandIn) -> Any:
    clock = SimpleNamespace(virtual=True, now_ns=lambda: 1_000_000, wall_ns=lambda: 1_704_067_200_000_000_000)
    pc = Pc(64 << 20, clock, 1, lambda data: None, lambda: None, lambda: None)
    hv.pc = pc  # type: ignore[attr-defined]
    return hv


def driver(hv: StandIn, domid: int = 0) -> Vcpu:
    """The first vCPU of a domain that drives the machine."""
    vcpu = guest(hv, domid, Capability.HARDWARE)
    vcpu.domain.port_ranges = [(0, 0xFFFF)]
    return vcpu


def guest(hv: StandIn, domid: int = 1, capabilities: Capability = Capability.NONE) -> Vcpu:
    vcpu = hv.create(domid, capabilities=capabilities).vcpus[0]
    vcpu.cpu = FakeCpu()  # type: ignore[assignment]
    return vcpu


# -- permission -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "iopl", "architectural", "allowed"),
    [
        (True, 0, False, False),
        (True, 1, False, True),
        (True, 0, True, True),
        (False, 2, False, False),
        (False, 3, False, True),
        (False, 0, True, False),
    ],
)
def test_io_privilege_level(hv: Any, kernel: bool, iopl: int, architectural: bool, allowed: bool) -> None:
    vcpu = guest(hv)
    vcpu.kernel_mode, vcpu.iopl = kernel, iopl
    vcpu.domain.vm_assist = architectural << VMASST_TYPE_architectural_iopl
    assert ioports.permitted(hv, vcpu, 0x80, 1) is allowed


def test_bitmap_lets_user_mode_use_single_ports(hv: Any) -> None:
    vcpu = guest(hv)
    vcpu.kernel_mode = False
    bitmap = hv.memory_of(vcpu.domain)[0] << 12
    hv.ram.bytes[bitmap : bitmap + 4096] = b"\xff" * 4096
    hv.ram.bytes[bitmap + 0x10] = 0b0111_1111
    hv.ram.bytes[bitmap + 0x11] = 0b1111_1110
    assert not ioports.permitted(hv, vcpu, 0x87, 1)
    vcpu.io_bitmap_vaddr, vcpu.io_bitmap_ports = bitmap, 1024
    assert ioports.permitted(hv, vcpu, 0x87, 1)
    assert ioports.permitted(hv, vcpu, 0x87, 2)
    assert not ioports.permitted(hv, vcpu, 0x87, 4)
    assert not ioports.permitted(hv, vcpu, 0x86, 1)


def test_bitmap_ends_where_the_guest_said(hv: Any) -> None:
    vcpu = guest(hv)
    vcpu.kernel_mode = False
    bitmap = hv.memory_of(vcpu.domain)[0] << 12
    vcpu.io_bitmap_vaddr, vcpu.io_bitmap_ports = bitmap, 0x80
    assert ioports.permitted(hv, vcpu, 0x7E, 1)
    assert not ioports.permitted(hv, vcpu, 0x7F, 1)
    assert not ioports.permitted(hv, vcpu, 0xFFFF, 4)


def test_bitmap_that_cannot_be_read_denies(hv: Any) -> None:
    vcpu = guest(hv)
    vcpu.kernel_mode = False
    vcpu.io_bitmap_vaddr, vcpu.io_bitmap_ports = 1 << 40, 65536
    assert not ioports.permitted(hv, vcpu, 0x80, 1)


# -- domains that drive nothing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [0x20, 0x40, 0x61, 0x71, 0xCF8, 0xCFC, PM_TIMER, COM1_SCRATCH])
def test_ports_that_were_not_given_read_all_ones(machine: Any, port: int) -> None:
    vcpu = guest(machine)
    ioports.write(machine, vcpu, port, 1, 0)
    assert ioports.read(machine, vcpu, port, 1) == 0xFF


def test_wide_reads_are_all_ones_too(machine: Any) -> None:
    vcpu = guest(machine)
    assert ioports.read(machine, vcpu, COM1_SCRATCH, 2) == 0xFFFF
    assert ioports.read(machine, vcpu, 0xFFFF, 4) == 0xFFFF_FFFF


def test_counter_that_stands_still_ends_the_fast_calibration(machine: Any) -> None:
    assert ioports.read(machine, guest(machine), 0x42, 1) == 0


def test_no_configuration_space_without_the_hardware(machine: Any) -> None:
    vcpu = guest(machine)
    ioports.write(machine, vcpu, 0xCF8, 4, 0x8000_0000)
    assert ioports.read(machine, vcpu, 0xCF8, 4) == 0x8000_0000
    assert ioports.read(machine, vcpu, 0xCFC, 4) == 0xFFFF_FFFF


def test_a_bare_machine_has_no_ports(hv: Any) -> None:
    hv.pc = None
    vcpu = driver(hv)
    for port in (0x42, 0x70, 0x71, 0xCFC, COM1_SCRATCH):
        ioports.write(hv, vcpu, port, 1, 1)
    assert ioports.read(hv, vcpu, 0x71, 1) == 0xFF
    assert ioports.read(hv, vcpu, COM1_SCRATCH, 1) == 0xFF


def test_given_ports_reach_the_device_and_their_neighbours_do_not(machine: Any) -> None:
    vcpu = guest(machine)
    vcpu.domain.port_ranges = [(0x3F8, 0x3FF)]
    ioports.write(machine, vcpu, COM1_SCRATCH, 1, 0x5A)
    assert ioports.read(machine, vcpu, COM1_SCRATCH, 1) == 0x5A
    assert ioports.read(machine, vcpu, PM_TIMER, 4) == 0xFFFF_FFFF


def test_an_access_that_leaves_the_given_range_reaches_nothing(machine: Any) -> None:
    vcpu = guest(machine)
    vcpu.domain.port_ranges = [(0x3F8, 0x3FF)]
    assert ioports.read(machine, vcpu, COM1_SCRATCH, 2) == 0xFFFF


# -- the domain that drives the machine -------------------------------------------------------------------------------


def test_driver_reaches_devices(machine: Any) -> None:
    vcpu = driver(machine)
    assert ioports.read(machine, vcpu, PM_TIMER, 4) == machine.pc.acpi_pm.timer()
    ioports.write(machine, vcpu, COM1_SCRATCH, 1, 0x1A5)
    assert ioports.read(machine, vcpu, COM1_SCRATCH, 1) == 0xA5


@pytest.mark.parametrize("port", [0x20, 0x21, 0xA0, 0xA1, 0x40, 0x41])
def test_interrupt_controller_and_timer_channels_stay_xens(machine: Any, port: int) -> None:
    assert ioports.read(machine, driver(machine), port, 1) == 0xFF


def test_timer_channel_2_counts(machine: Any) -> None:
    vcpu = driver(machine)
    ioports.write(machine, vcpu, 0x61, 1, 1)
    ioports.write(machine, vcpu, 0x43, 1, 0xB0)
    ioports.write(machine, vcpu, 0x42, 1, 0xFF)
    ioports.write(machine, vcpu, 0x42, 1, 0xFF)
    assert ioports.read(machine, vcpu, 0x42, 1) == 0xFF
    assert ioports.read(machine, vcpu, 0x61, 1) & 1


def test_each_domain_has_its_own_clock_index(machine: Any) -> None:
    first, second = driver(machine), driver(machine, 2)
    ioports.write(machine, first, 0x70, 1, 0x09)
    ioports.write(machine, second, 0x70, 1, 0x08)
    assert ioports.read(machine, first, 0x70, 1) == 0x09
    assert ioports.read(machine, first, 0x71, 1) == 0x24
    assert ioports.read(machine, second, 0x71, 1) == 0x01


def test_each_domain_has_its_own_configuration_address(machine: Any) -> None:
    first, second = driver(machine), driver(machine, 2)
    ioports.write(machine, first, 0xCF8, 4, 0x8000_0000)
    ioports.write(machine, second, 0xCF8, 4, 0)
    assert ioports.read(machine, first, 0xCFC, 4) == HOST_BRIDGE_IDS
    assert ioports.read(machine, first, 0xCFE, 2) == HOST_BRIDGE_IDS >> 16
    assert ioports.read(machine, first, 0xCFD, 1) == HOST_BRIDGE_IDS >> 8 & 0xFF
    assert ioports.read(machine, second, 0xCFC, 4) == 0xFFFF_FFFF


def test_configuration_writes(machine: Any) -> None:
    vcpu = driver(machine)
    ioports.write(machine, vcpu, 0xCF8, 4, 0x8000_003C)
    ioports.write(machine, vcpu, 0xCFC, 1, 0x0B)
    assert ioports.read(machine, vcpu, 0xCFC, 1) == 0x0B


def test_narrow_writes_do_not_change_the_configuration_address(machine: Any) -> None:
    vcpu = driver(machine)
    ioports.write(machine, vcpu, 0xCF8, 4, 0x8000_0000)
    ioports.write(machine, vcpu, 0xCF8, 1, 0x40)
    ioports.write(machine, vcpu, 0xCF8, 2, 0x40)
    assert ioports.read(machine, vcpu, 0xCF8, 4) == 0x8000_0000
