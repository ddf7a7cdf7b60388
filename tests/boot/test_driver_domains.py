"""Linux domains that serve others: their backends hold disks and networks of guests that native domains make."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.background import Background, background
from tests.boot.dom0 import PROMPT, require_dom0

_SERVE = "xl devd 2> /dev/null; echo ready; sleep 1000000"
_BRIDGE = "brctl addbr xenbr0; ip addr add 10.0.0.1/24 dev xenbr0; ip link set xenbr0 up"
_MACHINE = f"""
[machine]
spare_memory = "192MiB"

[domain.base]
service = ["store", "builder", "console"]
capabilities = ["store", "create", "console"]

[domain.disks]
kernel = "debian"
ramdisk = "debian-dom0"
memory = "224MiB"
cmdline = "quiet"
capabilities = ["hardware"]
exec = "head -c 4194304 /dev/urandom > /tmp/disk.img; sha256sum /tmp/disk.img; {_SERVE}"

[domain.net]
kernel = "debian-cloud"
ramdisk = "debian-dom0"
memory = "160MiB"
cmdline = "quiet"
exec = "{_BRIDGE}; {_SERVE}"

[domain.guest]
kernel = "debian-cloud"
memory = "128MiB"
cmdline = "quiet ip=10.0.0.2::10.0.0.1:255.255.255.0"
disk = ["vdev=xvda,backend=disks,target=/tmp/disk.img"]
vif = ["backend=net,bridge=xenbr0"]

[domain.operator]
kernel = "debian"
ramdisk = "debian-dom0"
memory = "192MiB"
cmdline = "quiet"
capabilities = {{ control = ["guest"], hardware = true, console = true }}
"""


_WITH_A_CARD = """
[machine]
preset = "split"
spare_memory = "384MiB"

[[machine.device]]
model = "virtio-net"
bridge = "lan"

[domain.peer]
kernel = "debian-cloud"
memory = "128MiB"
cmdline = "quiet ip=10.0.0.3::10.0.0.1:255.255.255.0"
vif = ["bridge=lan"]
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    require_dom0()
    description = tmp_path_factory.mktemp("machine") / "machine.toml"
    description.write_text(_MACHINE)
    with background(tmp_path_factory.mktemp("run"), description) as machine:
        yield machine


def create_driver(machine: Background, kernel: str, command: str, *options: str) -> None:
    """A driver domain `net` that runs the command, and is ready."""
    before = machine.console("net").count("ready")
    machine.do(
        *("create", "--kernel", kernel, "--ramdisk", "debian-dom0", "--name", "net", "--memory", "192MiB"),
        *("cmdline=quiet", f"exec={command}; {_SERVE}", *options),
    )
    machine.wait(lambda: machine.console("net").count("ready") > before, "the driver domain")


def test_disk_and_network_of_linux_domains(machine: Background) -> None:
    """One with hardware and nothing else has the disk, one without any privilege the network."""
    machine.wait_prompt("guest", limit_s=300)  # five domains come up at once
    said = machine.run("guest", "sha256sum /dev/xvda | cut -c -64; echo written > /dev/xvda; sync; ping -c 2 10.0.0.1")
    (sum_,) = re.findall(r"(\w{64})  /tmp/disk.img", machine.console("disks"))
    assert sum_ in said
    assert "0% packet loss" in said
    assert "written" in machine.run("guest", "echo 1 > /proc/sys/vm/drop_caches; head -c 7 /dev/xvda")
    has = {row["name"]: row["capabilities"] for row in machine.json("policy", "show")}
    assert (has["disks"], has["net"], has["guest"]) == (["hardware"], [], [])


def test_a_driver_domain_is_killed_and_made_again(machine: Background) -> None:
    """The guest goes on meanwhile, and gets its network back by a device of the new one."""
    before = machine.domains()["net"]["domid"]
    machine.do("destroy", "net")
    assert "100% packet loss" in machine.run("guest", "ping -c 1 -W 1 10.0.0.1")
    create_driver(machine, "debian-cloud", _BRIDGE)
    assert machine.domains()["net"]["domid"] != before
    machine.do("network-detach", "guest", "0")
    machine.do("network-attach", "guest", "backend=net,bridge=xenbr0")
    assert "0% packet loss" in machine.run("guest", "sh /etc/xenolith/network; ping -c 2 10.0.0.1")


def test_nothing_is_left_of_devices_that_are_taken_away(machine: Background) -> None:
    """The scripts of the Linux domain are run for the end of a device, too, and its directory is gone."""
    devices = f"/local/domain/{machine.domains()['net']['domid']}/backend"
    assert f"{devices}/vif/" in machine.do("store", "ls", devices)
    machine.do("network-detach", "guest", "1")
    assert f"{devices}/vif/" not in machine.do("store", "ls", devices)


def test_what_a_linux_domain_cannot_serve(machine: Background) -> None:
    guest = ("create", "--kernel", "debian-cloud", "--name", "other", "--memory", "96MiB", "--paused")
    assert "not raw" in machine.refused(*guest, "--disk", "format=qcow2,vdev=xvda,backend=disks,target=/tmp/disk.img")
    assert "no user" in machine.refused(*guest, "--vif", "user,backend=net")
    assert "has no /tmp/nothing.img" in machine.refused(
        *guest, "--disk", "vdev=xvda,backend=disks,target=/tmp/nothing.img"
    )
    assert "there is no domain 'nobody'" in machine.refused(*guest, "--vif", "backend=nobody")


def test_a_driver_domain_with_a_network_card(tmp_path: Path) -> None:
    """Its card is at a switch, and its bridge joins guests to that: one reaches a guest at the switch."""
    require_dom0()
    description = tmp_path / "machine.toml"
    description.write_text(_WITH_A_CARD)
    with background(tmp_path, description) as machine:
        bridge = "brctl addbr xenbr0; brctl addif xenbr0 eth0; ip link set eth0 up; ip link set xenbr0 up"
        create_driver(machine, "debian", bridge, "--pci", "00:01.0")
        machine.do(
            *("create", "--kernel", "debian-cloud", "--name", "guest", "--memory", "128MiB"),
            *("cmdline=quiet ip=10.0.0.2::10.0.0.1:255.255.255.0", "--vif", "backend=net,bridge=xenbr0"),
        )
        machine.wait_prompt("guest")
        machine.wait_prompt("peer")
        assert "0% packet loss" in machine.run("guest", "ping -c 2 10.0.0.3")


def test_control_over_one_guest(machine: Background) -> None:
    """Debian's xl in a domain with `control` over the guest destroys that one, and no other."""
    machine.wait_console("operator", PROMPT)
    domids = {name: row["domid"] for name, row in machine.domains().items()}
    said = machine.run("operator", f"xl pause {domids['net']}; xl destroy {domids['net']}")
    assert "Pausing domain: Operation not permitted" in said
    assert "destroy failed" in said
    machine.run("operator", f"xl destroy {domids['guest']}")
    machine.wait(lambda: "guest" not in machine.domains(), "the end of the guest")
    assert machine.domains()["net"]["state"] in ("-b----", "r-----")
    operator = {row["name"]: row for row in machine.json("policy", "show")}["operator"]
    assert operator["refusals"]["XEN_DOMCTL_pausedomain"] == 1
    assert "XEN_DOMCTL_destroydomain" in operator["uses"]
