"""The release of Xen that a machine says it is: one number everywhere, and only its own interface versions."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.support import Bench
from xenolith.abi.domctl import XEN_DOMCTL_getdomaininfo, XenDomctl
from xenolith.abi.errno import EACCES
from xenolith.abi.hypercalls import HYPERVISOR_domctl, HYPERVISOR_sysctl, HYPERVISOR_xen_version
from xenolith.abi.sysctl import XEN_SYSCTL_sched_id, XenSysctl
from xenolith.abi.version import XENVER_version
from xenolith.abi.x86_64 import XEN_CPUID_FIRST_LEAF
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.native import NativeKernel
from xenolith.hypervisor.release import RELEASES
from xenolith.services.control import Control

NUMBERS = {"4.17": (0x0004_0011, 0x15, 0x15), "4.18": (0x0004_0012, 0x16, 0x15)}


@pytest.mark.parametrize("name", RELEASES)
def test_every_way_to_ask_says_the_same(name: str) -> None:
    hv = Bench(release=name)
    guest = hv.guest()
    number = NUMBERS[name][0]
    assert guest.call(HYPERVISOR_xen_version, XENVER_version, 0) == number
    assert hv.cpuid_for(guest.domain).query(XEN_CPUID_FIRST_LEAF + 1, 0)[0] == number
    assert hv.release.text == f"{name}.0-xenolith"


@pytest.mark.parametrize("name", RELEASES)
@pytest.mark.parametrize("version", range(0x13, 0x18))
def test_only_its_own_toolstack_is_served(name: str, version: int) -> None:
    guest = Bench(release=name).guest(capabilities=Capability.CONTROL)
    _, domctl, sysctl = NUMBERS[name]
    one = XenDomctl(cmd=XEN_DOMCTL_getdomaininfo, interface_version=version, domain=guest.domain.domid)
    other = XenSysctl(cmd=XEN_SYSCTL_sched_id, interface_version=version)
    assert guest.call(HYPERVISOR_domctl, guest.put(guest.va(0), one)) == (0 if version == domctl else -EACCES)
    assert guest.call(HYPERVISOR_sysctl, guest.put(guest.va(0), other)) == (0 if version == sysctl else -EACCES)


@pytest.mark.parametrize("name", RELEASES)
def test_our_own_toolstack_speaks_every_release(name: str) -> None:
    hv = Bench(frames=2048, release=name)
    control = Control(NativeKernel(hv, "builder", Capability.CONTROL | Capability.CREATE))
    assert control.cpus() == 1
    assert control.free_memory() == hv.frames.free_frames << 12
    assert control.scheduling(hv.guest().domain.domid) == (256, 0)
