"""Event channels: who may bind what, what a send does to the two-level bitmaps, and what closing leaves behind."""

from __future__ import annotations

import pytest

from xenolith.abi.errno import (
    EACCES,
    EEXIST,
    EFAULT,
    EINVAL,
    ENOENT,
    ENOSPC,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    ESRCH,
    XenError,
)
from xenolith.abi.event_channel import (
    NR_VIRQS,
    VIRQ_CON_RING,
    VIRQ_DEBUG,
    VIRQ_DOM_EXC,
    VIRQ_ENOMEM,
    VIRQ_TIMER,
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EvtchnBindIpi,
    EvtchnBindPirq,
    EvtchnBindVcpu,
    EvtchnBindVirq,
    EvtchnClose,
    EvtchnExpandArray,
    EvtchnOp,
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_pirq,
    EVTCHNOP_bind_vcpu,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_expand_array,
    EVTCHNOP_reset,
    EVTCHNOP_send,
    EVTCHNOP_set_priority,
    EVTCHNOP_status,
    EVTCHNOP_unmask,
    EvtchnReset,
    EvtchnSend,
    EvtchnSetPriority,
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_pirq,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
    EvtchnStatus,
    EvtchnUnmask,
)
from xenolith.abi.hypercalls import HYPERVISOR_event_channel_op, HYPERVISOR_event_channel_op_compat
from xenolith.abi.shared_info import SharedInfo
from xenolith.abi.types import DOMID_SELF, Struct
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.events import raise_global_virq, set_global_virq_handler
from xenolith.hypervisor.hypercalls.table import HANDLERS

from .conftest import StandIn


def op(hv: StandIn, caller: Domain, command: int, argument: Struct) -> int:
    return hv.call(caller, HYPERVISOR_event_channel_op, command, argument)


def refused(hv: StandIn, caller: Domain, command: int, argument: Struct) -> int:
    with pytest.raises(XenError) as caught:
        op(hv, caller, command, argument)
    return caught.value.errno


def shared_info(hv: StandIn, domain: Domain) -> SharedInfo:
    return SharedInfo.from_buffer(hv.ram.bytes, domain.shared_info_mfn << 12)


def status(hv: StandIn, caller: Domain, port: int, domid: int = DOMID_SELF) -> EvtchnStatus:
    argument = EvtchnStatus(dom=domid, port=port)
    op(hv, caller, EVTCHNOP_status, argument)
    return argument


def connect(hv: StandIn, one: Domain, other: Domain) -> tuple[int, int]:
    """The two ports of a channel, with nothing pending."""
    port = one.events.alloc_unbound(other.domid)
    peer = other.events.bind_interdomain(one, port)
    clear(hv, other)
    return port, peer


def clear(hv: StandIn, domain: Domain) -> None:
    info = shared_info(hv, domain)
    for word in range(64):
        info.evtchn_pending[word] = 0
    for vcpu in domain.vcpus:
        info.vcpu_info[vcpu.vcpu_id].evtchn_upcall_pending = 0
        info.vcpu_info[vcpu.vcpu_id].evtchn_pending_sel = 0
    hv.woken.clear()


# -- the two-level scheme ---------------------------------------------------------------------------------------------


