"""platform_op: the machine's clock, firmware, processors and power, for the domain that drives it (platform.h)."""

from ctypes import Array, c_char, c_uint8, c_uint32
from typing import Annotated, Final

from xenolith.abi.types import I8, I16, I32, U8, U16, U32, U64, Handle, Struct, Union, layout

XENPF_INTERFACE_VERSION: Final = 0x03000001

# XenPlatformOp.cmd.
XENPF_settime32: Final = 17
XENPF_settime64: Final = 62
XENPF_settime: Final = XENPF_settime64
XENPF_add_memtype: Final = 31
XENPF_del_memtype: Final = 32
XENPF_read_memtype: Final = 33
XENPF_microcode_update: Final = 35
XENPF_platform_quirk: Final = 39
XENPF_efi_runtime_call: Final = 49
XENPF_firmware_info: Final = 50
XENPF_enter_acpi_sleep: Final = 51
XENPF_change_freq: Final = 52
XENPF_getidletime: Final = 53
XENPF_set_processor_pminfo: Final = 54
XENPF_get_cpuinfo: Final = 55
XENPF_get_cpu_version: Final = 48
XENPF_cpu_online: Final = 56
XENPF_cpu_offline: Final = 57
XENPF_cpu_hotadd: Final = 58
XENPF_mem_hotadd: Final = 59
XENPF_core_parking: Final = 60
XENPF_resource_op: Final = 61
XENPF_get_symbol: Final = 63

# XenpfEnterAcpiSleep.flags.
XENPF_ACPI_SLEEP_EXTENDED: Final = 0x00000001

# XenpfPlatformQuirk.quirk_id.
QUIRK_NOIRQBALANCING: Final = 1
QUIRK_IOAPIC_BAD_REGSEL: Final = 2
QUIRK_IOAPIC_GOOD_REGSEL: Final = 3

# XenpfEfiRuntimeCall.function and its flags.
XEN_EFI_get_time: Final = 1
XEN_EFI_set_time: Final = 2
XEN_EFI_get_wakeup_time: Final = 3
XEN_EFI_set_wakeup_time: Final = 4
XEN_EFI_get_next_high_monotonic_count: Final = 5
XEN_EFI_get_variable: Final = 6
XEN_EFI_set_variable: Final = 7
XEN_EFI_get_next_variable_name: Final = 8
XEN_EFI_query_variable_info: Final = 9
XEN_EFI_query_capsule_capabilities: Final = 10
XEN_EFI_update_capsule: Final = 11
XEN_EFI_GET_TIME_SET_CLEARS_NS: Final = 0x00000001
XEN_EFI_GET_WAKEUP_TIME_ENABLED: Final = 0x00000001
XEN_EFI_GET_WAKEUP_TIME_PENDING: Final = 0x00000002
XEN_EFI_SET_WAKEUP_TIME_ENABLE: Final = 0x00000001
XEN_EFI_SET_WAKEUP_TIME_ENABLE_ONLY: Final = 0x00000002
XEN_EFI_VARIABLE_NON_VOLATILE: Final = 0x00000001
XEN_EFI_VARIABLE_BOOTSERVICE_ACCESS: Final = 0x00000002
XEN_EFI_VARIABLE_RUNTIME_ACCESS: Final = 0x00000004
XEN_EFI_VARINFO_BOOT_SNAPSHOT: Final = 0x00000001

# XenpfFirmwareInfo.type and .index.
XEN_FW_DISK_INFO: Final = 1
XEN_FW_DISK_MBR_SIGNATURE: Final = 2
XEN_FW_VBEDDC_INFO: Final = 3
XEN_FW_EFI_INFO: Final = 4
XEN_FW_EFI_VERSION: Final = 0
XEN_FW_EFI_CONFIG_TABLE: Final = 1
XEN_FW_EFI_VENDOR: Final = 2
XEN_FW_EFI_MEM_INFO: Final = 3
XEN_FW_EFI_RT_VERSION: Final = 4
XEN_FW_EFI_PCI_ROM: Final = 5
XEN_FW_EFI_APPLE_PROPERTIES: Final = 6
XEN_FW_KBD_SHIFT_FLAGS: Final = 5

