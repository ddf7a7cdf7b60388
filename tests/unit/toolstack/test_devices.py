"""What xenstore is told of devices: for a native backend, and for a Linux one with Xen's scripts."""

from __future__ import annotations

import pytest

from xenolith.errors import UserError
from xenolith.toolstack.devices import Devices
from xenolith.toolstack.disks import parse_disk
from xenolith.toolstack.guest_config import GuestConfig
from xenolith.toolstack.nics import parse_nic
from xenolith.toolstack.shares import Share

_NATIVE, _LINUX = 1, 2
_DEVICES = Devices(lambda service: _NATIVE, {"native": _NATIVE, "linux": _LINUX}.get, lambda domid: domid == _NATIVE)


@pytest.mark.parametrize("backend", ["linux", "2"])
def test_a_linux_backend_gets_what_its_scripts_want(backend: str) -> None:
    disk = _DEVICES.disk(parse_disk(f"vdev=xvda,access=ro,backend={backend},target=/dev/vg/a"))
    assert disk.backend_domid == _LINUX
    assert {name: disk.backend[name] for name in ("type", "params", "mode", "script")} == {
        "type": "phy",
        "params": "/dev/vg/a",
        "mode": "r",
        "script": "/etc/xen/scripts/block",
    }
    nic = _DEVICES.nic(GuestConfig("g", nics=(parse_nic(f"bridge=lan,backend={backend}"),)).identified(True).nics[0])
    assert nic.backend["script"] == "/etc/xen/scripts/vif-bridge"
    assert nic.told_guest == ("mtu",)
    assert disk.has_script
    assert nic.has_script


def test_a_native_backend_has_no_scripts() -> None:
    for backend in ("", ",backend=native"):
        disk = _DEVICES.disk(parse_disk(f"a.qcow2,qcow2,xvda,rw{backend}"))
        assert (disk.backend_domid, disk.backend["type"], disk.has_script) == (_NATIVE, "qcow2", False)


@pytest.mark.parametrize("disk", ["a,qcow2,xvda,rw,backend=linux", "a,raw,xvda,rw,overlay,backend=linux"])
def test_disks_that_linux_does_not_serve(disk: str) -> None:
    with pytest.raises(UserError, match="of a Linux domain, which has no overlays"):
        _DEVICES.disk(parse_disk(disk))


@pytest.mark.parametrize("nic", ["user,backend=linux", "tap=t0,backend=linux", "pcap=f,backend=linux"])
def test_networks_that_linux_does_not_serve(nic: str) -> None:
    with pytest.raises(UserError, match="of a Linux domain, which has no user"):
        _DEVICES.nic(GuestConfig("g", nics=(parse_nic(nic),)).identified(True).nics[0])


def test_shares_are_native() -> None:
    with pytest.raises(UserError, match="of a Linux domain"):
        _DEVICES.share(Share("tag", "/srv", backend="linux"), 0)


def test_a_backend_that_there_is_not() -> None:
    with pytest.raises(UserError, match="there is no domain 'nobody'"):
        _DEVICES.disk(parse_disk("vdev=xvda,backend=nobody,target=a"))
