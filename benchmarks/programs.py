"""The programs that run inside guests, built with the host's compiler, and the ramdisks that carry them."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.common import Unavailable
from benchmarks.peer import files, xenolith_command
from benchmarks.ramdisk import busybox_ramdisk

_SOURCES = Path(__file__).parent / "guest"

_FREESTANDING = (
    *("-O2", "-ffreestanding", "-fno-stack-protector", "-fno-pic", "-fno-pie"),
    *("-mcmodel=kernel", "-mno-red-zone", "-mno-sse", "-mno-mmx"),
)

READY = "XENOLITH-INIT"
"""The word that the measured ramdisk's init prints first, followed by the guest's uptime in seconds."""

_READY_INIT = f"""#!/bin/sh
mount -t proc proc /proc
read up idle < /proc/uptime
echo "{READY} $up"
poweroff -f
"""

_RATES_INIT = """#!/bin/sh
mount -t proc proc /proc
/rates
poweroff -f
"""


@cache
def ready_ramdisk() -> Path:
    """A ramdisk whose init says that it runs, and powers off."""
    return _written("ready.cpio", busybox_ramdisk(files().busybox, _READY_INIT))


@cache
def rates_program() -> Path:
    """guest/rates.c as a program; raises Unavailable without a C compiler."""
    program = directory() / "rates"
    _build("cc", "-O2", "-static", "-o", str(program), str(_SOURCES / "rates.c"))
    return program


@cache
def rates_ramdisk() -> Path:
    """A ramdisk whose init runs guest/rates.c, and powers off."""
    program = rates_program().read_bytes()
    return _written("rates.cpio", busybox_ramdisk(files().busybox, _RATES_INIT, {"/rates": program}))


def hello_kernel() -> Path:
    """A PV guest that says hello and powers off, as an ELF image; raises Unavailable without GNU as and ld."""
    return _assembled("hello")


def tiny_kernel() -> Path:
    """The smallest PV guest that stays."""
    return _assembled("tiny")


@cache
def measured_ramdisk() -> Path:
    """The ramdisk of a guest that does what guest/measure.sh says, with the drivers of its devices."""
    drivers = ("--module", "xen-blkfront", "--module", "xen-netfront")
    return _made("measured.cpio", *drivers, "--exec", (_SOURCES / "measure.sh").read_text())


@cache
def card_ramdisk() -> Path:
    """The ramdisk of a control domain that does what guest/measure.sh says, with the drivers of network cards."""
    drivers = ("--module", "virtio_pci", "--module", "virtio_net", "--module", "e1000e")
    return _made("card.cpio", *drivers, "--exec", (_SOURCES / "measure.sh").read_text())


@cache
def disk_ramdisk() -> Path:
    """The same with the drivers of disks behind PCI."""
    drivers = ("nvme", "ahci", "sd_mod", "virtio_pci", "virtio_blk")
    options = [word for driver in drivers for word in ("--module", driver)]
    return _made("disk.cpio", *options, "--exec", (_SOURCES / "measure.sh").read_text())


@cache
def control_ramdisk() -> Path:
    """The ramdisk of the peer's control domain, which makes such a guest; raises Unavailable without Debian's `xl`."""
    files_ = ("--file", f"{files().kernel}:/guest/vmlinuz", "--file", f"{measured_ramdisk()}:/guest/ramdisk")
    _build(*xenolith_command("pull", "debian-dom0"))
    return _made("control.cpio", "--tools", *files_, "--exec", (_SOURCES / "control.sh").read_text())


def empty_disk(name: str, mib: int) -> Path:
    """A raw disk without content."""
    path = directory() / f"{name}.img"
    with path.open("wb") as file:
        file.truncate(mib << 20)
    return path


@cache
def costs_kernel() -> Path:
    """The PV guest of guest/costs.c as an ELF image; raises Unavailable without a C compiler and GNU ld."""
    image = directory() / "costs"
    compiled = str(image.with_suffix(".o"))
    _build("cc", *_FREESTANDING, "-c", "-o", compiled, str(_SOURCES / "costs.c"))
    _build("ld", "-T", str(_SOURCES / "costs.lds"), "-o", str(image), compiled)
    return image


@cache
def _assembled(name: str) -> Path:
    image = directory() / name
    assembled = str(image.with_suffix(".o"))
    _build("as", "--64", "-I", str(_SOURCES), "-o", assembled, str(_SOURCES / f"{name}.S"))
    _build("ld", "-T", str(_SOURCES / f"{name}.lds"), "-o", str(image), assembled)
    return image


@cache
def directory() -> Path:
    """A directory for this run's files; `remove` takes it away."""
    return Path(mkdtemp(prefix="xenolith-bench-"))


def remove() -> None:
    """Removes this run's files."""
    if directory.cache_info().currsize:
        shutil.rmtree(directory(), ignore_errors=True)


def _made(name: str, *options: str) -> Path:
    path = directory() / name
    _build(*xenolith_command("ramdisk", "-o", str(path), "--kernel", "debian", *options))
    return path


def _written(name: str, content: bytes) -> Path:
    path = directory() / name
    path.write_bytes(content)
    return path


def _build(*command: str) -> None:
    if shutil.which(command[0]) is None:
        raise Unavailable(f"`{command[0]}` is not installed; `apt-get install gcc libc6-dev` brings it")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise Unavailable(f"`{' '.join(command)}` failed: {result.stderr.strip()}")
