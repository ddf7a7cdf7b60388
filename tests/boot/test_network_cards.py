"""Network cards behind PCI, with Debian's drivers in a control domain: to the host, and to a PV guest on a switch."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final

import pytest

from tests.boot.background import background
from tests.boot.command_line import run
from tests.boot.conftest import Kernel
from tests.boot.host_network import needs_user_network, serving
from tests.boot.linux import sections

_LIMIT_S: Final = 120.0
_DATA: Final = os.urandom(4 << 20)
_MODULES: Final = {"virtio-net": ("virtio_pci", "virtio_net"), "e1000e": ("e1000e",)}
_MODELS: Final = tuple(_MODULES)
_INTERRUPTS: Final = {"virtio-net": r"-msi-x +virtio0-(input|output)", "e1000e": r"-msi-x +eth0-(rx|tx)"}
"""How /proc/interrupts calls those of a card's queues."""
_MAC: Final = "00:16:3e:aa:bb:cc"

_SCRIPT: Final = """\
echo @@ link; cat /sys/class/net/eth0/carrier /sys/class/net/eth0/address
echo @@ fetched; wget -q -O - http://10.0.2.2:{port}/ | sha256sum
echo @@ interrupts; grep pirq /proc/interrupts
echo @@ down; ip link set eth0 down; ip link set eth0 up; udhcpc -i eth0 -q -n > /dev/null 2>&1
wget -q -O - http://10.0.2.2:{port}/ | sha256sum
"""


_MODES: Final = """\
module=$(find /lib/modules -name 'e1000e.ko*')
for mode in 0 1; do
    rmmod e1000e; insmod $module IntMode=$mode
    until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
    udhcpc -i eth0 -q -n > /dev/null 2>&1
    wget -q -O - http://10.0.2.2:{port}/ | sha256sum
    grep eth0 /proc/interrupts
done
ip link set eth0 mtu 9000
wget -q -O - http://10.0.2.2:{port}/ | sha256sum
"""


def _ramdisk(path: Path, model: str, *more: str) -> Path:
    words = [word for module in _MODULES[model] for word in ("--module", module)]
    ended = run("ramdisk", "--kernel", "debian", *words, *more, "-o", path)
    assert ended.status == 0, ended.log
    return path


@pytest.mark.parametrize("model", _MODELS)
def test_a_control_domain_reaches_the_host(kernel: Kernel, tmp_path: Path, model: str) -> None:
    kernel("debian")
    needs_user_network()
    capture = tmp_path / "packets.pcap"
    with serving(_DATA) as port:
        ramdisk = _ramdisk(tmp_path / "ramdisk", model, "--exec", _SCRIPT.format(port=port))
        ended = run(
            *("boot", "--kernel", "debian", "--memory", "256MiB", "--ramdisk", ramdisk, "--timeout", str(_LIMIT_S)),
            *("--device", f"{model},user,mac={_MAC},pcap={capture}"),
        )
    assert ended.status == 0, ended.log
    found = sections(ended)
    assert found.complaints == [], ended.log
    assert found.lines("link") == ["1", _MAC]
    for part in ("fetched", "down"):
        assert found.text(part).split()[0] == hashlib.sha256(_DATA).hexdigest(), ended.log
    counts = [
        int(line.split()[1]) for line in found.lines("interrupts") if re.search(_INTERRUPTS[model], line) is not None
    ]
    assert counts
    assert all(counts), found.text("interrupts")
    assert capture.stat().st_size > 2 * len(_DATA)


def test_intels_card_interrupts_in_every_way_and_takes_long_packets(kernel: Kernel, tmp_path: Path) -> None:
    kernel("debian")
    needs_user_network()
    with serving(_DATA) as port:
        ramdisk = _ramdisk(tmp_path / "ramdisk", "e1000e", "--exec", _MODES.format(port=port))
        ended = run(
            *("boot", "--kernel", "debian", "--memory", "256MiB", "--ramdisk", ramdisk, "--timeout", str(_LIMIT_S)),
            *("--device", "e1000e,user,mtu=9000"),
        )
    assert ended.status == 0, ended.log
    assert sections(ended).complaints == [], ended.log
    assert ended.output.count(hashlib.sha256(_DATA).hexdigest()) == 3, ended.log
    for kind in ("-ioapic-level", "-msi"):
        (count,) = re.findall(rf"(\d+) +xen-pirq +{kind} +eth0\n", ended.output)
        assert int(count) > 10


@pytest.mark.parametrize("model", _MODELS)
def test_a_control_domain_and_a_guest_reach_each_other(kernel: Kernel, tmp_path: Path, model: str) -> None:
    kernel("debian")
    kernel("debian-cloud")
    data = tmp_path / "data"
    data.write_bytes(_DATA)
    ramdisk = _ramdisk(tmp_path / "ramdisk", model, "--file", f"{data}:/srv/data")
    description = tmp_path / "machine.toml"
    description.write_text(f"""\
[[machine.device]]
model = "{model}"
bridge = "inner"

[domain.dom0]
kernel = "debian"
ramdisk = "{ramdisk}"
memory = "256MiB"
capabilities = ["hardware", "console"]
cmdline = "ip=10.9.0.1"

[domain.services]
service = ["store", "console", "builder", "net"]
capabilities = ["create", "store"]

[domain.guest]
kernel = "debian-cloud"
memory = "128MiB"
vif = ["bridge=inner"]
cmdline = "ip=10.9.0.2"
""")
    with background(tmp_path, description) as machine:
        machine.wait_console("dom0", "dom0:~# ", _LIMIT_S)
        machine.wait_console("guest", "guest:~# ", _LIMIT_S)
        machine.run("dom0", "httpd -h /srv")
        said = machine.run("guest", "ping -c 3 -W 20 10.9.0.1")
        assert "3 packets received" in said, said
        (got, _) = machine.run("guest", "wget -q -O - http://10.9.0.1/data | sha256sum", _LIMIT_S).split()
        assert got == hashlib.sha256(_DATA).hexdigest()


@pytest.mark.parametrize("model", _MODELS)
def test_a_guest_drives_a_card_of_the_machine(kernel: Kernel, tmp_path: Path, model: str) -> None:
    kernel("debian")
    kernel("debian-cloud")
    ramdisk = _ramdisk(tmp_path / "ramdisk", model, "--module", "xen-pcifront")
    with background(tmp_path, "--preset", "split", "--device", f"{model},bridge=inner,mac={_MAC}") as machine:
        machine.do(
            *("create", "--name", "driver", "--kernel", "debian", "--ramdisk", ramdisk, "--memory", "160MiB"),
            *("--cmdline", "ip=10.9.0.1", "--pci", "00:01.0"),
        )
        machine.do(
            *("create", "--name", "guest", "--kernel", "debian-cloud", "--memory", "128MiB"),
            *("--cmdline", "ip=10.9.0.2", "--vif", "bridge=inner"),
        )
        machine.wait_console("driver", "guest:~# ", _LIMIT_S)
        machine.wait_console("guest", "guest:~# ", _LIMIT_S)
        assert machine.run("driver", "cat /sys/class/net/eth0/address").strip() == _MAC
        said = machine.run("guest", "ping -c 3 -W 20 10.9.0.1")
        assert "3 packets received" in said, said
        assert "pcifront-msi-x" in machine.run("driver", "cat /proc/interrupts")
        machine.do("destroy", "driver")
