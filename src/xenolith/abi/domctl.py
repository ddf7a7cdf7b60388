"""domctl: create, change and inspect domains (domctl.h). The layout is that of interface version 0x15 (Xen 4.17)."""

from ctypes import Array, c_uint8, c_uint16
from typing import Annotated, Final

from xenolith.abi.types import I32, I64, U8, U16, U32, U64, Handle, Struct, Union, layout

XEN_DOMCTL_INTERFACE_VERSION: Final = 0x00000015

# XenDomctl.cmd.
XEN_DOMCTL_createdomain: Final = 1
XEN_DOMCTL_destroydomain: Final = 2
XEN_DOMCTL_pausedomain: Final = 3
XEN_DOMCTL_unpausedomain: Final = 4
XEN_DOMCTL_getdomaininfo: Final = 5
XEN_DOMCTL_setvcpuaffinity: Final = 9
XEN_DOMCTL_shadow_op: Final = 10
XEN_DOMCTL_max_mem: Final = 11
XEN_DOMCTL_setvcpucontext: Final = 12
XEN_DOMCTL_getvcpucontext: Final = 13
XEN_DOMCTL_getvcpuinfo: Final = 14
XEN_DOMCTL_max_vcpus: Final = 15
XEN_DOMCTL_scheduler_op: Final = 16
XEN_DOMCTL_setdomainhandle: Final = 17
XEN_DOMCTL_setdebugging: Final = 18
XEN_DOMCTL_irq_permission: Final = 19
XEN_DOMCTL_iomem_permission: Final = 20
XEN_DOMCTL_ioport_permission: Final = 21
XEN_DOMCTL_hypercall_init: Final = 22
XEN_DOMCTL_settimeoffset: Final = 24
XEN_DOMCTL_getvcpuaffinity: Final = 25
XEN_DOMCTL_real_mode_area: Final = 26
XEN_DOMCTL_resumedomain: Final = 27
XEN_DOMCTL_sendtrigger: Final = 28
XEN_DOMCTL_subscribe: Final = 29
XEN_DOMCTL_gethvmcontext: Final = 33
XEN_DOMCTL_sethvmcontext: Final = 34
XEN_DOMCTL_set_address_size: Final = 35
XEN_DOMCTL_get_address_size: Final = 36
XEN_DOMCTL_assign_device: Final = 37
XEN_DOMCTL_bind_pt_irq: Final = 38
XEN_DOMCTL_memory_mapping: Final = 39
XEN_DOMCTL_ioport_mapping: Final = 40
XEN_DOMCTL_set_ext_vcpucontext: Final = 42
XEN_DOMCTL_get_ext_vcpucontext: Final = 43
XEN_DOMCTL_set_opt_feature: Final = 44
XEN_DOMCTL_test_assign_device: Final = 45
XEN_DOMCTL_set_target: Final = 46
XEN_DOMCTL_deassign_device: Final = 47
XEN_DOMCTL_unbind_pt_irq: Final = 48
XEN_DOMCTL_get_device_group: Final = 50
XEN_DOMCTL_debug_op: Final = 54
XEN_DOMCTL_gethvmcontext_partial: Final = 55
XEN_DOMCTL_vm_event_op: Final = 56
XEN_DOMCTL_mem_sharing_op: Final = 57
XEN_DOMCTL_gettscinfo: Final = 59
XEN_DOMCTL_settscinfo: Final = 60
XEN_DOMCTL_getpageframeinfo3: Final = 61
XEN_DOMCTL_setvcpuextstate: Final = 62
XEN_DOMCTL_getvcpuextstate: Final = 63
XEN_DOMCTL_set_access_required: Final = 64
XEN_DOMCTL_audit_p2m: Final = 65
XEN_DOMCTL_set_virq_handler: Final = 66
XEN_DOMCTL_set_broken_page_p2m: Final = 67
XEN_DOMCTL_setnodeaffinity: Final = 68
XEN_DOMCTL_getnodeaffinity: Final = 69
XEN_DOMCTL_cacheflush: Final = 71
XEN_DOMCTL_get_vcpu_msrs: Final = 72
XEN_DOMCTL_set_vcpu_msrs: Final = 73
XEN_DOMCTL_setvnumainfo: Final = 74
XEN_DOMCTL_psr_cmt_op: Final = 75
XEN_DOMCTL_monitor_op: Final = 77
XEN_DOMCTL_psr_alloc: Final = 78
XEN_DOMCTL_soft_reset: Final = 79
XEN_DOMCTL_vuart_op: Final = 81
XEN_DOMCTL_get_cpu_policy: Final = 82
XEN_DOMCTL_set_cpu_policy: Final = 83
XEN_DOMCTL_vmtrace_op: Final = 84
XEN_DOMCTL_get_paging_mempool_size: Final = 85
XEN_DOMCTL_set_paging_mempool_size: Final = 86
XEN_DOMCTL_gdbsx_guestmemio: Final = 1000
XEN_DOMCTL_gdbsx_pausevcpu: Final = 1001
XEN_DOMCTL_gdbsx_unpausevcpu: Final = 1002
XEN_DOMCTL_gdbsx_domstatus: Final = 1003

