"""memory_op: what memory a domain has, giving frames back and asking for more, exchanging, and the M2P."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from xenolith.abi.errno import EINVAL, ENOMEM, ENOSYS, EPERM, ESRCH, XenError
from xenolith.abi.hypercalls import HYPERVISOR_memory_op
from xenolith.abi.memory import (
    MEMOP_CMD_MASK,
    MEMOP_EXTENT_SHIFT,
    XenAddToPhysmap,
    XenMachphysMapping,
    XenMachphysMfnList,
    XENMEM_add_to_physmap,
    XENMEM_current_reservation,
    XENMEM_decrease_reservation,
    XENMEM_exchange,
    XENMEM_get_vnumainfo,
    XENMEM_increase_reservation,
    XENMEM_machine_memory_map,
    XENMEM_machphys_mapping,
    XENMEM_machphys_mfn_list,
    XENMEM_maximum_gpfn,
    XENMEM_maximum_ram_page,
    XENMEM_maximum_reservation,
    XENMEM_memory_map,
    XENMEM_populate_physmap,
    XenMemoryDomain,
    XenMemoryExchange,
    XenMemoryMap,
    XenMemoryReservation,
)
from xenolith.abi.types import Struct
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.frames import FLAG_ALLOCATED, FLAG_PINNED
from xenolith.hypervisor.hypercalls.mmu import unpin
from xenolith.hypervisor.hypercalls.table import Continuation, hypercall, operation, run_operation
from xenolith.hypervisor.vcpu import Vcpu

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor

_MAX_ORDER_SELF: Final = 9
_MAX_ORDER_PRIVILEGED: Final = 18
_RESERVATION_OPERATIONS: Final = {
    XENMEM_increase_reservation: "XENMEM_increase_reservation",
    XENMEM_decrease_reservation: "XENMEM_decrease_reservation",
    XENMEM_populate_physmap: "XENMEM_populate_physmap",
}
_INVALID_M2P: Final = 0xFFFF_FFFF_FFFF_FFFF
_ADDRESS_BITS: Final = 0xFF
"""Of mem_flags (XENMEMF_get_address_bits): all frames lie below 2**bits bytes; 0 for anywhere."""
_MOST_EXTENTS: Final = (1 << 64) - 1 >> MEMOP_EXTENT_SHIFT
_MOST_FRAMES: Final = 1 << 40
_EXTENTS_IN_A_PART: Final = 1024
_FRAMES_IN_A_PART: Final = 8192
_EXTENTS_AT_ONCE: Final = 4096
_CHUNKS_IN_A_PART: Final = 64
_NR_EXCHANGED: Final[int] = XenMemoryExchange.nr_exchanged.offset  # type: ignore[attr-defined]


@hypercall(HYPERVISOR_memory_op)
def memory_op(hv: Hypervisor, vcpu: Vcpu, command: int, vaddr: int) -> int:
    """Dispatch by the low six bits; the rest is the extent at which a continued call goes on."""
    start, command = command >> MEMOP_EXTENT_SHIFT, command & MEMOP_CMD_MASK
    if command in _RESERVATION_OPERATIONS:
        return _reservation(hv, vcpu, command, start, vaddr)
    if start and command != XENMEM_exchange:
        raise XenError(ENOSYS if command > XENMEM_get_vnumainfo else EINVAL)
    return run_operation(hv, vcpu, HYPERVISOR_memory_op, command, vaddr)


def domain_for(hv: Hypervisor, vcpu: Vcpu, domid: int, action: str) -> Domain:
    """The domain that is meant, if the caller may act on it. Raises XenError: ESRCH, EPERM."""
    domain = hv.domain_by_id(vcpu, domid)
    hv.policy.require_target(vcpu.domain, domain, action)
    return domain


# -- reservations: returns how many extents were done ------------------------------------------------------------------


def _reservation(hv: Hypervisor, vcpu: Vcpu, command: int, start: int, vaddr: int) -> int:
    try:
        argument = XenMemoryReservation.from_bytes(hv.memory.read(vcpu, vaddr, XenMemoryReservation.sizeof()))
    except XenError:
        return start
    privileged = vcpu.domain.capabilities & (Capability.CONTROL | Capability.CREATE)
    limit = _MAX_ORDER_PRIVILEGED if privileged else _MAX_ORDER_SELF
    count, order = argument.nr_extents, argument.extent_order
    if count > _MOST_EXTENTS or start >= count or order > limit:
        return start
    try:
        domain = domain_for(hv, vcpu, argument.domid, _RESERVATION_OPERATIONS[command])
    except XenError as error:
        if error.errno == ESRCH:
            return start
        raise
    part_end = min(count, start + max(1, _FRAMES_IN_A_PART >> order))
    if command == XENMEM_decrease_reservation:
        part_end = min(count, start + _EXTENTS_IN_A_PART)
        done = _one_by_one(hv, vcpu, _decrease, domain, argument, start, part_end)
    else:
        done = _add_extents(hv, vcpu, command == XENMEM_populate_physmap, domain, argument, start, part_end)
    if done == part_end < count:
        raise Continuation(command | done << MEMOP_EXTENT_SHIFT, vaddr)
    return done


_Step = Callable[["Hypervisor", Vcpu, Domain, XenMemoryReservation, int], None]


def _one_by_one(
    hv: Hypervisor, vcpu: Vcpu, step: _Step, domain: Domain, argument: XenMemoryReservation, start: int, end: int
) -> int:
    """Do one extent after the other, up to the first that fails. Returns where that is."""
    done = start
    try:
        while done < end:
            step(hv, vcpu, domain, argument, argument.extent_start + done * 8)
            done += 1
    except XenError as error:
        hv.note_refusal(vcpu, HYPERVISOR_memory_op, error)
    return done


def _add_extents(
    hv: Hypervisor, vcpu: Vcpu, populate: bool, domain: Domain, argument: XenMemoryReservation, start: int, end: int
) -> int:
    """Give the domain extents, many at once; where that cannot be, one by one, up to the first that fails."""
    done = start
    while done < end:
        count = min(end - done, _EXTENTS_AT_ONCE)
        try:
            _add_at_once(hv, vcpu, populate, domain, argument, argument.extent_start + done * 8, count)
        except XenError:
            step = _populate if populate else _increase
            reached = _one_by_one(hv, vcpu, step, domain, argument, done, done + count)
            if reached < done + count:
                return reached
        done += count
    return done


def _add_at_once(
    hv: Hypervisor, vcpu: Vcpu, populate: bool, domain: Domain, argument: XenMemoryReservation, at: int, count: int
) -> None:
    """All of `count` extents, whose list goes on at `at`, or XenError and none."""
    listed = populate or bool(argument.extent_start)
    if listed:
        data = hv.memory.read(vcpu, at, count * 8)
        hv.memory.write(vcpu, at, data)  # so that what comes of it can be told
    starts = _allocate(hv, domain, argument.extent_order, argument.mem_flags, count)
    if populate:
        offsets = np.arange(1 << argument.extent_order, dtype=np.uint64)
        gpfns = np.frombuffer(data, np.uint64)[:, None] + offsets
        mfns = starts.astype(np.int64)[:, None] + offsets.astype(np.int64)
        np.frombuffer(hv.m2p, np.uint64)[mfns] = gpfns
    if listed:
        hv.memory.write(vcpu, at, starts.tobytes())


def _allocate(hv: Hypervisor, domain: Domain, order: int, mem_flags: int, count: int = 1) -> npt.NDArray[np.uint64]:
    """`count` times 2**order adjacent frames for the domain, within its limit and not from what others have claimed.

    Returns the first of each. Raises XenError(ENOMEM or EINVAL).
    """
    wanted = count << order
    if domain.tot_frames + wanted > domain.max_frames or domain.is_dying:
        raise XenError(EINVAL, f"domain {domain.domid} has {domain.tot_frames} of at most {domain.max_frames} frames")
    if domain.claimed_frames < wanted > hv.frames.free_frames - claimed_frames(hv):
        raise XenError(ENOMEM, f"{wanted} frames asked for, {claimed_frames(hv)} of those free are claimed")
    starts = _take(hv, domain, order, mem_flags, count)
    domain.claimed_frames = max(0, domain.claimed_frames - wanted)
    return starts


def _take(hv: Hypervisor, domain: Domain, order: int, mem_flags: int, count: int = 1) -> npt.NDArray[np.uint64]:
    bits = mem_flags & _ADDRESS_BITS
    highest = (1 << bits >> 12) - 1 if bits else hv.frames.total
    if order or highest < hv.frames.total:
        starts = hv.frames.allocate_runs(domain.domid, order, highest, count)
    else:
        starts = np.array(hv.frames.allocate(domain.domid, count), np.int64)
    domain.tot_frames += count << order
    return starts.astype(np.uint64)


def claimed_frames(hv: Hypervisor) -> int:
    """Free frames that are kept for the domains that claimed them."""
    return sum(domain.claimed_frames for domain in hv.domains.values())


def _populate(hv: Hypervisor, vcpu: Vcpu, domain: Domain, argument: XenMemoryReservation, at: int) -> None:
    gpfn = hv.memory.read_u64(vcpu, at)
    first = int(_allocate(hv, domain, argument.extent_order, argument.mem_flags)[0])
    for offset in range(1 << argument.extent_order):
        hv.m2p[first + offset] = (gpfn + offset) & _INVALID_M2P
    hv.memory.write_u64(vcpu, at, first)


def _increase(hv: Hypervisor, vcpu: Vcpu, domain: Domain, argument: XenMemoryReservation, at: int) -> None:
    first = int(_allocate(hv, domain, argument.extent_order, argument.mem_flags)[0])
    if argument.extent_start:
        hv.memory.write_u64(vcpu, at, first)


def _decrease(hv: Hypervisor, vcpu: Vcpu, domain: Domain, argument: XenMemoryReservation, at: int) -> None:
    first = hv.memory.read_u64(vcpu, at)
    for mfn in range(first, first + (1 << argument.extent_order)):
        give_back(hv, domain, mfn)


def give_back(hv: Hypervisor, domain: Domain, mfn: int) -> None:
    """The domain gives up frame `mfn`. Raises XenError(EINVAL) if it is not the domain's to give."""
    frames = hv.frames
    if not frames.get_page(mfn, domain.domid):
        raise XenError(EINVAL, f"frame {mfn:#x} {frames.describe_owner(mfn)}")
    try:
        if not frames.flags[mfn] & FLAG_ALLOCATED:
            raise XenError(EINVAL, f"frame {mfn:#x} is not ordinary memory of domain {domain.domid}")
        if frames.flags[mfn] & FLAG_PINNED:
            unpin(hv, domain, mfn)
        hv.m2p[mfn] = _INVALID_M2P
        frames.release_allocation(mfn)
    finally:
        frames.put_page(mfn)


