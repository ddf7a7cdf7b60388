"""Event channels: the port table of a domain, what each port is bound to, and the two-level way of signalling it.

Facts are those of the public headers event_channel.h and xen.h and of the behaviour of Xen 4.17's event_channel.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from xenolith.abi.errno import EACCES, EEXIST, EINVAL, ENOENT, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, XenError
from xenolith.abi.event_channel import (
    EVTCHN_2L_NR_CHANNELS,
    EVTCHN_FIFO_NR_CHANNELS,
    EVTCHN_FIFO_PRIORITY_DEFAULT,
    NR_VIRQS,
    VIRQ_CON_RING,
    VIRQ_CONSOLE,
    VIRQ_DEBUG,
    VIRQ_DOM_EXC,
    VIRQ_TIMER,
    VIRQ_XENOPROF,
    VIRQ_XENPMU,
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_pirq,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
)
from xenolith.abi.shared_info import SharedInfo
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.events_fifo import Fifo
from xenolith.hypervisor.vcpu import PENDING_SEL, UPCALL_PENDING, Vcpu

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor

_PENDING_WORD: Final = SharedInfo.evtchn_pending.offset >> 3  # type: ignore[attr-defined]
_MASK_WORD: Final = SharedInfo.evtchn_mask.offset >> 3  # type: ignore[attr-defined]
_PORTS_PER_BUCKET: Final = 64
"""The table grows by so many ports, so that a port just above those in use is closed and not invalid."""

PER_VCPU_VIRQS: Final = frozenset((VIRQ_TIMER, VIRQ_DEBUG, VIRQ_XENOPROF, VIRQ_XENPMU))
"""The virtual interrupts that each vCPU has for itself. All others are global: one of each for the machine."""

_GLOBAL_VIRQ_NEEDS: Final = {
    VIRQ_CONSOLE: Capability.CONSOLE,
    VIRQ_CON_RING: Capability.CONSOLE,
    VIRQ_DOM_EXC: Capability.STORE | Capability.CONTROL | Capability.CREATE,
}
"""Any one of these capabilities lets a domain bind the VIRQ."""


@dataclass(slots=True, eq=False)
class Channel:
    """One port of `events`: `state` is an EVTCHNSTAT_*, `vcpu_id` the vCPU that it notifies.

    `remote_domid` is who may bind an unbound port, `peer` the other end of an interdomain one, `number` the VIRQ or
    PIRQ. `priority`, `queue` and `was_pending` are the FIFO scheme's: the wanted queue, the (vcpu_id, priority) of the
    queue that the port was last put on, and an event that came while the port had no event word.
    """

    events: EventChannels
    port: int
    state: int = EVTCHNSTAT_closed
    vcpu_id: int = 0
    remote_domid: int = 0
    peer: Channel | None = None
    number: int = 0
    priority: int = EVTCHN_FIFO_PRIORITY_DEFAULT
    queue: tuple[int, int] = (0, 0)
    was_pending: bool = False


class Signalling(Protocol):
    """One of the two ways in which a domain sees its ports' state: pending and mask bits, and how they reach a vCPU."""

    capacity: int
    """How many ports can be signalled."""

    def set_pending(self, channel: Channel) -> None: ...
    def clear_pending(self, channel: Channel) -> None: ...
    def unmask(self, channel: Channel) -> None: ...
    def is_pending(self, channel: Channel) -> bool: ...
    def is_masked(self, channel: Channel) -> bool: ...
    def is_busy(self, channel: Channel) -> bool:
        """Whether the guest still holds a reference to a closed port, so that it must not be given out again."""

    def set_priority(self, channel: Channel, priority: int) -> None: ...
    def destroy(self) -> None:
        """Give back the frames that the scheme holds."""


