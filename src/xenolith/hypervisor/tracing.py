"""Tracing: which hypercalls domains make, in the buffers that `xentrace` reads in a control domain.

Facts are those of Xen 4.17's xen/common/trace.c and xen/arch/x86/trace.c. Each processor has a buffer. Of the events
that Xen has these are recorded: hypercalls, calls in a multicall, and, before the first hypercall of another vCPU than
the one before, that the processor has gone over to it.

While nobody traces nothing of this is called: handlers are wrapped only as long as a machine does.
"""

from __future__ import annotations

import struct
import weakref
from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EBUSY, EINVAL, ENOMEM, XenError
from xenolith.abi.event_channel import VIRQ_TBUF
from xenolith.abi.hypercalls import (
    HYPERVISOR_grant_table_op,
    HYPERVISOR_mmu_update,
    HYPERVISOR_mmuext_op,
    HYPERVISOR_multicall,
    HYPERVISOR_sched_op,
    HYPERVISOR_vcpu_op,
)
from xenolith.abi.trace import (
    TRC_ALL,
    TRC_CLS_SHIFT,
    TRC_PV_HYPERCALL_SUBCALL,
    TRC_PV_HYPERCALL_V2,
    TRC_PV_HYPERCALL_V2_ARG_SHIFT,
    TRC_SCHED_SWITCH,
    TRC_SUBCLS_SHIFT,
    TBuf,
)
from xenolith.abi.types import DOMID_IDLE, DOMID_XEN, PAGE_SHIFT, PAGE_SIZE
from xenolith.hypervisor.events import raise_global_virq
from xenolith.hypervisor.frames import TYPE_SHARED, TYPE_WRITABLE
from xenolith.hypervisor.hypercalls.table import HANDLERS, Handler
from xenolith.hypervisor.trace_ring import TraceRing, pack
from xenolith.hypervisor.vcpu import ALL_PROCESSORS

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

_RECORDED: Final = {
    HYPERVISOR_mmu_update: (1,),
    HYPERVISOR_multicall: (1,),
    HYPERVISOR_grant_table_op: (0, 2),
    HYPERVISOR_vcpu_op: (0, 1),
    HYPERVISOR_mmuext_op: (1,),
    HYPERVISOR_sched_op: (0,),
}
"""The arguments that a record has: sub-operations and counts."""
_MOST_WORDS: Final = 0xFFFF
"""What the 16-bit fields of struct t_info can tell of."""
_CLASS: Final = 0xFFF
_SUBCLASS: Final = 0xF


