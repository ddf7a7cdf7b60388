"""vCPUs that run at the same time: that they do, and that none of them gains anything by it.

Where vCPUs usually take turns because they have many exits, the attacks here run beside each other all the same.
"""

from __future__ import annotations

import struct

import pytest

from tests.guest.control import SPIN, Builder
from tests.guest.pvguest import NX, PAGE, PRESENT, RW, GuestCrashed, PvGuest, TestMachine
from tests.processors import HAS_TWO, one_each
from xenolith.abi.domctl import XEN_DOMCTL_destroydomain, XEN_DOMCTL_pausedomain, XEN_DOMCTL_unpausedomain
from xenolith.abi.hypercalls import (
    HYPERVISOR_memory_op,
    HYPERVISOR_mmu_update,
    HYPERVISOR_mmuext_op,
    HYPERVISOR_multicall,
    HYPERVISOR_update_va_mapping,
)
from xenolith.abi.memory import XENMEM_decrease_reservation, XENMEM_populate_physmap, XenMemoryReservation
from xenolith.abi.mmu import MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE
from xenolith.abi.types import DOMID_SELF
from xenolith.hypervisor import scheduler
from xenolith.hypervisor.domain import Capability

PAGE_FAULT, PRESENT_AND_WRITE = 14, 3
FRAME = 0x000F_FFFF_FFFF_F000
ROUNDS = 300_000
"""Of an empty loop, before a hypercall: a tenth of a millisecond, in which the other vCPU comes to run."""
ENTRIES = 2 * PAGE
"""Where in the page of arguments those of a multicall are."""


