"""xenolith run: one unprivileged guest and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from xenolith.cli.running import override, run_machine, run_options


@click.command("run")
@click.argument("kernel")
@run_options
def command(
    kernel: str,
    ramdisk: Path | None,
    cmdline: str | None,
    memory: str | None,
    vcpus: int | None,
    shell_command: str | None,
    timeout: float | None,
    clock: str | None,
    engine: str | None,
    cpu: str | None,
    xen_version: str | None,
    log: Path | None,
    symbols: Path | None,
    as_json: bool,
) -> None:
    """Run KERNEL (a file, or a name that `xenolith kernels` lists) as a guest without privileges.

    Exit status: 0 it ended as asked, 3 the guest reported failure, 4 it crashed, 5 a bug of Xenolith, 6 time limit.
    """
    from xenolith.toolstack.config import DomainConfig, MachineConfig

    domain = override(DomainConfig("guest", kernel=kernel), ramdisk, cmdline, memory, vcpus, shell_command)
    config = MachineConfig(clock=clock or "host", engine=engine or "auto", cpu=cpu or "host", domains=[domain])
    if xen_version is not None:
        config.xen_version = xen_version
    sys.exit(run_machine(config, timeout, log, symbols, as_json))
