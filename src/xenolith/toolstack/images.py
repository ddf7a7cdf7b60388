"""What a guest starts with: its kernel found and read, its ramdisk read or made, its command line completed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from xenolith.errors import UserError
from xenolith.loader import kernels
from xenolith.loader.debian_dom0 import DEBIAN_DOM0
from xenolith.loader.image import KernelImage
from xenolith.loader.ramdisk import read_ramdisk

Progress = Callable[[str, float], None]


class Wanted(Protocol):
    """What is asked for; without a kernel the best one that can be found is taken."""

    @property
    def kernel(self) -> str | None: ...
    @property
    def ramdisk(self) -> Path | None: ...
    @property
    def cmdline(self) -> str: ...
    @property
    def vcpus(self) -> int: ...
    @property
    def command(self) -> str | None: ...
    @property
    def disks(self) -> Sequence[object]: ...
    @property
    def nics(self) -> Sequence[object]: ...
    @property
    def shares(self) -> Sequence[object]: ...
    @property
    def pci(self) -> Sequence[object]: ...


class Prepared(NamedTuple):
    """What a guest starts with."""

    image: KernelImage
    ramdisk: bytes | memoryview | None
    cmdline: str
    warnings: tuple[str, ...] = ()
    """What the guest will lack, as far as that can be known."""


def prepare(wanted: Wanted, progress: Progress, models: Sequence[str] = ()) -> Prepared:
    """Find and read what a guest starts with that has devices of the machine of these `models`.

    UserError if it cannot be had or cannot boot.
    """
    kernel = kernels.find(wanted.kernel, progress)
    image = KernelImage.read(kernel.path)
    if not image.verdict.bootable:
        raise UserError(
            f"{kernel.path} cannot be booted: {image.verdict.sentence}", "'xenolith kernels' lists what can be"
        )
    linux = image.notes is not None and image.notes.is_linux
    ramdisk: bytes | memoryview | None = None
    warnings: tuple[str, ...] = ()
    tools = _tools(wanted.ramdisk) if linux else None
    if wanted.ramdisk is not None and tools is None:
        ramdisk = read_ramdisk(wanted.ramdisk, linux=linux)
    elif linux:
        ramdisk, warnings = _ramdisk(kernel, wanted, tools, models, progress)
    is_made = linux and (wanted.ramdisk is None or tools is not None)
    if wanted.command is not None and not is_made:
        raise UserError(
            "--exec needs a Linux kernel and the ramdisk that Xenolith builds for it", "leave --ramdisk or --exec out"
        )
    cmdline = linux_cmdline(wanted.cmdline, wanted.vcpus) if linux else wanted.cmdline
    return Prepared(image, ramdisk, cmdline, warnings)


def linux_cmdline(given: str, vcpus: int) -> str:
    """What a Linux guest is told: the user's words, after those that every guest here should have.

    With one vCPU Linux would patch the LOCK prefixes out of its own code, which needs tens of thousands of page-table
    updates and gains nothing on an emulated processor.
    """
    defaults = [] if any(word.startswith("console=") for word in given.split()) else ["console=hvc0"]
    if vcpus == 1:
        defaults.append("noreplace-smp")
    return " ".join([*defaults, given]).rstrip()


def names_root(cmdline: str) -> bool:
    """Whether the ramdisk that is made goes on with a system on a disk."""
    return any(word.startswith("root=") for word in cmdline.split())


def _tools(ramdisk: Path | None) -> Path | None:
    """The tree of a control domain's tools, if it is named in the place of a ramdisk. UserError if it is not there."""
    from xenolith.loader import registry

    named = ramdisk == Path(DEBIAN_DOM0.alias) and not ramdisk.exists()
    return registry.debian_dom0() if named else None


def _ramdisk(
    kernel: kernels.Kernel, wanted: Wanted, tools: Path | None, models: Sequence[str], progress: Progress
) -> tuple[bytes, tuple[str, ...]]:
    from xenolith.loader import registry
    from xenolith.loader.initramfs import Initramfs, lacking, standard_modules
    from xenolith.loader.modules import ModuleTree

    tree = ModuleTree(kernel.modules) if kernel.modules else None
    devices = {"vbd": wanted.disks, "vif": wanted.nics, "9pfs": wanted.shares, "pci": wanted.pci}
    kinds = [kind for kind, described in devices.items() if described]
    root = ["root"] if names_root(wanted.cmdline) else []
    ramdisk = Initramfs(
        busybox=registry.busybox() or registry.pull_busybox(progress),
        command=wanted.command,
        modules=standard_modules(tree, [*kinds, *root], models, tools=tools is not None),
        module_tree=tree,
        tools=tools,
    ).build()
    return ramdisk, tuple(lacking(tree, kinds))