# XenDomctlCreatedomain.flags, .iommu_opts and .grant_opts.
XEN_DOMCTL_CDF_hvm: Final = 1 << 0
XEN_DOMCTL_CDF_hap: Final = 1 << 1
XEN_DOMCTL_CDF_s3_integrity: Final = 1 << 2
XEN_DOMCTL_CDF_oos_off: Final = 1 << 3
XEN_DOMCTL_CDF_xs_domain: Final = 1 << 4
XEN_DOMCTL_CDF_iommu: Final = 1 << 5
XEN_DOMCTL_CDF_nested_virt: Final = 1 << 6
XEN_DOMCTL_CDF_vpmu: Final = 1 << 7
XEN_DOMCTL_CDF_MAX: Final = XEN_DOMCTL_CDF_vpmu
XEN_DOMCTL_IOMMU_no_sharept: Final = 1 << 0
XEN_DOMCTL_IOMMU_MAX: Final = XEN_DOMCTL_IOMMU_no_sharept
XEN_DOMCTL_GRANT_version_mask: Final = 0xF

# XenArchDomainconfig.emulation_flags and .misc_flags.
XEN_X86_EMU_LAPIC: Final = 1 << 0
XEN_X86_EMU_HPET: Final = 1 << 1
XEN_X86_EMU_PM: Final = 1 << 2
XEN_X86_EMU_RTC: Final = 1 << 3
XEN_X86_EMU_IOAPIC: Final = 1 << 4
XEN_X86_EMU_PIC: Final = 1 << 5
XEN_X86_EMU_VGA: Final = 1 << 6
XEN_X86_EMU_IOMMU: Final = 1 << 7
XEN_X86_EMU_PIT: Final = 1 << 8
XEN_X86_EMU_USE_PIRQ: Final = 1 << 9
XEN_X86_EMU_VPCI: Final = 1 << 10
XEN_X86_EMU_ALL: Final = (
    XEN_X86_EMU_LAPIC
    | XEN_X86_EMU_HPET
    | XEN_X86_EMU_PM
    | XEN_X86_EMU_RTC
    | XEN_X86_EMU_IOAPIC
    | XEN_X86_EMU_PIC
    | XEN_X86_EMU_VGA
    | XEN_X86_EMU_IOMMU
    | XEN_X86_EMU_PIT
    | XEN_X86_EMU_USE_PIRQ
    | XEN_X86_EMU_VPCI
)
XEN_X86_MSR_RELAXED: Final = 1 << 0

# XenDomctlGetdomaininfo.flags and .max_vcpu_id.
XEN_DOMINF_dying: Final = 1 << 0
XEN_DOMINF_hvm_guest: Final = 1 << 1
XEN_DOMINF_shutdown: Final = 1 << 2
XEN_DOMINF_paused: Final = 1 << 3
XEN_DOMINF_blocked: Final = 1 << 4
XEN_DOMINF_running: Final = 1 << 5
XEN_DOMINF_debugged: Final = 1 << 6
XEN_DOMINF_xs_domain: Final = 1 << 7
XEN_DOMINF_hap: Final = 1 << 8
XEN_DOMINF_shutdownmask: Final = 0xFF
XEN_DOMINF_shutdownshift: Final = 16
XEN_INVALID_MAX_VCPU_ID: Final = 0xFFFFFFFF

