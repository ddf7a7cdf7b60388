"""xen_version, sub-operation by sub-operation."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.hypercalls.conftest import Machine
from xenolith.abi.errno import EFAULT, EINVAL, ENODATA, ENOSYS, EPERM
from xenolith.abi.version import (
    XenBuildId,
    XenCompileInfo,
    XenFeatureInfo,
    XENVER_build_id,
    XENVER_capabilities,
    XENVER_changeset,
    XENVER_commandline,
    XENVER_compile_info,
    XENVER_extraversion,
    XENVER_get_features,
    XENVER_guest_handle,
    XENVER_pagesize,
    XENVER_platform_parameters,
    XENVER_version,
)
from xenolith.abi.vm_assist import VMASST_TYPE_pae_extended_cr3
from xenolith.hypervisor.domain import Domain

CALL = 17
UNMAPPED = 1 << 40
FILL = b"\xa5"


def answer(machine: Machine, domain: Domain, command: int, size: int) -> bytes:
    """What the operation writes: exactly `size` bytes."""
    at = machine.buffer(domain)
    machine.ram.bytes[at : at + 2048] = FILL * 2048
    assert machine.raw(domain, CALL, command, at) == 0
    assert machine.ram.bytes[at + size] == FILL[0]
    return bytes(machine.ram.bytes[at : at + size])


def test_version(machine: Machine, guest: Domain) -> None:
    assert machine.raw(guest, CALL, XENVER_version, UNMAPPED) == 4 << 16 | 17
    assert machine.raw(guest, CALL, 0xFFFF_FFFF_0000_0000, 0) == 4 << 16 | 17


@pytest.mark.parametrize(
    ("command", "size", "text"),
    [
        (XENVER_extraversion, 16, b".0-xenolith"),
        (XENVER_capabilities, 1024, b"xen-3.0-x86_64 "),
        (XENVER_changeset, 64, b"xenolith "),
    ],
)
def test_texts_are_padded(machine: Machine, guest: Domain, command: int, size: int, text: bytes) -> None:
    data = answer(machine, guest, command, size)
    assert data.startswith(text)
    assert data.endswith(b"\0")


def test_compile_info(machine: Machine, guest: Domain) -> None:
    data = answer(machine, guest, XENVER_compile_info, XenCompileInfo.sizeof())
    assert XenCompileInfo.from_bytes(data).compile_by == b"xenolith"


def test_platform_parameters(machine: Machine, guest: Domain) -> None:
    assert answer(machine, guest, XENVER_platform_parameters, 8) == (0xFFFF_8000_0000_0000).to_bytes(8, "little")


def features(machine: Machine, domain: Domain) -> int:
    info = XenFeatureInfo(submap_idx=0, submap=0xFFFF_FFFF)
    assert machine.operation(domain, CALL, XENVER_get_features, info) == 0
    return info.submap


def test_features(machine: Machine, guest: Domain, driver: Domain) -> None:
    plain = features(machine, guest)
    assert plain == 1 << 13 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 17
    assert features(machine, driver) == plain | 1 << 11
    guest.vm_assist = 1 << VMASST_TYPE_pae_extended_cr3
    assert features(machine, guest) == plain | 1 << 4


def test_no_second_submap(machine: Machine, guest: Domain) -> None:
    assert machine.operation(guest, CALL, XENVER_get_features, XenFeatureInfo(submap_idx=1)) == -EINVAL


def test_page_size(machine: Machine, guest: Domain) -> None:
    assert machine.raw(guest, CALL, XENVER_pagesize, 0) == 4096
    assert machine.raw(guest, CALL, XENVER_pagesize, 8) == -EINVAL


def test_handle_is_the_callers_own(machine: Machine, guest: Domain, driver: Domain) -> None:
    assert answer(machine, guest, XENVER_guest_handle, 16) == guest.handle.bytes
    assert guest.handle != driver.handle


def test_command_line_is_for_control_domains(machine: Machine, guest: Domain, driver: Domain) -> None:
    assert answer(machine, guest, XENVER_commandline, 1024).rstrip(b"\0") == b"<denied>"
    assert answer(machine, driver, XENVER_commandline, 1024).rstrip(b"\0") == b"dom0_mem=64M"


def test_build_id(machine: Machine, guest: Domain, driver: Domain) -> None:
    assert machine.raw(guest, CALL, XENVER_build_id, 0) == -EPERM
    assert machine.raw(driver, CALL, XENVER_build_id, 0) == -ENODATA
    assert machine.operation(driver, CALL, XENVER_build_id, XenBuildId(len=0)) == -EINVAL
    assert machine.operation(driver, CALL, XENVER_build_id, XenBuildId(len=20)) == -ENODATA


@pytest.mark.parametrize("command", [1, 2, 3, 4, 5, 6, 8, 9])
def test_bad_addresses(machine: Machine, guest: Domain, command: int) -> None:
    for vaddr in (0, UNMAPPED, (1 << 64) - 8):
        assert machine.raw(guest, CALL, command, vaddr) == -EFAULT


def test_unknown_operation(machine: Machine, guest: Domain) -> None:
    assert machine.raw(guest, CALL, 11, 0) == -ENOSYS
    assert machine.unimplemented[CALL, 11] == 1
