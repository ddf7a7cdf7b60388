"""The FIFO scheme: its set-up, and its queues as a guest that works as Linux does takes events off them."""

from __future__ import annotations

from collections import defaultdict, deque
from ctypes import c_uint32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenolith.abi.errno import EINVAL, ENOENT, ENOSPC, XenError
from xenolith.abi.event_channel import (
    EVTCHN_FIFO_LINK_BITS,
    EVTCHN_FIFO_LINK_MASK,
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_NR_CHANNELS,
    EVTCHN_FIFO_PENDING,
    EVTCHN_FIFO_PRIORITY_DEFAULT,
    EvtchnExpandArray,
    EvtchnFifoControlBlock,
    EvtchnInitControl,
    EVTCHNOP_expand_array,
    EVTCHNOP_init_control,
    EVTCHNOP_reset,
    EVTCHNOP_set_priority,
    EvtchnReset,
    EvtchnSetPriority,
)
from xenolith.abi.hypercalls import HYPERVISOR_event_channel_op
from xenolith.abi.types import DOMID_SELF, Struct
from xenolith.hypervisor.domain import Domain
from xenolith.hypervisor.events import TwoLevel
from xenolith.hypervisor.frames import TYPE_L1, TYPE_WRITABLE

from .conftest import StandIn

PENDING, MASKED, LINKED = 1 << EVTCHN_FIFO_PENDING, 1 << EVTCHN_FIFO_MASKED, 1 << EVTCHN_FIFO_LINKED
BLOCK_BYTES = 128


def op(hv: StandIn, caller: Domain, command: int, argument: Struct) -> int:
    return hv.call(caller, HYPERVISOR_event_channel_op, command, argument)


def refused(hv: StandIn, caller: Domain, command: int, argument: Struct) -> int:
    with pytest.raises(XenError) as caught:
        op(hv, caller, command, argument)
    return caught.value.errno


class Guest:
    """A domain whose first frame holds the control blocks, and the second the event array, and what its kernel does."""

    def __init__(self, hv: StandIn, vcpus: int = 1) -> None:
        self.hv = hv
        self.domain = hv.create(1, vcpus=vcpus)
        self.blocks_mfn, self.array_mfn = hv.memory_of(self.domain)[:2]
        self.events = self.domain.events
        self.ready = [0] * vcpus
        self.heads = [[0] * 16 for _ in range(vcpus)]
        self.delivered: list[int] = []

    def init(self) -> None:
        for vcpu in self.domain.vcpus:
            argument = EvtchnInitControl(
                control_gfn=self.blocks_mfn, offset=vcpu.vcpu_id * BLOCK_BYTES, vcpu=vcpu.vcpu_id
            )
            op(self.hv, self.domain, EVTCHNOP_init_control, argument)
            assert argument.link_bits == EVTCHN_FIFO_LINK_BITS

    def expand(self) -> None:
        op(self.hv, self.domain, EVTCHNOP_expand_array, EvtchnExpandArray(array_gfn=self.array_mfn))

    def block(self, vcpu_id: int) -> EvtchnFifoControlBlock:
        return EvtchnFifoControlBlock.from_buffer(self.hv.ram.bytes, (self.blocks_mfn << 12) + vcpu_id * BLOCK_BYTES)

    def word(self, port: int) -> c_uint32:
        return c_uint32.from_buffer(self.hv.ram.bytes, (self.array_mfn << 12) + port * 4)

    def take_one(self, vcpu_id: int) -> bool:
        """Take one event off the most urgent queue, as an interrupted kernel would; False if there is none."""
        block = self.block(vcpu_id)
        self.ready[vcpu_id] |= block.ready
        block.ready = 0
        self.hv.ram.bytes[self.domain.vcpus[vcpu_id].info_maddr] = 0
        if not self.ready[vcpu_id]:
            return False
        priority = (self.ready[vcpu_id] & -self.ready[vcpu_id]).bit_length() - 1
        port = self.heads[vcpu_id][priority] or block.head[priority]
        word = self.word(port)
        link = word.value & EVTCHN_FIFO_LINK_MASK
        word.value &= ~(LINKED | EVTCHN_FIFO_LINK_MASK)
        if not link:
            self.ready[vcpu_id] &= ~(1 << priority)
        self.heads[vcpu_id][priority] = link
        if word.value & PENDING and not word.value & MASKED:
            word.value &= ~PENDING
            self.delivered.append(port)
        return True

    def take_all(self, vcpu_id: int = 0) -> list[int]:
        self.delivered.clear()
        while self.take_one(vcpu_id):
            pass
        return list(self.delivered)


# -- set-up -----------------------------------------------------------------------------------------------------------


