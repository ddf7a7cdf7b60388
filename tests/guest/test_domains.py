"""Domains that a guest makes and ends by hypercalls: they run as any other, and leave nothing behind."""

from __future__ import annotations

import gc
from collections import Counter

import pytest

from tests.guest.conftest import Starter
from tests.guest.control import POWER_OFF, SPIN, Builder
from tests.guest.pvguest import PvGuest, TestMachine
from xenolith.abi import domctl as abi
from xenolith.abi.errno import EINVAL, EPERM, ESRCH
from xenolith.abi.event_channel import VIRQ_DOM_EXC, EvtchnBindVirq, EVTCHNOP_bind_virq
from xenolith.abi.hypercalls import HYPERVISOR_event_channel_op
from xenolith.abi.sched import SHUTDOWN_reboot
from xenolith.cpu.unicorn import UnicornCpu
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.events import EventChannels
from xenolith.hypervisor.grants import GrantTable
from xenolith.hypervisor.vcpu import Vcpu

MANY = 1000


@pytest.fixture
def builder(start: Starter) -> Builder:
    """A guest that may make domains, and nothing else."""
    return Builder(start("builder", Capability.CREATE))


def until_it_stops(machine: TestMachine, domid: int) -> int:
    domain = machine.hv.domains[domid]
    machine.run(lambda: domain.shutdown_code is not None)
    assert domain.shutdown_code is not None
    return domain.shutdown_code


def test_a_domain_is_made_runs_and_is_gone(machine: TestMachine, builder: Builder, bystander: PvGuest) -> None:
    free = machine.hv.frames.free_frames
    domid = builder.build(POWER_OFF, SHUTDOWN_reboot)
    machine.check()
    machine.run_for(0.02)
    assert builder.info(domid).flags & abi.XEN_DOMINF_paused
    assert builder.info(domid).cpu_time == 0
    assert builder.domctl(abi.XEN_DOMCTL_unpausedomain, domid)[0] == 0
    assert until_it_stops(machine, domid) == SHUTDOWN_reboot
    info = builder.info(domid)
    assert info.flags & abi.XEN_DOMINF_shutdown
    assert info.flags >> abi.XEN_DOMINF_shutdownshift == SHUTDOWN_reboot
    assert info.cpu_time > 0
    assert builder.destroy(domid) == 0
    assert builder.destroy(domid) == -ESRCH
    assert machine.hv.frames.free_frames == free


def test_a_paused_domain_does_not_run(machine: TestMachine, builder: Builder) -> None:
    domid = builder.build(SPIN)
    builder.domctl(abi.XEN_DOMCTL_unpausedomain, domid)
    machine.run_for(0.02)
    assert builder.domctl(abi.XEN_DOMCTL_pausedomain, domid)[0] == 0
    had = builder.info(domid).cpu_time
    assert had > 0
    machine.run_for(0.02)
    assert builder.info(domid).cpu_time == had
    registers = builder.guest.hv.domains[domid].vcpus[0].cpu.regs
    assert registers[16] >> 12 == 0xFFFF_FFFF_8000_0, "it spins in its code"


def test_ends_are_announced(machine: TestMachine, builder: Builder) -> None:
    argument = EvtchnBindVirq(virq=VIRQ_DOM_EXC, vcpu=0)
    assert builder.guest.operation(HYPERVISOR_event_channel_op, EVTCHNOP_bind_virq, argument) == 0
    channels = builder.guest.domain.events

    def announced() -> bool:
        pending = channels.is_pending(argument.port)
        channels.signalling.clear_pending(channels.status(argument.port))
        return pending

    domid = builder.build(POWER_OFF)
    assert not announced()
    builder.domctl(abi.XEN_DOMCTL_unpausedomain, domid)
    until_it_stops(machine, domid)
    assert announced()
    builder.destroy(domid)
    assert announced()