# -- exchange ----------------------------------------------------------------------------------------------------------


@operation(HYPERVISOR_memory_op, XENMEM_exchange, raw=True)
def exchange(hv: Hypervisor, vcpu: Vcpu, vaddr: int) -> int:
    """Give frames back and get others that are adjacent, or below an address; the pfns keep their meaning.

    How many extents were exchanged is written back in any case. Raises XenError: EINVAL for sizes that do not match or
    frames that cannot be given, EPERM for large extents, ENOMEM, EFAULT.
    """
    argument = XenMemoryExchange.from_bytes(hv.memory.read(vcpu, vaddr, XenMemoryExchange.sizeof()))
    source, target = argument.in_, argument.out
    if source.domid != target.domid or argument.nr_exchanged > source.nr_extents:
        raise XenError(EINVAL, "more was exchanged than there is, or between two domains")
    privileged = vcpu.domain.iomem_ranges or vcpu.domain.can(Capability.CONTROL)
    if max(source.extent_order, target.extent_order) > (_MAX_ORDER_PRIVILEGED if privileged else _MAX_ORDER_SELF):
        raise XenError(EPERM, "extents too large")
    total = source.nr_extents << source.extent_order
    if total > _MOST_FRAMES or total != target.nr_extents << target.extent_order:
        raise XenError(EINVAL, "sizes in and out differ")
    domain = domain_for(hv, vcpu, source.domid, "XENMEM_exchange")
    chunk = max(source.extent_order, target.extent_order)
    ins, outs = 1 << (chunk - source.extent_order), 1 << (chunk - target.extent_order)
    done, end = argument.nr_exchanged // ins, source.nr_extents // ins
    part_end = min(end, done + _CHUNKS_IN_A_PART)
    try:
        while done < part_end:
            _exchange_chunk(hv, vcpu, domain, argument, done, ins, outs)
            done += 1
    finally:
        hv.memory.write_u64(vcpu, vaddr + _NR_EXCHANGED, done * ins)
    if done < end:
        raise Continuation(XENMEM_exchange, vaddr)
    return 0


