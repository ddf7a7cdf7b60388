"""xenolith boot: a machine whose control domain starts by itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from xenolith.cli.running import override, run_machine, run_options

if TYPE_CHECKING:
    from xenolith.toolstack.config import MachineConfig

SELF_DESCRIPTION: Final = """\
echo; echo "This is $(uname -sr), domain $(cat /sys/hypervisor/uuid):"
for name in type version/major version/minor version/extra properties/capabilities; do
    printf '%-26s %s\\n' "$name" "$(cat /sys/hypervisor/$name)"
done
printf '%-26s %s\\n' /proc/xen/capabilities "$(cat /proc/xen/capabilities)"
printf '%-26s %s\\n' memory "$(free -m | awk '/Mem:/ {print $2}') MiB" processors "$(nproc)"
dmesg | grep -i -m 4 'xen'
"""
"""What the control domain tells of itself where nobody is at the terminal."""


@click.command("boot")
@click.argument("machine", required=False, type=click.Path(path_type=Path))
@click.option("--kernel", metavar="K", help="The control domain's kernel: a file, or a name of `xenolith kernels`.")
@click.option("--serial", type=click.Path(path_type=Path), metavar="FILE", help="Connect com1 to a file or terminal.")
@run_options
def command(
    machine: Path | None,
    kernel: str | None,
    serial: Path | None,
    ramdisk: Path | None,
    cmdline: str | None,
    memory: str | None,
    vcpus: int | None,
    shell_command: str | None,
    timeout: float | None,
    clock: str | None,
    log: Path | None,
    symbols: Path | None,
    as_json: bool,
) -> None:
    """Start the machine that MACHINE (TOML) describes, or one with a control domain that has all capabilities.

    Options are for its first domain. Ctrl-] leaves the console; `poweroff` in the control domain ends the machine.
    Where standard input is no terminal and nothing else is asked for, the control domain describes itself and ends.
    """
    from dataclasses import replace

    from xenolith.toolstack.config import MachineConfig, control_domain

    config = _described(machine) if machine is not None else MachineConfig(domains=[control_domain()])
    first = override(config.domains[0], ramdisk, cmdline, memory, vcpus, shell_command)
    if kernel is not None:
        first = replace(first, kernel=kernel)
    if serial is not None:
        config.serial = serial
    if clock is not None:
        config.clock = clock
    unattended = sys.stdin is None or sys.stdin.closed or not sys.stdin.isatty()
    if unattended and machine is None and first.command is None and first.ramdisk is None:
        first = replace(first, command=SELF_DESCRIPTION)
    config.domains[0] = first
    sys.exit(run_machine(config, timeout, log, symbols, as_json))


def _described(machine: Path) -> MachineConfig:
    from xenolith.toolstack.description import load

    return load(machine)
