"""memory_op: how much memory a domain has and where (memory.h)."""

from typing import Final

from xenolith.abi.physdev import PhysdevPciDevice
from xenolith.abi.types import U16, U32, U64, Handle, Struct, Union, layout

MEMOP_EXTENT_SHIFT: Final = 6
"""Bits of memory_op's first argument that are the sub-operation; the rest is the extent to continue at."""
MEMOP_CMD_MASK: Final = (1 << MEMOP_EXTENT_SHIFT) - 1

# memory_op sub-operations.
XENMEM_increase_reservation: Final = 0
XENMEM_decrease_reservation: Final = 1
XENMEM_populate_physmap: Final = 6
XENMEM_exchange: Final = 11
XENMEM_maximum_ram_page: Final = 2
XENMEM_current_reservation: Final = 3
XENMEM_maximum_reservation: Final = 4
XENMEM_maximum_gpfn: Final = 14
XENMEM_machphys_mfn_list: Final = 5
XENMEM_machphys_compat_mfn_list: Final = 25
XENMEM_machphys_mapping: Final = 12
XENMEM_add_to_physmap: Final = 7
XENMEM_add_to_physmap_batch: Final = 23
XENMEM_remove_from_physmap: Final = 15
XENMEM_memory_map: Final = 9
XENMEM_machine_memory_map: Final = 10
XENMEM_set_memory_map: Final = 13
XENMEM_set_pod_target: Final = 16
XENMEM_get_pod_target: Final = 17
XENMEM_get_sharing_freed_pages: Final = 18
XENMEM_get_sharing_shared_pages: Final = 19
XENMEM_paging_op: Final = 20
XENMEM_access_op: Final = 21
XENMEM_sharing_op: Final = 22
XENMEM_claim_pages: Final = 24
XENMEM_reserved_device_memory_map: Final = 27
XENMEM_acquire_resource: Final = 28
XENMEM_get_vnumainfo: Final = 26

# XenMemoryReservation.mem_flags above the address bits and the node.
XENMEMF_populate_on_demand: Final = 1 << 16
XENMEMF_exact_node_request: Final = 1 << 17
XENMEMF_vnode: Final = 1 << 18

# XenAddToPhysmap.space.
XENMAPSPACE_shared_info: Final = 0
XENMAPSPACE_grant_table: Final = 1
XENMAPSPACE_gmfn: Final = 2
XENMAPSPACE_gmfn_range: Final = 3
XENMAPSPACE_gmfn_foreign: Final = 4
XENMAPSPACE_dev_mmio: Final = 5

# XenAddToPhysmap.idx: the grant table's status frames.
XENMAPIDX_grant_table_status: Final = 0x80000000

# XenMemAcquireResource.type, and the `id` of each type.
XENMEM_resource_ioreq_server: Final = 0
XENMEM_resource_grant_table: Final = 1
XENMEM_resource_vmtrace_buf: Final = 2
XENMEM_resource_grant_table_id_shared: Final = 0
XENMEM_resource_grant_table_id_status: Final = 1
XENMEM_resource_ioreq_server_frame_bufioreq: Final = 0

# XenReservedDeviceMemoryMap.flags.
XENMEM_RDM_ALL: Final = 1

# Sub-operations of the paging, access and sharing calls.
XENMEM_paging_op_nominate: Final = 0
XENMEM_paging_op_evict: Final = 1
XENMEM_paging_op_prep: Final = 2
XENMEM_access_op_set_access: Final = 0
XENMEM_access_op_get_access: Final = 1
XENMEM_access_op_set_access_multi: Final = 4
XENMEM_sharing_op_nominate_gfn: Final = 0
XENMEM_sharing_op_nominate_gref: Final = 1
XENMEM_sharing_op_share: Final = 2
XENMEM_sharing_op_debug_gfn: Final = 3
XENMEM_sharing_op_debug_mfn: Final = 4
XENMEM_sharing_op_debug_gref: Final = 5
XENMEM_sharing_op_add_physmap: Final = 6
XENMEM_sharing_op_audit: Final = 7
XENMEM_sharing_op_range_share: Final = 8
XENMEM_sharing_op_fork: Final = 9
XENMEM_sharing_op_fork_reset: Final = 10