# Processor power management.
XEN_PROCESSOR_PM_CX: Final = 1
XEN_PROCESSOR_PM_PX: Final = 2
XEN_PROCESSOR_PM_TX: Final = 4
XEN_PM_CX: Final = 0
XEN_PM_PX: Final = 1
XEN_PM_TX: Final = 2
XEN_PM_PDC: Final = 3
XEN_PX_PCT: Final = 1
XEN_PX_PSS: Final = 2
XEN_PX_PPC: Final = 4
XEN_PX_PSD: Final = 8
XEN_CPUPERF_SHARED_TYPE_HW: Final = 1
XEN_CPUPERF_SHARED_TYPE_ALL: Final = 2
XEN_CPUPERF_SHARED_TYPE_ANY: Final = 3

# XenpfPcpuinfo.flags.
XEN_PCPU_FLAGS_ONLINE: Final = 1
XEN_PCPU_FLAGS_INVALID: Final = 2

# XenpfCoreParking.type.
XEN_CORE_PARKING_SET: Final = 1
XEN_CORE_PARKING_GET: Final = 2

# XenpfResourceEntry.u.cmd.
XEN_RESOURCE_OP_MSR_READ: Final = 0
XEN_RESOURCE_OP_MSR_WRITE: Final = 1


@layout()
class XenpfSettime32(Struct):
    """Set the wall clock, with 32-bit seconds; system time in ns."""

    secs: U32
    nsecs: U32
    system_time: U64


@layout()
class XenpfSettime64(Struct):
    """Set the wall clock; system time in ns."""

    secs: U64
    nsecs: U32
    mbz: U32
    system_time: U64


@layout()
class XenpfAddMemtype(Struct):
    """Add a memory-type range of machine frames."""

    mfn: U64
    nr_mfns: U64
    type: U32
    handle: U32
    reg: U32


@layout()
class XenpfDelMemtype(Struct):
    """Remove a memory-type range."""

    handle: U32
    reg: U32


@layout()
class XenpfReadMemtype(Struct):
    """Read a memory-type range."""

    reg: U32
    mfn: U64
    nr_mfns: U64
    type: U32


@layout()
class XenpfMicrocodeUpdate(Struct):
    """Load processor microcode."""

    data: Handle
    length: U32


@layout()
class XenpfPlatformQuirk(Struct):
    """Tell Xen of a quirk of the machine."""

    quirk_id: U32


@layout()
class XenpfEfiTime(Struct):
    """The firmware's time."""

    year: U16
    month: U8
    day: U8
    hour: U8
    min: U8
    sec: U8
    ns: U32
    tz: I16
    daylight: U8


@layout()
class XenpfEfiGuid(Struct):
    """The firmware's kind of unique number."""

    data1: U32
    data2: U16
    data3: U16
    data4: Annotated[Array[c_uint8], c_uint8 * 8]


@layout()
class XenpfEfiRuntimeCall(Struct):
    """Call a service of the firmware."""

    @layout()
    class U(Union):
        @layout()
        class GetTime(Struct):
            time: XenpfEfiTime
            resolution: U32
            accuracy: U32

        @layout()
        class GetVariable(Struct):
            name: Handle
            size: U64
            data: Handle
            vendor_guid: XenpfEfiGuid

        @layout()
        class SetVariable(Struct):
            name: Handle
            size: U64
            data: Handle
            vendor_guid: XenpfEfiGuid

        @layout()
        class GetNextVariableName(Struct):
            size: U64
            name: Handle
            vendor_guid: XenpfEfiGuid

        @layout()
        class QueryVariableInfo(Struct):
            attr: U32
            max_store_size: U64
            remain_store_size: U64
            max_size: U64

        @layout()
        class QueryCapsuleCapabilities(Struct):
            capsule_header_array: Handle
            capsule_count: U64
            max_capsule_size: U64
            reset_type: U32

        @layout()
        class UpdateCapsule(Struct):
            capsule_header_array: Handle
            capsule_count: U64
            sg_list: U64

        get_time: GetTime
        set_time: XenpfEfiTime
        get_wakeup_time: XenpfEfiTime
        set_wakeup_time: XenpfEfiTime
        get_variable: GetVariable
        set_variable: SetVariable
        get_next_variable_name: GetNextVariableName
        query_variable_info: QueryVariableInfo
        query_capsule_capabilities: QueryCapsuleCapabilities
        update_capsule: UpdateCapsule

    function: U32
    misc: U32
    status: U64
    u: U