def test_a_frame_that_is_still_mapped_keeps_the_domain_listed(machine: TestMachine, builder: Builder) -> None:
    domid = builder.create()
    (mfn,) = builder.populate(domid, 1)
    builder.map(domid, [mfn])
    assert builder.destroy(domid) == 0
    machine.check()
    assert builder.info(domid).domain == domid
    assert builder.info(domid).flags & abi.XEN_DOMINF_dying
    builder.unmap()
    assert builder.destroy(domid) == -ESRCH


def test_without_capabilities_nothing_is_to_be_had(start: Starter, builder: Builder, bystander: PvGuest) -> None:
    other = Builder(start("other"))
    domid = builder.create()
    assert other.create() == -EPERM
    commands = (abi.XEN_DOMCTL_destroydomain, abi.XEN_DOMCTL_unpausedomain, abi.XEN_DOMCTL_getdomaininfo)
    for target in (domid, bystander.domid, other.guest.domid):
        for command in commands:
            assert other.domctl(command, target)[0] == -EPERM
    assert builder.destroy(bystander.domid) == -EPERM
    (mfn,) = builder.populate(domid, 1)
    page = other.guest.page(0)
    assert other.guest.mmu_update((other.guest.pte_maddr(page), mfn << 12 | 3), domid=domid)[0] == -EPERM
    assert other.guest.hv.policy.refusals[other.guest.domid, "XEN_DOMCTL_destroydomain"] == 3


def test_control_over_one_domain(start: Starter, builder: Builder, bystander: PvGuest) -> None:
    domid = builder.build(SPIN)
    controller = Builder(start("controller", Capability.CONTROL))
    controller.guest.domain.targets = frozenset((domid,))
    assert controller.domctl(abi.XEN_DOMCTL_pausedomain, domid)[0] == 0
    assert controller.domctl(abi.XEN_DOMCTL_pausedomain, bystander.domid)[0] == -EPERM
    assert controller.domctl(abi.XEN_DOMCTL_max_mem, controller.guest.domid, max_mem__max_memkb=1 << 40)[0] == -EPERM
    assert controller.create() == -EPERM
    assert controller.destroy(domid) == 0


def test_tables_that_break_a_rule_start_nothing(builder: Builder) -> None:
    domid = builder.create()
    mfns = builder.populate(domid, 2)
    (page, _) = builder.map(domid, mfns)
    builder.guest.write_words(page, builder.guest.mfn(builder.guest.page(0)) << 12 | 0x67)
    builder.unmap()
    assert builder.guest.pin(4, mfns[0], domid) == -EINVAL
    assert builder.start(domid, mfns[0]) == -EINVAL


def test_a_thousand_domains_leave_nothing(machine: TestMachine, builder: Builder) -> None:
    _one_life(machine, builder)
    before = _belongings(machine)
    for _ in range(MANY):
        _one_life(machine, builder)
    assert _belongings(machine) == before
    machine.check()


def _one_life(machine: TestMachine, builder: Builder) -> None:
    domid = builder.build(POWER_OFF)
    assert builder.domctl(abi.XEN_DOMCTL_unpausedomain, domid)[0] == 0
    until_it_stops(machine, domid)
    assert builder.destroy(domid) == 0
    assert domid not in machine.hv.domains


def _belongings(machine: TestMachine) -> dict[str, object]:
    """Everything of which an ended domain could leave something."""
    hv = machine.hv
    hv.traps.current = next(vcpu for vcpu in hv.all_vcpus() if vcpu.native is None)
    gc.collect()
    kinds = (Domain, Vcpu, EventChannels, GrantTable, UnicornCpu)
    alive = Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in kinds)
    return {
        "domains": sorted(hv.domains),
        "free frames": hv.frames.free_frames,
        "ports": sum(len(list(domain.events)) for domain in hv.domains.values()),
        "mappings": sum(len(domain.grants._mappings) for domain in hv.domains.values()),
        "active grants": sum(len(domain.grants.active_grants()) for domain in hv.domains.values()),
        "cpuid": sorted(hv._cpuid),
        "policy": {domid for domid, _ in (*hv.policy.uses, *hv.policy.refusals)},
        "next timer": (hv.timekeeping.next_deadline() or 0) > 0,
        "objects": dict(alive),
    }
