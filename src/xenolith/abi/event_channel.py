"""event_channel_op, and the two ways in which events are signalled: two-level and FIFO (event_channel.h, xen.h)."""

from ctypes import Array, c_uint8, c_uint32
from typing import Annotated, Final

from xenolith.abi.types import U8, U16, U32, U64, Struct, Union, layout

# event_channel_op sub-operations.
EVTCHNOP_bind_interdomain: Final = 0
EVTCHNOP_bind_virq: Final = 1
EVTCHNOP_bind_pirq: Final = 2
EVTCHNOP_close: Final = 3
EVTCHNOP_send: Final = 4
EVTCHNOP_status: Final = 5
EVTCHNOP_alloc_unbound: Final = 6
EVTCHNOP_bind_ipi: Final = 7
EVTCHNOP_bind_vcpu: Final = 8
EVTCHNOP_unmask: Final = 9
EVTCHNOP_reset: Final = 10
EVTCHNOP_init_control: Final = 11
EVTCHNOP_expand_array: Final = 12
EVTCHNOP_set_priority: Final = 13

# EvtchnStatus.status.
EVTCHNSTAT_closed: Final = 0
EVTCHNSTAT_unbound: Final = 1
EVTCHNSTAT_interdomain: Final = 2
EVTCHNSTAT_pirq: Final = 3
EVTCHNSTAT_virq: Final = 4
EVTCHNSTAT_ipi: Final = 5

# EvtchnBindPirq.flags.
BIND_PIRQ__WILL_SHARE: Final = 1

# Virtual interrupts.
VIRQ_TIMER: Final = 0
VIRQ_DEBUG: Final = 1
VIRQ_CONSOLE: Final = 2
VIRQ_DOM_EXC: Final = 3
VIRQ_TBUF: Final = 4
VIRQ_DEBUGGER: Final = 6
VIRQ_XENOPROF: Final = 7
VIRQ_CON_RING: Final = 8
VIRQ_PCPU_STATE: Final = 9
VIRQ_MEM_EVENT: Final = 10
VIRQ_ARGO: Final = 11
VIRQ_ENOMEM: Final = 12
VIRQ_XENPMU: Final = 13
VIRQ_ARCH_0: Final = 16
VIRQ_ARCH_1: Final = 17
VIRQ_ARCH_2: Final = 18
VIRQ_ARCH_3: Final = 19
VIRQ_ARCH_4: Final = 20
VIRQ_ARCH_5: Final = 21
VIRQ_ARCH_6: Final = 22
VIRQ_ARCH_7: Final = 23
NR_VIRQS: Final = 24

# Ports that the two-level scheme can signal.
EVTCHN_2L_NR_CHANNELS: Final = 4096

# FIFO scheme: priorities, bit numbers within an event word, ports.
EVTCHN_FIFO_PRIORITY_MAX: Final = 0
EVTCHN_FIFO_PRIORITY_DEFAULT: Final = 7
EVTCHN_FIFO_PRIORITY_MIN: Final = 15
EVTCHN_FIFO_MAX_QUEUES: Final = 16
EVTCHN_FIFO_PENDING: Final = 31
EVTCHN_FIFO_MASKED: Final = 30
EVTCHN_FIFO_LINKED: Final = 29
EVTCHN_FIFO_BUSY: Final = 28
EVTCHN_FIFO_LINK_BITS: Final = 17
EVTCHN_FIFO_LINK_MASK: Final = (1 << EVTCHN_FIFO_LINK_BITS) - 1
EVTCHN_FIFO_NR_CHANNELS: Final = 1 << EVTCHN_FIFO_LINK_BITS


@layout()
class EvtchnAllocUnbound(Struct):
    """Make a port of `dom` that `remote_dom` may bind; out: `port`."""

    dom: U16
    remote_dom: U16
    port: U32


@layout()
class EvtchnBindInterdomain(Struct):
    """Bind a new local port to an unbound remote one; out: `local_port`."""

    remote_dom: U16
    remote_port: U32
    local_port: U32


@layout()
class EvtchnBindVirq(Struct):
    """Bind a new port to a VIRQ_* of a vcpu; out: `port`."""

    virq: U32
    vcpu: U32
    port: U32


@layout()
class EvtchnBindPirq(Struct):
    """Bind a new port to a physical interrupt; out: `port`."""

    pirq: U32
    flags: U32
    port: U32


@layout()
class EvtchnBindIpi(Struct):
    """Make a port that interrupts one of the caller's own vcpus; out: `port`."""

    vcpu: U32
    port: U32


@layout()
class EvtchnClose(Struct):
    """Close a port; the other end becomes unbound."""

    port: U32


@layout()
class EvtchnSend(Struct):
    """Signal the other end of a port."""

    port: U32


@layout()
class EvtchnStatus(Struct):
    """Say what a port of `dom` is bound to."""

    @layout()
    class U(Union):
        @layout()
        class Unbound(Struct):
            dom: U16

        @layout()
        class Interdomain(Struct):
            dom: U16
            port: U32

        unbound: Unbound
        interdomain: Interdomain
        pirq: U32
        virq: U32

    dom: U16
    port: U32
    status: U32
    vcpu: U32
    u: U


@layout()
class EvtchnBindVcpu(Struct):
    """Choose the vcpu that a port notifies."""

    port: U32
    vcpu: U32


@layout()
class EvtchnUnmask(Struct):
    """Clear a port's mask bit and deliver what is pending."""

    port: U32


@layout()
class EvtchnReset(Struct):
    """Close all ports of a domain."""

    dom: U16


@layout()
class EvtchnInitControl(Struct):
    """Switch to the FIFO scheme: a vcpu's control block lies at `offset` in frame `control_gfn`."""

    control_gfn: U64
    offset: U32
    vcpu: U32
    link_bits: U8
    _pad: Annotated[Array[c_uint8], c_uint8 * 7]


@layout()
class EvtchnExpandArray(Struct):
    """Add a page to the FIFO scheme's event array."""

    array_gfn: U64


@layout()
class EvtchnSetPriority(Struct):
    """Choose the FIFO queue of a port."""

    port: U32
    priority: U32


@layout()
class EvtchnOp(Struct):
    """The argument of event_channel_op_compat: an EVTCHNOP_* and its structure."""

    @layout()
    class U(Union):
        alloc_unbound: EvtchnAllocUnbound
        bind_interdomain: EvtchnBindInterdomain
        bind_virq: EvtchnBindVirq
        bind_pirq: EvtchnBindPirq
        bind_ipi: EvtchnBindIpi
        close: EvtchnClose
        send: EvtchnSend
        status: EvtchnStatus
        bind_vcpu: EvtchnBindVcpu
        unmask: EvtchnUnmask

    cmd: U32
    u: U


@layout()
class EvtchnFifoControlBlock(Struct):
    """FIFO scheme: the queues of one vcpu that are not empty, and the head of each."""

    ready: U32
    _rsvd: U32
    head: Annotated[Array[c_uint32], c_uint32 * 16]