# What XEN_DOMCTL_getpageframeinfo3 says of a frame, in the upper bits of its number.
XEN_DOMCTL_PFINFO_LTAB_SHIFT: Final = 28
XEN_DOMCTL_PFINFO_NOTAB: Final = 0
XEN_DOMCTL_PFINFO_L1TAB: Final = 1 << 28
XEN_DOMCTL_PFINFO_L2TAB: Final = 2 << 28
XEN_DOMCTL_PFINFO_L3TAB: Final = 3 << 28
XEN_DOMCTL_PFINFO_L4TAB: Final = 4 << 28
XEN_DOMCTL_PFINFO_LTABTYPE_MASK: Final = 7 << 28
XEN_DOMCTL_PFINFO_LPINTAB: Final = 1 << 31
XEN_DOMCTL_PFINFO_XTAB: Final = 0xF << 28
XEN_DOMCTL_PFINFO_XALLOC: Final = 0xE << 28
XEN_DOMCTL_PFINFO_BROKEN: Final = 0xD << 28
XEN_DOMCTL_PFINFO_LTAB_MASK: Final = 0xF << 28

# XenDomctlShadowOp.op and .mode.
XEN_DOMCTL_SHADOW_OP_OFF: Final = 0
XEN_DOMCTL_SHADOW_OP_ENABLE: Final = 32
XEN_DOMCTL_SHADOW_OP_CLEAN: Final = 11
XEN_DOMCTL_SHADOW_OP_PEEK: Final = 12
XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION: Final = 30
XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION: Final = 31
XEN_DOMCTL_SHADOW_OP_ENABLE_TEST: Final = 1
XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY: Final = 2
XEN_DOMCTL_SHADOW_ENABLE_REFCOUNT: Final = 1 << 1
XEN_DOMCTL_SHADOW_ENABLE_LOG_DIRTY: Final = 1 << 2
XEN_DOMCTL_SHADOW_ENABLE_TRANSLATE: Final = 1 << 3
XEN_DOMCTL_SHADOW_ENABLE_EXTERNAL: Final = 1 << 4
XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL: Final = 1 << 0

# XenDomctlVcpuaffinity.flags.
XEN_VCPUAFFINITY_HARD: Final = 1 << 0
XEN_VCPUAFFINITY_SOFT: Final = 1 << 1
XEN_VCPUAFFINITY_FORCE: Final = 1 << 2

# Schedulers, and what to do with their parameters.
XEN_SCHEDULER_CREDIT: Final = 5
XEN_SCHEDULER_CREDIT2: Final = 6
XEN_SCHEDULER_ARINC653: Final = 7
XEN_SCHEDULER_RTDS: Final = 8
XEN_SCHEDULER_NULL: Final = 9
XEN_DOMCTL_SCHEDRT_extra: Final = 1 << 0
XEN_DOMCTL_SCHEDOP_putinfo: Final = 0
XEN_DOMCTL_SCHEDOP_getinfo: Final = 1
XEN_DOMCTL_SCHEDOP_putvcpuinfo: Final = 2
XEN_DOMCTL_SCHEDOP_getvcpuinfo: Final = 3

# XenDomctlSendtrigger.trigger.
XEN_DOMCTL_SENDTRIGGER_NMI: Final = 0
XEN_DOMCTL_SENDTRIGGER_RESET: Final = 1
XEN_DOMCTL_SENDTRIGGER_INIT: Final = 2
XEN_DOMCTL_SENDTRIGGER_POWER: Final = 3
XEN_DOMCTL_SENDTRIGGER_SLEEP: Final = 4

# XenDomctlAssignDevice.dev and .flags.
XEN_DOMCTL_DEV_PCI: Final = 0
XEN_DOMCTL_DEV_DT: Final = 1
XEN_DOMCTL_DEV_RDM_RELAXED: Final = 1

# Add or remove a mapping.
DPCI_ADD_MAPPING: Final = 1
DPCI_REMOVE_MAPPING: Final = 0

# XenDomctlDebugOp.op.
XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_OFF: Final = 0
XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_ON: Final = 1

