"""Model-specific registers: the table, and the rule for those not in it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.hypervisor.conftest import StandIn
from tests.unit.hypervisor.fake_cpu import FakeCpu
from xenolith.hypervisor import msr
from xenolith.hypervisor.domain import Domain
from xenolith.hypervisor.frames import TYPE_L1
from xenolith.hypervisor.hypercall_page import hypercall_page
from xenolith.hypervisor.vcpu import Vcpu

UNKNOWN = 0xC001_0055
TSC_NOW = 0x1_2345_6789
HIGHEST_LOW = 0x0000_7FFF_FFFF_FFFF
LOWEST_BAD = 0x0000_8000_0000_0000
HIGHEST_BAD = 0xFFFF_7FFF_FFFF_FFFF
LOWEST_HIGH = 0xFFFF_8000_0000_0000


@pytest.fixture
def hv() -> Any:
    return SimpleNamespace(tsc=lambda: TSC_NOW)


@pytest.fixture
def vcpu() -> Vcpu:
    return Vcpu(Domain(1, "guest", 16), 0, FakeCpu(), 0)  # type: ignore[arg-type]


def with_handler(vcpu: Vcpu) -> Vcpu:
    vcpu.traps[13].address = 0xFFFF_FFFF_8100_0000
    return vcpu


def test_an_unknown_register_reads_0_until_the_guest_can_take_a_fault(hv: Any, vcpu: Vcpu) -> None:
    assert msr.read(hv, vcpu, UNKNOWN) == 0
    assert msr.read(hv, with_handler(vcpu), UNKNOWN) is None


def test_an_unknown_register_is_never_written(hv: Any, vcpu: Vcpu) -> None:
    assert not msr.write(hv, vcpu, UNKNOWN, 0)
    assert not msr.write(hv, with_handler(vcpu), UNKNOWN, 0)


@pytest.mark.parametrize("number", [0x4000_0000, 0x4000_0001, 0x4000_0200])
def test_no_xen_register_pretends_to_be_readable(hv: Any, vcpu: Vcpu, number: int) -> None:
    assert msr.read(hv, vcpu, number) is None


class TestHypercallPage:
    """The one register of Xen's own."""

    @pytest.fixture
    def hv(self) -> StandIn:
        return StandIn()

    def test_fills_a_frame_of_the_guest(self, hv: Any) -> None:
        domain = hv.create(1)
        mfn = hv.memory_of(domain)[0]
        assert msr.write(hv, domain.vcpus[0], msr.XEN_FIRST, mfn << 12)
        assert bytes(hv.ram.frame(mfn)) == hypercall_page()
        assert hv.frames.count[mfn] == 1

    def test_refuses_other_pages_and_other_peoples_frames(self, hv: Any) -> None:
        domain, other = hv.create(1), hv.create(2)
        mine, theirs = hv.memory_of(domain)[0], hv.memory_of(other)[0]
        vcpu = domain.vcpus[0]
        assert not msr.write(hv, vcpu, msr.XEN_FIRST, mine << 12 | 1)
        for value in (theirs << 12, 0, 1 << 40, (1 << 64) - 4096):
            assert not msr.write(hv, vcpu, msr.XEN_FIRST, value)
        assert not any(hv.ram.frame(theirs))

    def test_refuses_a_page_table(self, hv: Any) -> None:
        domain = hv.create(1)
        mfn = hv.memory_of(domain)[0]
        hv.frames.get_page_and_type(mfn, 1, TYPE_L1)
        assert not msr.write(hv, domain.vcpus[0], msr.XEN_FIRST, mfn << 12)


