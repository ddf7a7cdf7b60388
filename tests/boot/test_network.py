"""Networks of unmodified guests: between two of them on a switch, and to and from the host, whatever is killed."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from pathlib import Path
from typing import Final

from tests.boot.background import Background, background
from tests.boot.conftest import Kernel
from tests.boot.host_network import free_port, needs_user_network, serving
from tests.boot.linux import COMPLAINTS

_MIB: Final = int(os.environ.get("XENOLITH_NETWORK_MIB", "20"))
"""How much is copied. What it takes is the time of the two guests' own TCP, under emulation."""
_LIMIT_S: Final = 300.0
_DATA: Final = os.urandom(1 << 20)


def _create(machine: Background, name: str, *vifs: str, cmdline: str = "") -> None:
    words = [word for vif in vifs for word in ("--vif", vif)]
    machine.do("create", "--name", name, "--kernel", "debian-cloud", "--memory", "128MiB", "--cmdline", cmdline, *words)


def test_guests_copy_over_a_switch_while_its_service_is_killed(kernel: Kernel, tmp_path: Path) -> None:
    kernel("debian-cloud")
    capture = tmp_path / "packets.pcap"
    with background(tmp_path, "--preset", "split", "--machine-memory", "320MiB") as machine:
        _create(machine, "server", "bridge=inner", cmdline="ip=10.9.0.1")
        _create(machine, "client", f"bridge=inner,pcap={capture}", cmdline="ip=10.9.0.2")
        machine.wait_console("server", "guest:~# ", _LIMIT_S)
        machine.wait_console("client", "guest:~# ", _LIMIT_S)
        assert "3 packets received" in machine.run("client", "ping -c 3 -W 20 10.9.0.1")

        machine.run("server", f"dd if=/dev/urandom of=/tmp/data bs=1M count={_MIB} && httpd -h /tmp", _LIMIT_S)
        (sent,) = machine.run("server", "md5sum < /tmp/data | cut -c 1-32", _LIMIT_S).split()
        machine.run("client", "touch /tmp/data; (wget -q -O /tmp/data http://10.9.0.1/data > /tmp/said 2>&1 &)")
        for part in (1, 2):
            wanted = part * (_MIB << 20) // 4
            machine.run("client", f"while [ $(stat -c %s /tmp/data) -lt {wanted} ]; do sleep 0.1; done", _LIMIT_S)
            machine.do("service", "kill", "net")
        assert machine.run("client", "while pidof wget > /dev/null; do sleep 0.2; done; cat /tmp/said", _LIMIT_S) == ""
        (got,) = machine.run("client", "md5sum < /tmp/data | cut -c 1-32", _LIMIT_S).split()
        assert got == sent
        starts = {service["name"]: service["starts"] for service in machine.json("service", "list")}
        assert starts["net"] == 3, "only by those who killed it was it started again"
        assert capture.stat().st_size > _MIB << 20

        _plug(machine)
        for name in ("server", "client"):
            assert not COMPLAINTS.search(machine.console(name)), machine.console(name)


def _plug(machine: Background) -> None:
    """Another device comes, works, and goes, at both guests."""
    for number, name in enumerate(("server", "client"), 1):
        machine.do("network-attach", name, "bridge=second")
        seen = "while [ ! -e /sys/class/net/eth1 ]; do sleep 0.1; done"
        machine.run(name, f"{seen}; ip addr add 10.8.0.{number}/24 dev eth1 && ip link set eth1 up")
    assert "2 packets received" in machine.run("client", "ping -c 2 -W 20 10.8.0.1")
    for name in ("server", "client"):
        machine.do("network-detach", name, "1")
        machine.run(name, "while [ -e /sys/class/net/eth1 ]; do sleep 0.1; done")
    assert "2 packets received" in machine.run("client", "ping -c 2 -W 20 10.9.0.1")


def test_a_guest_and_the_host_reach_each_other(kernel: Kernel, tmp_path: Path) -> None:
    kernel("debian-cloud")
    needs_user_network()
    port = free_port()
    with serving(_DATA) as page, background(tmp_path, "--preset", "split", "--machine-memory", "192MiB") as machine:
        _create(machine, "guest", f"user,forward=tcp:{port}:80")
        machine.wait_console("guest", "guest:~# ", _LIMIT_S)
        assert "10.0.2.15/24" in machine.run("guest", "ip addr show eth0")
        (got,) = machine.run(
            "guest", f"wget -q -O /tmp/data http://10.0.2.2:{page}/ && md5sum < /tmp/data | cut -c 1-32", _LIMIT_S
        ).split()
        assert got == hashlib.md5(_DATA).hexdigest()
        machine.run("guest", "httpd -h /tmp")
        machine.do("service", "kill", "net")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/data", timeout=_LIMIT_S) as answer:
            assert answer.read() == _DATA
        said = machine.refused("network-attach", "guest", f"user,forward=tcp:{port}:81")
        assert f"127.0.0.1/{port}:81" in said
