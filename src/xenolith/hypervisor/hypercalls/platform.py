"""platform_op: clock, firmware, power and processors of the machine (xen/arch/x86/platform_hypercall.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EACCES, EINVAL, ENOSYS, EOPNOTSUPP, ERANGE, ESRCH, XenError
from xenolith.abi.hypercalls import HYPERVISOR_platform_op
from xenolith.abi.platform import (
    QUIRK_IOAPIC_GOOD_REGSEL,
    QUIRK_NOIRQBALANCING,
    XEN_FW_DISK_INFO,
    XEN_FW_DISK_MBR_SIGNATURE,
    XEN_FW_EFI_INFO,
    XEN_FW_KBD_SHIFT_FLAGS,
    XEN_FW_VBEDDC_INFO,
    XEN_PCPU_FLAGS_INVALID,
    XEN_PCPU_FLAGS_ONLINE,
    XEN_PM_CX,
    XEN_PM_PDC,
    XEN_PM_PX,
    XEN_PM_TX,
    XENPF_INTERFACE_VERSION,
    XENPF_cpu_offline,
    XENPF_cpu_online,
    XENPF_enter_acpi_sleep,
    XENPF_firmware_info,
    XENPF_get_cpu_version,
    XENPF_get_cpuinfo,
    XENPF_get_symbol,
    XENPF_platform_quirk,
    XENPF_set_processor_pminfo,
    XENPF_settime32,
    XENPF_settime64,
    XenpfCpuOl,
    XenpfEnterAcpiSleep,
    XenpfFirmwareInfo,
    XenpfPcpuinfo,
    XenpfPcpuVersion,
    XenpfPlatformQuirk,
    XenpfSetProcessorPminfo,
    XenpfSettime32,
    XenpfSettime64,
    XenpfSymdata,
    XenPlatformOp,
)
from xenolith.hypervisor.cpuid import FAMILY_MODEL_STEPPING, VENDOR
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.hypercalls.table import hypercall, operation, run_operation

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

SLEEP_S5: Final = 5
"""ACPI's soft off."""
_SLEEP_STATES: Final = range(1, 6)
_SLEEP_ENABLE: Final = 1 << 13
_ARGUMENT: Final[int] = XenPlatformOp.u.offset
_VERSION: Final = slice(4, 8)
_NS_PER_SECOND: Final = 1_000_000_000
_LAST_NS: Final = (1 << 63) - 1


@hypercall(HYPERVISOR_platform_op)
def platform_op(hv: Hypervisor, caller: Vcpu, vaddr: int) -> int:
    """Run one of the sub-operations, for a domain that drives the machine.

    Raises XenError: EFAULT, EACCES for another interface version, EPERM, or what the operation raises.
    """
    header = hv.memory.read(caller, vaddr, XenPlatformOp.sizeof())
    if int.from_bytes(header[_VERSION], "little") != XENPF_INTERFACE_VERSION:
        raise XenError(EACCES, "another version of the platform interface")
    hv.policy.require(caller.domain, Capability.HARDWARE, "platform_op")
    return run_operation(hv, caller, HYPERVISOR_platform_op, int.from_bytes(header[:4], "little"), vaddr + _ARGUMENT)


@operation(HYPERVISOR_platform_op, XENPF_settime32)
def settime32(hv: Hypervisor, caller: Vcpu, argument: XenpfSettime32) -> None:
    """It was `secs` and `nsecs` after 1970 at `system_time`."""
    _set_time(hv, argument.secs, argument.nsecs, argument.system_time)


@operation(HYPERVISOR_platform_op, XENPF_settime64)
def settime64(hv: Hypervisor, caller: Vcpu, argument: XenpfSettime64) -> None:
    """The same with 64-bit seconds. Raises XenError(EINVAL) if the reserved word is not 0."""
    if argument.mbz:
        raise XenError(EINVAL, "the reserved word of settime64 is set")
    _set_time(hv, argument.secs, argument.nsecs, argument.system_time)


def _set_time(hv: Hypervisor, seconds: int, nanoseconds: int, system_time_ns: int) -> None:
    """Raises XenError(EINVAL) for a time at which the machine cannot have been switched on."""
    boot_ns = seconds * _NS_PER_SECOND + nanoseconds - system_time_ns
    if not 0 <= boot_ns <= _LAST_NS:
        raise XenError(EINVAL, f"{seconds} s cannot be the time {system_time_ns} ns after power-on")
    extra, nanoseconds = divmod(nanoseconds, _NS_PER_SECOND)
    hv.set_wall_clock(seconds + extra, nanoseconds, system_time_ns)


@operation(HYPERVISOR_platform_op, XENPF_firmware_info, copy_back=True)
def firmware_info(hv: Hypervisor, caller: Vcpu, argument: XenpfFirmwareInfo) -> None:
    """What a BIOS would have left behind: no disks, no display, no shift keys; and this is no EFI machine."""
    if argument.type in (XEN_FW_DISK_INFO, XEN_FW_DISK_MBR_SIGNATURE, XEN_FW_VBEDDC_INFO):
        raise XenError(ESRCH, "the firmware knows of no such device")
    if argument.type == XEN_FW_EFI_INFO:
        raise XenError(ENOSYS, "the machine was not started by EFI")
    if argument.type != XEN_FW_KBD_SHIFT_FLAGS:
        raise XenError(EINVAL, f"firmware information {argument.type}")
    if argument.index:
        raise XenError(ESRCH, f"keyboard {argument.index}")
    argument.u.kbd_shift_flags = 0