@pytest.mark.parametrize("number", [msr.FS_BASE, msr.GS_BASE, msr.KERNEL_GS_BASE])
def test_bases_are_read_back_and_must_be_canonical(hv: Any, vcpu: Vcpu, number: int) -> None:
    for value in (0, HIGHEST_LOW, LOWEST_HIGH, (1 << 64) - 1):
        assert msr.write(hv, vcpu, number, value)
        assert msr.read(hv, vcpu, number) == value
    for value in (LOWEST_BAD, HIGHEST_BAD):
        assert not msr.write(hv, vcpu, number, value)
    assert msr.read(hv, vcpu, number) == (1 << 64) - 1


def test_bases_go_where_they_belong(hv: Any, vcpu: Vcpu) -> None:
    msr.write(hv, vcpu, msr.FS_BASE, 1)
    msr.write(hv, vcpu, msr.GS_BASE, 2)
    msr.write(hv, vcpu, msr.KERNEL_GS_BASE, 3)
    assert (vcpu.cpu.fs_base, vcpu.cpu.gs_base, vcpu.other_gs_base) == (1, 2, 3)


def test_efer_takes_only_the_value_that_it_has(hv: Any, vcpu: Vcpu) -> None:
    value = msr.read(hv, vcpu, msr.EFER)
    assert value == 0xD01
    assert msr.write(hv, vcpu, msr.EFER, value)
    assert not msr.write(hv, vcpu, msr.EFER, value | 1 << 12)
    assert not msr.write(hv, vcpu, msr.EFER, value & ~1)


def test_time_stamp_counter_is_read_only(hv: Any, vcpu: Vcpu) -> None:
    assert msr.read(hv, vcpu, msr.TSC) == TSC_NOW
    assert not msr.write(hv, vcpu, msr.TSC, TSC_NOW)


def test_tsc_aux_belongs_to_the_vcpu(hv: Any, vcpu: Vcpu) -> None:
    other = Vcpu(vcpu.domain, 1, FakeCpu(), 0)  # type: ignore[arg-type]
    assert msr.write(hv, vcpu, msr.TSC_AUX, 0xFFFF_FFFF)
    assert not msr.write(hv, vcpu, msr.TSC_AUX, 1 << 32)
    assert msr.read(hv, vcpu, msr.TSC_AUX) == 0xFFFF_FFFF
    assert msr.read(hv, other, msr.TSC_AUX) == 0


def test_only_the_first_vcpu_is_the_bootstrap_processor(hv: Any, vcpu: Vcpu) -> None:
    other = Vcpu(vcpu.domain, 1, FakeCpu(), 0)  # type: ignore[arg-type]
    assert msr.read(hv, vcpu, msr.APIC_BASE) == 0xFEE0_0900
    assert msr.read(hv, other, msr.APIC_BASE) == 0xFEE0_0800


def test_microcode_revision_is_asked_for_as_intel_says(hv: Any, vcpu: Vcpu) -> None:
    assert msr.write(hv, vcpu, msr.MICROCODE_REVISION, 0)
    assert not msr.write(hv, vcpu, msr.MICROCODE_REVISION, 1)
    assert msr.read(hv, vcpu, msr.MICROCODE_REVISION) == 1 << 32


def test_pat_is_xens(hv: Any, vcpu: Vcpu) -> None:
    assert msr.read(hv, vcpu, msr.PAT) == 0x0000_0501_0007_0406


def test_machine_check_banks_are_silent(hv: Any, vcpu: Vcpu) -> None:
    with_handler(vcpu)
    banks = msr.read(hv, vcpu, msr.MCG_CAP)
    assert banks == 2
    for bank in range(banks):
        control, status, address, other = range(msr.MC0_CTL + 4 * bank, msr.MC0_CTL + 4 * bank + 4)
        assert msr.read(hv, vcpu, control) == (1 << 64) - 1
        assert msr.write(hv, vcpu, control, 0)
        for register in (status, address, other):
            assert msr.read(hv, vcpu, register) == 0
            assert msr.write(hv, vcpu, register, 0)
            assert not msr.write(hv, vcpu, register, 1)
    assert msr.read(hv, vcpu, msr.MC0_CTL + 4 * banks) is None