def _exchange_chunk(
    hv: Hypervisor, vcpu: Vcpu, domain: Domain, argument: XenMemoryExchange, number: int, ins: int, outs: int
) -> None:
    """The least number of extents in that makes whole extents out; all of them, or XenError and none."""
    source, target = argument.in_, argument.out
    given = memoryview(hv.memory.read(vcpu, source.extent_start + number * ins * 8, ins * 8)).cast("Q").tolist()
    gpfns_at = target.extent_start + number * outs * 8
    gpfns = memoryview(hv.memory.read(vcpu, gpfns_at, outs * 8)).cast("Q").tolist()
    old = [first + offset for first in given for offset in range(1 << source.extent_order)]
    _check_given(hv, domain, old)
    fresh = _take(hv, domain, target.extent_order, target.mem_flags, len(gpfns))
    _release(hv, domain, old)
    m2p = np.frombuffer(hv.m2p, np.uint64)
    for gpfn, first in zip(gpfns, fresh.tolist(), strict=True):
        size = 1 << target.extent_order
        m2p[first : first + size] = np.arange(size, dtype=np.uint64) + np.uint64(gpfn)
    hv.memory.write(vcpu, gpfns_at, fresh.tobytes())


def _check_given(hv: Hypervisor, domain: Domain, mfns: list[int]) -> None:
    frames = hv.frames
    for mfn in mfns:
        if mfn >= frames.total or frames.owner[mfn] != domain.domid or not frames.flags[mfn] & FLAG_ALLOCATED:
            raise XenError(EINVAL, f"frame {mfn:#x} {frames.describe_owner(mfn)}")
        if frames.count[mfn] != 1 or frames.type_count[mfn]:
            raise XenError(EINVAL, f"frame {mfn:#x} is in use")
    if len(set(mfns)) != len(mfns):
        raise XenError(EINVAL, "a frame is given twice")