# Sub-operations of the operations that watch and tune a domain, and kinds of cache attributes and VM events.
XEN_DOMCTL_MEM_CACHEATTR_UC: Final = 0
XEN_DOMCTL_MEM_CACHEATTR_WC: Final = 1
XEN_DOMCTL_MEM_CACHEATTR_WT: Final = 4
XEN_DOMCTL_MEM_CACHEATTR_WP: Final = 5
XEN_DOMCTL_MEM_CACHEATTR_WB: Final = 6
XEN_DOMCTL_MEM_CACHEATTR_UCM: Final = 7
XEN_VM_EVENT_ENABLE: Final = 0
XEN_VM_EVENT_DISABLE: Final = 1
XEN_VM_EVENT_RESUME: Final = 2
XEN_VM_EVENT_GET_VERSION: Final = 3
XEN_DOMCTL_VM_EVENT_OP_PAGING: Final = 1
XEN_DOMCTL_VM_EVENT_OP_MONITOR: Final = 2
XEN_DOMCTL_VM_EVENT_OP_SHARING: Final = 3
XEN_DOMCTL_MEM_SHARING_CONTROL: Final = 0
XEN_DOMCTL_PSR_CMT_OP_DETACH: Final = 0
XEN_DOMCTL_PSR_CMT_OP_ATTACH: Final = 1
XEN_DOMCTL_PSR_CMT_OP_QUERY_RMID: Final = 2
XEN_DOMCTL_MONITOR_OP_ENABLE: Final = 0
XEN_DOMCTL_MONITOR_OP_DISABLE: Final = 1
XEN_DOMCTL_MONITOR_OP_GET_CAPABILITIES: Final = 2
XEN_DOMCTL_MONITOR_OP_EMULATE_EACH_REP: Final = 3
XEN_DOMCTL_MONITOR_OP_CONTROL_REGISTERS: Final = 4
XEN_DOMCTL_MONITOR_EVENT_WRITE_CTRLREG: Final = 0
XEN_DOMCTL_MONITOR_EVENT_MOV_TO_MSR: Final = 1
XEN_DOMCTL_MONITOR_EVENT_SINGLESTEP: Final = 2
XEN_DOMCTL_MONITOR_EVENT_SOFTWARE_BREAKPOINT: Final = 3
XEN_DOMCTL_MONITOR_EVENT_GUEST_REQUEST: Final = 4
XEN_DOMCTL_MONITOR_EVENT_DEBUG_EXCEPTION: Final = 5
XEN_DOMCTL_MONITOR_EVENT_CPUID: Final = 6
XEN_DOMCTL_MONITOR_EVENT_PRIVILEGED_CALL: Final = 7
XEN_DOMCTL_MONITOR_EVENT_INTERRUPT: Final = 8
XEN_DOMCTL_MONITOR_EVENT_DESC_ACCESS: Final = 9
XEN_DOMCTL_MONITOR_EVENT_EMUL_UNIMPLEMENTED: Final = 10
XEN_DOMCTL_MONITOR_EVENT_INGUEST_PAGEFAULT: Final = 11
XEN_DOMCTL_MONITOR_EVENT_VMEXIT: Final = 12
XEN_DOMCTL_PSR_SET_L3_CBM: Final = 0
XEN_DOMCTL_PSR_GET_L3_CBM: Final = 1
XEN_DOMCTL_PSR_SET_L3_CODE: Final = 2
XEN_DOMCTL_PSR_SET_L3_DATA: Final = 3
XEN_DOMCTL_PSR_GET_L3_CODE: Final = 4
XEN_DOMCTL_PSR_GET_L3_DATA: Final = 5
XEN_DOMCTL_PSR_SET_L2_CBM: Final = 6
XEN_DOMCTL_PSR_GET_L2_CBM: Final = 7
XEN_DOMCTL_PSR_SET_MBA_THRTL: Final = 8
XEN_DOMCTL_PSR_GET_MBA_THRTL: Final = 9
XEN_DOMCTL_VUART_OP_INIT: Final = 0
XEN_DOMCTL_VUART_TYPE_VPL011: Final = 0

# XenCpuidLeaf.subleaf of a leaf that has none.
XEN_CPUID_NO_SUBLEAF: Final = 0xFFFFFFFF


@layout()
class XenctlBitmap(Struct):
    """A bitmap in guest memory: `nr_bits` bits."""

    bitmap: Handle
    nr_bits: U32


@layout()
class XenArchDomainconfig(Struct):
    """What only x86 has to configure."""

    emulation_flags: U32
    misc_flags: U32