@layout()
class XenMemoryReservation(Struct):
    """`nr_extents` extents of 2**`extent_order` frames: their numbers stand in `extent_start`."""

    extent_start: Handle
    nr_extents: U64
    extent_order: U32
    mem_flags: U32
    domid: U16


@layout()
class XenMemoryExchange(Struct):
    """Give up the extents of `in_` for those of `out`."""

    in_: XenMemoryReservation
    out: XenMemoryReservation
    nr_exchanged: U64


@layout()
class XenMemoryDomain(Struct):
    """Which domain's current or greatest number of pages to tell."""

    domid: U16


@layout()
class XenMachphysMfnList(Struct):
    """The first frame of each 2 MiB extent of the machine-to-physical table."""

    max_extents: U32
    extent_start: Handle
    nr_extents: U32


@layout()
class XenMachphysMapping(Struct):
    """Where the machine-to-physical table is mapped: virtual addresses, and the highest mfn."""

    v_start: U64
    v_end: U64
    max_mfn: U64


@layout()
class XenAddToPhysmap(Struct):
    """Put a frame of one of the XENMAPSPACE_* at `gpfn`."""

    domid: U16
    size: U16
    space: U32
    idx: U64
    gpfn: U64


@layout()
class XenAddToPhysmapBatch(Struct):
    """Put `size` frames of one space at given frame numbers."""

    @layout()
    class U(Union):
        foreign_domid: U16
        res0: U16

    domid: U16
    space: U16
    size: U16
    u: U
    idxs: Handle
    gpfns: Handle
    errs: Handle


@layout()
class XenRemoveFromPhysmap(Struct):
    """Take the frame at `gpfn` out of a translated domain."""

    domid: U16
    gpfn: U64


@layout()
class XenMemoryMap(Struct):
    """A memory map of `nr_entries` E820 records."""

    nr_entries: U32
    buffer: Handle


@layout()
class XenForeignMemoryMap(Struct):
    """Set the memory map of another domain."""

    domid: U16
    map: XenMemoryMap


@layout()
class XenPodTarget(Struct):
    """Populate-on-demand numbers of a translated domain, in pages."""

    target_pages: U64
    tot_pages: U64
    pod_cache_pages: U64
    pod_entries: U64
    domid: U16


@layout()
class XenReservedDeviceMemory(Struct):
    """A range of frames that devices need at a fixed place."""

    start_pfn: U64
    nr_pages: U64


@layout()
class XenReservedDeviceMemoryMap(Struct):
    """Ask for the ranges reserved for a device."""

    @layout()
    class Dev(Union):
        pci: PhysdevPciDevice

    flags: U32
    nr_entries: U32
    buffer: Handle
    dev: Dev


@layout()
class XenMemAcquireResource(Struct):
    """Map frames that belong to a domain's resource, such as its grant table."""

    domid: U16
    type: U16
    id: U32
    nr_frames: U32
    pad: U32
    frame: U64
    frame_list: Handle


@layout()
class XenVmemrange(Struct):
    """A range of guest memory that belongs to one virtual node."""

    start: U64
    end: U64
    flags: U32
    nid: U32


@layout()
class XenVnumaTopologyInfo(Struct):
    """The virtual NUMA topology of a domain."""

    @layout()
    class Vdistance(Union):
        h: Handle
        pad: U64

    @layout()
    class VcpuToVnode(Union):
        h: Handle
        pad: U64

    @layout()
    class Vmemrange(Union):
        h: Handle
        pad: U64

    domid: U16
    pad: U16
    nr_vnodes: U32
    nr_vcpus: U32
    nr_vmemranges: U32
    vdistance: Vdistance
    vcpu_to_vnode: VcpuToVnode
    vmemrange: Vmemrange
