"""memory_op: what a domain builder does to the memory of others beside populating it: claims, maps, grant tables.

Facts are those of Xen 4.17's xen/common/memory.c, xen/common/page_alloc.c and gnttab_acquire_resource.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EINVAL, ENOMEM, EOPNOTSUPP, EPERM, ESRCH, XenError
from xenolith.abi.hypercalls import HYPERVISOR_memory_op
from xenolith.abi.memory import (
    XenForeignMemoryMap,
    XENMEM_acquire_resource,
    XENMEM_claim_pages,
    XENMEM_get_vnumainfo,
    XENMEM_resource_grant_table,
    XENMEM_resource_grant_table_id_shared,
    XENMEM_resource_grant_table_id_status,
    XENMEM_set_memory_map,
    XenMemAcquireResource,
    XenMemoryReservation,
    XenVnumaTopologyInfo,
)
from xenolith.hypervisor.domain import Domain
from xenolith.hypervisor.grants import status_frames_for
from xenolith.hypervisor.hypercalls.memory import claimed_frames, domain_for
from xenolith.hypervisor.hypercalls.table import operation

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

_MOST_MAP_ENTRIES: Final = 1024
_MAP_ENTRY_BYTES: Final = 20
_NR_FRAMES: Final = XenMemAcquireResource.nr_frames.offset  # type: ignore[attr-defined]


@operation(HYPERVISOR_memory_op, XENMEM_claim_pages)
def claim_pages(hv: Hypervisor, caller: Vcpu, argument: XenMemoryReservation) -> None:
    """Keep free frames for a domain until it has `nr_extents` in all; 0 gives the claim up.

    Raises XenError: EINVAL for no such domain, a second claim, or one that is not between what the domain has and what
    it may have; EPERM, ENOMEM.
    """
    pages = argument.nr_extents
    if argument.extent_start or argument.extent_order or argument.mem_flags:
        raise XenError(EINVAL, "a claim is of single frames anywhere")
    try:
        domain = hv.domain_by_id(caller, argument.domid)
    except XenError as error:
        raise XenError(EINVAL, error.reason) from None
    hv.policy.require_control(caller.domain, domain, "XENMEM_claim_pages")
    if not pages:
        domain.claimed_frames = 0
        return
    if domain.claimed_frames or domain.is_dying or not domain.tot_frames < pages <= domain.max_frames:
        raise XenError(EINVAL, f"a claim of {pages} frames for domain {domain.domid}")
    missing = pages - domain.tot_frames
    if missing > hv.frames.free_frames - claimed_frames(hv):
        raise XenError(ENOMEM, f"{missing} frames claimed, {hv.frames.free_frames - claimed_frames(hv)} can be")
    domain.claimed_frames = missing


@operation(HYPERVISOR_memory_op, XENMEM_set_memory_map)
def set_memory_map(hv: Hypervisor, caller: Vcpu, argument: XenForeignMemoryMap) -> None:
    """The memory map that a domain is told. Raises XenError: EINVAL for too long a one, ESRCH, EPERM, EFAULT."""
    count = argument.map.nr_entries
    if count > _MOST_MAP_ENTRIES:
        raise XenError(EINVAL, f"a memory map of {count} entries")
    domain = domain_for(hv, caller, argument.domid, "XENMEM_set_memory_map")
    data = hv.memory.read(caller, argument.map.buffer, count * _MAP_ENTRY_BYTES)
    words = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
    domain.memory_map = [
        (words[at] | words[at + 1] << 32, words[at + 2] | words[at + 3] << 32, words[at + 4])
        for at in range(0, len(words), 5)
    ]


@operation(HYPERVISOR_memory_op, XENMEM_get_vnumainfo)
def get_vnumainfo(hv: Hypervisor, caller: Vcpu, argument: XenVnumaTopologyInfo) -> None:
    """Raises XenError: EINVAL, ESRCH, EPERM, EOPNOTSUPP: no domain has virtual nodes, so that all can be saved."""
    if argument.pad:
        raise XenError(EINVAL, "padding that is not 0")
    domain = domain_for(hv, caller, argument.domid, "XENMEM_get_vnumainfo")
    raise XenError(EOPNOTSUPP, f"domain {domain.domid} has no virtual nodes")


@operation(HYPERVISOR_memory_op, XENMEM_acquire_resource, raw=True)
def acquire_resource(hv: Hypervisor, caller: Vcpu, vaddr: int) -> None:
    """The frames of another domain's grant table, which the caller may then map; without a list, how many there can be.

    Raises XenError: EFAULT, EINVAL for other resources and frames that there are not, ESRCH, EPERM, ENOMEM.
    """
    argument = XenMemAcquireResource.from_bytes(hv.memory.read(caller, vaddr, XenMemAcquireResource.sizeof()))
    if argument.pad or argument.frame >> 32:
        raise XenError(EINVAL, "a resource far beyond its end")
    domain = hv.domains.get(argument.domid)
    if domain is None:
        raise XenError(ESRCH, f"domain {argument.domid} does not exist")
    if domain is caller.domain:
        raise XenError(EPERM, "a domain does not acquire what is its own")
    hv.policy.require_control(caller.domain, domain, "XENMEM_acquire_resource")
    most = _most_frames(domain, argument)
    if not argument.frame_list:
        if argument.nr_frames:
            raise XenError(EINVAL, "frames are asked for, and nowhere to tell them")
        hv.memory.write(caller, vaddr + _NR_FRAMES, most.to_bytes(4, "little"))
        return
    end = argument.frame + argument.nr_frames
    if not argument.nr_frames or end > most:
        raise XenError(EINVAL, f"frames {argument.frame} to {end} of {most}")
    mfns = _grant_frames(domain, argument.id, end)[argument.frame : end]
    hv.memory.write(caller, argument.frame_list, b"".join(mfn.to_bytes(8, "little") for mfn in mfns))


def _most_frames(domain: Domain, argument: XenMemAcquireResource) -> int:
    if argument.type == XENMEM_resource_grant_table:
        if argument.id == XENMEM_resource_grant_table_id_shared:
            return domain.grants.max_frames
        if argument.id == XENMEM_resource_grant_table_id_status:
            return status_frames_for(domain.grants.max_frames)
    raise XenError(EINVAL, f"a PV domain has no resource {argument.type}, {argument.id}")


def _grant_frames(domain: Domain, kind: int, count: int) -> list[int]:
    """At least the first `count` frames of one kind; the table grows for it."""
    table = domain.grants
    if kind == XENMEM_resource_grant_table_id_shared:
        table.grow(count)
        return table.frames
    if table.version != 2:
        raise XenError(EINVAL, f"{domain} has no status frames")
    while len(table.status_frames) < count:
        table.grow(len(table.frames) + 1)
    return table.status_frames