@layout()
class XenCpuidLeaf(Struct):
    """One leaf of a domain's CPUID."""

    leaf: U32
    subleaf: U32
    a: U32
    b: U32
    c: U32
    d: U32


@layout()
class XenMsrEntry(Struct):
    """One model-specific register of a domain's policy."""

    idx: U32
    flags: U32
    val: U64


@layout()
class XenDomctlCreatedomain(Struct):
    """Create a domain. `handle` is its UUID."""

    ssidref: U32
    handle: Annotated[Array[c_uint8], c_uint8 * 16]
    flags: U32
    iommu_opts: U32
    max_vcpus: U32
    max_evtchn_port: U32
    max_grant_frames: I32
    max_maptrack_frames: I32
    grant_opts: U32
    vmtrace_size: U32
    cpupool_id: U32
    arch: XenArchDomainconfig


@layout()
class XenDomctlGetdomaininfo(Struct):
    """What a domain is: pages, processor time (ns), vcpus. `shared_info_frame` is a gfn."""

    domain: U16
    pad1: U16
    flags: U32
    tot_pages: U64
    max_pages: U64
    outstanding_pages: U64
    shr_pages: U64
    paged_pages: U64
    shared_info_frame: U64
    cpu_time: U64
    nr_online_vcpus: U32
    max_vcpu_id: U32
    ssidref: U32
    handle: Annotated[Array[c_uint8], c_uint8 * 16]
    cpupool: U32
    gpaddr_bits: U8
    pad2: Annotated[Array[c_uint8], c_uint8 * 7]
    arch_config: XenArchDomainconfig


@layout()
class XenDomctlGetpageframeinfo3(Struct):
    """The types of frames: numbers in, numbers with XEN_DOMCTL_PFINFO_* out."""

    num: U64
    array: Handle


@layout()
class XenDomctlShadowOpStats(Struct):
    """Counts of a log-dirty round."""

    fault_count: U32
    dirty_count: U32


@layout()
class XenDomctlShadowOp(Struct):
    """Shadow and log-dirty mode; `pages` counts the bits of `dirty_bitmap`, `mb` is MiB."""

    op: U32
    mode: U32
    mb: U32
    dirty_bitmap: Handle
    pages: U64
    stats: XenDomctlShadowOpStats


@layout()
class XenDomctlMaxMem(Struct):
    """The most memory that a domain may have, in KiB."""

    max_memkb: U64


@layout()
class XenDomctlVcpucontext(Struct):
    """Read or write the registers of a vcpu: `ctxt` is the address of a VcpuGuestContext."""

    vcpu: U32
    ctxt: Handle


@layout()
class XenDomctlGetvcpuinfo(Struct):
    """Whether a vcpu is up and runs, its processor and its processor time (ns)."""

    vcpu: U32
    online: U8
    blocked: U8
    running: U8
    cpu_time: U64
    cpu: U32


@layout()
class XenDomctlNodeaffinity(Struct):
    """The memory nodes of a domain."""

    nodemap: XenctlBitmap


@layout()
class XenDomctlVcpuaffinity(Struct):
    """The processors of a vcpu."""

    vcpu: U32
    flags: U32
    cpumap_hard: XenctlBitmap
    cpumap_soft: XenctlBitmap


@layout()
class XenDomctlMaxVcpus(Struct):
    """How many vcpus a domain may have."""

    max: U32


@layout()
class XenDomctlSchedCredit(Struct):
    """Weight and cap of the credit scheduler."""

    weight: U16
    cap: U16


@layout()
class XenDomctlSchedCredit2(Struct):
    """Weight and cap of the credit2 scheduler."""

    weight: U16
    cap: U16


@layout()
class XenDomctlSchedRtds(Struct):
    """Period and budget (us) of the real-time scheduler."""

    period: U32
    budget: U32
    flags: U32


@layout()
class XenDomctlSchedparamVcpu(Struct):
    """One vcpu's scheduling parameters."""

    @layout()
    class U(Union):
        credit: XenDomctlSchedCredit
        credit2: XenDomctlSchedCredit2
        rtds: XenDomctlSchedRtds

    u: U
    vcpuid: U32


