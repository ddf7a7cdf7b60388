"""A machine whose control domain is Debian's Linux with Debian's xl, and what it has in its file system."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.boot.background import Background
from tests.boot.command_line import XENOLITH

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


def make_ramdisk(directory: Path, hello: Path) -> Path:
    """What the control domain starts with: tools, and kernels and descriptions of guests."""
    from xenolith.loader import registry

    found = registry.pulled("debian-cloud")
    assert found is not None
    for name, text in {"guest.sh": GUEST, "linux.cfg": LINUX, "once.cfg": ONCE, "tiny.cfg": TINY}.items():
        (directory / name).write_text(text)
    for name, more in {
        "linux.img": ("--module", "xen-blkfront", "--module", "xen-netfront"),
        "once.img": ("--exec", "echo $((6 * 7)) at $(uname -r)"),
    }.items():
        _ramdisk("--kernel", "debian-cloud", *more, "-o", directory / name)
    given = [directory / name for name in ("guest.sh", "linux.cfg", "once.cfg", "tiny.cfg", "linux.img", "once.img")]
    files = [*((path, path.name) for path in given), (found.file, "vmlinuz"), (hello, "hello")]
    options = [word for path, name in files for word in ("--file", f"{path}:/root/{name}")]
    _ramdisk("--kernel", "debian", "--tools", *options, "-o", directory / "dom0.img")
    return directory / "dom0.img"


def _ramdisk(*arguments: str | Path) -> None:
    subprocess.run([XENOLITH, "ramdisk", *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def dom0(runtime: Path, ramdisk: Path) -> Iterator[Dom0]:
    """The preset dom0 with this ramdisk, at its prompt."""
    machine = Dom0(runtime)
    try:
        machine.do(
            *("boot", "--preset", "dom0", "--ramdisk", ramdisk, "--cmdline", "quiet", "--kernel", "debian"),
            *("--machine-memory", "1536MiB", "--detach"),
        )
        machine.wait_console("dom0", PROMPT)
        machine.sh(". /root/guest.sh")
        yield machine
    finally:
        machine.close()
