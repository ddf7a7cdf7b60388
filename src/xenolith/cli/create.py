"""xenolith create, and config-update: guests from files and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from xenolith.cli.remote import ask, domain_argument, json_option, machine_option, pack

_GUEST_OPTIONS: Final = (
    click.option("--name", metavar="NAME", help="What it is called; with --kernel and without a name: guest."),
    click.option("--kernel", metavar="K", help="Its kernel: a file, or a name that `xenolith kernels` lists."),
    click.option("--ramdisk", metavar="R", help="Its initramfs; for Linux one is made if none is given."),
    click.option("--cmdline", metavar="C", help="More for the kernel's command line."),
    click.option("--memory", metavar="SIZE", help="Its memory, as in 256MiB."),
    click.option("--vcpus", metavar="N", help="Its virtual processors."),
    click.option("--exec", "exec", metavar="CMD", help="Run this shell command in it and power off."),
    click.option("--disk", multiple=True, metavar="DISK", help="A disk, as in xl.cfg; may be given several times."),
    click.option("--vif", multiple=True, metavar="VIF", help="A network device, as in xl.cfg; several times."),
    click.option("--p9", multiple=True, metavar="SHARE", help="A directory of the host to share; several times."),
    click.option("--pci", multiple=True, metavar="DEVICE", help="A PCI device of the machine, as in 00:02.0."),
)


def _guest_options(function: Any) -> Any:
    for option in reversed(_GUEST_OPTIONS):
        function = option(function)
    return function


def _config(file: Path | None, words: tuple[str, ...], options: dict[str, Any]) -> Any:
    """The guest that file, options and words describe; warnings go to standard error."""
    from xenolith.toolstack import guest_file

    if file is not None and "=" in str(file) and not file.exists():
        file, words = None, (str(file), *words)
    if file is None and not options["name"] and not any(word.startswith("name") for word in words):
        options["name"] = "guest"
    given = {name: value for name, value in options.items() if value not in (None, ())}
    return guest_file.load(file, given, words, lambda text: click.echo(f"xenolith: warning: {text}", err=True))


@click.command("create")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@_guest_options
@click.option("--console", "-c", "attach_console", is_flag=True, help="Be at its console afterwards.")
@click.option("--paused", "-p", is_flag=True, help="Leave it paused.")
@click.option("--dryrun", "-n", is_flag=True, help="Say what it would be, and make nothing.")
@json_option
@machine_option
def command(
    file: Path | None,
    words: tuple[str, ...],
    attach_console: bool,
    paused: bool,
    dryrun: bool,
    as_json: bool,
    machine: str,
    **options: Any,
) -> None:
    """Make a guest from FILE (xl.cfg or TOML), from options, or from both: options win, and KEY=VALUE over them."""
    from dataclasses import asdict

    from xenolith.cli.terminal import print_json

    config = _config(file, words, options)
    if dryrun:
        print_json({name: str(value) for name, value in asdict(config).items()})
        return
    made = ask(machine, "create", config=pack(config), paused=paused)
    if as_json:
        print_json(made)
    elif not attach_console:
        click.echo(f"{made['name']} is domain {made['domid']}")
    if attach_console:
        from xenolith.cli.console import attach

        attach(machine, str(made["domid"]))


@click.command("config-update")
@domain_argument
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@machine_option
def config_update(domain: str, file: Path | None, words: tuple[str, ...], machine: str) -> None:
    """What DOMAIN is to be made of when it starts again: FILE, over which go KEY=VALUE words."""
    config = _config(file, words, {"name": domain if file is None else None})
    ask(machine, "config-update", domain=domain, config=pack(config))


COMMANDS: Final = {"create": command, "config-update": config_update}
