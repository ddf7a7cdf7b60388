"""The kernel of a native domain: what Linux's Xen code is to Linux, for services that are written in Python.

A native domain has a domid, memory, event channels and grants of its own, and no way to act but the hypercall table:
the same handlers, the same policy and the same errors as for a guest whose code runs on the processor. What is here
turns hypercalls into calls that Python likes.
"""

from __future__ import annotations

import ctypes
import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import numpy as np

from xenolith.abi.errno import ENOSPC, ENOSYS, XenError
from xenolith.abi.event_channel import (
    VIRQ_TIMER,
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EvtchnBindVirq,
    EvtchnClose,
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_reset,
    EVTCHNOP_send,
    EVTCHNOP_status,
    EvtchnReset,
    EvtchnSend,
    EvtchnStatus,
)
from xenolith.abi.grant_table import (
    GNTTAB_NR_RESERVED_ENTRIES,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_okay,
    GnttabCopy,
    GnttabMapGrantRef,
    GNTTABOP_copy,
    GNTTABOP_map_grant_ref,
    GNTTABOP_setup_table,
    GNTTABOP_unmap_grant_ref,
    GnttabSetupTable,
    GnttabUnmapGrantRef,
    GrantEntryV1,
    GTF_permit_access,
    GTF_readonly,
)
from xenolith.abi.hypercalls import (
    HYPERVISOR_event_channel_op,
    HYPERVISOR_grant_table_op,
    HYPERVISOR_mmu_update,
    HYPERVISOR_set_timer_op,
    HYPERVISOR_update_va_mapping,
)
from xenolith.abi.shared_info import SharedInfo
from xenolith.abi.types import DOMID_SELF, PAGE_SHIFT, PAGE_SIZE, Struct
from xenolith.hypervisor import ioports
from xenolith.hypervisor.frames import FLAG_EXECUTABLE
from xenolith.hypervisor.grants import GrantError
from xenolith.hypervisor.hypercalls.table import HANDLERS, Continuation
from xenolith.hypervisor.native_memory import AddressSpace, leaf
from xenolith.hypervisor.vcpu import PENDING_SEL, UPCALL_PENDING

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Capability, Domain
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.release import Release

_PENDING_WORD: Final[int] = SharedInfo.evtchn_pending.offset >> 3  # type: ignore[attr-defined]
_SCRATCH: Final = 8 * PAGE_SIZE
"""The first bytes of the domain's own memory, where arguments of hypercalls lie during the call."""
_ALIGN: Final = 16
_PER_CALL: Final = 512
"""Elements that are passed in one hypercall: as many as fit the scratch memory."""
_GREFS: Final = PAGE_SIZE // GrantEntryV1.sizeof()
Handler = Callable[[], None]
_S = TypeVar("_S", bound=Struct)


def take_pending(hv: Hypervisor, domain: Domain) -> list[int]:
    """The pending ports of a native domain with two-level events; they are pending no more."""
    info = domain.vcpus[0].info_maddr
    words = hv.ram.words
    hv.ram.bytes[info + UPCALL_PENDING] = 0
    selected = words[(info + PENDING_SEL) >> 3]
    words[(info + PENDING_SEL) >> 3] = 0
    ports = []
    for index in _bits(selected):
        at = (domain.shared_info_mfn << 9) + _PENDING_WORD + index
        ports += [index * 64 + bit for bit in _bits(words[at])]
        words[at] = 0
    return ports


def _bits(word: int) -> list[int]:
    return [bit for bit in range(64) if word >> bit & 1] if word else []


class Page(NamedTuple):
    """A page of the domain's own: `view` is its content, `mfn` what others are told of it."""

    mfn: int
    view: memoryview


class Scratch(NamedTuple):
    """Memory for what a hypercall's argument points to."""

    vaddr: int
    view: memoryview