def test_events_come_in_order_of_priority_and_then_of_arrival(hv: StandIn) -> None:
    guest = Guest(hv)
    guest.init()
    guest.expand()
    ports = [guest.events.bind_ipi(0) for _ in range(5)]
    guest.events.set_priority(ports[3], 0)
    op(hv, guest.domain, EVTCHNOP_set_priority, EvtchnSetPriority(port=ports[0], priority=15))
    for port in ports:
        guest.events.send(port)
    assert hv.woken == [guest.domain.vcpus[0]]
    assert guest.block(0).ready == 1 << 0 | 1 << EVTCHN_FIFO_PRIORITY_DEFAULT | 1 << 15
    assert guest.take_all() == [ports[3], ports[1], ports[2], ports[4], ports[0]]
    guest.events.send(ports[0])
    assert len(hv.woken) == 2
    assert guest.take_all() == [ports[0]]


def test_what_was_pending_in_the_two_level_scheme_is_not_lost(hv: StandIn) -> None:
    guest = Guest(hv)
    early, late, quiet = (guest.events.bind_ipi(0) for _ in range(3))
    guest.events.send(early)
    guest.init()
    guest.events.send(late)
    assert guest.take_all() == []
    guest.expand()
    assert guest.take_all() == [early, late]
    assert not guest.events.is_pending(quiet)


def test_an_event_for_a_vcpu_without_control_block_stays_pending(hv: StandIn) -> None:
    guest = Guest(hv, vcpus=2)
    port = guest.events.bind_ipi(1)
    guest.events.init_control(0, guest.blocks_mfn, 0)
    guest.expand()
    guest.events.send(port)
    assert guest.events.is_pending(port)
    assert hv.woken == []
    guest.events.init_control(1, guest.blocks_mfn, BLOCK_BYTES)
    guest.events.unmask(port)
    assert guest.take_all(1) == [port]


@pytest.mark.parametrize(
    ("vcpu", "offset", "errno"),
    [(2, 0, ENOENT), (1, 4, EINVAL), (1, 4096 - 64, EINVAL), (1, 0xFFFFFFF8, EINVAL), (0, 256, EINVAL)],
)
def test_control_blocks_that_are_refused(hv: StandIn, vcpu: int, offset: int, errno: int) -> None:
    guest = Guest(hv, vcpus=2)
    guest.events.init_control(0, guest.blocks_mfn, 0)
    argument = EvtchnInitControl(control_gfn=guest.blocks_mfn, offset=offset, vcpu=vcpu)
    assert refused(hv, guest.domain, EVTCHNOP_init_control, argument) == errno
    guest.events.init_control(1, guest.blocks_mfn, 4096 - EvtchnFifoControlBlock.sizeof())


def test_frames_that_are_refused(hv: StandIn) -> None:
    guest, other = Guest(hv), hv.create(2)
    foreign = hv.memory_of(other)[0]
    table = hv.memory_of(guest.domain)[2]
    hv.frames.get_page_and_type(table, 1, TYPE_L1)
    before = hv.frames.counts.copy()
    for mfn in (foreign, table, 0, hv.frames.total, 1 << 60, (1 << 64) - 1):
        assert refused(hv, guest.domain, EVTCHNOP_init_control, EvtchnInitControl(control_gfn=mfn)) == EINVAL
        assert isinstance(guest.events.signalling, TwoLevel)
    guest.init()
    for mfn in (foreign, table, hv.frames.total, (1 << 64) - 1):
        assert refused(hv, guest.domain, EVTCHNOP_expand_array, EvtchnExpandArray(array_gfn=mfn)) == EINVAL
    before[guest.blocks_mfn] += 1
    assert (hv.frames.counts == before).all()


