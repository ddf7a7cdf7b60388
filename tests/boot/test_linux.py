"""Debian's kernels, each as the control domain and as a guest: one boot, and everything that can be seen in it."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path
from typing import Final

import pytest

from tests.boot.command_line import Ended, run
from tests.boot.conftest import Kernel, Record
from tests.boot.guests import CONTROL, GUEST, LINUX, Row
from tests.boot.linux import COMPLAINTS, Sections, sections

SCRIPT: Final = r"""
section() { echo "@@ $1"; }
section release; uname -r; uname -v
section hypervisor
cd /sys/hypervisor
for file in type uuid guest_type version/* compilation/* properties/*; do echo "$file=$(cat $file | tr '\n' ' ')"; done
cd /
section capabilities; cat /proc/xen/capabilities
section banner; dmesg -s 1000000 | sed -n 's/.*\(Booting .*kernel on .*\)/\1/p'
section date; date +%s
section before; cat /proc/uptime
sleep 1
section after; cat /proc/uptime
section processors; nproc; grep -c ^processor /proc/cpuinfo
section work; seq 1 5000 | sha256sum
section end
"""
_NUMBERS: Final = "".join(f"{number}\n" for number in range(1, 5001)).encode()
_BANNER: Final = re.compile("Booting (paravirtualized )?kernel on Xen$", re.MULTILINE)
_MAY_BE_EMPTY: Final = frozenset(("compilation/compile_date", "properties/buildid"))
"""Nothing is compiled, and so nothing has a build id."""


def arguments(alias: str, role: str) -> list[str]:
    return ["boot", "--kernel", alias] if role == CONTROL else ["run", alias]


def booted(kernel: str, alias: str, role: str) -> Ended:
    """One boot, or of debian-rt another one where it ran into a mistake of its own.

    In exec it makes a new page table its task's before it has the hypervisor pin it, with interrupts on. A real-time
    kernel may be preempted right there, mostly by rcuc, and then loads what is not pinned, which Xen refuses: a warning
    in multicalls.c. Some two boots of a hundred show that.
    """
    for _ in range(_BOOTS):
        ended = run(*arguments(kernel, role), "--exec", SCRIPT)
        if alias != "debian-rt" or not _PREEMPTED_IN_EXEC.search(ended.output):
            break
    return ended


def reached(ended: Ended) -> str:
    """The last of the places that a Linux passes."""
    places = (
        ("Linux version", "its first messages"),
        ("Run /init as init process", "init"),
        ("@@ end", "the end of a shell script"),
        ("reboot: ", "poweroff, exit status 0"),
    )
    passed = [name for text, name in places if text in ended.output]
    return passed[-1] if passed else "nothing"


_BOOTS: Final = 3
_PREEMPTED_IN_EXEC: Final = re.compile(r"arch/x86/xen/multicalls\.c:\d+ xen_mc_flush")
_NO_DOM0: Final = ("debian-cloud", "debian-bullseye-cloud")
"""Kernels that say in their notes that they can be dom0, and are built without CONFIG_XEN_DOM0."""


@pytest.mark.parametrize(
    ("alias", "role"),
    [(alias, role) for alias in LINUX for role in (CONTROL, GUEST) if role == GUEST or alias not in _NO_DOM0],
)
def test_a_debian_kernel(alias: str, role: str, kernel: Kernel, record: Record) -> None:
    """It boots, knows what it is, keeps time, computes, complains of nothing and powers off."""
    ended = booted(kernel(alias), alias, role)
    found = sections(ended)
    record(_row(alias, role, ended, found))
    assert ended.status == 0, ended.log
    assert found.complaints == [], ended.log
    assert ended.left == []
    assert _BANNER.search(found.text("banner"))
    check_hypervisor(found)
    capabilities = found.text("capabilities")
    assert ("control_d" in capabilities) if role == CONTROL else (capabilities == "")
    check_time(found, ended.lines[0][0])
    assert found.lines("processors") == ["1", "1"]
    assert found.text("work").split()[0] == hashlib.sha256(_NUMBERS).hexdigest()
    assert "xenolith: exit status 0" in ended.output


@pytest.mark.parametrize("alias", _NO_DOM0)
def test_a_kernel_that_is_no_control_domain(alias: str, kernel: Kernel, record: Record, tmp_path: Path) -> None:
    """Without CONFIG_XEN_DOM0 it finds no console when it is started as dom0, under Xen as here; the rest goes on."""
    serial, machine = tmp_path / "serial", tmp_path / "machine.toml"
    machine.write_text(
        f'''
        [machine]
        serial = "{serial}"
        [domain.dom0]
        kernel = "{kernel(alias)}"
        capabilities = ["control", "hardware", "console", "store"]
        cmdline = "console=ttyS0"
        memory = "512MiB"
        exec = """echo "@@ $(uname -r) $(uname -v)" > /dev/kmsg"""
        '''
    )
    ended = run("boot", machine)
    text = serial.read_text(errors="replace")
    found = re.search(r"\] @@ (\S+) .*?(\S+ \S+) \(", text)
    assert found, f"{ended.log}\n{text}"
    version = f"{found[1]} ({found[2]})"
    record(Row(alias, CONTROL, version, "poweroff", "built without CONFIG_XEN_DOM0, so it has no console"))
    assert ended.status == 3, ended.log
    assert "without telling" in ended.errors
    assert _BANNER.search(text)
    assert "reboot: " in text
    assert not COMPLAINTS.search(text)
    assert ended.left == []


def _row(alias: str, role: str, ended: Ended, found: Sections) -> Row:
    complaints = "nothing complained" if not found.complaints else f"{len(found.complaints)} complaints in its log"
    release = found.lines("release")
    version = f"{release[0]} ({' '.join(release[1].split()[-3:-1])})" if len(release) == 2 else "?"
    checked = f"/sys/hypervisor, capabilities, clock, sleep; {complaints}"
    return Row(alias, role, version, reached(ended), checked)


def check_hypervisor(found: Sections) -> None:
    """What /sys/hypervisor says."""
    values = dict(line.split("=", 1) for line in found.lines("hypervisor") if "=" in line)
    assert values["type"].strip() == "xen"
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", values["uuid"].strip())
    assert values["guest_type"].strip() == "PV"
    assert int(values["version/major"]) >= 4
    assert values["version/minor"].strip().isdigit()
    assert "xen-3.0-x86_64" in values["properties/capabilities"]
    assert int(values["properties/virtual_start"], 16) == 0xFFFF_8000_0000_0000
    assert values["properties/pagesize"].strip() == "1000"
    assert {name for name, value in values.items() if not value.strip()} <= _MAY_BE_EMPTY


def check_time(found: Sections, begun: float) -> None:
    """The calendar is right, and a second lasts a second: by the guest's clock, and by the host's.

    Until it switches to Xen's clock, Linux counts ticks, and loses those for which a busy host gives it no time: it may
    be late, but not by more than it has run since `begun` (the host's monotonic time, seconds).
    """
    arrived = found.arrival("date")
    now = time.time() - (time.monotonic() - arrived)
    assert -1 < now - int(found.text("date")) < 2 + arrived - begun
    before, after = (float(found.text(name).split()[0]) for name in ("before", "after"))
    seconds = found.arrival("after") - found.arrival("before")
    assert 0.99 <= seconds < 20
    assert 0.99 <= after - before < seconds + 1
