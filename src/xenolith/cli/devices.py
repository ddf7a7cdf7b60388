"""The verbs about devices of guests in a running machine, as xl has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from xenolith.cli.remote import ask, domain_argument, json_option, machine_option, pack, show

_Columns = list[tuple[str, Callable[[dict[str, Any]], str], str]]
_BLOCK: Final[_Columns] = [
    ("Vdev", lambda row: row["devid"], "bold cyan"),
    ("BE", lambda row: str(row["backend_domid"]), ""),
    ("handle", lambda row: str(row["handle"]), ""),
    ("state", lambda row: str(row["state"]), "green"),
    ("evt-ch", lambda row: str(row["event_channel"]), ""),
    ("ring-ref", lambda row: str(row["ring_ref"]), ""),
    ("BE-path", lambda row: row["backend_path"], "dim"),
]
_NETWORK: Final[_Columns] = [
    ("Idx", lambda row: row["devid"], "bold cyan"),
    ("BE", lambda row: str(row["backend_domid"]), ""),
    ("Mac Addr.", lambda row: str(row["mac"]), ""),
    ("handle", lambda row: str(row["handle"]), ""),
    ("state", lambda row: str(row["state"]), "green"),
    ("evt-ch", lambda row: str(row["event_channel"]), ""),
    ("BE-path", lambda row: row["backend_path"], "dim"),
]


def _attach(name: str, what: str, parse: Callable[[tuple[str, ...]], Any]) -> click.Command:
    @click.command(name, help=f"Give DOMAIN one more {what}, described as in xl.cfg.")
    @domain_argument
    @click.argument("words", nargs=-1, required=name == "block-attach", metavar="DESCRIPTION...")
    @machine_option
    def command(domain: str, words: tuple[str, ...], machine: str) -> None:
        ask(machine, "attach", domain=domain, device=pack(parse(words)))

    return command


def _parse_disk(words: tuple[str, ...]) -> Any:
    from pathlib import Path

    from xenolith.toolstack.disks import parse_disk

    return parse_disk(",".join(words)).located(Path())


def _parse_nic(words: tuple[str, ...]) -> Any:
    from pathlib import Path

    from xenolith.toolstack.nics import parse_nic

    return parse_nic(",".join(words)).located(Path())


def _list(name: str, kind: str, what: str, columns: _Columns) -> click.Command:
    @click.command(name, help=f"List the {what} of DOMAIN.")
    @domain_argument
    @json_option
    @machine_option
    def command(domain: str, as_json: bool, machine: str) -> None:
        rows = ask(machine, "devices", domain=domain, kind=kind)
        show(rows, columns, as_json)

    return command


def _detach(name: str, kind: str, what: str) -> click.Command:
    @click.command(name, help=f"Take a {what} from DOMAIN: by its number, its name or its address.")
    @domain_argument
    @click.argument("device")
    @click.option("--force", is_flag=True, help="Do not ask the guest to let go of it first.")
    @machine_option
    def command(domain: str, device: str, force: bool, machine: str) -> None:
        ask(machine, "detach", domain=domain, kind=kind, device=device, force=force)

    return command


COMMANDS: Final = {
    "block-attach": _attach("block-attach", "disk", _parse_disk),
    "block-list": _list("block-list", "vbd", "disks", _BLOCK),
    "block-detach": _detach("block-detach", "vbd", "disk"),
    "network-attach": _attach("network-attach", "network device", _parse_nic),
    "network-list": _list("network-list", "vif", "network devices", _NETWORK),
    "network-detach": _detach("network-detach", "vif", "network device"),
}
