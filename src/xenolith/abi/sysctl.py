"""sysctl: inspect and tune the whole machine (sysctl.h). The layout is that of interface version 0x15 (Xen 4.17)."""

from ctypes import Array, c_uint8, c_uint32
from typing import Annotated, Final

from xenolith.abi.domctl import XenctlBitmap
from xenolith.abi.types import I32, U8, U16, U32, U64, Handle, Struct, Union, layout

XEN_SYSCTL_INTERFACE_VERSION: Final = 0x00000015

# XenSysctl.cmd.
XEN_SYSCTL_readconsole: Final = 1
XEN_SYSCTL_tbuf_op: Final = 2
XEN_SYSCTL_physinfo: Final = 3
XEN_SYSCTL_sched_id: Final = 4
XEN_SYSCTL_perfc_op: Final = 5
XEN_SYSCTL_getdomaininfolist: Final = 6
XEN_SYSCTL_debug_keys: Final = 7
XEN_SYSCTL_getcpuinfo: Final = 8
XEN_SYSCTL_availheap: Final = 9
XEN_SYSCTL_get_pmstat: Final = 10
XEN_SYSCTL_cpu_hotplug: Final = 11
XEN_SYSCTL_pm_op: Final = 12
XEN_SYSCTL_page_offline_op: Final = 14
XEN_SYSCTL_lockprof_op: Final = 15
XEN_SYSCTL_cputopoinfo: Final = 16
XEN_SYSCTL_numainfo: Final = 17
XEN_SYSCTL_cpupool_op: Final = 18
XEN_SYSCTL_scheduler_op: Final = 19
XEN_SYSCTL_coverage_op: Final = 20
XEN_SYSCTL_psr_cmt_op: Final = 21
XEN_SYSCTL_pcitopoinfo: Final = 22
XEN_SYSCTL_psr_alloc: Final = 23
XEN_SYSCTL_get_cpu_levelling_caps: Final = 25
XEN_SYSCTL_get_cpu_featureset: Final = 26
XEN_SYSCTL_livepatch_op: Final = 27
XEN_SYSCTL_get_cpu_policy: Final = 29

# XenSysctlTbufOp.cmd.
XEN_SYSCTL_TBUFOP_get_info: Final = 0
XEN_SYSCTL_TBUFOP_set_cpu_mask: Final = 1
XEN_SYSCTL_TBUFOP_set_evt_mask: Final = 2
XEN_SYSCTL_TBUFOP_set_size: Final = 3
XEN_SYSCTL_TBUFOP_enable: Final = 4
XEN_SYSCTL_TBUFOP_disable: Final = 5

# XenSysctlPhysinfo.capabilities.
XEN_SYSCTL_PHYSCAP_hvm: Final = 1 << 0
XEN_SYSCTL_PHYSCAP_pv: Final = 1 << 1
XEN_SYSCTL_PHYSCAP_directio: Final = 1 << 2
XEN_SYSCTL_PHYSCAP_hap: Final = 1 << 3
XEN_SYSCTL_PHYSCAP_shadow: Final = 1 << 4
XEN_SYSCTL_PHYSCAP_iommu_hap_pt_share: Final = 1 << 5
XEN_SYSCTL_PHYSCAP_vmtrace: Final = 1 << 6
XEN_SYSCTL_PHYSCAP_vpmu: Final = 1 << 7
XEN_SYSCTL_PHYSCAP_gnttab_v1: Final = 1 << 8
XEN_SYSCTL_PHYSCAP_gnttab_v2: Final = 1 << 9
XEN_SYSCTL_PHYSCAP_MAX: Final = XEN_SYSCTL_PHYSCAP_gnttab_v2

# XenSysctlGetPmstat.type.
PMSTAT_CATEGORY_MASK: Final = 0xF0
PMSTAT_PX: Final = 0x10
PMSTAT_CX: Final = 0x20
PMSTAT_get_max_px: Final = 0x11
PMSTAT_get_pxstat: Final = 0x12
PMSTAT_reset_pxstat: Final = 0x13
PMSTAT_get_max_cx: Final = 0x21
PMSTAT_get_cxstat: Final = 0x22
PMSTAT_reset_cxstat: Final = 0x23

