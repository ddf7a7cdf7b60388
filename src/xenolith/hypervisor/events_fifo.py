"""The FIFO way of signalling event channels: an event word for each port, linked into queues of 16 priorities per vCPU.

The layouts are those of the public header event_channel.h, the rules those of Xen 4.17's event_fifo.c. The guest takes
events off a queue's head by itself; the hypervisor appends at the tail, which only it knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EINVAL, ENOSPC, XenError
from xenolith.abi.event_channel import (
    EVTCHN_FIFO_BUSY,
    EVTCHN_FIFO_LINK_MASK,
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_NR_CHANNELS,
    EVTCHN_FIFO_PENDING,
    EVTCHN_FIFO_PRIORITY_MIN,
    EvtchnFifoControlBlock,
)
from xenolith.abi.types import PAGE_SIZE
from xenolith.hypervisor.frames import TYPE_WRITABLE

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.events import Channel
    from xenolith.hypervisor.machine import Hypervisor

_PENDING: Final = 1 << EVTCHN_FIFO_PENDING
_MASKED: Final = 1 << EVTCHN_FIFO_MASKED
_LINKED: Final = 1 << EVTCHN_FIFO_LINKED
_BUSY: Final = 1 << EVTCHN_FIFO_BUSY
_WORDS_PER_PAGE: Final = PAGE_SIZE // 4
_MAX_PAGES: Final = EVTCHN_FIFO_NR_CHANNELS // _WORDS_PER_PAGE
_READY_WORD: Final = EvtchnFifoControlBlock.ready.offset >> 2  # type: ignore[attr-defined]
_HEAD_WORD: Final = EvtchnFifoControlBlock.head.offset >> 2  # type: ignore[attr-defined]


class Fifo:
    """The event words and queues of `domain`, in frames that the guest gave and that are held as writable ones."""

    capacity: int = EVTCHN_FIFO_NR_CHANNELS

    def __init__(self, hv: Hypervisor, domain: Domain) -> None:
        self._frames = hv.frames
        self._domain = domain
        self._words = hv.ram.bytes.cast("I")
        self._array: list[int] = []
        self._blocks: dict[int, int] = {}
        self._tails: dict[tuple[int, int], int] = {}
        self._held: list[int] = []

    def _hold(self, mfn: int) -> None:
        self._frames.get_page_and_type(mfn, self._domain.domid, TYPE_WRITABLE)
        self._held.append(mfn)

    def add_control_block(self, vcpu_id: int, mfn: int, offset: int) -> None:
        """The queue heads of a vCPU lie at `offset` bytes in frame `mfn`, whose contents are taken as they are.

        Raises XenError(EINVAL) if the vCPU has a control block, or the frame or the offset is bad.
        """
        if offset & 7 or offset > PAGE_SIZE - EvtchnFifoControlBlock.sizeof():
            raise XenError(EINVAL, f"a control block cannot lie at {offset:#x}")
        if vcpu_id in self._blocks:
            raise XenError(EINVAL, f"vcpu {vcpu_id} has a control block")
        self._hold(mfn)
        self._blocks[vcpu_id] = mfn * _WORDS_PER_PAGE + (offset >> 2)

    def expand_array(self, mfn: int) -> range:
        """Use frame `mfn` for the next event words; returns the ports that have got one.

        Raises XenError: ENOSPC if all ports have one, EINVAL if the frame is bad.
        """
        if len(self._array) == _MAX_PAGES:
            raise XenError(ENOSPC, "every port has an event word")
        self._hold(mfn)
        first = len(self._array) * _WORDS_PER_PAGE
        self._array.append(mfn)
        return range(first, first + _WORDS_PER_PAGE)

    def _at(self, port: int) -> int:
        """Where the event word of `port` is, -1 if it has none yet."""
        page = port // _WORDS_PER_PAGE
        return self._array[page] * _WORDS_PER_PAGE + port % _WORDS_PER_PAGE if page < len(self._array) else -1

    def set_pending(self, channel: Channel) -> None:
        at = self._at(channel.port)
        if at < 0:
            channel.was_pending = True
            return
        word = self._words[at]
        self._words[at] = word | _PENDING
        if not word & (_MASKED | _LINKED) and channel.vcpu_id in self._blocks:
            self._words[at] = word | _PENDING | _LINKED
            self._append(channel)
        if not word & _PENDING:
            channel.events.wake_pollers(channel.port)

    def _append(self, channel: Channel) -> None:
        """Put a port whose LINKED bit was just set at the end of its queue."""
        port = channel.port
        if self._tails.get(channel.queue) == port:
            # The guest has emptied that queue: it must not be appended to by way of this port's word.
            self._tails[channel.queue] = 0
        channel.queue = queue = (channel.vcpu_id, channel.priority)
        tail = self._tails.get(queue, 0)
        self._tails[queue] = port
        if tail and self._link(tail, port):
            return
        block = self._blocks[channel.vcpu_id]
        self._words[block + _HEAD_WORD + channel.priority] = port
        ready = self._words[block + _READY_WORD]
        if not ready >> channel.priority & 1:
            self._words[block + _READY_WORD] = ready | 1 << channel.priority
            channel.events.mark_upcall_pending(self._domain.vcpus[channel.vcpu_id])

    def _link(self, tail: int, port: int) -> bool:
        """Let the word of `tail` lead to `port`. False if the guest has taken `tail` off the queue."""
        at = self._at(tail)
        word = self._words[at]
        if not word & _LINKED:
            return False
        self._words[at] = word & ~(_BUSY | EVTCHN_FIFO_LINK_MASK) | port
        return True

    def clear_pending(self, channel: Channel) -> None:
        # It stays linked: the guest drops what it finds on a queue and is not pending.
        at = self._at(channel.port)
        if at >= 0:
            self._words[at] &= ~_PENDING

    def unmask(self, channel: Channel) -> None:
        at = self._at(channel.port)
        if at < 0:
            return
        self._words[at] &= ~_MASKED
        if self._words[at] & _PENDING:
            self.set_pending(channel)

    def is_pending(self, channel: Channel) -> bool:
        at = self._at(channel.port)
        return at >= 0 and bool(self._words[at] & _PENDING)

    def is_masked(self, channel: Channel) -> bool:
        at = self._at(channel.port)
        return at < 0 or bool(self._words[at] & _MASKED)

    def is_busy(self, channel: Channel) -> bool:
        at = self._at(channel.port)
        return at >= 0 and bool(self._words[at] & _LINKED)

    def set_priority(self, channel: Channel, priority: int) -> None:
        """An event that is on a queue stays there; the next one goes to the new queue. Raises XenError(EINVAL)."""
        if not 0 <= priority <= EVTCHN_FIFO_PRIORITY_MIN:
            raise XenError(EINVAL, f"there is no priority {priority}")
        channel.priority = priority

    def destroy(self) -> None:
        for mfn in self._held:
            self._frames.put_page_and_type(mfn)
        self._held.clear()
        self._array.clear()
        self._blocks.clear()
