"""xenolith store: looking at the xenstore of a running machine, and changing it."""

from __future__ import annotations

import click

from xenolith.cli.remote import ask, json_option, machine_option
from xenolith.cli.terminal import print_json


@click.group("store")
def command() -> None:
    """Look at xenstore, and change it. Debian's xenstore-* tools work with the machine's socket too."""


@command.command("ls")
@click.argument("path", default="/")
@click.option("-p", "with_permissions", is_flag=True, help="Show permissions.")
@json_option
@machine_option
def ls(path: str, with_permissions: bool, as_json: bool, machine: str) -> None:
    """Print all nodes at and below PATH."""
    rows = ask(machine, "store", operation="ls", path=path)
    if as_json:
        print_json([{"path": path, "value": value, "permissions": permissions} for path, value, permissions in rows])
        return
    for node, value, permissions in rows:
        shown = f"   ({','.join(permissions)})" if with_permissions else ""
        click.echo(f'{node} = "{value}"{shown}')


@command.command("read")
@click.argument("path")
@machine_option
def read(path: str, machine: str) -> None:
    """Print the value of PATH."""
    click.echo(ask(machine, "store", operation="read", path=path))


@command.command("write")
@click.argument("path")
@click.argument("value")
@machine_option
def write(path: str, value: str, machine: str) -> None:
    """Set the VALUE of PATH."""
    ask(machine, "store", operation="write", path=path, value=value)


@command.command("rm")
@click.argument("path")
@machine_option
def rm(path: str, machine: str) -> None:
    """Remove PATH and all below it."""
    ask(machine, "store", operation="rm", path=path)


@command.command("chmod")
@click.argument("path")
@click.argument("permissions", nargs=-1, required=True)
@machine_option
def chmod(path: str, permissions: tuple[str, ...], machine: str) -> None:
    """Set the PERMISSIONS of PATH, as in n0 r5: the owner and what others may, then single domains."""
    ask(machine, "store", operation="chmod", path=path, permissions=permissions)


@command.command("watch")
@click.argument("path")
@machine_option
def watch(path: str, machine: str) -> None:
    """Print each change at and below PATH, until Ctrl-C."""
    from xenolith.toolstack.client import Call
    from xenolith.toolstack.places import place

    with Call(place(machine), "store", operation="watch", path=path) as call:
        for message in call.messages():
            if "row" in message:
                click.echo(message["row"]["path"])
