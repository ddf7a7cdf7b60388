"""What is known of a guest that could not go on, whatever state it was in."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.support import KERNEL_BASE, Bench, Guest
from xenolith.abi.sched import SHUTDOWN_crash
from xenolith.cpu.registers import RIP, RSP
from xenolith.hypervisor.crash import describe
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.vcpu import INFO_CR2


@pytest.fixture
def guest() -> Guest:
    return Bench().guest()


def test_registers_code_stack_and_the_last_calls(guest: Guest) -> None:
    guest.execute(b"\x0f\x0b\x90", r3=0x33)
    guest.cpu.regs[RSP] = guest.va(2, 4096 - 16)
    guest.put(guest.va(2, 4096 - 16), [11, 22])
    guest.put(guest.va(3), [33])
    guest.hv.ram.words[(guest.vcpu.info_maddr + INFO_CR2) >> 3] = 0xBAD
    guest.vcpu.last_hypercalls.append(29, (2, 0x5000, 7, 7))
    guest.vcpu.last_hypercalls.append(1 << 40, (0, 0, 0, 0))
    guest.hv.last_refusal = "a rule"
    report = describe(guest.hv, guest.vcpu, "because")
    assert (report.vcpu, report.domain, report.reason) == ("d0v0", "guest", "because")
    assert report.kernel_mode
    assert report.registers["rbx"] == 0x33
    assert report.registers["rip"] == KERNEL_BASE + 0x1000
    assert {"rflags", "cs", "ss", "ds", "es", "fs", "gs", "fs_base", "gs_base"} <= set(report.registers)
    assert report.code[:3] == b"\x0f\x0b\x90"
    assert report.stack[:3] == [11, 22, 33]
    assert len(report.stack) == 32
    assert report.cr2 == 0xBAD
    assert report.hypercalls == ["sched_op(0x2, 0x5000)", f"hypercall {1 << 40}"]
    assert report.last_refusal == "a rule"


@pytest.mark.parametrize("address", [0, 0x8000_0000_0000_0000, 0xFFFF_8000_0000_0000, (1 << 64) - 1])
def test_what_cannot_be_read_is_left_out(guest: Guest, address: int) -> None:
    guest.cpu.regs[RIP] = guest.cpu.regs[RSP] = address
    report = describe(guest.hv, guest.vcpu, "x")
    assert (report.code, report.stack) == (b"", [])


def test_a_stack_that_ends_is_shown_to_its_end(guest: Guest) -> None:
    last = guest.va(len(guest.data) + len(guest.tables) - 1)
    guest.cpu.regs[RSP] = last + 4096 - 24
    assert len(describe(guest.hv, guest.vcpu, "x").stack) == 3


def test_a_vcpu_that_was_never_started(guest: Guest) -> None:
    fresh = guest.hv.domain().vcpus[0]
    assert describe(guest.hv, fresh, "x").stack == []


def test_a_crash_stops_one_domain_with_its_first_report(guest: Guest) -> None:
    hv = guest.hv
    other = hv.guest()
    hv.crash(guest.vcpu, "first")
    hv.crash(guest.vcpu, "second")
    assert guest.domain.shutdown_code == SHUTDOWN_crash
    assert guest.domain.crash_report is not None
    assert guest.domain.crash_report.reason == guest.domain.crash_reason == "first"
    assert [data["reason"] for kind, data in hv.events if kind == "crash"] == ["first"]
    assert other.vcpu.runnable
    assert hv.power_action is None


def test_a_crash_of_who_has_the_hardware_ends_the_machine() -> None:
    hv = Bench()
    driver = hv.guest(capabilities=Capability.HARDWARE)
    hv.crash(driver.vcpu, "x")
    assert hv.power_action == "crash"
