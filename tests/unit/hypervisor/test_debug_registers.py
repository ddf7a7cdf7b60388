"""What a guest may put into its debug registers."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.fake_cpu import FakeCpu
from xenolith.abi.errno import ENODEV, EPERM, XenError
from xenolith.hypervisor import debug_registers
from xenolith.hypervisor.domain import Domain
from xenolith.hypervisor.vcpu import Vcpu


@pytest.fixture
def vcpu() -> Vcpu:
    return Vcpu(Domain(1, "guest", 16), 0, FakeCpu(), 0)  # type: ignore[arg-type]


def refused(vcpu: Vcpu, number: int, value: int) -> int:
    with pytest.raises(XenError) as caught:
        debug_registers.put(vcpu, number, value)
    return caught.value.errno


def test_addresses_are_kept_and_reach_the_processor(vcpu: Vcpu) -> None:
    for number, address in enumerate((0, 0x7FFF_FFFF_FFFF, 0xFFFF_8800_0000_0000, (1 << 64) - 1)):
        debug_registers.put(vcpu, number, address)
        assert debug_registers.get(vcpu, number) == address
        assert vcpu.cpu.debug_register(number) == address


@pytest.mark.parametrize("address", [0x8000_0000_0000, 0xFFFF_8000_0000_0000, 0xFFFF_87FF_FFFF_FFFF])
def test_no_breakpoint_in_the_hypervisor(vcpu: Vcpu, address: int) -> None:
    assert refused(vcpu, 0, address) == EPERM


def test_status_has_its_fixed_bits(vcpu: Vcpu) -> None:
    debug_registers.put(vcpu, 6, 0x1000)
    assert debug_registers.get(vcpu, 6) == 0xFFFF_0FF0
    debug_registers.put(vcpu, 6, 0x4001)
    assert debug_registers.get(vcpu, 6) == 0xFFFF_4FF1
    assert refused(vcpu, 6, 1 << 32) == EPERM


def test_control_has_its_fixed_bits(vcpu: Vcpu) -> None:
    debug_registers.put(vcpu, 7, 0xD800)
    assert debug_registers.get(vcpu, 7) == 0x400
    assert refused(vcpu, 7, 1 << 32) == EPERM


def test_general_detect_is_the_hypervisors(vcpu: Vcpu) -> None:
    assert refused(vcpu, 7, 1 << 13) == EPERM


def test_io_breakpoints_need_debugging_extensions(vcpu: Vcpu) -> None:
    io_breakpoint = 2 << 16 | 1
    assert refused(vcpu, 7, io_breakpoint) == EPERM
    vcpu.cr4 = debug_registers.CR4_DE
    debug_registers.put(vcpu, 7, io_breakpoint)


def test_an_execution_breakpoint_has_one_byte(vcpu: Vcpu) -> None:
    assert refused(vcpu, 7, 3 << 18 | 1) == EPERM
    debug_registers.put(vcpu, 7, 3 << 18)  # not enabled, so it does not matter


def test_registers_4_and_5_are_6_and_7_without_debugging_extensions(vcpu: Vcpu) -> None:
    debug_registers.put(vcpu, 5, 0x401)
    assert debug_registers.get(vcpu, 7) == debug_registers.get(vcpu, 5) == 0x401
    vcpu.cr4 = debug_registers.CR4_DE
    assert refused(vcpu, 5, 0x401) == ENODEV
    with pytest.raises(XenError) as caught:
        debug_registers.get(vcpu, 4)
    assert caught.value.errno == ENODEV


@pytest.mark.parametrize("number", [8, 0xFFFF_FFFF])
def test_no_other_register(vcpu: Vcpu, number: int) -> None:
    assert refused(vcpu, number, 0) == ENODEV