@layout()
class XenpfFirmwareInfo(Struct):
    """What the firmware said at boot."""

    @layout()
    class U(Union):
        @layout()
        class DiskInfo(Struct):
            device: U8
            version: U8
            interface_support: U16
            legacy_max_cylinder: U16
            legacy_max_head: U8
            legacy_sectors_per_track: U8
            edd_params: Handle

        @layout()
        class DiskMbrSignature(Struct):
            device: U8
            mbr_signature: U32

        @layout()
        class VbeddcInfo(Struct):
            capabilities: U8
            edid_transfer_time: U8
            edid: Handle

        @layout()
        class EfiInfo(Union):
            @layout()
            class Cfg(Struct):
                addr: U64
                nent: U32

            @layout()
            class Vendor(Struct):
                revision: U32
                bufsz: U32
                name: Handle

            @layout()
            class Mem(Struct):
                addr: U64
                size: U64
                attr: U64
                type: U32

            @layout()
            class PciRom(Struct):
                segment: U16
                bus: U8
                devfn: U8
                vendor: U16
                devid: U16
                address: U64
                size: U64

            @layout()
            class AppleProperties(Struct):
                address: U64
                size: U64

            version: U32
            cfg: Cfg
            vendor: Vendor
            mem: Mem
            pci_rom: PciRom
            apple_properties: AppleProperties

        disk_info: DiskInfo
        disk_mbr_signature: DiskMbrSignature
        vbeddc_info: VbeddcInfo
        efi_info: EfiInfo
        kbd_shift_flags: U8

    type: U32
    index: U32
    u: U


@layout()
class XenpfEnterAcpiSleep(Struct):
    """Enter a sleep state: the values to write to the two power-management control registers."""

    val_a: U16
    val_b: U16
    sleep_state: U32
    flags: U32


@layout()
class XenpfChangeFreq(Struct):
    """The frequency (Hz) of a processor has changed."""

    flags: U32
    cpu: U32
    freq: U64


@layout()
class XenpfGetidletime(Struct):
    """How long (ns) processors have been idle."""

    cpumap_bitmap: Handle
    cpumap_nr_cpus: U32
    idletime: Handle
    now: U64


@layout()
class XenPowerRegister(Struct):
    """A register of an ACPI table."""

    space_id: U32
    bit_width: U32
    bit_offset: U32
    access_size: U32
    address: U64


@layout()
class XenProcessorCsd(Struct):
    """How the C-states of processors depend on each other."""

    domain: U32
    coord_type: U32
    num: U32


@layout()
class XenProcessorCx(Struct):
    """One C-state; latency in us."""

    reg: XenPowerRegister
    type: U8
    latency: U32
    power: U32
    dpcnt: U32
    dp: Handle


@layout()
class XenProcessorFlags(Struct):
    """Properties of a processor's power management."""

    bm_control: Annotated[int, c_uint32, 1]
    bm_check: Annotated[int, c_uint32, 1]
    has_cst: Annotated[int, c_uint32, 1]
    power_setup_done: Annotated[int, c_uint32, 1]
    bm_rld_set: Annotated[int, c_uint32, 1]


@layout()
class XenProcessorPower(Struct):
    """The C-states of a processor."""

    count: U32
    flags: XenProcessorFlags
    states: Handle