def test_the_array_has_an_end(hv: StandIn) -> None:
    guest = Guest(hv)
    guest.init()
    for _ in range(EVTCHN_FIFO_NR_CHANNELS // 1024):
        guest.expand()
    assert refused(hv, guest.domain, EVTCHNOP_expand_array, EvtchnExpandArray(array_gfn=guest.array_mfn)) == ENOSPC


def test_more_ports_than_two_levels_have(hv: StandIn) -> None:
    guest = Guest(hv)
    guest.init()
    ports = [guest.events.alloc_unbound(2) for _ in range(5000)]
    assert ports[-1] == 5000


def test_priorities_that_do_not_exist(hv: StandIn) -> None:
    guest = Guest(hv)
    guest.init()
    port = guest.events.bind_ipi(0)
    assert refused(hv, guest.domain, EVTCHNOP_set_priority, EvtchnSetPriority(port=port, priority=16)) == EINVAL


def test_a_closed_port_is_not_given_out_while_it_is_on_a_queue(hv: StandIn) -> None:
    guest = Guest(hv)
    guest.init()
    guest.expand()
    port = guest.events.bind_ipi(0)
    guest.events.send(port)
    guest.events.close(port)
    assert guest.events.bind_ipi(0) == port + 1
    assert guest.take_all() == []
    assert guest.events.bind_ipi(0) == port


def test_frames_are_held_as_writable_and_given_back(hv: StandIn) -> None:
    guest = Guest(hv)
    before = hv.frames.counts.copy()
    guest.init()
    guest.expand()
    for mfn in (guest.blocks_mfn, guest.array_mfn):
        assert (hv.frames.type[mfn], hv.frames.type_count[mfn]) == (TYPE_WRITABLE, 1)
    op(hv, guest.domain, EVTCHNOP_reset, EvtchnReset(dom=DOMID_SELF))
    assert (hv.frames.counts == before).all()
    assert not hv.frames.type_count[guest.array_mfn]
    port = guest.events.bind_ipi(0)
    guest.events.send(port)
    assert guest.events.is_pending(port)
    guest.init()


# -- the queues -------------------------------------------------------------------------------------------------------

PORTS = 6
VCPUS = 2
ports = st.integers(1, PORTS)
vcpus = st.integers(0, VCPUS - 1)
steps = st.one_of(
    st.tuples(st.just("send"), ports),
    st.tuples(st.just("send"), ports),
    st.tuples(st.just("mask"), ports),
    st.tuples(st.just("unmask"), ports),
    st.tuples(st.just("priority"), ports, st.integers(5, 8)),
    st.tuples(st.just("move"), ports, vcpus),
    st.tuples(st.just("take"), vcpus),
    st.tuples(st.just("take"), vcpus),
)


class Reference:
    """The queues as plain lists of ports."""

    def __init__(self) -> None:
        self.queues: dict[tuple[int, int], deque[int]] = defaultdict(deque)
        self.pending: set[int] = set()
        self.masked: set[int] = set()
        self.linked: set[int] = set()
        self.vcpu = dict.fromkeys(range(1, PORTS + 1), 0)
        self.priority = dict.fromkeys(range(1, PORTS + 1), EVTCHN_FIFO_PRIORITY_DEFAULT)

    def send(self, port: int) -> None:
        self.pending.add(port)
        if port not in self.masked | self.linked:
            self.linked.add(port)
            self.queues[self.vcpu[port], self.priority[port]].append(port)

    def unmask(self, port: int) -> None:
        self.masked.discard(port)
        if port in self.pending:
            self.send(port)

    def take(self, vcpu: int) -> int | None:
        """What taking one event off the most urgent queue of `vcpu` delivers."""
        urgent = min((queue for queue in self.queues if queue[0] == vcpu and self.queues[queue]), default=None)
        if urgent is None:
            return None
        port = self.queues[urgent].popleft()
        self.linked.discard(port)
        if port in self.pending - self.masked:
            self.pending.discard(port)
            return port
        return None


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=60))
def test_queues_agree_with_plain_lists(history: list[tuple[str, int, int] | tuple[str, int]]) -> None:
    hv = StandIn(mib=1)
    guest, reference, peer = Guest(hv, vcpus=VCPUS), Reference(), hv.create(2)
    for port in range(1, PORTS + 1):
        assert guest.events.alloc_unbound(2) == port
        peer.events.bind_interdomain(guest.domain, port)
    guest.init()
    guest.expand()
    for what, *numbers in [*history, *[("take", vcpu) for vcpu in range(VCPUS) for _ in range(PORTS + 1)]]:
        number = numbers[0]
        if what == "send":
            peer.events.send(number)
            reference.send(number)
        elif what == "mask":
            guest.word(number).value |= MASKED
            reference.masked.add(number)
        elif what == "unmask":
            guest.events.unmask(number)
            reference.unmask(number)
        elif what == "priority":
            guest.events.set_priority(number, numbers[1])
            reference.priority[number] = numbers[1]
        elif what == "move":
            guest.events.bind_vcpu(number, numbers[1])
            reference.vcpu[number] = numbers[1]
        else:
            guest.delivered.clear()
            guest.take_one(number)
            expected = reference.take(number)
            assert guest.delivered == ([] if expected is None else [expected])
        for port in range(1, PORTS + 1):
            assert bool(guest.word(port).value & LINKED) == (port in reference.linked)
            assert guest.events.is_pending(port) == (port in reference.pending)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(ports, st.integers(0, (1 << 32) - 1)), max_size=40), st.integers(0, (1 << 32) - 1))
def test_whatever_a_guest_writes_into_its_words_harms_nobody(writes: list[tuple[int, int]], head: int) -> None:
    hv = StandIn(mib=1)
    guest = Guest(hv)
    guest.init()
    guest.expand()
    for _ in range(PORTS):
        guest.events.bind_ipi(0)
    theirs = [guest.blocks_mfn, guest.array_mfn, guest.domain.shared_info_mfn]

    def outside() -> bytes:
        return b"".join(bytes(hv.ram.frame(mfn)) for mfn in range(hv.frames.total) if mfn not in theirs)

    before = outside()
    for port, value in writes:
        guest.word(port).value = value
        guest.block(0).head[7] = head
        guest.events.send(port)
        guest.events.unmask(port)
        guest.events.set_priority(port, value & 15)
    assert outside() == before
