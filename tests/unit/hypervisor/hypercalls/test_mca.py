"""mca: a machine that never fails, described."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.hypercalls.conftest import Machine
from xenolith.abi.errno import EACCES, EFAULT, EINVAL, ENOSYS, EPERM
from xenolith.abi.mca import (
    XEN_MC_ACK,
    XEN_MC_NODATA,
    XEN_MC_NONURGENT,
    XEN_MC_OK,
    XEN_MC_URGENT,
    XEN_MCA_INTERFACE_VERSION,
    McinfoLogicalCpu,
    XEN_MC_fetch,
    XEN_MC_msrinject,
    XEN_MC_notifydomain,
    XEN_MC_physcpuinfo,
    XenMc,
)
from xenolith.hypervisor.domain import Domain

CALL = 48


def call(machine: Machine, domain: Domain, argument: XenMc) -> int:
    """The hypercall; `argument` is updated."""
    at = machine.memory_of(domain)[0] << 12
    machine.ram.bytes[at : at + XenMc.sizeof()] = argument.to_bytes()
    result = machine.raw(domain, CALL, at)
    copied = XenMc.from_bytes(machine.ram.bytes[at : at + XenMc.sizeof()])
    argument.u = copied.u
    return result


def request(command: int) -> XenMc:
    return XenMc(cmd=command, interface_version=XEN_MCA_INTERFACE_VERSION)


@pytest.mark.parametrize("urgency", [XEN_MC_URGENT, XEN_MC_NONURGENT])
def test_nothing_to_fetch(machine: Machine, driver: Domain, urgency: int) -> None:
    argument = request(XEN_MC_fetch)
    argument.u.mc_fetch.flags = urgency
    argument.u.mc_fetch.fetch_id = 77
    argument.u.mc_fetch.data = machine.buffer(driver)
    assert call(machine, driver, argument) == 0
    assert argument.u.mc_fetch.flags == XEN_MC_NODATA
    assert argument.u.mc_fetch.fetch_id == 0


def test_fetch_checks_its_flags_and_buffer(machine: Machine, driver: Domain) -> None:
    argument = request(XEN_MC_fetch)
    argument.u.mc_fetch.data = machine.buffer(driver)
    for flags in (0, XEN_MC_URGENT | XEN_MC_NONURGENT, XEN_MC_ACK):
        argument.u.mc_fetch.flags = flags
        assert call(machine, driver, argument) == -EINVAL
    argument.u.mc_fetch.flags = XEN_MC_URGENT | XEN_MC_ACK
    argument.u.mc_fetch.data = 0
    assert call(machine, driver, argument) == 0
    assert argument.u.mc_fetch.flags == XEN_MC_OK
    argument.u.mc_fetch.flags = XEN_MC_URGENT
    assert call(machine, driver, argument) == -EINVAL


def test_processors_are_counted_and_described(machine: Machine, driver: Domain) -> None:
    argument = request(XEN_MC_physcpuinfo)
    assert call(machine, driver, argument) == 0
    assert argument.u.mc_physcpuinfo.ncpus == 1
    argument.u.mc_physcpuinfo.ncpus = 0xFFFF_FFFF
    argument.u.mc_physcpuinfo.info = at = machine.buffer(driver)
    assert call(machine, driver, argument) == 0
    assert argument.u.mc_physcpuinfo.ncpus == 1
    cpu = McinfoLogicalCpu.from_bytes(machine.ram.bytes[at : at + McinfoLogicalCpu.sizeof()])
    assert (cpu.mc_family, cpu.mc_model, cpu.mc_step) == (6, 0x36, 1)
    assert cpu.mc_vendorid == b"GenuineIntel"
    assert cpu.mc_brandid == b"Xenolith virtual CPU (Unicorn)"


def test_no_room_and_no_memory_for_processors(machine: Machine, driver: Domain) -> None:
    argument = request(XEN_MC_physcpuinfo)
    argument.u.mc_physcpuinfo.info = machine.buffer(driver)
    assert call(machine, driver, argument) == -EINVAL
    argument.u.mc_physcpuinfo.ncpus = 1
    argument.u.mc_physcpuinfo.info = 1 << 40
    assert call(machine, driver, argument) == -EFAULT


def test_who_may_and_which_version(machine: Machine, driver: Domain, guest: Domain) -> None:
    assert call(machine, guest, request(XEN_MC_physcpuinfo)) == -EPERM
    assert call(machine, driver, XenMc(cmd=XEN_MC_physcpuinfo, interface_version=1)) == -EACCES
    assert machine.raw(driver, CALL, 1 << 40) == -EFAULT


def test_what_there_is_not(machine: Machine, driver: Domain) -> None:
    assert call(machine, driver, request(XEN_MC_notifydomain)) == -EINVAL
    assert call(machine, driver, request(XEN_MC_msrinject)) == -ENOSYS
