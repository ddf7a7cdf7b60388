"""The driven guest itself: steps, exceptions and destruction."""

from __future__ import annotations

import pytest

from tests.guest.pvguest import GuestCrashed, PvGuest, TestMachine
from xenolith.abi.hypercalls import HYPERVISOR_sched_op, HYPERVISOR_xen_version
from xenolith.abi.sched import SCHEDOP_shutdown, SchedShutdown

PAGE_FAULT = 14


def test_hypercall_and_call(guest: PvGuest) -> None:
    assert guest.hypercall(HYPERVISOR_xen_version, 0, 0) == 4 << 16 | 17
    assert guest.call("nothing").rax == 42


def test_fault_is_recorded_with_address_and_error_code(guest: PvGuest) -> None:
    outcome = guest.call("poke", 0x1234, 1)
    assert (outcome.vector, outcome.error, outcome.cr2) == (PAGE_FAULT, 2, 0x1234)
    assert outcome.rip == guest.symbols["poke"]
    assert guest.call("nothing").rax == 42


def test_shutdown_stops_only_the_guest(guest: PvGuest, bystander: PvGuest) -> None:
    guest.operation(HYPERVISOR_sched_op, SCHEDOP_shutdown, SchedShutdown(reason=0))
    assert guest.domain.shutdown_code == 0


def test_crash_has_a_report(guest: PvGuest, bystander: PvGuest) -> None:
    guest.hypercall(0, 0)  # no trap table
    with pytest.raises(GuestCrashed) as crash:
        guest.call("poke", 0x1234, 1)
    assert "unhandled #PF (error code 0x2) in kernel mode at address 0x1234" in crash.value.report.reason


def test_destroying_gives_everything_back(machine: TestMachine, guest: PvGuest) -> None:
    frames = machine.hv.frames
    other = machine.start("other")
    free = frames.free_frames
    other.destroy()
    assert frames.free_frames > free
    machine.check()
    machine.run(lambda: other.domid not in machine.hv.domains)  # when the services have let go of its rings
