"""A machine whose control domain is Debian's Linux with Debian's xl, and what it has in its file system."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.boot.background import Background
from tests.boot.command_line import XENOLITH
from xenolith.errors import UserError
from xenolith.loader import registry

PROMPT: Final = "dom0:~# "

GUEST: Final = """\
# guest NAME COMMAND: type a command at the console of a guest, and show what it says.
guest() {
    terminal=$(xenstore-read "/local/domain/$(xl domid "$1")/console/tty")
    cat "$terminal" > /tmp/said &
    printf "\\n%s; echo en''d-of-it\\n" "$2" > "$terminal"
    tenths=0
    until grep -q end-of-it /tmp/said || [ $((tenths += 1)) -gt 900 ]; do sleep 0.1; done
    kill $!
    tr -d '\\r' < /tmp/said
}
# until COMMAND that may take a while to come true
soon() {
    tenths=0
    until eval "$1"; do sleep 0.1; [ $((tenths += 1)) -lt 600 ] || return 1; done
}
# One life of a guest that was saved: it writes to its disk and reads it back, is pinged, and ends, perhaps elsewhere.
life() {
    xl restore /tmp/saved > /dev/null 2>&1 || return
    guest linux "head -c 262144 /dev/urandom > /dev/xvda; sync; echo 3 > /proc/sys/vm/drop_caches; \\
sha256sum /dev/xvda" > /tmp/sum
    grep -q "^$(sha256sum /tmp/disk.img | cut -c -64)" /tmp/sum || return
    if [ "$1" = moved ]; then xl migrate -s "" linux "xl migrate-receive" > /dev/null 2>&1 || return; fi
    soon "ping -q -c 1 -W 1 10.0.0.2 > /dev/null" || return
    if [ "$1" = asked ]; then xl shutdown -w linux > /dev/null 2>&1; else xl destroy linux; fi
    soon "! xl domid linux > /dev/null 2>&1" && echo alive
}
"""

LINUX: Final = """\
name = "linux"
kernel = "/root/vmlinuz"
ramdisk = "/root/linux.img"
extra = "console=hvc0 quiet noreplace-smp ip=10.0.0.2::10.0.0.1:255.255.255.0"
memory = 96
maxmem = 128
vcpus = 1
maxvcpus = 2
disk = ["/tmp/disk.img,raw,xvda,rw"]
vif = ["bridge=xenbr0"]
"""
ONCE: Final = """\
name = "once"
kernel = "/root/vmlinuz"
ramdisk = "/root/once.img"
extra = "console=hvc0 quiet noreplace-smp"
memory = 96
"""
DRIVER: Final = """\
name = "driver"
kernel = "/root/vmlinuz"
ramdisk = "/root/driver.img"
extra = "console=hvc0 quiet noreplace-smp"
memory = 160
driver_domain = 1
"""
TINY: Final = """\
name = "tiny"
kernel = "/root/hello"
memory = 8
"""


class Dom0(Background):
    """The machine, with commands at the prompt of its control domain."""

    def sh(self, command: str, limit_s: float = 120.0) -> str:
        """What a command prints there. Its lines are as they are, whatever the width of the terminal."""
        return self.run("dom0", command, limit_s)

    def rows(self, command: str) -> list[list[str]]:
        """The words of each line, without the first one."""
        return [line.split() for line in self.sh(command).splitlines()[1:]]


_RAMDISKS: Final = {
    "linux": ("--module", "xen-blkfront", "--module", "xen-netfront"),
    "once": ("--exec", "echo $((6 * 7)) at $(uname -r)"),
    "driver": ("--tools",),
}
_DESCRIPTIONS: Final = {"linux": LINUX, "once": ONCE, "driver": DRIVER, "tiny": TINY}


def require_dom0() -> None:
    """Skip the tests if the kernels or the tools of a control domain are not there."""
    for alias in ("debian", "debian-cloud"):
        if registry.pulled(alias) is None:
            pytest.skip(f"the kernel {alias} is not in the cache: 'xenolith pull {alias}' brings it")
    try:
        registry.debian_dom0()
    except UserError as error:
        pytest.skip(f"{error.message}: {error.hint}")


def make_ramdisk(directory: Path, guests: tuple[str, ...], *more: tuple[Path, str]) -> Path:
    """What the control domain starts with: tools, kernels and descriptions of these guests, and `more` files."""
    found = registry.pulled("debian-cloud")
    assert found is not None
    (directory / "guest.sh").write_text(GUEST)
    files = [(directory / "guest.sh", "guest.sh"), (found.file, "vmlinuz"), *more]
    for name in guests:
        (directory / f"{name}.cfg").write_text(_DESCRIPTIONS[name])
        files.append((directory / f"{name}.cfg", f"{name}.cfg"))
        if name in _RAMDISKS:
            _ramdisk("--kernel", "debian-cloud", *_RAMDISKS[name], "-o", directory / f"{name}.img")
            files.append((directory / f"{name}.img", f"{name}.img"))
    options = [word for path, name in files for word in ("--file", f"{path}:/root/{name}")]
    _ramdisk("--kernel", "debian", "--tools", *options, "-o", directory / "dom0.img")
    return directory / "dom0.img"


def _ramdisk(*arguments: str | Path) -> None:
    subprocess.run([XENOLITH, "ramdisk", *arguments], check=True, capture_output=True)


PRESET: Final = ("--preset", "dom0", "--kernel", "debian", "--cmdline", "quiet", "--machine-memory", "1536MiB")


@contextlib.contextmanager
def dom0(runtime: Path, *arguments: str | Path) -> Iterator[Dom0]:
    """A machine with a dom0, started with these arguments of `boot`, at its prompt."""
    machine = Dom0(runtime)
    try:
        machine.do("boot", *arguments, "--detach")
        machine.wait_console("dom0", PROMPT)
        machine.sh(". /root/guest.sh")
        yield machine
    finally:
        machine.close()
