"""The one table of hypercalls: number, name, arguments and sub-operations (public headers of Xen 4.17).

Dispatch, policy, tracing, coverage and the documentation read it. Structures are named, not imported, so that reading
the table does not lay out every structure of the ABI.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final, NamedTuple, cast

from xenolith.abi.types import Struct

HYPERVISOR_set_trap_table: Final = 0
HYPERVISOR_mmu_update: Final = 1
HYPERVISOR_set_gdt: Final = 2
HYPERVISOR_stack_switch: Final = 3
HYPERVISOR_set_callbacks: Final = 4
HYPERVISOR_fpu_taskswitch: Final = 5
HYPERVISOR_sched_op_compat: Final = 6
HYPERVISOR_platform_op: Final = 7
HYPERVISOR_set_debugreg: Final = 8
HYPERVISOR_get_debugreg: Final = 9
HYPERVISOR_update_descriptor: Final = 10
HYPERVISOR_memory_op: Final = 12
HYPERVISOR_multicall: Final = 13
HYPERVISOR_update_va_mapping: Final = 14
HYPERVISOR_set_timer_op: Final = 15
HYPERVISOR_event_channel_op_compat: Final = 16
HYPERVISOR_xen_version: Final = 17
HYPERVISOR_console_io: Final = 18
HYPERVISOR_physdev_op_compat: Final = 19
HYPERVISOR_grant_table_op: Final = 20
HYPERVISOR_vm_assist: Final = 21
HYPERVISOR_update_va_mapping_otherdomain: Final = 22
HYPERVISOR_iret: Final = 23
HYPERVISOR_vcpu_op: Final = 24
HYPERVISOR_set_segment_base: Final = 25
HYPERVISOR_mmuext_op: Final = 26
HYPERVISOR_xsm_op: Final = 27
HYPERVISOR_nmi_op: Final = 28
HYPERVISOR_sched_op: Final = 29
HYPERVISOR_callback_op: Final = 30
HYPERVISOR_xenoprof_op: Final = 31
HYPERVISOR_event_channel_op: Final = 32
HYPERVISOR_physdev_op: Final = 33
HYPERVISOR_hvm_op: Final = 34
HYPERVISOR_sysctl: Final = 35
HYPERVISOR_domctl: Final = 36
HYPERVISOR_kexec_op: Final = 37
HYPERVISOR_tmem_op: Final = 38
HYPERVISOR_argo_op: Final = 39
HYPERVISOR_xenpmu_op: Final = 40
HYPERVISOR_dm_op: Final = 41
HYPERVISOR_hypfs_op: Final = 42
HYPERVISOR_mca: Final = 48


def _structure(path: str) -> type[Struct] | None:
    """The class that `path` names ("memory.XenMemoryExchange"), or None for an empty path."""
    if not path:
        return None
    module, _, name = path.rpartition(".")
    return cast(type[Struct], getattr(import_module(f"xenolith.abi.{module}"), name))


class Operation(NamedTuple):
    """One sub-operation: its number, the header's spelling of its name, and the structure that it is given."""

    number: int
    name: str
    structure: str = ""

    @property
    def argument(self) -> type[Struct] | None:
        """The structure that the argument points to, or the member of its union where the call has one structure."""
        return _structure(self.structure)


class Hypercall(NamedTuple):
    """One hypercall.

    `arguments` names the register arguments in order (rdi, rsi, rdx, r10, r8). `structure` names what the call's
    pointer argument points to where all sub-operations share it. `mark` says who needs the call: "U" a guest's first
    boot, "0" the control domain's boot, "T" the toolstack, "L" few and late, "-" nobody (it answers ENOSYS).
    """

    number: int
    name: str
    arguments: tuple[str, ...]
    mark: str
    structure: str = ""
    operations: tuple[Operation, ...] = ()

    @property
    def argument(self) -> type[Struct] | None:
        """The structure that every form of the call is given, or None."""
        return _structure(self.structure)


