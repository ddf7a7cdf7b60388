"""The verbs about running machines as wholes: which there are, what they have, what happens in them."""

from __future__ import annotations

import json
import time
from typing import Any, Final

import click

from xenolith.cli.remote import ask, json_option, machine_option, show
from xenolith.cli.terminal import print_json


@click.command("machines")
@json_option
def machines(as_json: bool) -> None:
    """List the machines of this user that run in the background."""
    from xenolith.errors import UserError
    from xenolith.toolstack.places import living

    rows = []
    for place in living():
        try:
            rows.append({**ask(place.name, "info"), "name": place.name, "directory": str(place.path)})
        except UserError as error:
            rows.append({"name": place.name, "directory": str(place.path), "trouble": error.message})
    show(
        rows,
        [
            ("Name", lambda row: row["name"], "bold cyan"),
            ("Domains", lambda row: str(row.get("domains", "?")), ""),
            ("Mem(MiB)", lambda row: str(row.get("total_memory_mib", "?")), ""),
            ("Free(MiB)", lambda row: str(row.get("free_memory_mib", "?")), ""),
            ("Directory", lambda row: row["directory"], "dim"),
        ],
        as_json,
    )


@click.command("halt")
@machine_option
def halt(machine: str) -> None:
    """Switch a machine off, whatever its guests are doing."""
    from xenolith.errors import UserError
    from xenolith.toolstack.places import place

    ask(machine, "halt")
    deadline = time.monotonic() + 10
    while place(machine).is_alive():
        if time.monotonic() > deadline:
            raise UserError(f"the machine '{machine}' has not ended in 10 s", "look at its processes")
        time.sleep(0.02)


@click.command("info")
@json_option
@machine_option
def info(as_json: bool, machine: str) -> None:
    """Say what a machine has."""
    found = ask(machine, "info")
    if as_json:
        print_json(found)
        return
    found["started"] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["started"]))
    for name, value in found.items():
        click.echo(f"{name:<23}: {value}")


@click.command("dmesg")
@click.option("--clear", "-c", is_flag=True, help="Clear it afterwards.")
@machine_option
def dmesg(clear: bool, machine: str) -> None:
    """Print the hypervisor's own log."""
    click.echo(ask(machine, "dmesg", clear=clear), nl=False)


@click.command("events")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one event a line.")
@machine_option
def events(as_json: bool, machine: str) -> None:
    """Follow what happens in a machine, until Ctrl-C."""
    from xenolith.toolstack.client import Call
    from xenolith.toolstack.places import place

    with Call(place(machine), "events") as call:
        for message in call.messages():
            row = message.get("row")
            if row is None:
                continue
            if as_json:
                click.echo(json.dumps(row))
            else:
                seconds, kind = row.pop("ns") / 1e9, row.pop("event")
                click.echo(f"{seconds:12.6f} {kind:<12} " + " ".join(f"{name}={value}" for name, value in row.items()))


@click.group("policy")
def policy() -> None:
    """What each domain may do, and what it has done."""


@policy.command("show")
@json_option
@machine_option
def policy_show(as_json: bool, machine: str) -> None:
    """For every domain, what it may do and what it has done beyond its own affairs."""
    rows = ask(machine, "policy")
    if as_json:
        print_json(rows)
        return
    for row in rows:
        may = ", ".join(row["capabilities"]) or "nothing beyond its own affairs"
        click.echo(f"{click.style(row['name'], bold=True)} (domain {row['domid']}) may: {may}")
        if row["targets"] is not None:
            click.echo(f"    controls only: {', '.join(map(str, row['targets'])) or 'nobody'}")
        if row["created"]:
            click.echo(f"    controls, because it made them: {', '.join(map(str, row['created']))}")
        _ranges("ports", row["port_ranges"])
        _ranges("device frames", row["iomem_ranges"])
        for title, counts in (("has done", row["uses"]), ("was refused", row["refusals"])):
            if counts:
                click.echo(
                    f"    {title}: " + ", ".join(f"{action} {count}" for action, count in sorted(counts.items()))
                )


def _ranges(title: str, ranges: list[list[int]]) -> None:
    if ranges:
        click.echo(f"    {title}: " + ", ".join(f"{first:#x}-{last:#x}" for first, last in ranges))


@click.group("service")
def service() -> None:
    """The native domains of a machine."""


@service.command("list")
@json_option
@machine_option
def service_list(as_json: bool, machine: str) -> None:
    """List the native domains, and how often each was started."""
    rows = ask(machine, "services")
    show(
        rows,
        [
            ("Name", lambda row: row["name"], "bold cyan"),
            ("ID", lambda row: str(row["domid"]), ""),
            ("Up", lambda row: "yes" if row["up"] else "no", "green"),
            ("Starts", lambda row: str(row["starts"]), ""),
            ("Last failure", lambda row: (row["last_failure"].strip().splitlines() or [""])[-1], "red"),
        ],
        as_json,
    )


@service.command("kill")
@click.argument("name", metavar="SERVICE")
@machine_option
def service_kill(name: str, machine: str) -> None:
    """Drop the code of SERVICE, as if it had failed. It is started again; guests notice a pause at most."""
    ask(machine, "service-kill", service=name)


COMMANDS: Final[dict[str, Any]] = {
    "machines": machines,
    "halt": halt,
    "info": info,
    "dmesg": dmesg,
    "events": events,
    "policy": policy,
    "service": service,
}