@layout()
class XenDomctlSchedulerOp(Struct):
    """Get or put a domain's scheduling parameters."""

    @layout()
    class U(Union):
        @layout()
        class V(Struct):
            vcpus: Handle
            nr_vcpus: U32
            padding: U32

        credit: XenDomctlSchedCredit
        credit2: XenDomctlSchedCredit2
        rtds: XenDomctlSchedRtds
        v: V

    sched_id: U32
    cmd: U32
    u: U


@layout()
class XenDomctlSetdomainhandle(Struct):
    """Change a domain's UUID."""

    handle: Annotated[Array[c_uint8], c_uint8 * 16]


@layout()
class XenDomctlSetdebugging(Struct):
    """Let a domain be debugged."""

    enable: U8


@layout()
class XenDomctlIrqPermission(Struct):
    """Let a domain use an interrupt."""

    pirq: U32
    allow_access: U8
    pad: Annotated[Array[c_uint8], c_uint8 * 3]


@layout()
class XenDomctlIomemPermission(Struct):
    """Let a domain map frames of devices."""

    first_mfn: U64
    nr_mfns: U64
    allow_access: U8


@layout()
class XenDomctlIoportPermission(Struct):
    """Let a domain use I/O ports."""

    first_port: U32
    nr_ports: U32
    allow_access: U8


@layout()
class XenDomctlHypercallInit(Struct):
    """Fill a domain's frame with hypercall stubs."""

    gmfn: U64


@layout()
class XenDomctlSettimeoffset(Struct):
    """A domain's wall clock, in seconds from the machine's."""

    time_offset_seconds: I64


@layout()
class XenDomctlHvmcontext(Struct):
    """The saved state of a translated domain."""

    size: U32
    buffer: Handle


@layout()
class XenDomctlAddressSize(Struct):
    """The width of a domain's addresses in bits."""

    size: U32


@layout()
class XenDomctlSendtrigger(Struct):
    """Raise a XEN_DOMCTL_SENDTRIGGER_* on a vcpu."""

    trigger: U32
    vcpu: U32


@layout()
class XenDomctlAssignDevice(Struct):
    """Assign a device to a domain, or test it."""

    @layout()
    class U(Union):
        @layout()
        class Pci(Struct):
            machine_sbdf: U32

        @layout()
        class Dt(Struct):
            size: U32
            path: Handle

        pci: Pci
        dt: Dt

    dev: U32
    flags: U32
    u: U


@layout()
class XenDomctlGetDeviceGroup(Struct):
    """The devices that must be assigned together."""

    machine_sbdf: U32
    max_sdevs: U32
    num_sdevs: U32
    sdev_array: Handle


@layout()
class XenDomctlBindPtIrq(Struct):
    """Bind a device's interrupt to a translated domain."""

    @layout()
    class U(Union):
        @layout()
        class Isa(Struct):
            isa_irq: U8

        @layout()
        class Pci(Struct):
            bus: U8
            device: U8
            intx: U8

        @layout()
        class Msi(Struct):
            gvec: U8
            gflags: U32
            gtable: U64

        @layout()
        class Spi(Struct):
            spi: U16

        isa: Isa
        pci: Pci
        msi: Msi
        spi: Spi

    machine_irq: U32
    irq_type: U32
    u: U


@layout()
class XenDomctlMemoryMapping(Struct):
    """Map machine frames into a translated domain."""

    first_gfn: U64
    first_mfn: U64
    nr_mfns: U64
    add_mapping: U32
    padding: U32


@layout()
class XenDomctlIoportMapping(Struct):
    """Map I/O ports into a translated domain."""

    first_gport: U32
    first_mport: U32
    nr_ports: U32
    add_mapping: U32


@layout()
class XenDomctlExtVcpucontext(Struct):
    """The part of a vcpu that VcpuGuestContext lacks: compatibility system-call entry and machine-check state."""

    @layout()
    class Vmce(Struct):
        caps: U64
        mci_ctl2_bank0: U64
        mci_ctl2_bank1: U64
        mcg_ext_ctl: U64

    vcpu: U32
    size: U32
    syscall32_callback_eip: U64
    sysenter_callback_eip: U64
    syscall32_callback_cs: U16
    sysenter_callback_cs: U16
    syscall32_disables_events: U8
    sysenter_disables_events: U8
    vmce: Vmce


@layout()
class XenDomctlSetTarget(Struct):
    """Let one domain act for another."""

    target: U16