HYPERCALLS: Final[tuple[Hypercall, ...]] = (
    Hypercall(HYPERVISOR_set_trap_table, "set_trap_table", ("traps",), "U", "traps.TrapInfo"),
    Hypercall(
        HYPERVISOR_mmu_update,
        "mmu_update",
        ("reqs", "count", "done_out", "foreigndom"),
        "U",
        "mmu.MmuUpdate",
        (
            Operation(0, "MMU_NORMAL_PT_UPDATE"),
            Operation(1, "MMU_MACHPHYS_UPDATE"),
            Operation(2, "MMU_PT_UPDATE_PRESERVE_AD"),
            Operation(3, "MMU_PT_UPDATE_NO_TRANSLATE"),
        ),
    ),
    Hypercall(HYPERVISOR_set_gdt, "set_gdt", ("frames", "entries"), "U"),
    Hypercall(HYPERVISOR_stack_switch, "stack_switch", ("ss", "esp"), "U"),
    Hypercall(
        HYPERVISOR_set_callbacks,
        "set_callbacks",
        ("event_address", "failsafe_address", "syscall_address"),
        "L",
    ),
    Hypercall(HYPERVISOR_fpu_taskswitch, "fpu_taskswitch", ("set",), "U"),
    Hypercall(
        HYPERVISOR_sched_op_compat,
        "sched_op_compat",
        ("cmd", "arg"),
        "L",
        operations=(
            Operation(0, "SCHEDOP_yield"),
            Operation(1, "SCHEDOP_block"),
            Operation(2, "SCHEDOP_shutdown"),
        ),
    ),
    Hypercall(
        HYPERVISOR_platform_op,
        "platform_op",
        ("op",),
        "0",
        "platform.XenPlatformOp",
        (
            Operation(17, "XENPF_settime32", "platform.XenpfSettime32"),
            Operation(31, "XENPF_add_memtype", "platform.XenpfAddMemtype"),
            Operation(32, "XENPF_del_memtype", "platform.XenpfDelMemtype"),
            Operation(33, "XENPF_read_memtype", "platform.XenpfReadMemtype"),
            Operation(35, "XENPF_microcode_update", "platform.XenpfMicrocodeUpdate"),
            Operation(39, "XENPF_platform_quirk", "platform.XenpfPlatformQuirk"),
            Operation(48, "XENPF_get_cpu_version", "platform.XenpfPcpuVersion"),
            Operation(49, "XENPF_efi_runtime_call", "platform.XenpfEfiRuntimeCall"),
            Operation(50, "XENPF_firmware_info", "platform.XenpfFirmwareInfo"),
            Operation(51, "XENPF_enter_acpi_sleep", "platform.XenpfEnterAcpiSleep"),
            Operation(52, "XENPF_change_freq", "platform.XenpfChangeFreq"),
            Operation(53, "XENPF_getidletime", "platform.XenpfGetidletime"),
            Operation(54, "XENPF_set_processor_pminfo", "platform.XenpfSetProcessorPminfo"),
            Operation(55, "XENPF_get_cpuinfo", "platform.XenpfPcpuinfo"),
            Operation(56, "XENPF_cpu_online", "platform.XenpfCpuOl"),
            Operation(57, "XENPF_cpu_offline", "platform.XenpfCpuOl"),
            Operation(58, "XENPF_cpu_hotadd", "platform.XenpfCpuHotadd"),
            Operation(59, "XENPF_mem_hotadd", "platform.XenpfMemHotadd"),
            Operation(60, "XENPF_core_parking", "platform.XenpfCoreParking"),
            Operation(61, "XENPF_resource_op", "platform.XenpfResourceOp"),
            Operation(62, "XENPF_settime64", "platform.XenpfSettime64"),
            Operation(63, "XENPF_get_symbol", "platform.XenpfSymdata"),
        ),
    ),
    Hypercall(HYPERVISOR_set_debugreg, "set_debugreg", ("regno", "value"), "U"),
    Hypercall(HYPERVISOR_get_debugreg, "get_debugreg", ("regno",), "U"),
    Hypercall(HYPERVISOR_update_descriptor, "update_descriptor", ("pa", "desc"), "U"),
    Hypercall(
        HYPERVISOR_memory_op,
        "memory_op",
        ("cmd", "arg"),
        "U",
        operations=(
            Operation(0, "XENMEM_increase_reservation", "memory.XenMemoryReservation"),
            Operation(1, "XENMEM_decrease_reservation", "memory.XenMemoryReservation"),
            Operation(2, "XENMEM_maximum_ram_page"),
            Operation(3, "XENMEM_current_reservation", "memory.XenMemoryDomain"),
            Operation(4, "XENMEM_maximum_reservation", "memory.XenMemoryDomain"),
            Operation(5, "XENMEM_machphys_mfn_list", "memory.XenMachphysMfnList"),
            Operation(6, "XENMEM_populate_physmap", "memory.XenMemoryReservation"),
            Operation(7, "XENMEM_add_to_physmap", "memory.XenAddToPhysmap"),
            Operation(9, "XENMEM_memory_map", "memory.XenMemoryMap"),
            Operation(10, "XENMEM_machine_memory_map", "memory.XenMemoryMap"),
            Operation(11, "XENMEM_exchange", "memory.XenMemoryExchange"),
            Operation(12, "XENMEM_machphys_mapping", "memory.XenMachphysMapping"),
            Operation(13, "XENMEM_set_memory_map", "memory.XenForeignMemoryMap"),
            Operation(14, "XENMEM_maximum_gpfn", "memory.XenMemoryDomain"),
            Operation(15, "XENMEM_remove_from_physmap", "memory.XenRemoveFromPhysmap"),
            Operation(16, "XENMEM_set_pod_target", "memory.XenPodTarget"),
            Operation(17, "XENMEM_get_pod_target", "memory.XenPodTarget"),
            Operation(18, "XENMEM_get_sharing_freed_pages"),
            Operation(19, "XENMEM_get_sharing_shared_pages"),
            Operation(20, "XENMEM_paging_op"),
            Operation(21, "XENMEM_access_op"),
            Operation(22, "XENMEM_sharing_op"),
            Operation(23, "XENMEM_add_to_physmap_batch", "memory.XenAddToPhysmapBatch"),
            Operation(24, "XENMEM_claim_pages", "memory.XenMemoryReservation"),
            Operation(25, "XENMEM_machphys_compat_mfn_list", "memory.XenMachphysMfnList"),
            Operation(26, "XENMEM_get_vnumainfo", "memory.XenVnumaTopologyInfo"),
            Operation(27, "XENMEM_reserved_device_memory_map", "memory.XenReservedDeviceMemoryMap"),
            Operation(28, "XENMEM_acquire_resource", "memory.XenMemAcquireResource"),
        ),
    ),
    Hypercall(HYPERVISOR_multicall, "multicall", ("call_list", "nr_calls"), "U", "multicall.MulticallEntry"),
    Hypercall(HYPERVISOR_update_va_mapping, "update_va_mapping", ("va", "val", "flags"), "U"),
    Hypercall(HYPERVISOR_set_timer_op, "set_timer_op", ("timeout_abs_ns",), "L"),
    Hypercall(HYPERVISOR_event_channel_op_compat, "event_channel_op_compat", ("op",), "L", "event_channel.EvtchnOp"),
    Hypercall(
        HYPERVISOR_xen_version,
        "xen_version",
        ("cmd", "arg"),
        "U",
        operations=(
            Operation(0, "XENVER_version"),
            Operation(1, "XENVER_extraversion"),
            Operation(2, "XENVER_compile_info", "version.XenCompileInfo"),
            Operation(3, "XENVER_capabilities"),
            Operation(4, "XENVER_changeset"),
            Operation(5, "XENVER_platform_parameters", "version.XenPlatformParameters"),
            Operation(6, "XENVER_get_features", "version.XenFeatureInfo"),
            Operation(7, "XENVER_pagesize"),
            Operation(8, "XENVER_guest_handle"),
            Operation(9, "XENVER_commandline"),
            Operation(10, "XENVER_build_id", "version.XenBuildId"),
        ),
    ),
    Hypercall(
        HYPERVISOR_console_io,
        "console_io",
        ("cmd", "count", "buffer"),
        "U",
        operations=(
            Operation(0, "CONSOLEIO_write"),
            Operation(1, "CONSOLEIO_read"),
        ),
    ),
    Hypercall(HYPERVISOR_physdev_op_compat, "physdev_op_compat", ("op",), "L", "physdev.PhysdevOp"),
    Hypercall(
        HYPERVISOR_grant_table_op,
        "grant_table_op",
        ("cmd", "args", "count"),
        "U",
        operations=(
            Operation(0, "GNTTABOP_map_grant_ref", "grant_table.GnttabMapGrantRef"),
            Operation(1, "GNTTABOP_unmap_grant_ref", "grant_table.GnttabUnmapGrantRef"),
            Operation(2, "GNTTABOP_setup_table", "grant_table.GnttabSetupTable"),
            Operation(3, "GNTTABOP_dump_table", "grant_table.GnttabDumpTable"),
            Operation(4, "GNTTABOP_transfer", "grant_table.GnttabTransfer"),
            Operation(5, "GNTTABOP_copy", "grant_table.GnttabCopy"),
            Operation(6, "GNTTABOP_query_size", "grant_table.GnttabQuerySize"),
            Operation(7, "GNTTABOP_unmap_and_replace", "grant_table.GnttabUnmapAndReplace"),
            Operation(8, "GNTTABOP_set_version", "grant_table.GnttabSetVersion"),
            Operation(9, "GNTTABOP_get_status_frames", "grant_table.GnttabGetStatusFrames"),
            Operation(10, "GNTTABOP_get_version", "grant_table.GnttabGetVersion"),
            Operation(11, "GNTTABOP_swap_grant_ref", "grant_table.GnttabSwapGrantRef"),
            Operation(12, "GNTTABOP_cache_flush", "grant_table.GnttabCacheFlush"),
        ),
    ),
    Hypercall(
        HYPERVISOR_vm_assist,
        "vm_assist",
        ("cmd", "type"),
        "U",
        operations=(
            Operation(0, "VMASST_CMD_enable"),
            Operation(1, "VMASST_CMD_disable"),
        ),
    ),
    Hypercall(
        HYPERVISOR_update_va_mapping_otherdomain, "update_va_mapping_otherdomain", ("va", "val", "flags", "domid"), "T"
    ),
    Hypercall(HYPERVISOR_iret, "iret", (), "U", "traps.IretContext"),
    Hypercall(
        HYPERVISOR_vcpu_op,
        "vcpu_op",
        ("cmd", "vcpuid", "extra_args"),
        "U",
        operations=(
            Operation(0, "VCPUOP_initialise", "vcpu.VcpuGuestContext"),
            Operation(1, "VCPUOP_up"),
            Operation(2, "VCPUOP_down"),
            Operation(3, "VCPUOP_is_up"),
            Operation(4, "VCPUOP_get_runstate_info", "vcpu.VcpuRunstateInfo"),
            Operation(5, "VCPUOP_register_runstate_memory_area", "vcpu.VcpuRegisterRunstateMemoryArea"),
            Operation(6, "VCPUOP_set_periodic_timer", "vcpu.VcpuSetPeriodicTimer"),
            Operation(7, "VCPUOP_stop_periodic_timer"),
            Operation(8, "VCPUOP_set_singleshot_timer", "vcpu.VcpuSetSingleshotTimer"),
            Operation(9, "VCPUOP_stop_singleshot_timer"),
            Operation(10, "VCPUOP_register_vcpu_info", "vcpu.VcpuRegisterVcpuInfo"),
            Operation(11, "VCPUOP_send_nmi"),
            Operation(12, "VCPUOP_get_physid", "vcpu.VcpuGetPhysid"),
            Operation(13, "VCPUOP_register_vcpu_time_memory_area", "vcpu.VcpuRegisterTimeMemoryArea"),
        ),
    ),
    Hypercall(
        HYPERVISOR_set_segment_base,
        "set_segment_base",
        ("which", "base"),
        "U",
        operations=(
            Operation(0, "SEGBASE_FS"),
            Operation(1, "SEGBASE_GS_USER"),
            Operation(2, "SEGBASE_GS_KERNEL"),
            Operation(3, "SEGBASE_GS_USER_SEL"),
        ),
    ),
    Hypercall(
        HYPERVISOR_mmuext_op,
        "mmuext_op",
        ("uops", "count", "pdone", "foreigndom"),
        "U",
        "mmu.MmuextOp",
        (
            Operation(0, "MMUEXT_PIN_L1_TABLE"),
            Operation(1, "MMUEXT_PIN_L2_TABLE"),
            Operation(2, "MMUEXT_PIN_L3_TABLE"),
            Operation(3, "MMUEXT_PIN_L4_TABLE"),
            Operation(4, "MMUEXT_UNPIN_TABLE"),
            Operation(5, "MMUEXT_NEW_BASEPTR"),
            Operation(6, "MMUEXT_TLB_FLUSH_LOCAL"),
            Operation(7, "MMUEXT_INVLPG_LOCAL"),
            Operation(8, "MMUEXT_TLB_FLUSH_MULTI"),
            Operation(9, "MMUEXT_INVLPG_MULTI"),
            Operation(10, "MMUEXT_TLB_FLUSH_ALL"),
            Operation(11, "MMUEXT_INVLPG_ALL"),
            Operation(12, "MMUEXT_FLUSH_CACHE"),
            Operation(13, "MMUEXT_SET_LDT"),
            Operation(15, "MMUEXT_NEW_USER_BASEPTR"),
            Operation(16, "MMUEXT_CLEAR_PAGE"),
            Operation(17, "MMUEXT_COPY_PAGE"),
            Operation(18, "MMUEXT_FLUSH_CACHE_GLOBAL"),
            Operation(19, "MMUEXT_MARK_SUPER"),
            Operation(20, "MMUEXT_UNMARK_SUPER"),
        ),
    ),
    Hypercall(
        HYPERVISOR_xsm_op,
        "xsm_op",
        ("op",),
        "T",
        "xsm.XenFlaskOp",
        (
            Operation(1, "FLASK_LOAD", "xsm.XenFlaskLoad"),
            Operation(2, "FLASK_GETENFORCE"),
            Operation(3, "FLASK_SETENFORCE", "xsm.XenFlaskSetenforce"),
            Operation(4, "FLASK_CONTEXT_TO_SID", "xsm.XenFlaskSidContext"),
            Operation(5, "FLASK_SID_TO_CONTEXT", "xsm.XenFlaskSidContext"),
            Operation(6, "FLASK_ACCESS", "xsm.XenFlaskAccess"),
            Operation(7, "FLASK_CREATE", "xsm.XenFlaskTransition"),
            Operation(8, "FLASK_RELABEL", "xsm.XenFlaskTransition"),
            Operation(9, "FLASK_USER"),
            Operation(10, "FLASK_POLICYVERS"),
            Operation(11, "FLASK_GETBOOL", "xsm.XenFlaskBoolean"),
            Operation(12, "FLASK_SETBOOL", "xsm.XenFlaskBoolean"),
            Operation(13, "FLASK_COMMITBOOLS"),
            Operation(14, "FLASK_MLS"),
            Operation(15, "FLASK_DISABLE"),
            Operation(16, "FLASK_GETAVC_THRESHOLD"),
            Operation(17, "FLASK_SETAVC_THRESHOLD", "xsm.XenFlaskSetavcThreshold"),
            Operation(18, "FLASK_AVC_HASHSTATS", "xsm.XenFlaskHashStats"),
            Operation(19, "FLASK_AVC_CACHESTATS", "xsm.XenFlaskCacheStats"),
            Operation(20, "FLASK_MEMBER", "xsm.XenFlaskTransition"),
            Operation(21, "FLASK_ADD_OCONTEXT", "xsm.XenFlaskOcontext"),
            Operation(22, "FLASK_DEL_OCONTEXT", "xsm.XenFlaskOcontext"),
            Operation(23, "FLASK_GET_PEER_SID", "xsm.XenFlaskPeersid"),
            Operation(24, "FLASK_RELABEL_DOMAIN", "xsm.XenFlaskRelabel"),
            Operation(25, "FLASK_DEVICETREE_LABEL", "xsm.XenFlaskDevicetreeLabel"),
        ),
    ),
    Hypercall(
        HYPERVISOR_nmi_op,
        "nmi_op",
        ("cmd", "arg"),
        "L",
        operations=(
            Operation(0, "XENNMI_register_callback", "nmi.XennmiCallback"),
            Operation(1, "XENNMI_unregister_callback"),
        ),
    ),
    Hypercall(
        HYPERVISOR_sched_op,
        "sched_op",
        ("cmd", "arg"),
        "U",
        operations=(
            Operation(0, "SCHEDOP_yield"),
            Operation(1, "SCHEDOP_block"),
            Operation(2, "SCHEDOP_shutdown", "sched.SchedShutdown"),
            Operation(3, "SCHEDOP_poll", "sched.SchedPoll"),
            Operation(4, "SCHEDOP_remote_shutdown", "sched.SchedRemoteShutdown"),
            Operation(5, "SCHEDOP_shutdown_code", "sched.SchedShutdown"),
            Operation(6, "SCHEDOP_watchdog", "sched.SchedWatchdog"),
            Operation(7, "SCHEDOP_pin_override", "sched.SchedPinOverride"),
        ),
    ),
    Hypercall(
        HYPERVISOR_callback_op,
        "callback_op",
        ("cmd", "arg"),
        "U",
        operations=(
            Operation(0, "CALLBACKOP_register", "traps.CallbackRegister"),
            Operation(1, "CALLBACKOP_unregister", "traps.CallbackUnregister"),
        ),
    ),
    Hypercall(
        HYPERVISOR_xenoprof_op,
        "xenoprof_op",
        ("op", "arg"),
        "-",
        operations=(
            Operation(0, "XENOPROF_init"),
            Operation(1, "XENOPROF_reset_active_list"),
            Operation(2, "XENOPROF_reset_passive_list"),
            Operation(3, "XENOPROF_set_active"),
            Operation(4, "XENOPROF_set_passive"),
            Operation(5, "XENOPROF_reserve_counters"),
            Operation(6, "XENOPROF_counter"),
            Operation(7, "XENOPROF_setup_events"),
            Operation(8, "XENOPROF_enable_virq"),
            Operation(9, "XENOPROF_start"),
            Operation(10, "XENOPROF_stop"),
            Operation(11, "XENOPROF_disable_virq"),
            Operation(12, "XENOPROF_release_counters"),
            Operation(13, "XENOPROF_shutdown"),
            Operation(14, "XENOPROF_get_buffer"),
            Operation(15, "XENOPROF_set_backtrace"),
            Operation(16, "XENOPROF_get_ibs_caps"),
            Operation(17, "XENOPROF_ibs_counter"),
        ),
    ),
    Hypercall(
        HYPERVISOR_event_channel_op,
        "event_channel_op",
        ("cmd", "args"),
        "U",
        operations=(
            Operation(0, "EVTCHNOP_bind_interdomain", "event_channel.EvtchnBindInterdomain"),
            Operation(1, "EVTCHNOP_bind_virq", "event_channel.EvtchnBindVirq"),
            Operation(2, "EVTCHNOP_bind_pirq", "event_channel.EvtchnBindPirq"),
            Operation(3, "EVTCHNOP_close", "event_channel.EvtchnClose"),
            Operation(4, "EVTCHNOP_send", "event_channel.EvtchnSend"),
            Operation(5, "EVTCHNOP_status", "event_channel.EvtchnStatus"),
            Operation(6, "EVTCHNOP_alloc_unbound", "event_channel.EvtchnAllocUnbound"),
            Operation(7, "EVTCHNOP_bind_ipi", "event_channel.EvtchnBindIpi"),
            Operation(8, "EVTCHNOP_bind_vcpu", "event_channel.EvtchnBindVcpu"),
            Operation(9, "EVTCHNOP_unmask", "event_channel.EvtchnUnmask"),
            Operation(10, "EVTCHNOP_reset", "event_channel.EvtchnReset"),
            Operation(11, "EVTCHNOP_init_control", "event_channel.EvtchnInitControl"),
            Operation(12, "EVTCHNOP_expand_array", "event_channel.EvtchnExpandArray"),
            Operation(13, "EVTCHNOP_set_priority", "event_channel.EvtchnSetPriority"),
        ),
    ),
    Hypercall(
        HYPERVISOR_physdev_op,
        "physdev_op",
        ("cmd", "arg"),
        "U",
        operations=(
            Operation(5, "PHYSDEVOP_irq_status_query", "physdev.PhysdevIrqStatusQuery"),
            Operation(6, "PHYSDEVOP_set_iopl", "physdev.PhysdevSetIopl"),
            Operation(7, "PHYSDEVOP_set_iobitmap", "physdev.PhysdevSetIobitmap"),
            Operation(8, "PHYSDEVOP_apic_read", "physdev.PhysdevApic"),
            Operation(9, "PHYSDEVOP_apic_write", "physdev.PhysdevApic"),
            Operation(10, "PHYSDEVOP_alloc_irq_vector", "physdev.PhysdevIrq"),
            Operation(11, "PHYSDEVOP_free_irq_vector", "physdev.PhysdevIrq"),
            Operation(12, "PHYSDEVOP_eoi", "physdev.PhysdevEoi"),
            Operation(13, "PHYSDEVOP_map_pirq", "physdev.PhysdevMapPirq"),
            Operation(14, "PHYSDEVOP_unmap_pirq", "physdev.PhysdevUnmapPirq"),
            Operation(15, "PHYSDEVOP_manage_pci_add", "physdev.PhysdevManagePci"),
            Operation(16, "PHYSDEVOP_manage_pci_remove", "physdev.PhysdevManagePci"),
            Operation(17, "PHYSDEVOP_pirq_eoi_gmfn_v1", "physdev.PhysdevPirqEoiGmfn"),
            Operation(19, "PHYSDEVOP_restore_msi", "physdev.PhysdevRestoreMsi"),
            Operation(20, "PHYSDEVOP_manage_pci_add_ext", "physdev.PhysdevManagePciExt"),
            Operation(21, "PHYSDEVOP_setup_gsi", "physdev.PhysdevSetupGsi"),
            Operation(23, "PHYSDEVOP_get_free_pirq", "physdev.PhysdevGetFreePirq"),
            Operation(24, "PHYSDEVOP_pci_mmcfg_reserved", "physdev.PhysdevPciMmcfgReserved"),
            Operation(25, "PHYSDEVOP_pci_device_add", "physdev.PhysdevPciDeviceAdd"),
            Operation(26, "PHYSDEVOP_pci_device_remove", "physdev.PhysdevPciDevice"),
            Operation(27, "PHYSDEVOP_restore_msi_ext", "physdev.PhysdevPciDevice"),
            Operation(28, "PHYSDEVOP_pirq_eoi_gmfn_v2", "physdev.PhysdevPirqEoiGmfn"),
            Operation(29, "PHYSDEVOP_dbgp_op", "physdev.PhysdevDbgpOp"),
            Operation(30, "PHYSDEVOP_prepare_msix", "physdev.PhysdevPciDevice"),
            Operation(31, "PHYSDEVOP_release_msix", "physdev.PhysdevPciDevice"),
        ),
    ),
    Hypercall(HYPERVISOR_hvm_op, "hvm_op", ("op", "arg"), "-"),
    Hypercall(
        HYPERVISOR_sysctl,
        "sysctl",
        ("op",),
        "T",
        "sysctl.XenSysctl",
        (
            Operation(1, "XEN_SYSCTL_readconsole", "sysctl.XenSysctlReadconsole"),
            Operation(2, "XEN_SYSCTL_tbuf_op", "sysctl.XenSysctlTbufOp"),
            Operation(3, "XEN_SYSCTL_physinfo", "sysctl.XenSysctlPhysinfo"),
            Operation(4, "XEN_SYSCTL_sched_id", "sysctl.XenSysctlSchedId"),
            Operation(5, "XEN_SYSCTL_perfc_op"),
            Operation(6, "XEN_SYSCTL_getdomaininfolist", "sysctl.XenSysctlGetdomaininfolist"),
            Operation(7, "XEN_SYSCTL_debug_keys", "sysctl.XenSysctlDebugKeys"),
            Operation(8, "XEN_SYSCTL_getcpuinfo", "sysctl.XenSysctlGetcpuinfo"),
            Operation(9, "XEN_SYSCTL_availheap", "sysctl.XenSysctlAvailheap"),
            Operation(10, "XEN_SYSCTL_get_pmstat", "sysctl.XenSysctlGetPmstat"),
            Operation(11, "XEN_SYSCTL_cpu_hotplug", "sysctl.XenSysctlCpuHotplug"),
            Operation(12, "XEN_SYSCTL_pm_op"),
            Operation(14, "XEN_SYSCTL_page_offline_op", "sysctl.XenSysctlPageOfflineOp"),
            Operation(15, "XEN_SYSCTL_lockprof_op"),
            Operation(16, "XEN_SYSCTL_cputopoinfo", "sysctl.XenSysctlCputopoinfo"),
            Operation(17, "XEN_SYSCTL_numainfo", "sysctl.XenSysctlNumainfo"),
            Operation(18, "XEN_SYSCTL_cpupool_op", "sysctl.XenSysctlCpupoolOp"),
            Operation(19, "XEN_SYSCTL_scheduler_op", "sysctl.XenSysctlSchedulerOp"),
            Operation(20, "XEN_SYSCTL_coverage_op"),
            Operation(21, "XEN_SYSCTL_psr_cmt_op"),
            Operation(22, "XEN_SYSCTL_pcitopoinfo", "sysctl.XenSysctlPcitopoinfo"),
            Operation(23, "XEN_SYSCTL_psr_alloc"),
            Operation(25, "XEN_SYSCTL_get_cpu_levelling_caps", "sysctl.XenSysctlCpuLevellingCaps"),
            Operation(26, "XEN_SYSCTL_get_cpu_featureset", "sysctl.XenSysctlCpuFeatureset"),
            Operation(27, "XEN_SYSCTL_livepatch_op"),
            Operation(29, "XEN_SYSCTL_get_cpu_policy", "sysctl.XenSysctlCpuPolicy"),
        ),
    ),
    Hypercall(
        HYPERVISOR_domctl,
        "domctl",
        ("op",),
        "T",
        "domctl.XenDomctl",
        (
            Operation(1, "XEN_DOMCTL_createdomain", "domctl.XenDomctlCreatedomain"),
            Operation(2, "XEN_DOMCTL_destroydomain"),
            Operation(3, "XEN_DOMCTL_pausedomain"),
            Operation(4, "XEN_DOMCTL_unpausedomain"),
            Operation(5, "XEN_DOMCTL_getdomaininfo", "domctl.XenDomctlGetdomaininfo"),
            Operation(9, "XEN_DOMCTL_setvcpuaffinity", "domctl.XenDomctlVcpuaffinity"),
            Operation(10, "XEN_DOMCTL_shadow_op", "domctl.XenDomctlShadowOp"),
            Operation(11, "XEN_DOMCTL_max_mem", "domctl.XenDomctlMaxMem"),
            Operation(12, "XEN_DOMCTL_setvcpucontext", "domctl.XenDomctlVcpucontext"),
            Operation(13, "XEN_DOMCTL_getvcpucontext", "domctl.XenDomctlVcpucontext"),
            Operation(14, "XEN_DOMCTL_getvcpuinfo", "domctl.XenDomctlGetvcpuinfo"),
            Operation(15, "XEN_DOMCTL_max_vcpus", "domctl.XenDomctlMaxVcpus"),
            Operation(16, "XEN_DOMCTL_scheduler_op", "domctl.XenDomctlSchedulerOp"),
            Operation(17, "XEN_DOMCTL_setdomainhandle", "domctl.XenDomctlSetdomainhandle"),
            Operation(18, "XEN_DOMCTL_setdebugging", "domctl.XenDomctlSetdebugging"),
            Operation(19, "XEN_DOMCTL_irq_permission", "domctl.XenDomctlIrqPermission"),
            Operation(20, "XEN_DOMCTL_iomem_permission", "domctl.XenDomctlIomemPermission"),
            Operation(21, "XEN_DOMCTL_ioport_permission", "domctl.XenDomctlIoportPermission"),
            Operation(22, "XEN_DOMCTL_hypercall_init", "domctl.XenDomctlHypercallInit"),
            Operation(24, "XEN_DOMCTL_settimeoffset", "domctl.XenDomctlSettimeoffset"),
            Operation(25, "XEN_DOMCTL_getvcpuaffinity", "domctl.XenDomctlVcpuaffinity"),
            Operation(26, "XEN_DOMCTL_real_mode_area"),
            Operation(27, "XEN_DOMCTL_resumedomain"),
            Operation(28, "XEN_DOMCTL_sendtrigger", "domctl.XenDomctlSendtrigger"),
            Operation(29, "XEN_DOMCTL_subscribe", "domctl.XenDomctlSubscribe"),
            Operation(33, "XEN_DOMCTL_gethvmcontext", "domctl.XenDomctlHvmcontext"),
            Operation(34, "XEN_DOMCTL_sethvmcontext", "domctl.XenDomctlHvmcontext"),
            Operation(35, "XEN_DOMCTL_set_address_size", "domctl.XenDomctlAddressSize"),
            Operation(36, "XEN_DOMCTL_get_address_size", "domctl.XenDomctlAddressSize"),
            Operation(37, "XEN_DOMCTL_assign_device", "domctl.XenDomctlAssignDevice"),
            Operation(38, "XEN_DOMCTL_bind_pt_irq", "domctl.XenDomctlBindPtIrq"),
            Operation(39, "XEN_DOMCTL_memory_mapping", "domctl.XenDomctlMemoryMapping"),
            Operation(40, "XEN_DOMCTL_ioport_mapping", "domctl.XenDomctlIoportMapping"),
            Operation(42, "XEN_DOMCTL_set_ext_vcpucontext", "domctl.XenDomctlExtVcpucontext"),
            Operation(43, "XEN_DOMCTL_get_ext_vcpucontext", "domctl.XenDomctlExtVcpucontext"),
            Operation(44, "XEN_DOMCTL_set_opt_feature"),
            Operation(45, "XEN_DOMCTL_test_assign_device", "domctl.XenDomctlAssignDevice"),
            Operation(46, "XEN_DOMCTL_set_target", "domctl.XenDomctlSetTarget"),
            Operation(47, "XEN_DOMCTL_deassign_device", "domctl.XenDomctlAssignDevice"),
            Operation(48, "XEN_DOMCTL_unbind_pt_irq", "domctl.XenDomctlBindPtIrq"),
            Operation(50, "XEN_DOMCTL_get_device_group", "domctl.XenDomctlGetDeviceGroup"),
            Operation(54, "XEN_DOMCTL_debug_op", "domctl.XenDomctlDebugOp"),
            Operation(55, "XEN_DOMCTL_gethvmcontext_partial", "domctl.XenDomctlHvmcontextPartial"),
            Operation(56, "XEN_DOMCTL_vm_event_op", "domctl.XenDomctlVmEventOp"),
            Operation(57, "XEN_DOMCTL_mem_sharing_op", "domctl.XenDomctlMemSharingOp"),
            Operation(59, "XEN_DOMCTL_gettscinfo", "domctl.XenDomctlTscInfo"),
            Operation(60, "XEN_DOMCTL_settscinfo", "domctl.XenDomctlTscInfo"),
            Operation(61, "XEN_DOMCTL_getpageframeinfo3", "domctl.XenDomctlGetpageframeinfo3"),
            Operation(62, "XEN_DOMCTL_setvcpuextstate", "domctl.XenDomctlVcpuextstate"),
            Operation(63, "XEN_DOMCTL_getvcpuextstate", "domctl.XenDomctlVcpuextstate"),
            Operation(64, "XEN_DOMCTL_set_access_required", "domctl.XenDomctlSetAccessRequired"),
            Operation(65, "XEN_DOMCTL_audit_p2m", "domctl.XenDomctlAuditP2m"),
            Operation(66, "XEN_DOMCTL_set_virq_handler", "domctl.XenDomctlSetVirqHandler"),
            Operation(67, "XEN_DOMCTL_set_broken_page_p2m", "domctl.XenDomctlSetBrokenPageP2m"),
            Operation(68, "XEN_DOMCTL_setnodeaffinity", "domctl.XenDomctlNodeaffinity"),
            Operation(69, "XEN_DOMCTL_getnodeaffinity", "domctl.XenDomctlNodeaffinity"),
            Operation(71, "XEN_DOMCTL_cacheflush", "domctl.XenDomctlCacheflush"),
            Operation(72, "XEN_DOMCTL_get_vcpu_msrs", "domctl.XenDomctlVcpuMsrs"),
            Operation(73, "XEN_DOMCTL_set_vcpu_msrs", "domctl.XenDomctlVcpuMsrs"),
            Operation(74, "XEN_DOMCTL_setvnumainfo", "domctl.XenDomctlVnuma"),
            Operation(75, "XEN_DOMCTL_psr_cmt_op", "domctl.XenDomctlPsrCmtOp"),
            Operation(77, "XEN_DOMCTL_monitor_op", "domctl.XenDomctlMonitorOp"),
            Operation(78, "XEN_DOMCTL_psr_alloc", "domctl.XenDomctlPsrAlloc"),
            Operation(79, "XEN_DOMCTL_soft_reset"),
            Operation(81, "XEN_DOMCTL_vuart_op", "domctl.XenDomctlVuartOp"),
            Operation(82, "XEN_DOMCTL_get_cpu_policy", "domctl.XenDomctlCpuPolicy"),
            Operation(83, "XEN_DOMCTL_set_cpu_policy", "domctl.XenDomctlCpuPolicy"),
            Operation(84, "XEN_DOMCTL_vmtrace_op", "domctl.XenDomctlVmtraceOp"),
            Operation(85, "XEN_DOMCTL_get_paging_mempool_size", "domctl.XenDomctlPagingMempool"),
            Operation(86, "XEN_DOMCTL_set_paging_mempool_size", "domctl.XenDomctlPagingMempool"),
            Operation(1000, "XEN_DOMCTL_gdbsx_guestmemio", "domctl.XenDomctlGdbsxMemio"),
            Operation(1001, "XEN_DOMCTL_gdbsx_pausevcpu", "domctl.XenDomctlGdbsxPauseunpVcpu"),
            Operation(1002, "XEN_DOMCTL_gdbsx_unpausevcpu", "domctl.XenDomctlGdbsxPauseunpVcpu"),
            Operation(1003, "XEN_DOMCTL_gdbsx_domstatus", "domctl.XenDomctlGdbsxDomstatus"),
        ),
    ),
    Hypercall(
        HYPERVISOR_kexec_op,
        "kexec_op",
        ("op", "arg"),
        "L",
        operations=(
            Operation(0, "KEXEC_CMD_kexec", "kexec.XenKexecExec"),
            Operation(1, "KEXEC_CMD_kexec_load_v1"),
            Operation(2, "KEXEC_CMD_kexec_unload_v1"),
            Operation(3, "KEXEC_CMD_kexec_get_range", "kexec.XenKexecRange"),
            Operation(4, "KEXEC_CMD_kexec_load", "kexec.XenKexecLoad"),
            Operation(5, "KEXEC_CMD_kexec_unload", "kexec.XenKexecUnload"),
            Operation(6, "KEXEC_CMD_kexec_status", "kexec.XenKexecStatus"),
        ),
    ),
    Hypercall(HYPERVISOR_tmem_op, "tmem_op", ("ops",), "-"),
    Hypercall(
        HYPERVISOR_argo_op,
        "argo_op",
        ("cmd", "arg1", "arg2", "arg3", "arg4"),
        "L",
        operations=(
            Operation(1, "XEN_ARGO_OP_register_ring", "argo.XenArgoRegisterRing"),
            Operation(2, "XEN_ARGO_OP_unregister_ring", "argo.XenArgoUnregisterRing"),
            Operation(3, "XEN_ARGO_OP_sendv", "argo.XenArgoSendAddr"),
            Operation(4, "XEN_ARGO_OP_notify", "argo.XenArgoRingData"),
        ),
    ),
    Hypercall(
        HYPERVISOR_xenpmu_op,
        "xenpmu_op",
        ("cmd", "args"),
        "U",
        operations=(
            Operation(0, "XENPMU_mode_get", "pmu.XenPmuParams"),
            Operation(1, "XENPMU_mode_set", "pmu.XenPmuParams"),
            Operation(2, "XENPMU_feature_get", "pmu.XenPmuParams"),
            Operation(3, "XENPMU_feature_set", "pmu.XenPmuParams"),
            Operation(4, "XENPMU_init", "pmu.XenPmuParams"),
            Operation(5, "XENPMU_finish", "pmu.XenPmuParams"),
            Operation(6, "XENPMU_lvtpc_set", "pmu.XenPmuParams"),
            Operation(7, "XENPMU_flush", "pmu.XenPmuParams"),
        ),
    ),
    Hypercall(HYPERVISOR_dm_op, "dm_op", ("domid", "nr_bufs", "bufs"), "-"),
    Hypercall(
        HYPERVISOR_hypfs_op,
        "hypfs_op",
        ("cmd", "arg1", "arg2", "arg3", "arg4"),
        "L",
        operations=(
            Operation(0, "XEN_HYPFS_OP_get_version"),
            Operation(1, "XEN_HYPFS_OP_read"),
            Operation(2, "XEN_HYPFS_OP_write_contents"),
        ),
    ),
    Hypercall(
        HYPERVISOR_mca,
        "mca",
        ("op",),
        "0",
        "mca.XenMc",
        (
            Operation(1, "XEN_MC_fetch", "mca.XenMcFetch"),
            Operation(2, "XEN_MC_notifydomain", "mca.XenMcNotifydomain"),
            Operation(3, "XEN_MC_physcpuinfo", "mca.XenMcPhyscpuinfo"),
            Operation(4, "XEN_MC_msrinject", "mca.XenMcMsrinject"),
            Operation(5, "XEN_MC_mceinject", "mca.XenMcMceinject"),
            Operation(6, "XEN_MC_inject_v2", "mca.XenMcInjectV2"),
        ),
    ),
)

BY_NUMBER: Final[dict[int, Hypercall]] = {call.number: call for call in HYPERCALLS}