class TwoLevel:
    """The bitmaps in shared_info, summarised by a word of selectors in vcpu_info (xen.h, struct shared_info)."""

    capacity: int = EVTCHN_2L_NR_CHANNELS

    def __init__(self, hv: Hypervisor, domain: Domain) -> None:
        self._domain = domain
        self._words = hv.ram.words

    def set_pending(self, channel: Channel) -> None:
        domain, words, port = self._domain, self._words, channel.port
        index, bit = port >> 6, 1 << (port & 63)
        shared_info = domain.shared_info_mfn << 9
        at = shared_info + _PENDING_WORD + index
        word = words[at]
        if word & bit:
            return
        words[at] = word | bit
        if not words[shared_info + _MASK_WORD + index] & bit:
            self._select(channel)
        channel.events.wake_pollers(port)

    def _select(self, channel: Channel) -> None:
        vcpu = self._domain.vcpus[channel.vcpu_id]
        at, selector = (vcpu.info_maddr + PENDING_SEL) >> 3, 1 << (channel.port >> 6)
        word = self._words[at]
        if not word & selector:
            self._words[at] = word | selector
            channel.events.mark_upcall_pending(vcpu)

    def clear_pending(self, channel: Channel) -> None:
        at = (self._domain.shared_info_mfn << 9) + _PENDING_WORD + (channel.port >> 6)
        self._words[at] &= ~(1 << (channel.port & 63))

    def unmask(self, channel: Channel) -> None:
        index, bit = channel.port >> 6, 1 << (channel.port & 63)
        shared_info = self._domain.shared_info_mfn << 9
        at = shared_info + _MASK_WORD + index
        word = self._words[at]
        if not word & bit:
            return
        self._words[at] = word & ~bit
        if self._words[shared_info + _PENDING_WORD + index] & bit:
            self._select(channel)

    def is_pending(self, channel: Channel) -> bool:
        return self._bit(_PENDING_WORD, channel.port)

    def is_masked(self, channel: Channel) -> bool:
        return self._bit(_MASK_WORD, channel.port)

    def _bit(self, array: int, port: int) -> bool:
        return bool(self._words[(self._domain.shared_info_mfn << 9) + array + (port >> 6)] >> (port & 63) & 1)

    def is_busy(self, channel: Channel) -> bool:
        return False

    def set_priority(self, channel: Channel, priority: int) -> None:
        raise XenError(ENOSYS, "the two-level scheme has no priorities")

    def destroy(self) -> None:
        pass