@layout()
class XenDomctlCpuPolicy(Struct):
    """A domain's CPUID leaves and registers; out: where it was found wrong."""

    nr_leaves: U32
    nr_msrs: U32
    leaves: Handle
    msrs: Handle
    err_leaf: U32
    err_subleaf: U32
    err_msr: U32


@layout()
class XenDomctlSubscribe(Struct):
    """Which port to signal when a domain shuts down."""

    port: U32


@layout()
class XenDomctlDebugOp(Struct):
    """Single-step a vcpu."""

    op: U32
    vcpu: U32


@layout()
class XenDomctlHvmcontextPartial(Struct):
    """One record of the saved state of a translated domain."""

    type: U32
    instance: U32
    bufsz: U64
    buffer: Handle


@layout()
class XenDomctlTscInfo(Struct):
    """How a domain sees the time-stamp counter; `gtsc_khz` in kHz, `elapsed_nsec` in ns."""

    tsc_mode: U32
    gtsc_khz: U32
    incarnation: U32
    pad: U32
    elapsed_nsec: U64


@layout()
class XenDomctlGdbsxMemio(Struct):
    """Read or write a domain's memory for a debugger."""

    pgd3val: U64
    gva: U64
    uva: U64
    len: U32
    gwr: U8
    remain: U32


@layout()
class XenDomctlGdbsxPauseunpVcpu(Struct):
    """Pause or continue a vcpu for a debugger."""

    vcpu: U32


@layout()
class XenDomctlGdbsxDomstatus(Struct):
    """What a debugger must know of a domain."""

    paused: U8
    vcpu_id: U32
    vcpu_ev: U32


@layout()
class XenDomctlVmEventOp(Struct):
    """Switch one of the rings of VM events on or off."""

    @layout()
    class U(Union):
        @layout()
        class Enable(Struct):
            port: U32

        enable: Enable
        version: U32

    op: U32
    mode: U32
    u: U


@layout()
class XenDomctlMemSharingOp(Struct):
    """Switch memory sharing on or off."""

    @layout()
    class U(Union):
        enable: U8

    op: U8
    u: U


@layout()
class XenDomctlAuditP2m(Struct):
    """Compare the tables of frames of a translated domain."""

    orphans: U64
    m2p_bad: U64
    p2m_bad: U64


@layout()
class XenDomctlSetVirqHandler(Struct):
    """Let a domain receive a global VIRQ."""

    virq: U32


@layout()
class XenDomctlVcpuextstate(Struct):
    """The extended (XSAVE) state of a vcpu; `size` in bytes."""

    vcpu: U32
    xfeature_mask: U64
    size: U64
    buffer: Handle


@layout()
class XenDomctlSetAccessRequired(Struct):
    """Whether a listener for access events must be there."""

    access_required: U8


@layout()
class XenDomctlSetBrokenPageP2m(Struct):
    """Mark a page as broken."""

    pfn: U64


@layout()
class XenDomctlCacheflush(Struct):
    """Flush the data cache over a range of frames."""

    start_pfn: U64
    nr_pfns: U64


@layout()
class XenDomctlPagingMempool(Struct):
    """The memory (bytes) kept for a domain's page tables."""

    size: U64


@layout()
class XenDomctlVcpuMsr(Struct):
    """One model-specific register."""

    index: U32
    reserved: U32
    value: U64


@layout()
class XenDomctlVcpuMsrs(Struct):
    """The model-specific registers of a vcpu."""

    vcpu: U32
    msr_count: U32
    msrs: Handle


@layout()
class XenDomctlVnuma(Struct):
    """A domain's virtual memory nodes."""

    nr_vnodes: U32
    nr_vmemranges: U32
    nr_vcpus: U32
    pad: U32
    vdistance: Handle
    vcpu_to_vnode: Handle
    vnode_to_pnode: Handle
    vmemrange: Handle


@layout()
class XenDomctlPsrCmtOp(Struct):
    """Cache monitoring."""

    cmd: U32
    data: U32