def _release(hv: Hypervisor, domain: Domain, mfns: list[int]) -> None:
    frames = np.array(mfns, np.int64)
    np.frombuffer(hv.m2p, np.uint64)[frames] = _INVALID_M2P
    domain.tot_frames -= hv.frames.release_allocations(frames)


# -- questions ---------------------------------------------------------------------------------------------------------


@operation(HYPERVISOR_memory_op, XENMEM_maximum_ram_page, raw=True)
def maximum_ram_page(hv: Hypervisor, vcpu: Vcpu, vaddr: int) -> int:
    """The highest machine frame number + 1, as Xen counts max_page."""
    return hv.frames.total


def _domain_at(hv: Hypervisor, vcpu: Vcpu, argument: Struct, action: str) -> Domain:
    assert isinstance(argument, XenMemoryDomain)
    return domain_for(hv, vcpu, argument.domid, action)


@operation(HYPERVISOR_memory_op, XENMEM_current_reservation)
def current_reservation(hv: Hypervisor, vcpu: Vcpu, argument: XenMemoryDomain) -> int:
    return _domain_at(hv, vcpu, argument, "XENMEM_current_reservation").tot_frames


@operation(HYPERVISOR_memory_op, XENMEM_maximum_reservation)
def maximum_reservation(hv: Hypervisor, vcpu: Vcpu, argument: XenMemoryDomain) -> int:
    return _domain_at(hv, vcpu, argument, "XENMEM_maximum_reservation").max_frames


