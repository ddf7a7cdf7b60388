"""The peer (Debian's QEMU in software emulation, alone and with Xen 4.17), and the files that both sides share.

The packages are downloaded and unpacked in the user's cache, without root. QEMU itself is the host's.
"""

from __future__ import annotations

import compileall
import gzip
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import xenolith
from benchmarks.common import Unavailable
from xenolith.cpu.choose import create_engine
from xenolith.errors import UserError
from xenolith.loader import bzimage
from xenolith.loader.payload import compression, decompress
from xenolith.machine.ram import Ram
from xenolith.user_cache import cache_directory

XEN = "QEMU + Xen 4.17"
QEMU = "QEMU alone"
QEMU_UNPACKED = "QEMU alone, unpacked kernel"
XENOLITH = "xenolith"
ENGINES = ("unicorn", "kvm")

MEMORY_MIB = 512
XEN_PACKAGE = "xen-hypervisor-4.17-amd64"
_KERNEL_METAPACKAGE = "linux-image-amd64"
_BUSYBOX_PACKAGE = "busybox-static"
_XEN_MIB = 128
# With SMAP and SMEP, Xen 4.17 under QEMU 7.2 in software emulation crashes the Linux control domain as it starts.
_CPU = "max,-smap,-smep"
_DOWNLOAD_SECONDS = 600


@dataclass(frozen=True)
class Files:
    """What both sides are given: the compressed kernel, a static busybox, and Xen (None where it could not be had)."""

    kernel: Path
    busybox: Path
    xen: Path | None


@cache
def files() -> Files:
    """The shared files, fetched on first use; raises Unavailable if kernel or busybox cannot be had."""
    root = _cache_directory() / "root"
    try:
        _fetch(root)
    except Unavailable:
        if not list(root.glob("boot/vmlinuz-*")):
            raise
    kernels = sorted(root.glob("boot/vmlinuz-*"))
    busybox = root / "bin/busybox"
    if not kernels or not busybox.exists():
        raise Unavailable(f"no kernel or busybox in {root}; remove that directory and try again")
    return Files(kernels[-1], busybox, _unpacked_xen(root))


def qemu_command(ramdisk: Path, cmdline: str = "", kernel: Path | None = None) -> list[str]:
    """QEMU alone with the compressed kernel and `ramdisk`, console on standard output."""
    append = f"console=ttyS0 {cmdline}".strip()
    return [*_qemu(MEMORY_MIB), "-kernel", str(kernel or files().kernel), "-initrd", str(ramdisk), "-append", append]


def xen_command(
    ramdisk: Path, cmdline: str = "", control_mib: int = MEMORY_MIB, spare_mib: int = MEMORY_MIB
) -> list[str]:
    """QEMU with Xen and the same kernel and `ramdisk` as its control domain, console on standard output.

    Beside the control domain's memory the machine has some for Xen itself and for guests.
    """
    shared = files()
    if shared.xen is None:
        raise Unavailable(f"package {XEN_PACKAGE} could not be downloaded")
    xen_append = f"dom0_mem={control_mib}M,max:{control_mib}M dom0_max_vcpus=1 console=com1 com1=115200"
    modules = f"{shared.kernel} {_escaped(f'console=hvc0 {cmdline}'.strip())},{ramdisk}"
    return [
        *_qemu(control_mib + spare_mib + _XEN_MIB),
        "-kernel",
        str(shared.xen),
        "-append",
        xen_append,
        "-initrd",
        modules,
    ]


def xenolith_command(verb: str, *arguments: str) -> list[str]:
    """The `xenolith` command of this virtual environment; raises Unavailable if it is not installed."""
    command = Path(sys.executable).with_name("xenolith")
    if not command.exists():
        raise Unavailable("the xenolith command is not installed; run `make` first")
    _compile_modules()
    return [str(command), verb, *arguments]


def on(engine: str, verb: str = "run") -> str:
    """What a contender is called that runs on one engine, as guest or as control domain."""
    return f"{XENOLITH} {engine}{' dom0' if verb == 'boot' else ''}"


def engine_options(engine: str) -> list[str]:
    """Options for one engine; raises Unavailable where it cannot be used."""
    try:
        create_engine(engine, Ram(1 << 20))
    except UserError as reason:
        raise Unavailable(reason.message) from None
    return ["--engine", engine]


@cache
def unpacked_kernel() -> Path:
    """The kernel that is in the compressed one, as an ELF file."""
    data = memoryview(files().kernel.read_bytes())
    payload = bzimage.parse(data).payload
    form = compression(payload)
    unpacked = _cache_directory() / f"{files().kernel.name}.elf"
    unpacked.write_bytes(payload if form is None else decompress(payload, form))
    return unpacked


