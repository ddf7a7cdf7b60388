"""xenolith boot: a machine whose control domain starts by itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from xenolith.cli.running import override, run_machine, run_options
from xenolith.errors import UserError

if TYPE_CHECKING:
    from xenolith.toolstack.config import DomainConfig, MachineConfig
    from xenolith.toolstack.places import Place

_SPARE_MEMORY: Final = 4 << 30
_UP: Final = "xenolith: the machine '{name}' is up and takes commands from other terminals; Ctrl-C ends it"
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
@click.option("--preset", metavar="P", help="A machine that needs no description: split, classic or dom0.")
@click.option("--detach", is_flag=True, help="Leave the machine in the background, for the other verbs.")
@click.option("--name", metavar="NAME", help="What the machine is called, if several run.")
@click.option("--machine-memory", metavar="SIZE", help="Memory of the whole machine, for guests that come later.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="SPEC",
    help="A PCI device, as in nvme,target=disk.img or virtio-net,user; may be given more than once.",
)
@click.option("--serial", type=click.Path(path_type=Path), metavar="FILE", help="Connect com1 to a file or terminal.")
@run_options
def command(
    machine: Path | None,
    kernel: str | None,
    preset: str | None,
    detach: bool,
    name: str | None,
    machine_memory: str | None,
    devices: tuple[str, ...],
    serial: Path | None,
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
    """Start the machine that MACHINE (TOML) describes, or a preset, or one whose control domain has all capabilities.

    Options are for its first guest. Ctrl-] leaves the console; `poweroff` in a control domain ends the machine.
    Where standard input is no terminal and nothing else is asked for, the control domain describes itself and ends.

    The preset dom0 has Debian's xl at its prompt (`xenolith pull debian-dom0`). It, and every machine with native
    domains, takes commands from other terminals (`xenolith list`, `create`, …) until it is
    switched off by `xenolith halt` or Ctrl-C.
    """
    config = _described(machine, preset)
    _override(config, kernel, {"ramdisk": ramdisk, "cmdline": cmdline, "memory": memory, "vcpus": vcpus}, shell_command)
    if serial is not None:
        config.serial = serial
    if devices:
        from xenolith.toolstack.machine_devices import machine_device

        config.devices += tuple(machine_device(spec) for spec in devices)
    if clock is not None:
        config.clock = clock
    if engine is not None:
        config.engine = engine
    if cpu is not None:
        config.cpu = cpu
    if xen_version is not None:
        config.xen_version = xen_version
    if name is not None:
        config.name = name
    served = detach or name is not None or config.preset is not None or any(d.services for d in config.domains)
    unattended = not served and (sys.stdin is None or sys.stdin.closed or not sys.stdin.isatty())
    first = config.domains[0]
    if unattended and machine is None and first.command is None and first.ramdisk is None and not _has_root(first):
        config.domains[0] = replace(first, command=SELF_DESCRIPTION)
    _give_memory(config, machine_memory, served)
    if not served:
        sys.exit(run_machine(config, timeout, log, symbols, as_json))
    sys.exit(_serve(config, detach, lambda place, up: run_machine(config, timeout, log, symbols, as_json, place, up)))


def _has_root(domain: DomainConfig) -> bool:
    from xenolith.toolstack.images import names_root

    return names_root(domain.cmdline)


def _described(machine: Path | None, preset: str | None) -> MachineConfig:
    from xenolith.toolstack.config import MachineConfig, control_domain

    if machine is not None:
        if preset is not None:
            raise click.UsageError("give a machine description or a preset, not both")
        from xenolith.toolstack.description import load

        return load(machine)
    if preset is None:
        return MachineConfig(domains=[control_domain()])
    from xenolith.toolstack.presets import PRESETS
    from xenolith.toolstack.presets import preset as domains_of

    if preset not in PRESETS:
        raise UserError(f"there is no preset '{preset}'", f"there are {', '.join(PRESETS)}")
    return MachineConfig(preset=preset, domains=domains_of(preset))


def _override(config: MachineConfig, kernel: str | None, given: dict[str, Any], shell_command: str | None) -> None:
    """Let the command line's options win, for the first guest."""
    at = next((number for number, domain in enumerate(config.domains) if not domain.services), None)
    if at is None:
        if kernel is not None or shell_command is not None or any(value is not None for value in given.values()):
            raise UserError("this machine has no guest that options could be for", "make one by 'xenolith create'")
        return
    first = override(config.domains[at], **given, shell_command=shell_command)
    config.domains[at] = replace(first, kernel=kernel) if kernel is not None else first


def _give_memory(config: MachineConfig, given: str | None, served: bool) -> None:
    """A machine in which guests come and go has memory for them; the host's is only used as far as they use it."""
    from xenolith.toolstack.values import parse_size

    if given is not None:
        config.memory = parse_size(given, "--machine-memory")
    elif served and config.memory is None and not config.spare_memory:
        config.spare_memory = _SPARE_MEMORY


def _serve(config: MachineConfig, detached: bool, run: Callable[[Place, Callable[[], None]], int]) -> int:
    from xenolith.toolstack.places import place

    where = place(config.name)
    where.take()
    try:
        if not detached:
            return run(where, lambda: click.echo(_UP.format(name=config.name), err=True))
        from xenolith.cli.detached import detach

        def run_there(up: Callable[[], None]) -> int:
            try:
                return run(where, up)
            finally:
                where.leave()

        detach(where.log, run_there)
    except BaseException:
        where.leave()
        raise
    finally:
        if not detached:
            where.leave()
    click.echo(f"the machine '{config.name}' is up; 'xenolith list' shows its domains, 'xenolith halt' ends it")
    return 0
