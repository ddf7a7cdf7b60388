"""The programs that run inside guests, built with the host's compiler, and the ramdisks that carry them."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.common import Unavailable
from benchmarks.peer import files
from benchmarks.ramdisk import busybox_ramdisk

_SOURCES = Path(__file__).parent / "guest"

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
def rates_ramdisk() -> Path:
    """A ramdisk whose init runs guest/rates.c, and powers off; raises Unavailable without a C compiler."""
    program = directory() / "rates"
    _build("cc", "-O2", "-static", "-o", str(program), str(_SOURCES / "rates.c"))
    return _written("rates.cpio", busybox_ramdisk(files().busybox, _RATES_INIT, {"/rates": program.read_bytes()}))


@cache
def hello_kernel() -> Path:
    """The PV guest of guest/hello.S as an ELF image; raises Unavailable without GNU as and ld."""
    image = directory() / "hello"
    assembled = str(image.with_suffix(".o"))
    _build("as", "--64", "-o", assembled, str(_SOURCES / "hello.S"))
    _build("ld", "-T", str(_SOURCES / "hello.lds"), "-o", str(image), assembled)
    return image


@cache
def directory() -> Path:
    """A directory for this run's files; `remove` takes it away."""
    return Path(mkdtemp(prefix="xenolith-bench-"))


def remove() -> None:
    """Removes this run's files."""
    if directory.cache_info().currsize:
        shutil.rmtree(directory(), ignore_errors=True)


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
