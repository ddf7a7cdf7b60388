"""event_channel_op: a guest's access to its event channels (public header event_channel.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EINVAL, ENOSYS, XenError
from xenolith.abi.event_channel import (
    BIND_PIRQ__WILL_SHARE,
    EVTCHN_FIFO_LINK_BITS,
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EvtchnBindIpi,
    EvtchnBindPirq,
    EvtchnBindVcpu,
    EvtchnBindVirq,
    EvtchnClose,
    EvtchnExpandArray,
    EvtchnInitControl,
    EvtchnOp,
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_pirq,
    EVTCHNOP_bind_vcpu,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_expand_array,
    EVTCHNOP_init_control,
    EVTCHNOP_reset,
    EVTCHNOP_send,
    EVTCHNOP_set_priority,
    EVTCHNOP_status,
    EVTCHNOP_unmask,
    EvtchnReset,
    EvtchnSend,
    EvtchnSetPriority,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_pirq,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
    EvtchnStatus,
    EvtchnUnmask,
)
from xenolith.abi.hypercalls import HYPERVISOR_event_channel_op, HYPERVISOR_event_channel_op_compat
from xenolith.abi.types import DOMID_SELF
from xenolith.hypervisor.hypercalls.table import hypercall, operation, run_operation

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

_COMPAT_ARGUMENT: Final = EvtchnOp.u.offset


@hypercall(HYPERVISOR_event_channel_op)
def event_channel_op(hv: Hypervisor, caller: Vcpu, command: int, vaddr: int) -> int:
    return run_operation(hv, caller, HYPERVISOR_event_channel_op, command & 0xFFFFFFFF, vaddr)


@hypercall(HYPERVISOR_event_channel_op_compat)
def event_channel_op_compat(hv: Hypervisor, caller: Vcpu, vaddr: int) -> int:
    """The older form: one structure holds the command and its argument. Raises XenError(ENOSYS) for newer commands."""
    command = int.from_bytes(hv.memory.read(caller, vaddr, 4), "little")
    if command > EVTCHNOP_unmask:
        raise XenError(ENOSYS, f"command {command} has no such form")
    return run_operation(hv, caller, HYPERVISOR_event_channel_op, command, vaddr + _COMPAT_ARGUMENT)


@operation(HYPERVISOR_event_channel_op, EVTCHNOP_alloc_unbound, copy_back=True)
def alloc_unbound(hv: Hypervisor, caller: Vcpu, arg: EvtchnAllocUnbound) -> None:
    domain = hv.domain_by_id(caller, arg.dom)
    hv.policy.require_target(caller.domain, domain, "allocate an event channel")
    remote = caller.domain.domid if arg.remote_dom == DOMID_SELF else arg.remote_dom
    arg.port = domain.events.alloc_unbound(remote)


@operation(HYPERVISOR_event_channel_op, EVTCHNOP_bind_interdomain, copy_back=True)
def bind_interdomain(hv: Hypervisor, caller: Vcpu, arg: EvtchnBindInterdomain) -> None:
    remote = hv.domain_by_id(caller, arg.remote_dom)
    arg.local_port = caller.domain.events.bind_interdomain(remote, arg.remote_port)


@operation(HYPERVISOR_event_channel_op, EVTCHNOP_bind_virq, copy_back=True)
def bind_virq(hv: Hypervisor, caller: Vcpu, arg: EvtchnBindVirq) -> None:
    arg.port = caller.domain.events.bind_virq(arg.virq, arg.vcpu)


@operation(HYPERVISOR_event_channel_op, EVTCHNOP_bind_pirq, copy_back=True)
def bind_pirq(hv: Hypervisor, caller: Vcpu, arg: EvtchnBindPirq) -> None:
    arg.port = caller.domain.events.bind_pirq(arg.pirq, bool(arg.flags & BIND_PIRQ__WILL_SHARE))


@operation(HYPERVISOR_event_channel_op, EVTCHNOP_bind_ipi, copy_back=True)
def bind_ipi(hv: Hypervisor, caller: Vcpu, arg: EvtchnBindIpi) -> None:
    arg.port = caller.domain.events.bind_ipi(arg.vcpu)


@operation(HYPERVISOR_event_channel_op, EVTCHNOP_bind_vcpu)
def bind_vcpu(hv: Hypervisor, caller: Vcpu, arg: EvtchnBindVcpu) -> None:
    caller.domain.events.bind_vcpu(arg.port, arg.vcpu)


@operation(HYPERVISOR_event_channel_op, EVTCHNOP_close)
def close(hv: Hypervisor, caller: Vcpu, arg: EvtchnClose) -> None:
    caller.domain.events.close(arg.port)


@operation(HYPERVISOR_event_channel_op, EVTCHNOP_send)
def send(hv: Hypervisor, caller: Vcpu, arg: EvtchnSend) -> None:
    caller.domain.events.send(arg.port)


@operation(HYPERVISOR_event_channel_op, EVTCHNOP_unmask)
def unmask(hv: Hypervisor, caller: Vcpu, arg: EvtchnUnmask) -> None:
    caller.domain.events.unmask(arg.port)


@operation(HYPERVISOR_event_channel_op, EVTCHNOP_status, copy_back=True)
def status(hv: Hypervisor, caller: Vcpu, arg: EvtchnStatus) -> None:
    domain = hv.domain_by_id(caller, arg.dom)
    hv.policy.require_target(caller.domain, domain, "see the state of an event channel")
    channel = domain.events.status(arg.port)
    arg.status = channel.state
    arg.vcpu = channel.vcpu_id
    if channel.state == EVTCHNSTAT_unbound:
        arg.u.unbound.dom = channel.remote_domid
    elif channel.state == EVTCHNSTAT_interdomain:
        assert channel.peer is not None
        arg.u.interdomain.dom = channel.peer.events.domain.domid
        arg.u.interdomain.port = channel.peer.port
    elif channel.state == EVTCHNSTAT_pirq:
        arg.u.pirq = channel.number
    elif channel.state == EVTCHNSTAT_virq:
        arg.u.virq = channel.number


@operation(HYPERVISOR_event_channel_op, EVTCHNOP_reset)
def reset(hv: Hypervisor, caller: Vcpu, arg: EvtchnReset) -> None:
    domain = hv.domain_by_id(caller, arg.dom)
    hv.policy.require_target(caller.domain, domain, "reset event channels")
    if domain is not caller.domain and not domain.pause_count:
        raise XenError(EINVAL, "the domain is running")
    domain.events.reset()


@operation(HYPERVISOR_event_channel_op, EVTCHNOP_init_control, copy_back=True)
def init_control(hv: Hypervisor, caller: Vcpu, arg: EvtchnInitControl) -> None:
    caller.domain.events.init_control(arg.vcpu, arg.control_gfn, arg.offset)
    arg.link_bits = EVTCHN_FIFO_LINK_BITS


@operation(HYPERVISOR_event_channel_op, EVTCHNOP_expand_array)
def expand_array(hv: Hypervisor, caller: Vcpu, arg: EvtchnExpandArray) -> None:
    caller.domain.events.expand_array(arg.array_gfn)


@operation(HYPERVISOR_event_channel_op, EVTCHNOP_set_priority)
def set_priority(hv: Hypervisor, caller: Vcpu, arg: EvtchnSetPriority) -> None:
    caller.domain.events.set_priority(arg.port, arg.priority)
