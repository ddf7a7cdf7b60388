"""xenolith ramdisk: build an initramfs of busybox, modules and files, with an init that runs a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from xenolith.loader.modules import ModuleTree
    from xenolith.loader.registry import Progress


@click.command("ramdisk")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option("--kernel", help="The kernel whose modules are taken: a file or a name that `xenolith kernels` lists.")
@click.option("--module", "modules", multiple=True, metavar="M", help="Load this module, and what it needs, at boot.")
@click.option("--file", "files", multiple=True, metavar="SRC:DST", help="Put a file or directory into the guest.")
@click.option("--tools", is_flag=True, help="Put Debian's xl and its daemons into it (`xenolith pull debian-dom0`).")
@click.option("--root", metavar="DISK", help="Go on with the system on this disk, as in /dev/nvme0n1 or UUID=...")
@click.option(
    "--exec", "shell_command", metavar="CMD", help="Run this shell command, report its exit status, power off."
)
def command(
    output: Path,
    kernel: str | None,
    modules: tuple[str, ...],
    files: tuple[str, ...],
    tools: bool,
    root: str | None,
    shell_command: str | None,
) -> None:
    """Build a ramdisk. Without --exec it gives a shell on the console.

    One with --tools is for a control domain: its init starts Xen's daemons. One with --root has the drivers of disks
    and of ext4; `root=`, `rootfstype=`, `rootflags=`, `init=` and `ro` on the kernel's command line mean what they
    always do.
    """
    if root is not None and shell_command is not None:
        raise click.UsageError("--exec is for the ramdisk and --root for a disk: give one of both")
    from xenolith.cli.terminal import progress_bar
    from xenolith.loader import registry
    from xenolith.loader.initramfs import PCI_DISKS, ExtraFile, Initramfs, standard_modules

    with progress_bar() as progress:
        tree = _module_tree(kernel, progress) if kernel or modules or tools or root else None
        busybox = registry.busybox() or registry.pull_busybox(progress)
    kinds, models = (("vbd", "root"), PCI_DISKS) if root is not None else ((), ())
    ramdisk = Initramfs(
        busybox=busybox,
        command=shell_command,
        modules=(*standard_modules(tree, kinds, models, tools=tools), *modules),
        module_tree=tree,
        tools=registry.debian_dom0() if tools else None,
        files=tuple(map(ExtraFile.parse, files)),
        root=root,
    ).build()
    _write(output, ramdisk)
    click.echo(f"{output}: {len(ramdisk) >> 10} KiB")


def _module_tree(kernel: str | None, progress: Progress) -> ModuleTree | None:
    from xenolith.loader import kernels
    from xenolith.loader.modules import ModuleTree

    directory = kernels.find(kernel, progress).modules
    return ModuleTree(directory) if directory else None


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. UserError if it cannot be written."""
    import os
    import tempfile

    from xenolith.errors import UserError

    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(data)
                file.close()
                mask = os.umask(0)
                os.umask(mask)
                os.chmod(file.name, 0o666 & ~mask)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