@operation(HYPERVISOR_platform_op, XENPF_enter_acpi_sleep)
def enter_acpi_sleep(hv: Hypervisor, caller: Vcpu, argument: XenpfEnterAcpiSleep) -> None:
    """Switch the machine off, for S5.

    Raises XenError: EINVAL for values that make no sense, EOPNOTSUPP for the other states.
    """
    if argument.flags or (argument.val_a ^ argument.val_b) & _SLEEP_ENABLE or argument.sleep_state not in _SLEEP_STATES:
        raise XenError(EINVAL, f"sleep state {argument.sleep_state}")
    if argument.sleep_state != SLEEP_S5:
        raise XenError(EOPNOTSUPP, f"the machine has no sleep state S{argument.sleep_state}")
    hv.power("off")


@operation(HYPERVISOR_platform_op, XENPF_set_processor_pminfo)
def set_processor_pminfo(hv: Hypervisor, caller: Vcpu, argument: XenpfSetProcessorPminfo) -> None:
    """Take note of idle and performance states, of which an emulated processor has no use."""
    if argument.type == XEN_PM_TX:
        raise XenError(ENOSYS, "throttling states")
    if argument.type not in (XEN_PM_CX, XEN_PM_PX, XEN_PM_PDC):
        raise XenError(EINVAL, f"processor information {argument.type}")


@operation(HYPERVISOR_platform_op, XENPF_platform_quirk)
def platform_quirk(hv: Hypervisor, caller: Vcpu, argument: XenpfPlatformQuirk) -> None:
    """Quirks of chips that this machine does not have. Raises XenError(EINVAL) for one that Xen does not know."""
    if not QUIRK_NOIRQBALANCING <= argument.quirk_id <= QUIRK_IOAPIC_GOOD_REGSEL:
        raise XenError(EINVAL, f"quirk {argument.quirk_id}")


@operation(HYPERVISOR_platform_op, XENPF_get_cpuinfo, copy_back=True)
def get_cpuinfo(hv: Hypervisor, caller: Vcpu, argument: XenpfPcpuinfo) -> None:
    """APIC and ACPI number of a physical processor, and whether it is there."""
    if argument.xen_cpuid < hv.engine.processors:
        argument.apic_id = argument.acpi_id = argument.xen_cpuid
        argument.flags = XEN_PCPU_FLAGS_ONLINE
    else:
        argument.flags = XEN_PCPU_FLAGS_INVALID
    argument.max_present = hv.engine.processors - 1


@operation(HYPERVISOR_platform_op, XENPF_get_cpu_version, copy_back=True)
def get_cpu_version(hv: Hypervisor, caller: Vcpu, argument: XenpfPcpuVersion) -> None:
    """Vendor, family, model and stepping of a physical processor; all zero for one that is not there."""
    argument.vendor_id = b""
    argument.family = argument.model = argument.stepping = 0
    if argument.xen_cpuid < hv.engine.processors:
        argument.vendor_id = VENDOR
        argument.family = FAMILY_MODEL_STEPPING >> 8 & 0xF
        argument.model = FAMILY_MODEL_STEPPING >> 12 & 0xF0 | FAMILY_MODEL_STEPPING >> 4 & 0xF
        argument.stepping = FAMILY_MODEL_STEPPING & 0xF
    argument.max_present = hv.engine.processors - 1


@operation(HYPERVISOR_platform_op, XENPF_cpu_online)
def cpu_online(hv: Hypervisor, caller: Vcpu, argument: XenpfCpuOl) -> None:
    """Every processor that is there is on line. Raises XenError(EINVAL) for another."""
    _check_processor(hv, argument.cpuid)


@operation(HYPERVISOR_platform_op, XENPF_cpu_offline)
def cpu_offline(hv: Hypervisor, caller: Vcpu, argument: XenpfCpuOl) -> None:
    """Raises XenError: EINVAL for a processor that is not there, EOPNOTSUPP for one that is, and stays."""
    _check_processor(hv, argument.cpuid)
    raise XenError(EOPNOTSUPP, "processors cannot be taken off line")


def _check_processor(hv: Hypervisor, number: int) -> None:
    if number >= hv.engine.processors:
        raise XenError(EINVAL, f"there is no processor {number}")


@operation(HYPERVISOR_platform_op, XENPF_get_symbol, copy_back=True)
def get_symbol(hv: Hypervisor, caller: Vcpu, argument: XenpfSymdata) -> None:
    """The end of the list of the hypervisor's symbols: it has none. Raises XenError(ERANGE) beyond the end."""
    if argument.symnum:
        raise XenError(ERANGE, f"symbol {argument.symnum}")
    if argument.namelen:
        hv.memory.write(caller, argument.name, b"\0")
    argument.namelen = 1
    argument.address = argument.type = 0
