"""platform_op: who may, and what each operation answers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.hypervisor.hypercalls.conftest import Machine
from xenolith.abi.errno import EACCES, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ERANGE, ESRCH
from xenolith.abi.platform import (
    XEN_FW_DISK_INFO,
    XEN_FW_DISK_MBR_SIGNATURE,
    XEN_FW_EFI_INFO,
    XEN_FW_KBD_SHIFT_FLAGS,
    XEN_FW_VBEDDC_INFO,
    XENPF_INTERFACE_VERSION,
    XENPF_cpu_offline,
    XENPF_cpu_online,
    XENPF_efi_runtime_call,
    XENPF_enter_acpi_sleep,
    XENPF_firmware_info,
    XENPF_get_cpu_version,
    XENPF_get_cpuinfo,
    XENPF_get_symbol,
    XENPF_getidletime,
    XENPF_platform_quirk,
    XENPF_set_processor_pminfo,
    XENPF_settime32,
    XENPF_settime64,
    XenPlatformOp,
)
from xenolith.hypervisor.domain import Domain

CALL = 7
ONLINE, INVALID = 1, 2


def ask(machine: Machine, domain: Domain, command: int, member: str = "", **fields: Any) -> tuple[int, Any]:
    """The call with `fields` set in one member of the union: the result, and the member afterwards."""
    argument = XenPlatformOp(cmd=command, interface_version=XENPF_INTERFACE_VERSION)
    for name, value in fields.items():
        setattr(getattr(argument.u, member), name, value)
    at = machine.memory_of(domain)[0] << 12
    machine.ram.bytes[at : at + XenPlatformOp.sizeof()] = argument.to_bytes()
    result = machine.raw(domain, CALL, at)
    copied = XenPlatformOp.from_bytes(machine.ram.bytes[at : at + XenPlatformOp.sizeof()])
    return result, getattr(copied.u, member) if member else None


def test_permission_version_and_address(machine: Machine, driver: Domain, guest: Domain) -> None:
    assert ask(machine, guest, XENPF_get_cpuinfo)[0] == -EPERM
    assert machine.raw(driver, CALL, 1 << 40) == -EFAULT
    at = machine.buffer(driver)
    machine.ram.bytes[at : at + 8] = XenPlatformOp(cmd=XENPF_get_cpuinfo, interface_version=1).to_bytes()[:8]
    assert machine.raw(driver, CALL, at) == -EACCES


@pytest.mark.parametrize("command", [XENPF_efi_runtime_call, XENPF_getidletime, 0, 0xFFFF_FFFF])
def test_what_there_is_not(machine: Machine, driver: Domain, command: int) -> None:
    assert ask(machine, driver, command)[0] == -ENOSYS


def test_set_time(machine: Machine, driver: Domain) -> None:
    moment = {"secs": 1_700_000_000, "nsecs": 5, "system_time": 9}
    assert ask(machine, driver, XENPF_settime64, "settime64", **moment)[0] == 0
    assert ask(machine, driver, XENPF_settime32, "settime32", **moment | {"nsecs": 2_500_000_000})[0] == 0
    assert machine.clock_set == [(1_700_000_000, 5, 9), (1_700_000_002, 500_000_000, 9)]


@pytest.mark.parametrize(
    "fields",
    [
        {"secs": 1_700_000_000, "mbz": 1},
        {"secs": (1 << 64) - 1},
        {"secs": 0, "system_time": 1},
        {"secs": 1_700_000_000, "system_time": (1 << 64) - 1},
    ],
)
def test_impossible_times(machine: Machine, driver: Domain, fields: dict[str, int]) -> None:
    assert ask(machine, driver, XENPF_settime64, "settime64", **fields)[0] == -EINVAL
    assert machine.clock_set == []


@pytest.mark.parametrize(
    ("kind", "index", "result"),
    [
        (XEN_FW_DISK_INFO, 0, -ESRCH),
        (XEN_FW_DISK_MBR_SIGNATURE, 0, -ESRCH),
        (XEN_FW_VBEDDC_INFO, 0, -ESRCH),
        (XEN_FW_EFI_INFO, 0, -ENOSYS),
        (XEN_FW_KBD_SHIFT_FLAGS, 0, 0),
        (XEN_FW_KBD_SHIFT_FLAGS, 1, -ESRCH),
        (99, 0, -EINVAL),
    ],
)
def test_firmware_info(machine: Machine, driver: Domain, kind: int, index: int, result: int) -> None:
    assert ask(machine, driver, XENPF_firmware_info, "firmware_info", type=kind, index=index)[0] == result


def test_sleep_state_5_is_off(machine: Machine, driver: Domain) -> None:
    fields = {"val_a": 0x3400, "val_b": 0x3400, "sleep_state": 5}
    assert ask(machine, driver, XENPF_enter_acpi_sleep, "enter_acpi_sleep", **fields)[0] == 0
    assert machine.powered == ["off"]


@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({"sleep_state": 3}, -EOPNOTSUPP),
        ({"sleep_state": 0}, -EINVAL),
        ({"sleep_state": 6}, -EINVAL),
        ({"sleep_state": 5, "flags": 1}, -EINVAL),
        ({"sleep_state": 5, "val_a": 0x2000}, -EINVAL),
    ],
)
def test_other_sleep(machine: Machine, driver: Domain, fields: dict[str, int], result: int) -> None:
    assert ask(machine, driver, XENPF_enter_acpi_sleep, "enter_acpi_sleep", **fields)[0] == result
    assert machine.powered == []


@pytest.mark.parametrize(("kind", "result"), [(0, 0), (1, 0), (2, -ENOSYS), (3, 0), (4, -EINVAL)])
def test_processor_power_information(machine: Machine, driver: Domain, kind: int, result: int) -> None:
    assert ask(machine, driver, XENPF_set_processor_pminfo, "set_pminfo", type=kind)[0] == result


@pytest.mark.parametrize(("quirk", "result"), [(1, 0), (3, 0), (0, -EINVAL), (4, -EINVAL)])
def test_quirks(machine: Machine, driver: Domain, quirk: int, result: int) -> None:
    assert ask(machine, driver, XENPF_platform_quirk, "platform_quirk", quirk_id=quirk)[0] == result


def test_processors(machine: Machine, driver: Domain) -> None:
    result, info = ask(machine, driver, XENPF_get_cpuinfo, "pcpu_info", xen_cpuid=0)
    assert (result, info.flags, info.apic_id, info.max_present) == (0, ONLINE, 0, 0)
    result, info = ask(machine, driver, XENPF_get_cpuinfo, "pcpu_info", xen_cpuid=1)
    assert (result, info.flags, info.max_present) == (0, INVALID, 0)


def test_processor_versions(machine: Machine, driver: Domain) -> None:
    result, info = ask(machine, driver, XENPF_get_cpu_version, "pcpu_version", xen_cpuid=0)
    assert (result, info.vendor_id, info.family, info.model, info.stepping) == (0, b"GenuineIntel", 6, 0x36, 1)
    result, info = ask(machine, driver, XENPF_get_cpu_version, "pcpu_version", xen_cpuid=7)
    assert (result, info.vendor_id, info.family) == (0, b"", 0)


def test_processors_stay_on_line(machine: Machine, driver: Domain) -> None:
    assert ask(machine, driver, XENPF_cpu_online, "cpu_ol", cpuid=0)[0] == 0
    assert ask(machine, driver, XENPF_cpu_online, "cpu_ol", cpuid=1)[0] == -EINVAL
    assert ask(machine, driver, XENPF_cpu_offline, "cpu_ol", cpuid=0)[0] == -EOPNOTSUPP
    assert ask(machine, driver, XENPF_cpu_offline, "cpu_ol", cpuid=1)[0] == -EINVAL


def test_there_are_no_symbols(machine: Machine, driver: Domain) -> None:
    name = machine.buffer(driver)
    machine.ram.bytes[name : name + 2] = b"xy"
    result, data = ask(machine, driver, XENPF_get_symbol, "symdata", namelen=64, name=name)
    assert (result, data.namelen, data.address) == (0, 1, 0)
    assert bytes(machine.ram.bytes[name : name + 2]) == b"\0y"
    assert ask(machine, driver, XENPF_get_symbol, "symdata", namelen=64, name=name, symnum=1)[0] == -ERANGE
    assert ask(machine, driver, XENPF_get_symbol, "symdata", namelen=64, name=1 << 40)[0] == -EFAULT
