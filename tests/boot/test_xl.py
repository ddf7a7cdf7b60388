"""Debian's own xl 4.17 in Debian's own Linux as dom0: what it shows, what it makes, and what it leaves behind."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.command_line import XENOLITH
from tests.boot.dom0 import PRESET, Dom0, dom0, make_ramdisk, require_dom0
from tests.patience import PATIENCE

_CYCLES = 10
_HELD = "xl debug-keys q; xl dmesg | tail -8"
_WITHOUT_CONTROL = """
[domain.dom0]
kernel = "debian"
ramdisk = "debian-dom0"
memory = "384MiB"
capabilities = ["hardware", "console", "store"]
cmdline = "quiet"
exec = '''
echo "name = 'x'; kernel = '/init'; memory = 64" > /root/x
xl create -q /root/x 2>&1
xl list
cat /proc/xen/capabilities
'''
"""


@pytest.fixture(scope="module")
def ramdisk(tmp_path_factory: pytest.TempPathFactory, hello: Path) -> Path:
    require_dom0()
    return make_ramdisk(tmp_path_factory.mktemp("dom0"), ("linux", "once", "tiny"), (hello, "hello"))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, ramdisk: Path) -> Iterator[Dom0]:
    with dom0(tmp_path_factory.mktemp("run"), *PRESET, "--ramdisk", ramdisk) as machine:
        machine.sh("brctl addbr xenbr0; ip addr add 10.0.0.1/24 dev xenbr0; ip link set xenbr0 up")
        yield machine


def listed(machine: Dom0) -> dict[int, tuple[int, int]]:
    """Memory in MiB and vCPUs of each domain, as xl and Xenolith agree."""
    theirs = {int(row[1]): (int(row[2]), int(row[3])) for row in machine.rows("xl list")}
    ours = {row["domid"]: (row["memory_mib"], row["vcpus"]) for row in machine.json("list")}
    assert theirs == ours
    return theirs


def test_what_the_tools_show(machine: Dom0) -> None:
    info = dict(re.findall(r"(\w+) +: (.*)", machine.sh("xl info")))
    assert (info["xen_version"], info["xen_caps"], info["xen_scheduler"]) == (
        "4.17.0-xenolith",
        "xen-3.0-x86_64 ",
        "credit2",
    )
    assert int(info["free_memory"]) == pytest.approx(machine.json("info")["free_memory_mib"], abs=1)
    assert listed(machine) == {0: (512, 1)}
    assert "Domain-0" in machine.sh("xl uptime")
    assert machine.rows("xl vcpu-list")[0][:4] == ["Domain-0", "0", "0", "0"]
    assert machine.sh("xenstore-read /local/domain/0/name") == "Domain-0\n"
    ports = machine.sh("lsevtchn 0")
    assert "Virtual IRQ 3" in ports, "xenstored wants to know of domains that end"
    machine.sh("xl debug-keys q")
    log = machine.sh("xl dmesg")
    assert log.startswith("(XEN) Xen version 4.17.0-xenolith")
    assert "(XEN) Command line: dom0_mem=512M,max:512M dom0_max_vcpus=1\n" in log
    assert "(XEN) PHYSICAL MEMORY ARRANGEMENT:\n(XEN)  Dom0 alloc.:" in log
    assert "(XEN) domain 0: 131072 of 131072 frames" in log
    assert machine.rows("xentop -b -i 1")[0][0] == "Domain-0"
    assert "PV Max policy" in machine.sh("xen-cpuid -p 2> /dev/null")
    assert machine.rows("xl cpupool-list")[0][0] == "Pool-0"


def test_xentrace_records_the_hypercalls_of_xl(machine: Dom0) -> None:
    machine.sh(
        "xentrace -D -x -e 0x20f000 /tmp/trace 2> /dev/null & sleep 1; xl list > /dev/null; kill -INT $!; wait $!"
    )
    # A record is its event, two words of time, and the number of the hypercall: 35 is sysctl.
    words = machine.sh("od -v -A n -t x4 -w4 /tmp/trace; rm /tmp/trace").split()
    records = [words[at + 3] for at, word in enumerate(words[:-3]) if word == "9020100d"]
    assert "00000023" in records


def test_a_guest_s_console_until_its_end(machine: Dom0) -> None:
    """`create -c` shows all that a guest prints, and ends with it."""
    said = machine.sh("xl create -c /root/once.cfg")
    assert re.search(r"42 at 6\.1\.0-\d+-cloud-amd64", said)
    assert "xenolith: exit status 0" in said
    machine.sh("soon '! xl domid once 2> /dev/null'")
    assert listed(machine).keys() == {0}


def test_a_guest_with_a_disk_and_a_network(machine: Dom0) -> None:
    """Served by xen-blkback and xen-netback; changed in every way; saved, restored, migrated, ended."""
    machine.sh("dd if=/dev/urandom of=/tmp/disk.img bs=1M count=4")
    assert machine.sh("xl create -q /root/linux.cfg || cat /var/log/xen/xen-hotplug.log") == ""
    said = machine.sh("guest linux 'sha256sum /dev/xvda | cut -c -64'")
    assert machine.sh("sha256sum /tmp/disk.img | cut -c -64").strip() in said
    assert "0% packet loss" in machine.sh("ping -c 2 10.0.0.2")
    assert [row[3] for row in machine.rows("xl block-list linux")] == ["4"]
    domid = int(machine.sh("xl domid linux"))
    assert listed(machine) == {0: (512, 1), domid: (96, 1)}

    machine.sh("xl pause linux")
    assert machine.rows("xl list linux")[0][4] == "--p---"
    machine.sh("xl unpause linux; xl sched-credit2 -d linux -w 512; xl mem-set linux 80")
    assert machine.rows("xl sched-credit2 -d linux")[0][2:] == ["512", "0"]
    machine.sh("soon 'xl list linux | grep -q \" 80 \"'")
    assert listed(machine)[domid] == (80, 1)
    machine.sh("xl mem-set linux 96; xl vcpu-set -i linux 2; xl sysrq linux h; xl trigger linux nmi")
    online = "/sys/devices/system/cpu/cpu1/online"
    said = machine.sh(f"guest linux 'until [ -e {online} ]; do sleep 0.1; done; echo 1 > {online}; nproc; dmesg'")
    assert "sysrq: HELP" in said
    machine.sh("soon 'xl vcpu-list linux | tail -1 | grep -q -e -b- -e r--'")
    assert listed(machine)[domid] == (96, 2)

    machine.sh("dd if=/dev/zero of=/tmp/more.img bs=1M count=1")
    machine.sh("xl block-attach linux /tmp/more.img,raw,xvdb,rw; xl network-attach linux bridge=xenbr0")
    said = machine.sh(
        "guest linux 'until [ -b /dev/xvdb ] && [ -e /sys/class/net/eth1 ]; do sleep 0.1; done;"
        " echo written > /dev/xvdb; sync'"
    )
    assert machine.sh("head -c 7 /tmp/more.img") == "written"
    machine.sh("xl block-detach linux xvdb; xl network-detach linux 1")
    assert len(machine.rows("xl block-list linux")) == len(machine.rows("xl network-list linux")) == 1

    machine.sh("guest linux 'kept=$((6 * 111))'")
    assert machine.sh("xl dump-core linux /tmp/core && head -c 4 /tmp/core | tail -c 3; rm /tmp/core").endswith("ELF")
    machine.sh("xl save linux /tmp/saved > /dev/null 2>&1")
    assert listed(machine).keys() == {0}
    machine.sh("xl restore /tmp/saved > /dev/null 2>&1; rm /tmp/saved")
    assert "666" in machine.sh("guest linux 'echo $kept'")
    assert "Migration successful" in machine.sh("xl migrate -s '' linux 'xl migrate-receive' 2>&1")
    said = machine.sh("guest linux 'echo $kept; sha256sum /dev/xvda | cut -c -64'")
    assert "666" in said
    assert machine.sh("sha256sum /tmp/disk.img | cut -c -64").strip() in said
    assert "0% packet loss" in machine.sh("ping -c 2 10.0.0.2")
    assert listed(machine) == {0: (512, 1), domid + 2: (96, 2)}

    machine.sh("xl shutdown -w linux > /dev/null; rm /tmp/disk.img")
    machine.sh("soon '! xl domid linux 2> /dev/null'")
    assert listed(machine).keys() == {0}


def test_nothing_is_left_of_guests_that_were_destroyed(machine: Dom0) -> None:
    """Neither memory, nor ports of the backends, nor nodes of the store."""

    def census() -> tuple[object, ...]:
        machine.sh("soon '! ip link | grep -q vif'")
        return (
            machine.json("info")["free_memory_mib"],
            len(machine.rows("lsevtchn 0")),
            len(machine.rows("xenstore-ls -f")),
            listed(machine),
        )

    create = "xl create -q -p /root/tiny.cfg"
    machine.sh(f"{create}; xl destroy tiny")
    before = census()
    said = machine.sh(f"for n in $(seq {_CYCLES}); do {create} && xl list tiny | tail -1 && xl destroy tiny; done")
    assert said.count("tiny") == _CYCLES
    assert census() == before


def test_ten_lives_with_devices_leave_nothing(machine: Dom0) -> None:
    """Restored with disk and network, written to, pinged, migrated, ended: no frame, port, grant or node is left."""

    def census() -> tuple[object, ...]:
        machine.sh("soon '! { ip link; losetup -a; } | grep -q -e vif -e loop0'")
        # Ports and grants of dom0, and the frames that nobody has.
        held = re.findall(r"domain 0: .* (\d+ ports, \d+ grants)|(\d+) frames are free", machine.sh(_HELD))
        return held[-2:], sorted(row[0] for row in machine.rows("xenstore-ls -f")), listed(machine)

    machine.sh("dd if=/dev/urandom of=/tmp/disk.img bs=1M count=1; xl create -q /root/linux.cfg; guest linux sync")
    machine.sh("xl save linux /tmp/saved > /dev/null 2>&1")
    assert machine.sh("life moved", limit_s=300) == "alive\n"
    before = census()
    said = machine.sh("for how in moved asked 3 4 5 6 7 8 asked 10; do life $how || break; done", limit_s=900)
    assert said.count("alive") == _CYCLES, machine.sh("tail /var/log/xen/*.log")
    assert census() == before
    machine.sh("rm /tmp/saved")
    machine.sh("rm /tmp/disk.img")


def test_without_control_there_is_no_making_of_guests(tmp_path: Path, ramdisk: Path) -> None:
    """The same control domain without that capability comes to its prompt; xl says that it may not."""
    description = tmp_path / "machine.toml"
    description.write_text(_WITHOUT_CONTROL)
    ended = subprocess.run([XENOLITH, "boot", description], capture_output=True, text=True, timeout=120 * PATIENCE)
    assert ended.returncode == 0, ended.stderr
    assert "control_d" in ended.stdout
    assert "Operation not permitted" in ended.stdout


@pytest.mark.usefixtures("ramdisk")
def test_the_other_xenstored() -> None:
    """Debian has one in C, which the other tests use, and one in OCaml."""
    said = "xenstore-read /tool/xenstored; xl list"
    command = [XENOLITH, "boot", "--preset", "dom0", "--kernel", "debian", "--exec", said]
    command += ["--cmdline", "quiet XENSTORED=oxenstored"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120 * PATIENCE)
    assert ended.returncode == 0, ended.stderr
    assert "bin/oxenstored" in ended.stdout
    assert re.search(r"Domain-0 +0 +512", ended.stdout)