# XenSysctlCpuHotplug.op.
XEN_SYSCTL_CPU_HOTPLUG_ONLINE: Final = 0
XEN_SYSCTL_CPU_HOTPLUG_OFFLINE: Final = 1
XEN_SYSCTL_CPU_HOTPLUG_SMT_ENABLE: Final = 2
XEN_SYSCTL_CPU_HOTPLUG_SMT_DISABLE: Final = 3

# XenSysctlPageOfflineOp.cmd and its answers.
sysctl_page_offline: Final = 1
sysctl_page_online: Final = 2
sysctl_query_page_offline: Final = 3
PG_OFFLINE_STATUS_MASK: Final = 0xFF
PG_OFFLINE_INVALID: Final = 1 << 0
PG_OFFLINE_OFFLINED: Final = 1 << 1
PG_OFFLINE_PENDING: Final = 1 << 2
PG_OFFLINE_FAILED: Final = 1 << 3
PG_OFFLINE_AGAIN: Final = 1 << 4
PG_ONLINE_FAILED: Final = PG_OFFLINE_FAILED
PG_ONLINE_ONLINED: Final = PG_OFFLINE_OFFLINED
PG_OFFLINE_STATUS_OFFLINED: Final = 1 << 1
PG_OFFLINE_STATUS_ONLINE: Final = 1 << 2
PG_OFFLINE_STATUS_OFFLINE_PENDING: Final = 1 << 3
PG_OFFLINE_STATUS_BROKEN: Final = 1 << 4
PG_OFFLINE_MISC_MASK: Final = 0xFF0
PG_OFFLINE_XENPAGE: Final = 1 << 8
PG_OFFLINE_DOM0PAGE: Final = 1 << 9
PG_OFFLINE_ANONYMOUS: Final = 1 << 10
PG_OFFLINE_NOT_CONV_RAM: Final = 1 << 11
PG_OFFLINE_OWNED: Final = 1 << 12
PG_OFFLINE_BROKEN: Final = 1 << 13
PG_ONLINE_BROKEN: Final = PG_OFFLINE_BROKEN
PG_OFFLINE_OWNER_SHIFT: Final = 16

# Numbers that say: there is none.
XEN_INVALID_CORE_ID: Final = 0xFFFFFFFF
XEN_INVALID_SOCKET_ID: Final = 0xFFFFFFFF
XEN_INVALID_NODE_ID: Final = 0xFFFFFFFF
XEN_INVALID_MEM_SZ: Final = 0xFFFFFFFF
XEN_INVALID_NODE_DIST: Final = 0xFFFFFFFF
XEN_INVALID_DEV: Final = 0xFFFFFFFE

# XenSysctlCpupoolOp.op.
XEN_SYSCTL_CPUPOOL_OP_CREATE: Final = 1
XEN_SYSCTL_CPUPOOL_OP_DESTROY: Final = 2
XEN_SYSCTL_CPUPOOL_OP_INFO: Final = 3
XEN_SYSCTL_CPUPOOL_OP_ADDCPU: Final = 4
XEN_SYSCTL_CPUPOOL_OP_RMCPU: Final = 5
XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN: Final = 6
XEN_SYSCTL_CPUPOOL_OP_FREEINFO: Final = 7
XEN_SYSCTL_CPUPOOL_PAR_ANY: Final = 0xFFFFFFFF

# XenSysctlSchedulerOp.cmd, and limits of its parameters.
XEN_SYSCTL_SCHED_RATELIMIT_MAX: Final = 500000
XEN_SYSCTL_SCHED_RATELIMIT_MIN: Final = 100
XEN_SYSCTL_CSCHED_TSLICE_MAX: Final = 1000
XEN_SYSCTL_CSCHED_TSLICE_MIN: Final = 1
XEN_SYSCTL_CSCHED_MGR_DLY_MAX_US: Final = 100000
XEN_SYSCTL_SCHEDOP_putinfo: Final = 0
XEN_SYSCTL_SCHEDOP_getinfo: Final = 1