@layout()
class XenPctRegister(Struct):
    """A performance-control register."""

    descriptor: U8
    length: U16
    space_id: U8
    bit_width: U8
    bit_offset: U8
    reserved: U8
    address: U64


@layout()
class XenProcessorPx(Struct):
    """One P-state: MHz, mW and us."""

    core_frequency: U64
    power: U64
    transition_latency: U64
    bus_master_latency: U64
    control: U64
    status: U64


@layout()
class XenPsdPackage(Struct):
    """How the P-states of processors depend on each other."""

    num_entries: U64
    revision: U64
    domain: U64
    coord_type: U64
    num_processors: U64


@layout()
class XenProcessorPerformance(Struct):
    """The P-states of a processor."""

    flags: U32
    platform_limit: U32
    control_register: XenPctRegister
    status_register: XenPctRegister
    state_count: U32
    states: Handle
    domain_info: XenPsdPackage
    shared_type: U32


@layout()
class XenpfSetProcessorPminfo(Struct):
    """Hand ACPI's power information of a processor to Xen."""

    @layout()
    class U(Union):
        power: XenProcessorPower
        perf: XenProcessorPerformance
        pdc: Handle

    id: U32
    type: U32
    u: U


@layout()
class XenpfPcpuinfo(Struct):
    """What a physical processor is, and the highest number there is."""

    xen_cpuid: U32
    max_present: U32
    flags: U32
    apic_id: U32
    acpi_id: U32


@layout()
class XenpfPcpuVersion(Struct):
    """Vendor, family, model and stepping of a physical processor."""

    xen_cpuid: U32
    max_present: U32
    vendor_id: Annotated[bytes, c_char * 12]
    family: U32
    model: U32
    stepping: U32


@layout()
class XenpfCpuOl(Struct):
    """Take a processor on or off line."""

    cpuid: U32


@layout()
class XenpfCpuHotadd(Struct):
    """A processor was added."""

    apic_id: U32
    acpi_id: U32
    pxm: U32


@layout()
class XenpfMemHotadd(Struct):
    """Memory was added: machine frame numbers."""

    spfn: U64
    epfn: U64
    pxm: U32
    flags: U32


@layout()
class XenpfCoreParking(Struct):
    """Park idle processors."""

    type: U32
    idle_nums: U32


@layout()
class XenpfResourceEntry(Struct):
    """One access to a model-specific register."""

    @layout()
    class U(Union):
        cmd: U32
        ret: I32

    u: U
    rsvd: U32
    idx: U64
    val: U64


@layout()
class XenpfResourceOp(Struct):
    """A batch of accesses on one processor."""

    nr_entries: U32
    cpu: U32
    entries: Handle


@layout()
class XenpfSymdata(Struct):
    """One symbol of the hypervisor."""

    namelen: U32
    symnum: U32
    name: Handle
    address: U64
    type: I8


@layout()
class XenPlatformOp(Struct):
    """The argument of the call."""

    @layout()
    class U(Union):
        settime: XenpfSettime64
        settime32: XenpfSettime32
        settime64: XenpfSettime64
        add_memtype: XenpfAddMemtype
        del_memtype: XenpfDelMemtype
        read_memtype: XenpfReadMemtype
        microcode: XenpfMicrocodeUpdate
        platform_quirk: XenpfPlatformQuirk
        efi_runtime_call: XenpfEfiRuntimeCall
        firmware_info: XenpfFirmwareInfo
        enter_acpi_sleep: XenpfEnterAcpiSleep
        change_freq: XenpfChangeFreq
        getidletime: XenpfGetidletime
        set_pminfo: XenpfSetProcessorPminfo
        pcpu_info: XenpfPcpuinfo
        pcpu_version: XenpfPcpuVersion
        cpu_ol: XenpfCpuOl
        cpu_add: XenpfCpuHotadd
        mem_add: XenpfMemHotadd
        core_parking: XenpfCoreParking
        resource_op: XenpfResourceOp
        symdata: XenpfSymdata
        pad: Annotated[Array[c_uint8], c_uint8 * 128]

    cmd: U32
    interface_version: U32
    u: U