@operation(HYPERVISOR_memory_op, XENMEM_maximum_gpfn)
def maximum_gpfn(hv: Hypervisor, vcpu: Vcpu, argument: XenMemoryDomain) -> int:
    """For a PV domain: the last of the pfns whose number it says itself in its shared_info."""
    domain = _domain_at(hv, vcpu, argument, "XENMEM_maximum_gpfn")
    return max(hv.max_pfn_of(domain), 1) - 1


@operation(HYPERVISOR_memory_op, XENMEM_machphys_mapping, copy_back=True)
def machphys_mapping(hv: Hypervisor, vcpu: Vcpu, argument: XenMachphysMapping) -> int:
    """Where the M2P is mapped, and how many frames it covers."""
    argument.v_start, argument.v_end, argument.max_mfn = hv.xenspace.m2p_range()
    return 0


@operation(HYPERVISOR_memory_op, XENMEM_machphys_mfn_list, copy_back=True)
def machphys_mfn_list(hv: Hypervisor, vcpu: Vcpu, argument: XenMachphysMfnList) -> int:
    """The first frame of each 2 MiB of the M2P."""
    mfns = hv.xenspace.m2p_chunks()[: argument.max_extents]
    hv.memory.write(vcpu, argument.extent_start, b"".join(mfn.to_bytes(8, "little") for mfn in mfns))
    argument.nr_extents = len(mfns)
    return 0


@operation(HYPERVISOR_memory_op, XENMEM_memory_map, copy_back=True)
def memory_map(hv: Hypervisor, vcpu: Vcpu, argument: XenMemoryMap) -> int:
    """As much as fits of the map that the builder gave to this domain. Raises XenError(ENOSYS) where there is none."""
    if not vcpu.domain.memory_map:
        raise XenError(ENOSYS, "this domain was given no memory map")
    return _copy_map(hv, vcpu, argument, vcpu.domain.memory_map[: argument.nr_entries])


@operation(HYPERVISOR_memory_op, XENMEM_machine_memory_map, copy_back=True, needs=Capability.HARDWARE)
def machine_memory_map(hv: Hypervisor, vcpu: Vcpu, argument: XenMemoryMap) -> int:
    """The machine's own memory map (E820), for a domain that drives the hardware."""
    return _copy_map(hv, vcpu, argument, hv.machine_map)


def _copy_map(hv: Hypervisor, vcpu: Vcpu, argument: XenMemoryMap, entries: list[tuple[int, int, int]]) -> int:
    if argument.nr_entries < len(entries):
        raise XenError(EINVAL, f"room for {argument.nr_entries} of {len(entries)} entries")
    packed = b"".join(
        start.to_bytes(8, "little") + length.to_bytes(8, "little") + kind.to_bytes(4, "little")
        for start, length, kind in entries
    )
    hv.memory.write(vcpu, argument.buffer, packed)
    argument.nr_entries = len(entries)
    return 0


@operation(HYPERVISOR_memory_op, XENMEM_add_to_physmap)
def add_to_physmap(hv: Hypervisor, vcpu: Vcpu, argument: XenAddToPhysmap) -> int:
    """Only a translated domain has a physmap of Xen's; a PV domain is told so."""
    domain_for(hv, vcpu, argument.domid, "XENMEM_add_to_physmap")
    raise XenError(EINVAL, "a PV domain keeps its own physical-to-machine table")