# XenSysctlCpuLevellingCaps.caps.
XEN_SYSCTL_CPU_LEVELCAP_faulting: Final = 1 << 0
XEN_SYSCTL_CPU_LEVELCAP_ecx: Final = 1 << 1
XEN_SYSCTL_CPU_LEVELCAP_edx: Final = 1 << 2
XEN_SYSCTL_CPU_LEVELCAP_extd_ecx: Final = 1 << 3
XEN_SYSCTL_CPU_LEVELCAP_extd_edx: Final = 1 << 4
XEN_SYSCTL_CPU_LEVELCAP_xsave_eax: Final = 1 << 5
XEN_SYSCTL_CPU_LEVELCAP_thermal_ecx: Final = 1 << 6
XEN_SYSCTL_CPU_LEVELCAP_l7s0_eax: Final = 1 << 7
XEN_SYSCTL_CPU_LEVELCAP_l7s0_ebx: Final = 1 << 8

# XenSysctlCpuFeatureset.index.
XEN_SYSCTL_cpu_featureset_raw: Final = 0
XEN_SYSCTL_cpu_featureset_host: Final = 1
XEN_SYSCTL_cpu_featureset_pv: Final = 2
XEN_SYSCTL_cpu_featureset_hvm: Final = 3
XEN_SYSCTL_cpu_featureset_pv_max: Final = 4
XEN_SYSCTL_cpu_featureset_hvm_max: Final = 5

# XenSysctlCpuPolicy.index.
XEN_SYSCTL_cpu_policy_raw: Final = 0
XEN_SYSCTL_cpu_policy_host: Final = 1
XEN_SYSCTL_cpu_policy_pv_max: Final = 2
XEN_SYSCTL_cpu_policy_hvm_max: Final = 3
XEN_SYSCTL_cpu_policy_pv_default: Final = 4
XEN_SYSCTL_cpu_policy_hvm_default: Final = 5


@layout()
class XenSysctlReadconsole(Struct):
    """Read the hypervisor's console ring; `index` counts bytes since boot."""

    clear: U8
    incremental: U8
    pad0: U8
    pad1: U8
    index: U32
    buffer: Handle
    count: U32


@layout()
class XenSysctlTbufOp(Struct):
    """Control the trace buffers."""

    cmd: U32
    cpu_mask: XenctlBitmap
    evt_mask: U32
    buffer_mfn: U64
    size: U32


@layout()
class XenSysctlPhysinfo(Struct):
    """What the machine has: processors, memory (pages), capabilities."""

    threads_per_core: U32
    cores_per_socket: U32
    nr_cpus: U32
    max_cpu_id: U32
    nr_nodes: U32
    max_node_id: U32
    cpu_khz: U32
    capabilities: U32
    arch_capabilities: U32
    pad: U32
    total_pages: U64
    free_pages: U64
    scrub_pages: U64
    outstanding_pages: U64
    max_mfn: U64
    hw_cap: Annotated[Array[c_uint32], c_uint32 * 8]


@layout()
class XenSysctlSchedId(Struct):
    """Which scheduler runs."""

    sched_id: U32


@layout()
class XenSysctlGetdomaininfolist(Struct):
    """What the domains from a number on are."""

    first_domain: U16
    max_domains: U32
    buffer: Handle
    num_domains: U32


@layout()
class XenSysctlDebugKeys(Struct):
    """Press debug keys on the hypervisor's console."""

    keys: Handle
    nr_keys: U32


@layout()
class XenSysctlCpuinfo(Struct):
    """How long (ns) a processor was idle."""

    idletime: U64


@layout()
class XenSysctlGetcpuinfo(Struct):
    """How long each processor was idle."""

    max_cpus: U32
    info: Handle
    nr_cpus: U32


@layout()
class XenSysctlAvailheap(Struct):
    """How much memory (bytes) is free in a range of addresses."""

    min_bitwidth: U32
    max_bitwidth: U32
    node: I32
    avail_bytes: U64


@layout()
class PmPxVal(Struct):
    """One P-state and its use."""

    freq: U64
    residency: U64
    count: U64


@layout()
class PmPxStat(Struct):
    """P-state statistics of a processor."""

    total: U8
    usable: U8
    last: U8
    cur: U8
    trans_pt: Handle
    pt: Handle


@layout()
class PmCxStat(Struct):
    """C-state statistics of a processor."""

    nr: U32
    last: U32
    idle_time: U64
    triggers: Handle
    residencies: Handle
    nr_pc: U32
    nr_cc: U32
    pc: Handle
    cc: Handle