@layout()
class XenDomctlMonitorOp(Struct):
    """Which events of a domain to report."""

    @layout()
    class U(Union):
        @layout()
        class MovToCr(Struct):
            index: U8
            sync: U8
            onchangeonly: U8
            pad1: U8
            pad2: U32
            bitmask: U64

        @layout()
        class MovToMsr(Struct):
            msr: U32
            onchangeonly: U8

        @layout()
        class GuestRequest(Struct):
            sync: U8
            allow_userspace: U8

        @layout()
        class DebugException(Struct):
            sync: U8

        @layout()
        class Vmexit(Struct):
            sync: U8

        mov_to_cr: MovToCr
        mov_to_msr: MovToMsr
        guest_request: GuestRequest
        debug_exception: DebugException
        vmexit: Vmexit

    op: U32
    event: U32
    u: U


@layout()
class XenDomctlPsrAlloc(Struct):
    """Cache allocation."""

    cmd: U32
    target: U32
    data: U64


@layout()
class XenDomctlVuartOp(Struct):
    """Switch an emulated serial port on."""

    cmd: U32
    type: U32
    gfn: U64
    console_domid: U16
    pad: Annotated[Array[c_uint8], c_uint8 * 2]
    evtchn: U32


@layout()
class XenDomctlVmtraceOp(Struct):
    """Processor tracing."""

    cmd: U32
    vcpu: U32
    key: U64
    value: U64


@layout()
class XenDomctl(Struct):
    """The argument of the call: `u` has a member for each `cmd`."""

    @layout()
    class U(Union):
        createdomain: XenDomctlCreatedomain
        getdomaininfo: XenDomctlGetdomaininfo
        getpageframeinfo3: XenDomctlGetpageframeinfo3
        nodeaffinity: XenDomctlNodeaffinity
        vcpuaffinity: XenDomctlVcpuaffinity
        shadow_op: XenDomctlShadowOp
        max_mem: XenDomctlMaxMem
        vcpucontext: XenDomctlVcpucontext
        getvcpuinfo: XenDomctlGetvcpuinfo
        max_vcpus: XenDomctlMaxVcpus
        scheduler_op: XenDomctlSchedulerOp
        setdomainhandle: XenDomctlSetdomainhandle
        setdebugging: XenDomctlSetdebugging
        irq_permission: XenDomctlIrqPermission
        iomem_permission: XenDomctlIomemPermission
        ioport_permission: XenDomctlIoportPermission
        hypercall_init: XenDomctlHypercallInit
        settimeoffset: XenDomctlSettimeoffset
        tsc_info: XenDomctlTscInfo
        hvmcontext: XenDomctlHvmcontext
        hvmcontext_partial: XenDomctlHvmcontextPartial
        address_size: XenDomctlAddressSize
        sendtrigger: XenDomctlSendtrigger
        get_device_group: XenDomctlGetDeviceGroup
        assign_device: XenDomctlAssignDevice
        bind_pt_irq: XenDomctlBindPtIrq
        memory_mapping: XenDomctlMemoryMapping
        ioport_mapping: XenDomctlIoportMapping
        ext_vcpucontext: XenDomctlExtVcpucontext
        set_target: XenDomctlSetTarget
        subscribe: XenDomctlSubscribe
        debug_op: XenDomctlDebugOp
        vm_event_op: XenDomctlVmEventOp
        mem_sharing_op: XenDomctlMemSharingOp
        cpu_policy: XenDomctlCpuPolicy
        vcpuextstate: XenDomctlVcpuextstate
        vcpu_msrs: XenDomctlVcpuMsrs
        access_required: XenDomctlSetAccessRequired
        audit_p2m: XenDomctlAuditP2m
        set_virq_handler: XenDomctlSetVirqHandler
        gdbsx_guest_memio: XenDomctlGdbsxMemio
        set_broken_page_p2m: XenDomctlSetBrokenPageP2m
        cacheflush: XenDomctlCacheflush
        gdbsx_pauseunp_vcpu: XenDomctlGdbsxPauseunpVcpu
        gdbsx_domstatus: XenDomctlGdbsxDomstatus
        vnuma: XenDomctlVnuma
        psr_cmt_op: XenDomctlPsrCmtOp
        monitor_op: XenDomctlMonitorOp
        psr_alloc: XenDomctlPsrAlloc
        vuart_op: XenDomctlVuartOp
        vmtrace_op: XenDomctlVmtraceOp
        paging_mempool: XenDomctlPagingMempool
        pad: Annotated[Array[c_uint8], c_uint8 * 128]

    cmd: U32
    interface_version: U32
    domain: U16
    _pad: Annotated[Array[c_uint16], c_uint16 * 3]
    u: U