def test_send_sets_all_three_levels_and_wakes_once(hv: StandIn) -> None:
    one, other = hv.create(1), hv.create(2, vcpus=2)
    for _ in range(70):
        port, peer = connect(hv, one, other)
    other.events.bind_vcpu(peer, 1)
    op(hv, one, EVTCHNOP_send, EvtchnSend(port=port))
    info = shared_info(hv, other)
    assert info.evtchn_pending[peer // 64] == 1 << peer % 64
    assert info.vcpu_info[1].evtchn_pending_sel == 1 << peer // 64
    assert info.vcpu_info[1].evtchn_upcall_pending == 1
    assert info.vcpu_info[0].evtchn_upcall_pending == 0
    assert hv.woken == [other.vcpus[1]]
    op(hv, one, EVTCHNOP_send, EvtchnSend(port=port))
    assert len(hv.woken) == 1
    assert not shared_info(hv, one).vcpu_info[0].evtchn_upcall_pending


def test_masked_port_is_pending_but_interrupts_only_when_unmasked(hv: StandIn) -> None:
    one, other = hv.create(1), hv.create(2)
    port, peer = connect(hv, one, other)
    info = shared_info(hv, other)
    info.evtchn_mask[0] = 1 << peer
    one.events.send(port)
    assert other.events.is_pending(peer)
    assert other.events.is_masked(peer)
    assert (info.vcpu_info[0].evtchn_pending_sel, hv.woken) == (0, [])
    op(hv, other, EVTCHNOP_unmask, EvtchnUnmask(port=peer))
    assert not other.events.is_masked(peer)
    assert info.vcpu_info[0].evtchn_pending_sel == 1
    assert hv.woken == [other.vcpus[0]]


def test_unmasking_what_is_not_masked_or_not_pending_does_nothing(hv: StandIn) -> None:
    one, other = hv.create(1), hv.create(2)
    _, peer = connect(hv, one, other)
    other.events.unmask(peer)
    shared_info(hv, other).evtchn_mask[0] = 1 << peer
    other.events.unmask(peer)
    assert hv.woken == []


@pytest.mark.parametrize(("ports", "woken"), [((), True), ((5, 1), True), ((7,), False)])
def test_a_masked_event_wakes_a_vcpu_that_polls_it(hv: StandIn, ports: tuple[int, ...], woken: bool) -> None:
    one, other = hv.create(1), hv.create(2)
    port, peer = connect(hv, one, other)
    assert peer == 1
    shared_info(hv, other).evtchn_mask[0] = 1 << peer
    other.vcpus[0].polling, other.vcpus[0].poll_ports = True, ports
    one.events.send(port)
    assert bool(hv.woken) is woken


def test_mark_all_pending_leaves_no_port_unseen(hv: StandIn) -> None:
    domain = hv.create(1)
    vcpu = domain.vcpus[0]
    vcpu.info_maddr = (hv.memory_of(domain)[0] << 12) + 128
    domain.events.mark_all_pending(vcpu)
    assert hv.ram.words[(vcpu.info_maddr + 8) >> 3] == (1 << 64) - 1
    assert hv.ram.bytes[vcpu.info_maddr] == 1
    assert hv.woken == [vcpu]


# -- binding ----------------------------------------------------------------------------------------------------------


def test_interdomain_life(hv: StandIn) -> None:
    one, other = hv.create(1), hv.create(2)
    argument = EvtchnAllocUnbound(dom=DOMID_SELF, remote_dom=2)
    op(hv, one, EVTCHNOP_alloc_unbound, argument)
    found = status(hv, one, argument.port)
    assert (found.status, found.u.unbound.dom) == (EVTCHNSTAT_unbound, 2)
    one.events.send(argument.port)
    bind = EvtchnBindInterdomain(remote_dom=1, remote_port=argument.port)
    op(hv, other, EVTCHNOP_bind_interdomain, bind)
    assert other.events.is_pending(bind.local_port), "an event sent too early must not be lost"
    found = status(hv, one, argument.port)
    assert (found.status, found.u.interdomain.dom, found.u.interdomain.port) == (
        EVTCHNSTAT_interdomain,
        2,
        bind.local_port,
    )
    op(hv, one, EVTCHNOP_close, EvtchnClose(port=argument.port))
    assert status(hv, one, argument.port).status == EVTCHNSTAT_closed
    found = status(hv, other, bind.local_port)
    assert (found.status, found.u.unbound.dom) == (EVTCHNSTAT_unbound, 1)
    assert refused(hv, one, EVTCHNOP_close, EvtchnClose(port=argument.port)) == EINVAL


def test_a_port_is_bound_only_by_the_domain_that_it_waits_for(hv: StandIn) -> None:
    one, other, third = hv.create(1), hv.create(2), hv.create(3)
    port = one.events.alloc_unbound(2)
    for remote_dom, remote_port, caller, errno in (
        (1, port, third, EINVAL),
        (1, port + 1, other, EINVAL),
        (1, 0, other, EINVAL),
        (1, 0xFFFFFFFF, other, EINVAL),
        (9, port, other, ESRCH),
    ):
        bind = EvtchnBindInterdomain(remote_dom=remote_dom, remote_port=remote_port)
        assert refused(hv, caller, EVTCHNOP_bind_interdomain, bind) == errno
    other.events.bind_interdomain(one, port)
    assert (
        refused(hv, other, EVTCHNOP_bind_interdomain, EvtchnBindInterdomain(remote_dom=1, remote_port=port)) == EINVAL
    )
    assert list(third.events) == []


def test_a_channel_to_oneself(hv: StandIn) -> None:
    domain = hv.create(1)
    argument = EvtchnAllocUnbound(dom=DOMID_SELF, remote_dom=DOMID_SELF)
    op(hv, domain, EVTCHNOP_alloc_unbound, argument)
    bind = EvtchnBindInterdomain(remote_dom=DOMID_SELF, remote_port=argument.port)
    op(hv, domain, EVTCHNOP_bind_interdomain, bind)
    clear(hv, domain)
    domain.events.send(bind.local_port)
    assert domain.events.is_pending(argument.port)
    domain.events.close(argument.port)
    assert status(hv, domain, bind.local_port).u.unbound.dom == 1


def test_only_control_may_allocate_for_another(hv: StandIn) -> None:
    control, plain, target = hv.create(1, capabilities=Capability.CONTROL), hv.create(2), hv.create(3)
    argument = EvtchnAllocUnbound(dom=3, remote_dom=2)
    assert refused(hv, plain, EVTCHNOP_alloc_unbound, argument) == EPERM
    op(hv, control, EVTCHNOP_alloc_unbound, argument)
    assert plain.events.bind_interdomain(target, argument.port)
    assert refused(hv, control, EVTCHNOP_alloc_unbound, EvtchnAllocUnbound(dom=7, remote_dom=2)) == ESRCH


def test_status_of_others_needs_control(hv: StandIn) -> None:
    control, plain = hv.create(1, capabilities=Capability.CONTROL), hv.create(2)
    port = plain.events.bind_ipi(0)
    assert status(hv, control, port, domid=2).status == EVTCHNSTAT_ipi
    assert refused(hv, plain, EVTCHNOP_status, EvtchnStatus(dom=1, port=1)) == EPERM
    assert status(hv, plain, 63).status == EVTCHNSTAT_closed
    assert refused(hv, plain, EVTCHNOP_status, EvtchnStatus(dom=DOMID_SELF, port=64)) == EINVAL


@pytest.mark.parametrize(
    ("virq", "vcpu", "errno"),
    [
        (NR_VIRQS, 0, EINVAL),
        (0xFFFFFFFF, 0, EINVAL),
        (VIRQ_ENOMEM, 1, EINVAL),
        (VIRQ_TIMER, 2, ENOENT),
        (VIRQ_TIMER, 1, EEXIST),
        (VIRQ_CON_RING, 0, EPERM),
        (VIRQ_DOM_EXC, 0, EPERM),
    ],
)
def test_virqs_that_are_refused(hv: StandIn, virq: int, vcpu: int, errno: int) -> None:
    domain = hv.create(1, vcpus=2)
    domain.events.bind_virq(VIRQ_TIMER, 1)
    assert refused(hv, domain, EVTCHNOP_bind_virq, EvtchnBindVirq(virq=virq, vcpu=vcpu)) == errno


def test_a_vcpu_has_its_own_virqs(hv: StandIn) -> None:
    domain = hv.create(1, vcpus=2)
    ports = []
    for vcpu in (0, 1):
        argument = EvtchnBindVirq(virq=VIRQ_TIMER, vcpu=vcpu)
        op(hv, domain, EVTCHNOP_bind_virq, argument)
        ports.append(argument.port)
    domain.events.notify_virq(domain.vcpus[1], VIRQ_TIMER)
    domain.events.notify_virq(domain.vcpus[1], VIRQ_DEBUG)
    assert [domain.events.is_pending(port) for port in ports] == [False, True]
    assert [domain.events.virq_pending(vcpu, VIRQ_TIMER) for vcpu in domain.vcpus] == [False, True]
    found = status(hv, domain, ports[1])
    assert (found.status, found.vcpu, found.u.virq) == (EVTCHNSTAT_virq, 1, VIRQ_TIMER)
    domain.events.close(ports[1])
    assert domain.events.bind_virq(VIRQ_TIMER, 1)
    assert not domain.events.virq_pending(domain.vcpus[1], VIRQ_TIMER)


def test_a_global_virq_goes_to_its_handler_or_to_all_who_may_have_it(hv: StandIn) -> None:
    store = hv.create(1, capabilities=Capability.STORE)
    control = hv.create(2, capabilities=Capability.CONTROL)
    plain = hv.create(3)
    for domain in (store, control):
        domain.events.bind_virq(VIRQ_DOM_EXC, 0)
    raise_global_virq(hv, VIRQ_DOM_EXC)
    assert hv.woken == [store.vcpus[0], control.vcpus[0]]
    assert store.events.virq_pending(store.vcpus[0], VIRQ_DOM_EXC)
    for domain in (store, control):
        clear(hv, domain)
    set_global_virq_handler(hv, plain, VIRQ_DOM_EXC)
    plain.events.bind_virq(VIRQ_DOM_EXC, 0)
    raise_global_virq(hv, VIRQ_DOM_EXC)
    assert hv.woken == [plain.vcpus[0]]
    with pytest.raises(XenError):
        set_global_virq_handler(hv, plain, VIRQ_TIMER)


def test_binding_an_unprivileged_global_virq_brings_nothing(hv: StandIn) -> None:
    domain = hv.create(1)
    domain.events.bind_virq(VIRQ_ENOMEM, 0)
    raise_global_virq(hv, VIRQ_ENOMEM)
    assert not domain.events.virq_pending(domain.vcpus[0], VIRQ_ENOMEM)


def test_ipi(hv: StandIn) -> None:
    domain = hv.create(1, vcpus=2)
    argument = EvtchnBindIpi(vcpu=1)
    op(hv, domain, EVTCHNOP_bind_ipi, argument)
    op(hv, domain, EVTCHNOP_send, EvtchnSend(port=argument.port))
    assert hv.woken == [domain.vcpus[1]]
    assert refused(hv, domain, EVTCHNOP_bind_ipi, EvtchnBindIpi(vcpu=2)) == ENOENT


def test_pirqs_are_the_interrupt_controllers_to_give(hv: StandIn) -> None:
    domain = hv.create(1)
    assert refused(hv, domain, EVTCHNOP_bind_pirq, EvtchnBindPirq(pirq=9)) == EPERM
    calls: list[tuple[int, bool]] = []
    unbound: list[int] = []
    domain.events.bind_irq = lambda pirq, share: calls.append((pirq, share))
    domain.events.unbind_irq = unbound.append
    argument = EvtchnBindPirq(pirq=9, flags=1)
    op(hv, domain, EVTCHNOP_bind_pirq, argument)
    assert calls == [(9, True)]
    assert refused(hv, domain, EVTCHNOP_bind_pirq, EvtchnBindPirq(pirq=9)) == EEXIST
    assert domain.events.port_of_pirq(9) == argument.port
    domain.events.raise_pirq(9)
    domain.events.raise_pirq(10)
    assert domain.events.is_pending(argument.port)
    found = status(hv, domain, argument.port)
    assert (found.status, found.u.pirq) == (EVTCHNSTAT_pirq, 9)
    assert refused(hv, domain, EVTCHNOP_send, EvtchnSend(port=argument.port)) == EINVAL
    domain.events.close(argument.port)
    assert unbound == [9]
    assert domain.events.port_of_pirq(9) == 0


def test_which_ports_may_move_to_another_vcpu(hv: StandIn) -> None:
    domain, other = hv.create(1, vcpus=2, capabilities=Capability.ALL), hv.create(2)
    events = domain.events
    movable = [events.bind_virq(VIRQ_CON_RING, 0), events.alloc_unbound(2), connect(hv, domain, other)[0]]
    fixed = [events.bind_virq(VIRQ_TIMER, 0), events.bind_ipi(0), 0, 60, 4000]
    for port in movable:
        op(hv, domain, EVTCHNOP_bind_vcpu, EvtchnBindVcpu(port=port, vcpu=1))
        assert status(hv, domain, port).vcpu == 1
        assert refused(hv, domain, EVTCHNOP_bind_vcpu, EvtchnBindVcpu(port=port, vcpu=2)) == ENOENT
    for port in fixed:
        assert refused(hv, domain, EVTCHNOP_bind_vcpu, EvtchnBindVcpu(port=port, vcpu=1)) == EINVAL


# -- ends and limits --------------------------------------------------------------------------------------------------


def test_bad_ports_and_pointers(hv: StandIn) -> None:
    domain = hv.create(1)
    for port in (0, 1, 64, 4096, 0xFFFFFFFF):
        assert refused(hv, domain, EVTCHNOP_send, EvtchnSend(port=port)) == EINVAL
        assert refused(hv, domain, EVTCHNOP_close, EvtchnClose(port=port)) == EINVAL
    assert refused(hv, domain, EVTCHNOP_unmask, EvtchnUnmask(port=64)) == EINVAL
    with pytest.raises(XenError) as caught:
        hv.call(domain, HYPERVISOR_event_channel_op, EVTCHNOP_send, at=1 << 40)
    assert caught.value.errno == EFAULT
    with pytest.raises(XenError) as caught:
        hv.call(domain, HYPERVISOR_event_channel_op, 99)
    assert caught.value.errno == ENOSYS
    assert hv.unimplemented[HYPERVISOR_event_channel_op, 99] == 1


def test_the_older_form_of_the_call(hv: StandIn) -> None:
    domain = hv.create(1)
    argument = EvtchnOp(cmd=EVTCHNOP_bind_ipi)
    vaddr = hv.scratch[1] << 12
    hv.memory.write(domain.vcpus[0], vaddr, argument.to_bytes())
    handler = HANDLERS[HYPERVISOR_event_channel_op_compat]
    assert handler(hv, domain.vcpus[0], vaddr) == 0
    assert EvtchnOp.from_bytes(hv.memory.read(domain.vcpus[0], vaddr, argument.sizeof())).u.bind_ipi.port == 1
    hv.memory.write(domain.vcpus[0], vaddr, EvtchnOp(cmd=EVTCHNOP_reset).to_bytes())
    with pytest.raises(XenError) as caught:
        handler(hv, domain.vcpus[0], vaddr)
    assert caught.value.errno == ENOSYS


def test_ports_run_out_and_the_lowest_is_used_again(hv: StandIn) -> None:
    domain = hv.create(1)
    ports = [domain.events.alloc_unbound(2) for _ in range(4095)]
    assert ports == list(range(1, 4096))
    with pytest.raises(XenError) as caught:
        domain.events.alloc_unbound(2)
    assert caught.value.errno == ENOSPC
    assert domain.events.is_valid(4095)
    assert not domain.events.is_valid(4096)
    domain.events.close(17)
    domain.events.close(5)
    assert [domain.events.alloc_unbound(2), domain.events.alloc_unbound(2)] == [5, 17]


def test_the_domains_own_limit(hv: StandIn) -> None:
    domain = hv.create(1)
    domain.events.max_port = 2
    assert [domain.events.bind_ipi(0), domain.events.bind_ipi(0)] == [1, 2]
    with pytest.raises(XenError) as caught:
        domain.events.bind_ipi(0)
    assert caught.value.errno == ENOSPC


def test_a_closed_port_is_not_pending_when_bound_again(hv: StandIn) -> None:
    domain = hv.create(1)
    port = domain.events.bind_ipi(0)
    domain.events.send(port)
    domain.events.close(port)
    assert domain.events.bind_ipi(0) == port
    assert not domain.events.is_pending(port)


def test_reset_closes_all_of_oneself_or_of_a_paused_target(hv: StandIn) -> None:
    control, target = hv.create(1, capabilities=Capability.CONTROL), hv.create(2)
    port, _ = connect(hv, target, control)
    assert refused(hv, target, EVTCHNOP_reset, EvtchnReset(dom=1)) == EPERM
    assert refused(hv, control, EVTCHNOP_reset, EvtchnReset(dom=2)) == EINVAL
    target.pause_count = 1
    op(hv, control, EVTCHNOP_reset, EvtchnReset(dom=2))
    assert list(target.events) == []
    assert [channel.state for channel in control.events] == [EVTCHNSTAT_unbound]
    assert target.events.alloc_unbound(1) == port


def test_a_dying_domain_leaves_its_peers_unbound_and_gets_no_ports(hv: StandIn) -> None:
    one, other = hv.create(1), hv.create(2)
    port, peer = connect(hv, one, other)
    one.is_dying = True
    one.events.destroy(1 << 20)
    other.events.send(peer)
    assert other.events.status(peer).state == EVTCHNSTAT_unbound
    assert port == 1
    with pytest.raises(XenError) as caught:
        one.events.alloc_unbound(2)
    assert caught.value.errno == EINVAL


def test_fifo_operations_without_fifo(hv: StandIn) -> None:
    domain = hv.create(1)
    port = domain.events.bind_ipi(0)
    assert refused(hv, domain, EVTCHNOP_expand_array, EvtchnExpandArray(array_gfn=1)) == EOPNOTSUPP
    assert refused(hv, domain, EVTCHNOP_set_priority, EvtchnSetPriority(port=port, priority=1)) == ENOSYS
    assert refused(hv, domain, EVTCHNOP_set_priority, EvtchnSetPriority(port=2, priority=1)) == EACCES
    assert refused(hv, domain, EVTCHNOP_set_priority, EvtchnSetPriority(port=99, priority=1)) == EINVAL