@layout()
class XenSysctlGetPmstat(Struct):
    """Power statistics of a processor."""

    @layout()
    class U(Union):
        getpx: PmPxStat
        getcx: PmCxStat

    type: U32
    cpuid: U32
    u: U


@layout()
class XenSysctlCpuHotplug(Struct):
    """Take a processor on or off line."""

    cpu: U32
    op: U32


@layout()
class XenSysctlPageOfflineOp(Struct):
    """Take frames out of use, or back."""

    cmd: U32
    start: U32
    end: U32
    status: Handle


@layout()
class XenSysctlCputopo(Struct):
    """Core, socket and node of a processor."""

    core: U32
    socket: U32
    node: U32


@layout()
class XenSysctlCputopoinfo(Struct):
    """The topology of the processors."""

    num_cpus: U32
    cputopo: Handle


@layout()
class XenSysctlMeminfo(Struct):
    """The memory (bytes) of a node."""

    memsize: U64
    memfree: U64


@layout()
class XenSysctlNumainfo(Struct):
    """The memory and the distances of the nodes."""

    num_nodes: U32
    meminfo: Handle
    distance: Handle


@layout()
class XenSysctlPcitopoinfo(Struct):
    """The nodes of PCI devices."""

    num_devs: U32
    devs: Handle
    nodes: Handle


@layout()
class XenSysctlCpupoolOp(Struct):
    """Create, change and inspect pools of processors."""

    op: U32
    cpupool_id: U32
    sched_id: U32
    domid: U32
    cpu: U32
    n_dom: U32
    cpumap: XenctlBitmap


@layout()
class XenSysctlCreditSchedule(Struct):
    """Parameters of the credit scheduler."""

    tslice_ms: U32
    ratelimit_us: U32
    vcpu_migr_delay_us: U32


@layout()
class XenSysctlCredit2Schedule(Struct):
    """Parameters of the credit2 scheduler."""

    ratelimit_us: U32


@layout()
class XenSysctlSchedulerOp(Struct):
    """Get or put a scheduler's parameters."""

    @layout()
    class U(Union):
        @layout()
        class SchedArinc653(Struct):
            schedule: Handle

        sched_arinc653: SchedArinc653
        sched_credit: XenSysctlCreditSchedule
        sched_credit2: XenSysctlCredit2Schedule

    cpupool_id: U32
    sched_id: U32
    cmd: U32
    u: U


@layout()
class XenSysctlCpuLevellingCaps(Struct):
    """Which CPUID leaves the hypervisor can change for a guest."""

    caps: U32


@layout()
class XenSysctlCpuFeatureset(Struct):
    """A bitmap of CPU features."""

    index: U32
    nr_features: U32
    features: Handle


@layout()
class XenSysctlCpuPolicy(Struct):
    """CPUID leaves and registers of the host, or the most that a guest may see."""

    index: U32
    nr_leaves: U32
    nr_msrs: U32
    _rsvd: U32
    leaves: Handle
    msrs: Handle


@layout()
class XenSysctl(Struct):
    """The argument of the call: `u` has a member for each `cmd`."""

    @layout()
    class U(Union):
        readconsole: XenSysctlReadconsole
        tbuf_op: XenSysctlTbufOp
        physinfo: XenSysctlPhysinfo
        cputopoinfo: XenSysctlCputopoinfo
        pcitopoinfo: XenSysctlPcitopoinfo
        numainfo: XenSysctlNumainfo
        sched_id: XenSysctlSchedId
        getdomaininfolist: XenSysctlGetdomaininfolist
        debug_keys: XenSysctlDebugKeys
        getcpuinfo: XenSysctlGetcpuinfo
        availheap: XenSysctlAvailheap
        get_pmstat: XenSysctlGetPmstat
        cpu_hotplug: XenSysctlCpuHotplug
        page_offline: XenSysctlPageOfflineOp
        cpupool_op: XenSysctlCpupoolOp
        scheduler_op: XenSysctlSchedulerOp
        cpu_levelling_caps: XenSysctlCpuLevellingCaps
        cpu_featureset: XenSysctlCpuFeatureset
        cpu_policy: XenSysctlCpuPolicy
        pad: Annotated[Array[c_uint8], c_uint8 * 128]

    cmd: U32
    interface_version: U32
    u: U