@dataclass(slots=True, eq=False)
class Mapping:
    """Pages of another domain that are mapped here, in the order in which they were asked for, until `unmap`."""

    domid: int
    vaddrs: list[int]
    views: list[memoryview]
    handles: list[int]
    """The handles of the grants; empty for frames that were mapped by control over their owner."""
    _kernel: NativeKernel
    written: list[int] = field(default_factory=list)
    """The machine addresses of granted pages that may have been written: those that were not mapped read-only."""

    @property
    def machine(self) -> memoryview:
        """The machine's memory, for who finds the pages in it by their frames. Only the mapped ones may be touched."""
        return self._kernel.machine_memory

    def unmap(self) -> None:
        self._kernel.unmap(self)


class NativeKernel:
    """A native domain from the inside. Every call that names another domain, its ports, grants or frames may raise
    XenError or GrantError, with the errors of the hypercall behind it.

    `kept` survives when the domain's code is started again: what must not be lost is in there before anybody is told.
    """

    def __init__(
        self, hv: Hypervisor, name: str, capabilities: Capability, page_count: int = 32, window_tables: int = 1
    ) -> None:
        self._hv = hv
        self.domain = hv.create_native_domain(name, capabilities, self._serve)
        self._vcpu = self.domain.vcpus[0]
        self._space = AddressSpace(hv, self.domain, page_count, window_tables)
        self.kept: dict[str, bytearray] = {}
        self.on_failure: Callable[[Exception], None] | None = None
        """Told of an exception that came out of a handler; without it the machine is."""
        self._scratch_used = 0
        self._grants = self._map_grant_table()
        self._start_afresh()

    @property
    def release(self) -> Release:
        """The release of Xen that the hypervisor says it is."""
        return self._hv.release

    @property
    def domid(self) -> int:
        return self.domain.domid

    @property
    def machine_memory(self) -> memoryview:
        return self._hv.ram.bytes

    def _start_afresh(self) -> None:
        self._handlers: dict[int, Handler] = {}
        self._mappings: dict[int, Mapping] = {}
        self._free_pages = list(range(len(self._space.memory) // PAGE_SIZE - 1, _SCRATCH // PAGE_SIZE - 1, -1))
        self._free_grefs = list(range(_GREFS - 1, GNTTAB_NR_RESERVED_ENTRIES - 1, -1))
        self._timers: list[tuple[int, int, Handler]] = []
        self._timer_numbers = itertools.count()
        self._timer_port = 0

    # -- hypercalls ---------------------------------------------------------------------------------------------------

    def port_in(self, port: int, size: int) -> int:
        """What the instruction `in` reads of `size` (1, 2 or 4) bytes: all ones where the domain has not the port."""
        return ioports.read(self._hv, self._vcpu, port, size)

    def port_out(self, port: int, size: int, value: int) -> None:
        """The instruction `out`; without effect where the domain has not the port."""
        ioports.write(self._hv, self._vcpu, port, size, value)

    def hypercall(self, number: int, *arguments: int | Struct) -> int:
        """Make a hypercall. A structure lies in the domain's memory meanwhile and has what was written back afterwards.

        Returns the result, 0 or above. Raises XenError for a negative one.
        """
        with self._arguments(arguments) as (words, places):
            hv = self._hv
            hv.hypercall_counts[min(number, len(hv.hypercall_counts) - 1)] += 1
            handler = HANDLERS.get(number)
            if handler is None:
                raise XenError(ENOSYS, f"there is no hypercall {number}")
            words += [0] * (hv.argument_counts[number] - len(words))
            while True:
                try:
                    result = handler(hv, self._vcpu, *words)
                    break
                except Continuation as rest:
                    words[: len(rest.arguments)] = rest.arguments
            for place, structure in places:
                ctypes.memmove(ctypes.byref(structure), bytes(place.view), len(place.view))
        return result

    @contextmanager
    def _arguments(self, arguments: Sequence[int | Struct]) -> Iterator[tuple[list[int], list[tuple[Scratch, Struct]]]]:
        used = self._scratch_used
        words: list[int] = []
        places: list[tuple[Scratch, Struct]] = []
        for argument in arguments:
            if isinstance(argument, int):
                words.append(argument)
                continue
            place = self._take_scratch(argument.sizeof())
            place.view[:] = argument.to_bytes()
            places.append((place, argument))
            words.append(place.vaddr)
        try:
            yield words, places
        finally:
            self._scratch_used = used

    @contextmanager
    def scratch(self, size: int) -> Iterator[Scratch]:
        """Memory for a buffer that a structure points to, cleared, and valid within the `with`. Raises XenError."""
        used = self._scratch_used
        place = self._take_scratch(size)
        place.view[:] = bytes(size)
        try:
            yield place
        finally:
            self._scratch_used = used

    def _take_scratch(self, size: int) -> Scratch:
        start = self._scratch_used
        if size > _SCRATCH - start:
            raise XenError(ENOSPC, f"{size} bytes of arguments")
        self._scratch_used = start + -(-size // _ALIGN) * _ALIGN
        return Scratch(self._space.vaddr(start), self._space.memory[start : start + size])

    # -- events -------------------------------------------------------------------------------------------------------

    def alloc_unbound(self, remote_domid: int, handler: Handler) -> int:
        """A new port that `remote_domid` may bind; `handler` is called in this domain's turn when it was signalled."""
        argument = EvtchnAllocUnbound(dom=DOMID_SELF, remote_dom=remote_domid)
        self.hypercall(HYPERVISOR_event_channel_op, EVTCHNOP_alloc_unbound, argument)
        self._handlers[argument.port] = handler
        return argument.port

    def bind_interdomain(self, remote_domid: int, remote_port: int, handler: Handler) -> int:
        """A new port whose other end is `remote_port` of another domain. `handler` is called once in any case: what
        came before is not missed."""
        argument = EvtchnBindInterdomain(remote_dom=remote_domid, remote_port=remote_port)
        self.hypercall(HYPERVISOR_event_channel_op, EVTCHNOP_bind_interdomain, argument)
        self._handlers[argument.local_port] = handler
        return argument.local_port

    def bind_virq(self, virq: int, handler: Handler) -> int:
        """A new port for a VIRQ_*."""
        argument = EvtchnBindVirq(virq=virq, vcpu=0)
        self.hypercall(HYPERVISOR_event_channel_op, EVTCHNOP_bind_virq, argument)
        self._handlers[argument.port] = handler
        return argument.port

    def peer(self, port: int) -> int:
        """The port at the other end of one that is bound to another domain's."""
        argument = EvtchnStatus(dom=DOMID_SELF, port=port)
        self.hypercall(HYPERVISOR_event_channel_op, EVTCHNOP_status, argument)
        return int(argument.u.interdomain.port)

    def notify(self, port: int) -> None:
        """Signal the other end."""
        self.hypercall(HYPERVISOR_event_channel_op, EVTCHNOP_send, EvtchnSend(port=port))

    def close(self, port: int) -> None:
        self._handlers.pop(port, None)
        self.hypercall(HYPERVISOR_event_channel_op, EVTCHNOP_close, EvtchnClose(port=port))

    def _serve(self) -> None:
        for port in take_pending(self._hv, self.domain):
            handler = self._handlers.get(port)
            if handler is None:
                continue
            try:
                handler()
            except Exception as error:
                if self.on_failure is None:
                    raise
                self.on_failure(error)
                return

    # -- time ---------------------------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        """System time: nanoseconds since power-on."""
        return self._hv.now_ns()

    def at(self, when_ns: int, handler: Handler) -> None:
        """Have `handler` called at a system time."""
        heapq.heappush(self._timers, (when_ns, next(self._timer_numbers), handler))
        if not self._timer_port:
            self._timer_port = self.bind_virq(VIRQ_TIMER, self._expire)
        if self._timers[0][0] >= when_ns:
            self._set_timer()

    def _expire(self) -> None:
        while self._timers and self._timers[0][0] <= self.now_ns():
            heapq.heappop(self._timers)[2]()
        self._set_timer()

    def _set_timer(self) -> None:
        self.hypercall(HYPERVISOR_set_timer_op, self._timers[0][0] if self._timers else 0)

    # -- own pages, and granting them ---------------------------------------------------------------------------------

    def allocate_page(self, clear: bool = True) -> Page:
        """A page of the domain's own memory; the first that code asks for is always the same. Raises XenError(ENOSPC).

        A page that is not cleared is as it was when the domain's code was started again.
        """
        if not self._free_pages:
            raise XenError(ENOSPC, "no page of the domain's memory is free")
        number = self._free_pages.pop()
        view = self._space.memory[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]
        if clear:
            view[:] = bytes(PAGE_SIZE)
        return Page(self._space.first_mfn + number, view)

    def free_page(self, page: Page) -> None:
        self._free_pages.append(page.mfn - self._space.first_mfn)

    def grant(self, page: Page, domid: int, readonly: bool = False) -> int:
        """A grant reference by which `domid` may map a page. Raises XenError(ENOSPC)."""
        if not self._free_grefs:
            raise XenError(ENOSPC, "no grant reference is free")
        gref = self._free_grefs.pop()
        self.grant_as(gref, page.mfn, domid, readonly)
        return gref

    def grant_as(self, gref: int, mfn: int, domid: int, readonly: bool = False) -> None:
        """Write the entry of one of the reserved grant references."""
        entry = GrantEntryV1.from_buffer(self._grants, gref * GrantEntryV1.sizeof())
        entry.frame, entry.domid = mfn, domid
        entry.flags = GTF_permit_access | (GTF_readonly if readonly else 0)

    def end_access(self, gref: int) -> None:
        """Nobody may map this grant any more; whoever has it mapped keeps it."""
        GrantEntryV1.from_buffer(self._grants, gref * GrantEntryV1.sizeof()).flags = 0
        self._free_grefs.append(gref)

    def _map_grant_table(self) -> memoryview:
        with self.scratch(8) as frame_list:
            argument = GnttabSetupTable(dom=DOMID_SELF, nr_frames=1, frame_list=frame_list.vaddr)
            self.hypercall(HYPERVISOR_grant_table_op, GNTTABOP_setup_table, argument, 1)
            mfn = int.from_bytes(frame_list.view, "little")
        (vaddr,) = self._space.take_slots(1)
        self.hypercall(HYPERVISOR_update_va_mapping, vaddr, leaf(mfn, True), 0)
        return self._space.view(vaddr)

    # -- pages of others ----------------------------------------------------------------------------------------------

    def map_grants(self, domid: int, grefs: Sequence[int], readonly: bool = False) -> Mapping:
        """Map pages that `domid` grants: all of them, or none and GrantError."""
        mapping = Mapping(domid, self._space.take_slots(len(grefs)), [], [], self)
        flags = GNTMAP_host_map | (GNTMAP_readonly if readonly else 0)
        status = GNTST_okay
        mapped: list[int] = []
        for start in range(0, len(grefs), _PER_CALL):
            places = zip(mapping.vaddrs[start : start + _PER_CALL], grefs[start : start + _PER_CALL], strict=True)
            arguments = [GnttabMapGrantRef(host_addr=at, flags=flags, ref=ref, dom=domid) for at, ref in places]
            for result in self._grant_ops(GNTTABOP_map_grant_ref, arguments):
                if result.status == GNTST_okay:
                    mapped.append(result.host_addr)
                    mapping.handles.append(result.handle)
                    if not readonly:
                        mapping.written.append(result.dev_bus_addr)
                else:
                    status = result.status
        if status != GNTST_okay:
            self._unmap_grants(mapped, mapping.handles)
            self._space.give_slots(mapping.vaddrs)
            raise GrantError(status, f"grants of domain {domid}")
        mapping.views = [self._space.view(vaddr) for vaddr in mapping.vaddrs]
        self._mappings[id(mapping)] = mapping
        return mapping

    def map_frames(self, domid: int, mfns: Sequence[int], writable: bool = True) -> Mapping:
        """Map frames of a domain that this one controls."""
        mapping = Mapping(domid, self._space.take_slots(len(mfns)), [], [], self)
        self._mappings[id(mapping)] = mapping
        try:
            self._update_window(mapping.vaddrs, [leaf(int(mfn), writable) for mfn in mfns], domid)
        except XenError:
            self.unmap(mapping)
            raise
        mapping.views = [self._space.view(vaddr) for vaddr in mapping.vaddrs]
        return mapping

    def unmap(self, mapping: Mapping) -> None:
        if self._mappings.pop(id(mapping), None) is None:
            return
        if mapping.handles:
            self._forget_code(mapping.written)
            self._unmap_grants(mapping.vaddrs, mapping.handles)
        else:
            self._update_window(mapping.vaddrs, [0] * len(mapping.vaddrs), DOMID_SELF)
        self._space.give_slots(mapping.vaddrs)
        mapping.views = []

    def _forget_code(self, maddrs: list[int]) -> None:
        """What an engine has translated of these pages may be what was there before they were written from here."""
        frames = self._hv.frames
        for maddr in maddrs:
            if frames.flags[maddr >> PAGE_SHIFT] & FLAG_EXECUTABLE:
                frames.invalidate_code(maddr, PAGE_SIZE)

    def _unmap_grants(self, vaddrs: list[int], handles: list[int]) -> None:
        for start in range(0, len(handles), _PER_CALL):
            pairs = zip(vaddrs[start : start + _PER_CALL], handles[start : start + _PER_CALL], strict=True)
            self._grant_ops(
                GNTTABOP_unmap_grant_ref, [GnttabUnmapGrantRef(host_addr=at, handle=handle) for at, handle in pairs]
            )

    def _update_window(self, vaddrs: list[int], entries: list[int], domid: int) -> None:
        for start in range(0, len(vaddrs), _PER_CALL):
            part = range(start, min(start + _PER_CALL, len(vaddrs)))
            requests = np.array([(self._space.entry_maddr(vaddrs[at]), entries[at]) for at in part], np.uint64)
            with self.scratch(requests.nbytes) as place:
                place.view[:] = requests.tobytes()
                self.hypercall(HYPERVISOR_mmu_update, place.vaddr, len(part), 0, domid)

    def copy(self, copies: Sequence[GnttabCopy]) -> list[int]:
        """Copy by grants, as GNTTABOP_copy does; the GNTST_* of each."""
        statuses: list[int] = []
        for start in range(0, len(copies), _PER_CALL):
            statuses += [done.status for done in self._grant_ops(GNTTABOP_copy, copies[start : start + _PER_CALL])]
        return statuses

    def _grant_ops(self, command: int, arguments: Sequence[_S]) -> list[_S]:
        if not arguments:
            return []
        kind, size = type(arguments[0]), arguments[0].sizeof()
        with self.scratch(size * len(arguments)) as place:
            place.view[:] = b"".join(argument.to_bytes() for argument in arguments)
            self.hypercall(HYPERVISOR_grant_table_op, command, place.vaddr, len(arguments))
            return [kind.from_bytes(place.view[at : at + size]) for at in range(0, len(place.view), size)]

    # -- starting again -----------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Let go of everything that the code held, for new code to start: ports, mappings, grants, timers, pages.

        The other ends of its event channels become unbound and wait for this domain; `kept` stays.
        """
        self.hypercall(HYPERVISOR_event_channel_op, EVTCHNOP_reset, EvtchnReset(dom=DOMID_SELF))
        for mapping in list(self._mappings.values()):
            self.unmap(mapping)
        self._grants[GNTTAB_NR_RESERVED_ENTRIES * GrantEntryV1.sizeof() :] = bytes(
            PAGE_SIZE - GNTTAB_NR_RESERVED_ENTRIES * GrantEntryV1.sizeof()
        )
        self.hypercall(HYPERVISOR_set_timer_op, 0)
        self._start_afresh()