def xenolith_linux(verb: str, ramdisk: Path, cmdline: str = "", *arguments: str) -> list[str]:
    """`xenolith boot` or `xenolith run` with the same kernel, `ramdisk`, memory and command line as the peer."""
    shared = files()
    machine = ["--kernel", str(shared.kernel)] if verb == "boot" else [str(shared.kernel)]
    machine += ["--ramdisk", str(ramdisk), "--cmdline", f"console=hvc0 {cmdline}".strip()]
    return xenolith_command(verb, *machine, "--memory", f"{MEMORY_MIB}MiB", "--vcpus", "1", *arguments)


@cache
def _compile_modules() -> None:
    """What pip does with an installed package; modules of an editable one are else compiled in the first run after each
    change, or in every run where Python is told not to write what it compiled."""
    compileall.compile_dir(Path(xenolith.__file__).parent, quiet=2)


def _qemu(memory_mib: int) -> list[str]:
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        raise Unavailable("qemu-system-x86_64 is not installed; `apt-get install qemu-system-x86` brings it")
    # A shared memory back end lets an observer tell the guest's memory from QEMU's own.
    backend = f"memory-backend-memfd,id=ram,size={memory_mib}M"
    machine = ["-machine", "q35,memory-backend=ram", "-object", backend, "-m", str(memory_mib), "-smp", "1"]
    devices = ["-nodefaults", "-vga", "none", "-display", "none", "-serial", "stdio", "-no-reboot"]
    return [program, "-accel", "tcg", "-cpu", _CPU, *machine, *devices]


def _escaped(text: str) -> str:
    """`text` for an option of QEMU in which commas separate."""
    return text.replace(",", ",,")


def _cache_directory() -> Path:
    return cache_directory() / "peer"


def _fetch(root: Path) -> None:
    wanted = {
        XEN_PACKAGE: "boot/xen-4.17-amd64.gz",
        _kernel_package(): "boot/vmlinuz-*",
        _BUSYBOX_PACKAGE: "bin/busybox",
    }
    absent = [package for package, path in wanted.items() if not list(root.glob(path))]
    if not absent:
        return
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Unavailable("apt-get and dpkg-deb are needed to fetch the peer's kernel, busybox and Xen")
    root.mkdir(parents=True, exist_ok=True)
    downloads = root.parent / "debs"
    downloads.mkdir(exist_ok=True)
    for package in absent:
        _run(["apt-get", "download", "-q", package], downloads)
        newest = max(downloads.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
        _unpack(newest, root)


def _kernel_package() -> str:
    """The package that the metapackage stands for today."""
    if shutil.which("apt-cache") is None:
        raise Unavailable("apt-cache is needed to find Debian's kernel")
    dependencies = _run(["apt-cache", "depends", _KERNEL_METAPACKAGE], Path("/"))
    return parse_dependency(dependencies)


def parse_dependency(listing: str) -> str:
    """The kernel image that `apt-cache depends linux-image-amd64` names; raises Unavailable if it names none."""
    found = re.search(r"Depends: (linux-image-\S+)", listing)
    if found is None:
        raise Unavailable(f"apt-cache knows no {_KERNEL_METAPACKAGE}; `apt-get update` may help")
    return found[1]


def _unpack(package: Path, root: Path) -> None:
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as contents:
        only = ["--wildcards", "./boot/*", "./bin/busybox"]
        # tar reports a pattern without a match as an error; whether the wanted file came is seen afterwards.
        subprocess.run(
            ["tar", "-x", "-C", str(root), *only], stdin=contents.stdout, stderr=subprocess.DEVNULL, check=False
        )


def _unpacked_xen(root: Path) -> Path | None:
    """Xen as QEMU's multiboot loader wants it: a user's boot loader would unpack it, QEMU does not."""
    packed = root / "boot/xen-4.17-amd64.gz"
    if not packed.exists():
        return None
    unpacked = packed.with_suffix("")
    if not unpacked.exists() or unpacked.stat().st_mtime < packed.stat().st_mtime:
        unpacked.write_bytes(gzip.decompress(packed.read_bytes()))
    return unpacked


def _run(command: Sequence[str], directory: Path) -> str:
    try:
        result = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        last = str(getattr(error, "stderr", "") or error).strip().rpartition("\n")[2]
        raise Unavailable(f"`{' '.join(command)}` failed: {last}") from error
    return result.stdout