@pytest.fixture(autouse=True)
def several_processors(machine: TestMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least two, even where the host has but one."""
    if machine.hv.engine.processors == 1 and machine.hv.engine.name != "kvm":
        pytest.skip("this engine has one processor")
    monkeypatch.setattr(machine.hv.engine, "processors", max(machine.hv.engine.processors, 2))


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can run does, how many exits it may have."""
    monkeypatch.setattr(scheduler, "_CALM_NS", 0)
    monkeypatch.setattr(scheduler, "_SHORTEST_WHILE_NS", 0)


def both_get_on(machine: TestMachine, words: list[tuple[PvGuest, int]], turns: int = 500) -> bool:
    """Whether there is a turn in which all of these words of guests grow, and no vCPU leaves the guest."""
    vcpus = [vcpu for guest, _ in words for vcpu in guest.domain.vcpus]
    for _ in range(turns):
        exits, before = [vcpu.cpu.exits for vcpu in vcpus], [guest.word(vaddr) for guest, vaddr in words]
        machine.hv.step()
        grown = all(guest.word(vaddr) > old for (guest, vaddr), old in zip(words, before, strict=True))
        if grown and [vcpu.cpu.exits for vcpu in vcpus] == exits:
            return True
    return False


def test_two_vcpus_of_a_guest(machine: TestMachine, running: PvGuest) -> None:
    for vcpu in (0, 1):
        running.begin("spin", running.page(vcpu), vcpu=vcpu)
    assert both_get_on(machine, [(running, running.page(vcpu)) for vcpu in (0, 1)])


def test_vcpus_of_two_guests(machine: TestMachine) -> None:
    guests = [machine.start(name) for name in ("one", "other")]
    for guest in guests:
        guest.begin("spin", guest.page(0))
    assert both_get_on(machine, [(guest, guest.page(0)) for guest in guests])


def test_vcpus_that_may_only_run_on_the_same_processor_take_turns(machine: TestMachine, running: PvGuest) -> None:
    words = [(running, running.page(vcpu)) for vcpu in (0, 1)]
    for vcpu in (0, 1):
        running.domain.vcpus[vcpu].hard_affinity = 0b10
        running.begin("spin", running.page(vcpu), vcpu=vcpu)
    assert not both_get_on(machine, words, turns=30)
    assert all(running.word(vaddr) for _, vaddr in words)
    running.domain.vcpus[0].hard_affinity = 0b11
    assert both_get_on(machine, words)


@pytest.mark.skipif(not HAS_TWO, reason="this host has one processor")
def test_they_answer_each_other_without_an_exit(machine: TestMachine, running: PvGuest) -> None:
    """In turns of 10 ms each they would do so ten times."""
    for vcpu in (0, 1):
        running.begin("take_turns", running.page(0), vcpu, vcpu=vcpu)
    machine.run_for(0.05)
    before = running.word(running.page(0))
    with one_each(*(vcpu.cpu for vcpu in running.domain.vcpus)):
        machine.run_for(0.1)
    assert running.word(running.page(0)) - before > 1000


def test_who_leaves_the_guest_often_takes_turns(machine: TestMachine, running: PvGuest) -> None:
    running.begin("spin", running.page(0), vcpu=1)
    machine.run_for(0.05)
    for _ in range(50):
        assert running.call("nothing").rax == 42
        assert len(machine.hv.scheduler.beside(running.domain.vcpus[1])) == 0


# -- what one vCPU still has in its processor when another changes it -------------------------------------------------


def calls(guest: PvGuest, *entries: tuple[int, ...]) -> tuple[int, int]:
    """Put the entries of a multicall where they are read; arguments for it."""
    data = b"".join(struct.pack("<8Q", call[0], 0, *call[1:], *[0] * (7 - len(call))) for call in entries)
    return guest.arguments(data, ENTRIES), len(entries)


def results(guest: PvGuest, count: int) -> list[int]:
    start = guest.symbols["arguments"] + ENTRIES
    return [struct.unpack("<q", guest.read(start + 64 * at + 8, 8))[0] for at in range(count)]


def beside(guest: PvGuest, victim: int, *entries: tuple[int, ...]) -> list[int]:
    """The results of a multicall that vCPU 0 makes while vCPU 1 writes to `victim` all the time."""
    guest.begin("count_by_two", victim, vcpu=1)
    guest.machine.run(lambda: guest.domain.vcpus[1].runnable)
    vaddr, count = calls(guest, *entries)
    assert guest.call("call_later", ROUNDS, HYPERVISOR_multicall, vaddr, count).rax == 0
    return results(guest, count)


def pin_request(guest: PvGuest, mfn: int) -> int:
    """The address of an mmuext_op that pins an L1 table."""
    return guest.arguments(struct.pack("<QQQ", MMUEXT_PIN_L1_TABLE, mfn, 0), PAGE)


@pytest.mark.usefixtures("together")
def test_a_page_that_becomes_a_table_is_written_to_no_more(running: PvGuest, bystander: PvGuest) -> None:
    """The hole that there must not be: validated, and then changed through a translation from before."""
    page = running.page(3)
    mfn, grew = running.mfn(page), 0
    for _ in range(30):
        before = running.word(page)
        operation = pin_request(running, mfn)
        assert beside(
            running,
            page,
            (HYPERVISOR_update_va_mapping, page, mfn << 12 | PRESENT | NX, 0),
            (HYPERVISOR_mmuext_op, operation, 1, 0, DOMID_SELF),
        ) == [0, 0]
        after = running.word(page)
        assert running.finish(vcpu=1).fault == (PAGE_FAULT, PRESENT_AND_WRITE)
        assert running.word(page) == after
        grew += after > before
        running.machine.check()
        assert running.mmuext(MMUEXT_UNPIN_TABLE, mfn) == 0
        assert running.map(page, mfn << 12 | PRESENT | RW | NX) == 0
    assert grew, "the second vCPU never wrote there meanwhile"


@pytest.mark.usefixtures("together")
def test_a_frame_that_was_given_back_is_written_to_no_more(running: PvGuest, bystander: PvGuest) -> None:
    page, frames = running.page(3), running.page(4)
    for _ in range(30):
        mfn = running.mfn(page)
        running.write_words(frames, mfn)
        reservation = XenMemoryReservation(extent_start=frames, nr_extents=1, domid=DOMID_SELF)
        argument = running.arguments(reservation.to_bytes(), PAGE)
        assert beside(
            running,
            page,
            (HYPERVISOR_update_va_mapping, page, 0, 0),
            (HYPERVISOR_memory_op, XENMEM_decrease_reservation, argument),
            (HYPERVISOR_memory_op, XENMEM_populate_physmap, argument),
        ) == [0, 1, 1]
        new = running.word(frames)
        vector, error = running.finish(vcpu=1).fault
        assert (vector, error & PRESENT) == (PAGE_FAULT, 0)
        assert running.hv.ram.frame(new) == bytes(PAGE)
        running.machine.check()
        assert running.map(page, new << 12 | PRESENT | RW | NX) == 0


@pytest.mark.usefixtures("together")
def test_arguments_that_change_meanwhile(running: PvGuest, bystander: PvGuest) -> None:
    """Every request is either the one or the other of the two that stand there by turns."""
    page = running.page(3)
    good = running.mfn(page) << 12 | PRESENT | RW | NX
    bad = running.domain.vcpus[0].kernel_root | PRESENT | RW | NX
    request = running.arguments(struct.pack("<2Q", running.pte_maddr(page), good), PAGE)
    running.begin("scribble", request + 8, good, bad, vcpu=1)
    found = set()
    for _ in range(200):
        found.add(running.call("call_later", ROUNDS // 10, HYPERVISOR_mmu_update, request, 1, 0, DOMID_SELF).signed)
        assert running.pte(page) & FRAME == good & FRAME
        running.machine.check()
    assert found <= {0, -22}
    assert len(found) == 2, "the second vCPU changed nothing meanwhile"


@pytest.mark.usefixtures("together")
def test_a_crash_of_one_ends_both(running: PvGuest, bystander: PvGuest) -> None:
    running.begin("spin", running.page(0), vcpu=1)
    with pytest.raises(GuestCrashed):
        running.call("fault_with_stack", 64)
    value = running.word(running.page(0))
    running.machine.run_for(0.02)
    assert running.word(running.page(0)) == value


# -- what a control domain does to one that runs ----------------------------------------------------------------------


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("command", [XEN_DOMCTL_pausedomain, XEN_DOMCTL_destroydomain])
def test_a_domain_is_stopped_while_it_runs(machine: TestMachine, command: int, bystander: PvGuest) -> None:
    builder = Builder(machine.start("builder", Capability.CREATE))
    for _ in range(10):
        domid = builder.build(SPIN)
        assert builder.domctl(XEN_DOMCTL_unpausedomain, domid)[0] == 0
        victim = machine.hv.domains[domid]
        machine.run_for(0.005)
        result, _ = builder.domctl(command, domid)
        assert result == 0
        assert not victim.vcpus[0].runnable
        if command == XEN_DOMCTL_pausedomain:
            assert builder.destroy(domid) == 0
        assert domid not in machine.hv.domains
        machine.check()