class Tracing:
    """The trace buffers of one machine, and whether they are written."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self.event_mask = TRC_ALL
        self.traced_processors = ALL_PROCESSORS
        """A bitmap."""
        self.enabled = False
        self.info_mfn = 0
        """The first frame of what tells where the buffers are; 0 while there are none."""
        self.info_bytes = 0
        self._buffers: list[_Buffer] = []

    # -- what sysctl asks for -----------------------------------------------------------------------------------------

    def allocate(self, pages: int) -> None:
        """Make a buffer of so many pages for each processor. That can be done once.

        Raises XenError: EINVAL for another size than it has, or none; EBUSY for the size that it has; ENOMEM.
        """
        has = len(self._buffers[0].mfns) if self._buffers else 0
        if not pages or (has and pages != has):
            raise XenError(EINVAL, f"trace buffers of {pages} pages where there are some of {has}")
        if has:
            raise XenError(EBUSY, "there are trace buffers")
        frames, processors = self._hv.frames, self._hv.engine.processors
        lists_at = -(-(2 + 2 * processors) // 4)
        pages = min(pages, (_MOST_WORDS - lists_at) // processors)
        info_pages = -(-4 * (lists_at + pages * processors) // PAGE_SIZE)
        if info_pages + pages * processors > frames.free_frames:
            raise XenError(ENOMEM, f"trace buffers of {pages} pages")
        info, mfns = self._adjacent(info_pages), frames.allocate(DOMID_XEN, pages * processors)
        for kind, chosen in ((TYPE_SHARED, info), (TYPE_WRITABLE, mfns)):
            for mfn in chosen:
                frames.get_page_type(mfn, kind)
        head = struct.pack(f"<{1 + processors}H", pages, *(lists_at + pages * each for each in range(processors)))
        table = head.ljust(4 * lists_at, b"\0") + struct.pack(f"<{len(mfns)}I", *mfns)
        start = info[0] << PAGE_SHIFT
        self._hv.ram.bytes[start : start + len(table)] = table
        self.info_mfn, self.info_bytes = info[0], info_pages * PAGE_SIZE
        self._buffers = [_Buffer(self._hv, mfns[at : at + pages]) for at in range(0, len(mfns), pages)]
        self._hv.log.write("xentrace: initialised")

    def _adjacent(self, count: int) -> list[int]:
        """Frames of which readers are only told the first. Raises XenError(ENOMEM)."""
        frames = self._hv.frames
        return frames.allocate(DOMID_XEN, 1) if count == 1 else frames.allocate_top(DOMID_XEN, count)

    def enable(self) -> None:
        """Begin to record. Raises XenError(EINVAL) if there are no buffers."""
        if not self._buffers:
            raise XenError(EINVAL, "there are no trace buffers")
        self.enabled = self._hv.state.traced = True
        for buffer in self._buffers:
            buffer.last = None
        _ENABLED.add(self)
        _wrap_handlers()

    def disable(self) -> None:
        """Record no more. The buffers stay."""
        self.enabled = self._hv.state.traced = False
        for buffer in self._buffers:
            buffer.ring.forget_lost()
        _ENABLED.discard(self)
        if not _ENABLED:
            _unwrap_handlers()

    # -- recording ----------------------------------------------------------------------------------------------------

    def hypercall(self, vcpu: Vcpu, number: int, arguments: tuple[int, ...]) -> None:
        """A vCPU makes a hypercall, of which the most telling arguments are recorded."""
        buffer = self._buffers[vcpu.processor]
        if vcpu is not buffer.last:
            before = (DOMID_IDLE, 0) if buffer.last is None else _who(buffer.last)
            self._record(vcpu, TRC_SCHED_SWITCH, *before, *_who(vcpu))
            buffer.last = vcpu
        flags, words = 0, []
        for index in _RECORDED.get(number, ()):
            flags |= 1 << TRC_PV_HYPERCALL_V2_ARG_SHIFT + 2 * index
            words.append(arguments[index] & 0xFFFF_FFFF)
        event = TRC_PV_HYPERCALL_SUBCALL if self._hv.in_multicall else TRC_PV_HYPERCALL_V2
        self._record(vcpu, event, number | flags, *words)

    def _record(self, vcpu: Vcpu, event: int, *words: int) -> None:
        if not self.enabled or not self._wants(vcpu.processor, event):
            return
        hv, ring = self._hv, self._buffers[vcpu.processor].ring
        head = TBuf.from_buffer(hv.ram.bytes, self._buffers[vcpu.processor].mfns[0] << PAGE_SHIFT)
        unread = ring.unread(head.cons)
        if unread is None:
            hv.log.write(f"trc#{vcpu.processor}: bogus cons ({head.cons:08x})")
            self.disable()
            return
        tsc, high_water = hv.tsc(), ring.size >> 1
        if not ring.append(pack(event, words, tsc), unread, _who(vcpu), tsc):
            return
        head.prod = ring.produced
        if unread < high_water <= (ring.unread(head.cons) or 0):
            raise_global_virq(hv, VIRQ_TBUF)

    def _wants(self, processor: int, event: int) -> bool:
        """Whether the processor, and the event's class and subclass, are among the wanted ones."""
        both = self.event_mask & event
        traced = self.traced_processors >> processor & 1 != 0
        return traced and both >> TRC_CLS_SHIFT & _CLASS != 0 and both >> TRC_SUBCLS_SHIFT & _SUBCLASS != 0


class _Buffer:
    """The frames of one processor's buffer, and the vCPU whose hypercall was the last one there."""

    def __init__(self, hv: Hypervisor, mfns: list[int]) -> None:
        self._hv = hv
        self.mfns = mfns
        self.ring = TraceRing(len(mfns) * PAGE_SIZE - TBuf.sizeof(), self._store)
        self.last: Vcpu | None = None

    def _store(self, offset: int, data: bytes) -> None:
        offset += TBuf.sizeof()
        while data:
            page, at = divmod(offset, PAGE_SIZE)
            part = data[: PAGE_SIZE - at]
            self._hv.memory.write_machine((self.mfns[page] << PAGE_SHIFT) + at, part)
            offset, data = offset + len(part), data[len(part) :]


def _who(vcpu: Vcpu) -> tuple[int, int]:
    return vcpu.domain.domid, vcpu.vcpu_id


# -- the hypercall table while a machine traces ------------------------------------------------------------------------

_ENABLED: Final[weakref.WeakSet[Tracing]] = weakref.WeakSet()
_UNWRAPPED: Final[dict[int, Handler]] = {}


def _wrap_handlers() -> None:
    if not _UNWRAPPED:
        _UNWRAPPED.update(HANDLERS)
        HANDLERS.update({number: _traced(number, handler) for number, handler in _UNWRAPPED.items()})


def _unwrap_handlers() -> None:
    HANDLERS.update(_UNWRAPPED)
    _UNWRAPPED.clear()


def _traced(number: int, handler: Handler) -> Handler:
    def run(hv: Hypervisor, vcpu: Vcpu, *arguments: int) -> int:
        if hv.tracing.enabled:
            hv.tracing.hypercall(vcpu, number, arguments)
        return handler(hv, vcpu, *arguments)

    return run