class EventChannels:
    """The ports of one domain. Port 0 is never used.

    Every method that takes a port raises XenError(EINVAL) if the domain has no such port.
    `bind_irq` and `unbind_irq` are called with a PIRQ number when a port is bound to it or given up; `bind_irq` takes
    also whether the guest is willing to share it, and raises XenError to refuse.
    """

    def __init__(self, hv: Hypervisor, domain: Domain) -> None:
        self._hv = hv
        self.domain = domain
        self.signalling: Signalling = TwoLevel(hv, domain)
        self.max_port = EVTCHN_FIFO_NR_CHANNELS - 1
        """The highest port that the domain may use (XEN_DOMCTL_createdomain)."""
        self.handled_virqs: set[int] = set()
        """The global VIRQs that go to this domain alone (XEN_DOMCTL_set_virq_handler)."""
        self.bind_irq: Callable[[int, bool], None] = _no_irq
        self.unbind_irq: Callable[[int], None] = lambda pirq: None
        self._channels: list[Channel] = []
        self._virqs: dict[tuple[int, int], Channel] = {}
        self._pirqs: dict[int, Channel] = {}
        self._first_free = 1
        self._grow()

    # -- the table ----------------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        first = len(self._channels)
        self._channels += [Channel(self, port) for port in range(first, first + _PORTS_PER_BUCKET)]

    def is_valid(self, port: int) -> bool:
        """Whether the domain has such a port, open or closed."""
        return 0 <= port < len(self._channels)

    def _channel(self, port: int) -> Channel:
        if not self.is_valid(port):
            raise XenError(EINVAL, f"port {port} is not valid")
        return self._channels[port]

    def _open_channel(self, port: int) -> Channel:
        channel = self._channel(port)
        if channel.state == EVTCHNSTAT_closed:
            raise XenError(EINVAL, f"port {port} is closed")
        return channel

    def __iter__(self) -> Iterator[Channel]:
        """The ports in use, in ascending order."""
        return (channel for channel in self._channels if channel.state != EVTCHNSTAT_closed)

    def _allocate(self) -> Channel:
        """A closed port that may be bound. Raises XenError: ENOSPC, EINVAL for a dying domain or one without vCPUs."""
        if self.domain.is_dying or not self.domain.vcpus:
            raise XenError(EINVAL, "the domain is dying, or has no vCPU yet to be notified")
        limit = min(self.signalling.capacity, self.max_port + 1)
        for port in range(self._first_free, limit):
            if port == len(self._channels):
                self._grow()
            channel = self._channels[port]
            if channel.state == EVTCHNSTAT_closed and not self.signalling.is_busy(channel):
                return channel
        raise XenError(ENOSPC, f"all {limit} ports are in use")

    def _bind(self, channel: Channel, state: int, vcpu_id: int = 0, number: int = 0) -> None:
        channel.state = state
        channel.vcpu_id = vcpu_id
        channel.number = number
        channel.priority = EVTCHN_FIFO_PRIORITY_DEFAULT
        if channel.port == self._first_free:
            self._first_free += 1
        self._hv.publish(
            "evtchn_bind", domid=self.domain.domid, port=channel.port, status=state, vcpu=vcpu_id, number=number
        )

    def _vcpu(self, vcpu_id: int) -> Vcpu:
        if not 0 <= vcpu_id < len(self.domain.vcpus):
            raise XenError(ENOENT, f"no vcpu {vcpu_id}")
        return self.domain.vcpus[vcpu_id]

    # -- binding ------------------------------------------------------------------------------------------------------

    def alloc_unbound(self, remote_domid: int) -> int:
        """A new port that domain `remote_domid` may bind. Raises XenError(ENOSPC)."""
        channel = self._allocate()
        channel.remote_domid = remote_domid
        self._bind(channel, EVTCHNSTAT_unbound)
        return channel.port

    def bind_interdomain(self, remote: Domain, remote_port: int) -> int:
        """A new port whose other end is `remote_port` of `remote`, where it must be unbound and meant for this domain.

        The new port is pending at once: an event that was sent while the other end was unbound is not lost.
        """
        channel = self._allocate()
        peer = remote.events._channel(remote_port)
        if peer.state != EVTCHNSTAT_unbound or peer.remote_domid != self.domain.domid:
            raise XenError(EINVAL, f"port {remote_port} of {remote} does not wait for {self.domain}")
        channel.peer = peer
        self._bind(channel, EVTCHNSTAT_interdomain)
        peer.peer = channel
        peer.state = EVTCHNSTAT_interdomain
        self.signalling.set_pending(channel)
        return channel.port

    def bind_virq(self, virq: int, vcpu_id: int) -> int:
        """A new port for a VIRQ_*. Raises XenError: EINVAL, ENOENT (no such vCPU), EEXIST, EPERM, ENOSPC."""
        if not 0 <= virq < NR_VIRQS:
            raise XenError(EINVAL, f"VIRQ {virq} does not exist")
        if virq not in PER_VCPU_VIRQS:
            if vcpu_id:
                raise XenError(EINVAL, "a global VIRQ is bound to vcpu 0 first")
            self._require_virq(virq)
        self._vcpu(vcpu_id)
        if (vcpu_id, virq) in self._virqs:
            raise XenError(EEXIST, f"VIRQ {virq} of vcpu {vcpu_id} is bound")
        channel = self._allocate()
        self._bind(channel, EVTCHNSTAT_virq, vcpu_id, virq)
        self._virqs[vcpu_id, virq] = channel
        return channel.port

    def _require_virq(self, virq: int) -> None:
        needs = _GLOBAL_VIRQ_NEEDS.get(virq)
        if needs and virq not in self.handled_virqs:
            self._hv.policy.require_any(self.domain, needs, f"bind VIRQ {virq}")

    def bind_ipi(self, vcpu_id: int) -> int:
        """A new port by which the domain interrupts its vCPU `vcpu_id`. Raises XenError: ENOENT, ENOSPC."""
        self._vcpu(vcpu_id)
        channel = self._allocate()
        self._bind(channel, EVTCHNSTAT_ipi, vcpu_id)
        return channel.port

    def bind_pirq(self, pirq: int, will_share: bool) -> int:
        """A new port for a physical interrupt. Raises XenError: EEXIST, ENOSPC, or what `bind_irq` raises."""
        if pirq in self._pirqs:
            raise XenError(EEXIST, f"PIRQ {pirq} is bound")
        channel = self._allocate()
        self._bind(channel, EVTCHNSTAT_pirq, number=pirq)
        # Binding may deliver an edge that came before: the port must be there to take it.
        self._pirqs[pirq] = channel
        try:
            self.bind_irq(pirq, will_share)
        except XenError:
            del self._pirqs[pirq]
            channel.state = EVTCHNSTAT_closed
            raise
        return channel.port

    def bind_vcpu(self, port: int, vcpu_id: int) -> None:
        """Let `port` notify another vCPU. Raises XenError: ENOENT; EINVAL for a port that belongs to its vCPU."""
        self._vcpu(vcpu_id)
        channel = self._open_channel(port)
        if channel.state == EVTCHNSTAT_ipi or (channel.state == EVTCHNSTAT_virq and channel.number in PER_VCPU_VIRQS):
            raise XenError(EINVAL, f"port {port} belongs to vcpu {channel.vcpu_id}")
        channel.vcpu_id = vcpu_id

    def close(self, port: int) -> None:
        """Close `port`; the other end of an interdomain channel becomes unbound and waits for this domain again."""
        channel = self._open_channel(port)
        if channel.state == EVTCHNSTAT_interdomain:
            self._unlink(channel)
        elif channel.state == EVTCHNSTAT_virq:
            self._virqs = {key: bound for key, bound in self._virqs.items() if bound is not channel}
        elif channel.state == EVTCHNSTAT_pirq:
            del self._pirqs[channel.number]
            self.unbind_irq(channel.number)
        self.signalling.clear_pending(channel)
        channel.state = EVTCHNSTAT_closed
        channel.vcpu_id = 0
        channel.was_pending = False
        self._first_free = min(self._first_free, port)
        self._hv.publish("evtchn_close", domid=self.domain.domid, port=port)

    def _unlink(self, channel: Channel) -> None:
        peer = channel.peer
        assert peer is not None
        peer.state = EVTCHNSTAT_unbound
        peer.remote_domid = self.domain.domid
        peer.peer = channel.peer = None

    def status(self, port: int) -> Channel:
        """What `port` is bound to."""
        return self._channel(port)

    # -- signalling ---------------------------------------------------------------------------------------------------

    def send(self, port: int) -> None:
        """Signal the other end of `port`. Nothing happens if nobody has bound it yet.

        Raises XenError(EINVAL) for a port that is neither interdomain nor an IPI nor unbound.
        """
        channel = self._channel(port)
        state = channel.state
        if state == EVTCHNSTAT_interdomain:
            peer = channel.peer
            assert peer is not None
            peer.events.signalling.set_pending(peer)
        elif state == EVTCHNSTAT_ipi:
            self.signalling.set_pending(channel)
        elif state != EVTCHNSTAT_unbound:
            raise XenError(EINVAL, f"port {port} cannot be sent to")

    def set_pending(self, port: int) -> None:
        """Make `port` itself pending, as if the other end had sent."""
        self.signalling.set_pending(self._open_channel(port))

    def unmask(self, port: int) -> None:
        """Clear the mask of `port` and deliver the event that it held back."""
        channel = self._channel(port)
        if channel.state != EVTCHNSTAT_closed:
            self.signalling.unmask(channel)

    def is_pending(self, port: int) -> bool:
        return self.signalling.is_pending(self._channel(port))

    def is_masked(self, port: int) -> bool:
        return self.signalling.is_masked(self._channel(port))

    def notify_virq(self, vcpu: Vcpu, virq: int) -> None:
        """Raise a VIRQ of one of this domain's vCPUs; nothing happens if the guest has not bound it."""
        channel = self._virqs.get((vcpu.vcpu_id, virq))
        if channel is not None:
            self.signalling.set_pending(channel)

    def virq_pending(self, vcpu: Vcpu, virq: int) -> bool:
        """Whether a VIRQ of `vcpu` was raised and is not yet taken."""
        channel = self._virqs.get((vcpu.vcpu_id, virq))
        return channel is not None and self.signalling.is_pending(channel)

    def notify_global_virq(self, virq: int) -> None:
        """Raise a global VIRQ here, if this domain has bound it and may have it."""
        channel = self._virqs.get((0, virq))
        if channel is not None and (virq in self.handled_virqs or self._may_handle(virq)):
            self.signalling.set_pending(channel)

    def _may_handle(self, virq: int) -> bool:
        return bool(_GLOBAL_VIRQ_NEEDS.get(virq, Capability.HARDWARE) & self.domain.capabilities)

    def port_of_pirq(self, pirq: int) -> int:
        """The port bound to a PIRQ, 0 if none is."""
        channel = self._pirqs.get(pirq)
        return channel.port if channel is not None else 0

    def raise_pirq(self, pirq: int) -> None:
        """A physical interrupt has come; nothing happens if no port is bound to it."""
        channel = self._pirqs.get(pirq)
        if channel is not None:
            self.signalling.set_pending(channel)

    def wake_pollers(self, port: int) -> None:
        """Wake the vCPUs that wait in SCHEDOP_poll for `port`; no ports at all means any port."""
        for vcpu in self.domain.vcpus:
            if vcpu.polling and (port in vcpu.poll_ports or not vcpu.poll_ports):
                self._hv.wake(vcpu)

    def mark_upcall_pending(self, vcpu: Vcpu) -> None:
        """Tell `vcpu` that some event is pending, and wake it if it did not know."""
        at = vcpu.info_maddr + UPCALL_PENDING
        if not self._hv.ram.bytes[at]:
            self._hv.ram.bytes[at] = 1
            self._hv.wake(vcpu)

    def mark_all_pending(self, vcpu: Vcpu) -> None:
        """Make `vcpu` look at every port, so that an event noted in its old vcpu_info is not lost when that moves."""
        self._hv.ram.words[(vcpu.info_maddr + PENDING_SEL) >> 3] = (1 << 64) - 1
        self._hv.ram.bytes[vcpu.info_maddr + UPCALL_PENDING] = 1
        self._hv.wake(vcpu)

    # -- the FIFO scheme ----------------------------------------------------------------------------------------------

    def init_control(self, vcpu_id: int, mfn: int, offset: int) -> None:
        """Give a vCPU its control block, and use the FIFO scheme from the first one on.

        Raises XenError: ENOENT (no such vCPU), EINVAL.
        """
        self._vcpu(vcpu_id)
        fifo = self.signalling if isinstance(self.signalling, Fifo) else Fifo(self._hv, self.domain)
        fifo.add_control_block(vcpu_id, mfn, offset)
        if fifo is not self.signalling:
            for channel in self:
                channel.was_pending = self.signalling.is_pending(channel)
            self.signalling = fifo

    def expand_array(self, mfn: int) -> None:
        """Give the next ports their event words. Raises XenError: EOPNOTSUPP before `init_control`, ENOSPC, EINVAL."""
        if not isinstance(self.signalling, Fifo):
            raise XenError(EOPNOTSUPP, "the two-level scheme has no event array")
        ports = self.signalling.expand_array(mfn)
        for channel in self._channels[ports.start : ports.stop]:
            if channel.was_pending:
                channel.was_pending = False
                self.signalling.set_pending(channel)

    def set_priority(self, port: int, priority: int) -> None:
        """Choose the queue of `port`. Raises XenError: ENOSYS in the two-level scheme, EACCES for a closed port."""
        channel = self._channel(port)
        if channel.state == EVTCHNSTAT_closed:
            raise XenError(EACCES, f"port {port} is closed")
        self.signalling.set_priority(channel, priority)

    # -- the end ------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Close all ports and go back to the two-level scheme."""
        for channel in list(self):
            self.close(channel.port)
        self.signalling.destroy()
        self.signalling = TwoLevel(self._hv, self.domain)

    def destroy(self, limit: int) -> bool:
        """Close ports of a dying domain, at most `limit` at once. Returns whether all are closed."""
        for channel in list(islice(self, limit)):
            self.close(channel.port)
        if next(iter(self), None) is not None:
            return False
        self.reset()
        self.handled_virqs.clear()
        return True


def _no_irq(pirq: int, will_share: bool) -> None:
    raise XenError(EPERM, f"PIRQ {pirq} is not the domain's")


def raise_global_virq(hv: Hypervisor, virq: int) -> None:
    """Raise a global VIRQ in the domain that was made its handler, or else in every domain that may have it."""
    handlers = [domain for domain in hv.domains.values() if virq in domain.events.handled_virqs]
    for domain in handlers or hv.domains.values():
        domain.events.notify_global_virq(virq)


def set_global_virq_handler(hv: Hypervisor, domain: Domain, virq: int) -> None:
    """Let a global VIRQ go to `domain` alone. Raises XenError(EINVAL) for any other VIRQ."""
    if not 0 <= virq < NR_VIRQS or virq in PER_VCPU_VIRQS:
        raise XenError(EINVAL, f"VIRQ {virq} is not global")
    for other in hv.domains.values():
        other.events.handled_virqs.discard(virq)
    domain.events.handled_virqs.add(virq)
