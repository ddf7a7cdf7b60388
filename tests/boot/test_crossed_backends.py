"""Guests of xl whose devices are served elsewhere: by a native domain, and by a driver domain that xl has made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.dom0 import Dom0, dom0, make_ramdisk, require_dom0

_MACHINE = """
[machine]
memory = "1280MiB"

[domain.dom0]
kernel = "debian"
ramdisk = "{ramdisk}"
memory = "512MiB"
cmdline = "quiet"
capabilities = ["control", "create", "hardware", "console", "store"]

[domain.devices]
service = ["block", "net"]
"""
_START_DRIVER = (
    "xl create -q /root/driver.cfg;"
    " guest driver 'brctl addbr xenbr0; ip addr add 10.0.0.1/24 dev xenbr0; ip link set xenbr0 up'"
)
_DISK = 4 << 20


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("host")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, directory: Path) -> Iterator[Dom0]:
    require_dom0()
    description = directory / "machine.toml"
    description.write_text(_MACHINE.format(ramdisk=make_ramdisk(directory, ("linux", "driver"))))
    with dom0(tmp_path_factory.mktemp("run"), description) as machine:
        yield machine


def test_a_native_domain_and_a_driver_domain_serve_a_guest(machine: Dom0, directory: Path) -> None:
    """The native domain finds Linux's xenstored; a driver domain of xl has the bridge, with `xl devd` in it."""
    assert {row[0]: row[1] for row in machine.rows("xl list")} == {"Domain-0": "0", "devices": "1"}
    disk = directory / "disk.img"
    disk.write_bytes(os.urandom(_DISK))
    machine.sh(_START_DRIVER)
    devices = f"disk = ['vdev=xvda,backend=devices,target={disk}']; vif = ['backend=driver,bridge=xenbr0']"
    assert machine.sh(f'xl create -q /root/linux.cfg "{devices}"') == ""
    said = machine.sh("guest linux 'sha256sum /dev/xvda; ping -c 2 10.0.0.1'")
    assert hashlib.sha256(disk.read_bytes()).hexdigest() in said
    assert "0% packet loss" in said
    assert [row[1] for row in machine.rows("xl block-list linux")] == ["1"]
    assert [row[1] for row in machine.rows("xl network-list linux")] == [machine.sh("xl domid driver").strip()]


def test_the_native_domain_is_started_again(machine: Dom0, directory: Path) -> None:
    """It goes on with its ring to a store that knows nothing of that."""
    machine.do("service", "kill", "devices")
    machine.sh("guest linux 'echo written > /dev/xvda; sync'")
    assert (directory / "disk.img").read_bytes().startswith(b"written")
    (directory / "more.img").write_bytes(bytes(1 << 20))
    machine.sh(f"xl block-attach linux vdev=xvdb,backend=devices,target={directory / 'more.img'}")
    assert "1048576" in machine.sh("guest linux 'until [ -b /dev/xvdb ]; do sleep 0.1; done; wc -c < /dev/xvdb'")


def test_a_driver_domain_of_xl_is_killed_and_made_again(machine: Dom0) -> None:
    machine.sh("xl destroy driver")
    assert "100% packet loss" in machine.sh("guest linux 'ping -c 1 -W 1 10.0.0.1'")
    machine.sh(_START_DRIVER)
    machine.sh("xl network-detach linux 0; xl network-attach linux backend=driver bridge=xenbr0")
    machine.sh("guest linux 'until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; sh /etc/xenolith/network'")
    said = machine.sh("guest linux 'until ping -c 1 -W 1 10.0.0.1 > /dev/null; do sleep 0.1; done; ping -c 2 10.0.0.1'")
    assert "0% packet loss" in said


def test_nothing_is_left_of_the_guest(machine: Dom0) -> None:
    """Each end of a device that is gone has tidied up in the store: xl, the native domain, `xl devd`."""
    machine.sh("xl destroy linux")
    machine.sh("soon '! xenstore-ls | grep -q -e 51712 -e 51728'")
    machine.sh("xl destroy driver")
    assert {int(row[1]) for row in machine.rows("xl list")} == {0, 1}
    assert {row["domid"] for row in machine.json("list")} == {0, 1}
