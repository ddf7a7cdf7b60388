"""The verbs about domains of a running machine, as xl has them."""

from __future__ import annotations

import datetime
from typing import Any, Final

import click

from xenolith.cli.remote import ask, domain_argument, json_option, machine_option, optional_domain, show


@click.command("list")
@optional_domain
@click.option("--long", "-l", "as_json", is_flag=True, help="The same as --json.")
@click.option("--uuid", "-v", "with_uuid", is_flag=True, help="Show uuids as well.")
@json_option
@machine_option
def list_(domain: str | None, with_uuid: bool, as_json: bool, machine: str) -> None:
    """List the domains, or one of them.

    State: r running, b blocked, p paused, s shut down, c crashed, d dying.
    """
    rows = ask(machine, "list", domain=domain)
    columns = [
        ("Name", lambda row: row["name"], "bold cyan"),
        ("ID", lambda row: str(row["domid"]), ""),
        ("Mem", lambda row: str(row["memory_mib"]), ""),
        ("VCPUs", lambda row: str(row["vcpus"]), ""),
        ("State", lambda row: row["state"], "green"),
        ("Time(s)", lambda row: f"{row['time_s']:.1f}", ""),
    ]
    if with_uuid:
        columns.append(("UUID", lambda row: row["uuid"], "dim"))
    show(rows, columns, as_json)


def _simple(name: str, sentence: str, verb: str = "") -> click.Command:
    """A verb that does something to one guest and prints nothing."""

    @click.command(name, help=sentence)
    @domain_argument
    @machine_option
    def command(domain: str, machine: str) -> None:
        ask(machine, verb or name, domain=domain)

    return command


def _ending(name: str, help_text: str) -> click.Command:
    @click.command(name, help=help_text)
    @click.argument("domain", required=False)
    @click.option("--all", "-a", "every", is_flag=True, help="All guests.")
    @click.option("--wait", "-w", is_flag=True, help="Return when they have ended.")
    @machine_option
    def command(domain: str | None, every: bool, wait: bool, machine: str) -> None:
        if bool(domain) == every:
            raise click.UsageError("name a domain, or give --all")
        ask(machine, name, domain=domain, all=every, wait=wait)

    return command


@click.command("rename")
@domain_argument
@click.argument("name")
@machine_option
def rename(domain: str, name: str, machine: str) -> None:
    """Give DOMAIN another NAME."""
    ask(machine, "rename", domain=domain, name=name)


@click.command("domid")
@domain_argument
@machine_option
def domid(domain: str, machine: str) -> None:
    """Print the domid of DOMAIN."""
    click.echo(ask(machine, "domid", domain=domain))


@click.command("domname")
@domain_argument
@machine_option
def domname(domain: str, machine: str) -> None:
    """Print the name of DOMAIN."""
    click.echo(ask(machine, "domname", domain=domain))


@click.command("uptime")
@optional_domain
@json_option
@machine_option
def uptime(domain: str | None, as_json: bool, machine: str) -> None:
    """Print for how long domains have run."""
    rows = [row for row in ask(machine, "uptime") if domain in (None, row["name"], str(row["domid"]))]
    show(
        rows,
        [
            ("Name", lambda row: row["name"], "bold cyan"),
            ("ID", lambda row: str(row["domid"]), ""),
            ("Uptime", lambda row: str(datetime.timedelta(seconds=int(row["uptime_s"]))), ""),
        ],
        as_json,
    )


@click.command("vcpu-list")
@optional_domain
@json_option
@machine_option
def vcpu_list(domain: str | None, as_json: bool, machine: str) -> None:
    """List the vCPUs of all domains, or of DOMAIN."""
    rows = ask(machine, "vcpu-list", domain=domain)
    show(
        rows,
        [
            ("Name", lambda row: row["name"], "bold cyan"),
            ("ID", lambda row: str(row["domid"]), ""),
            ("VCPU", lambda row: str(row["vcpu"]), ""),
            ("CPU", lambda row: "-" if row["cpu"] is None else str(row["cpu"]), ""),
            ("State", lambda row: row["state"], "green"),
            ("Time(s)", lambda row: f"{row['time_s']:.1f}", ""),
            ("Affinity (Hard / Soft)", lambda row: row["affinity"], "dim"),
        ],
        as_json,
    )


@click.command("vcpu-set")
@domain_argument
@click.argument("vcpus", type=int)
@machine_option
def vcpu_set(domain: str, vcpus: int, machine: str) -> None:
    """Ask DOMAIN to use this many of its VCPUS."""
    ask(machine, "vcpu-set", domain=domain, vcpus=vcpus)


def _memory(name: str, help_text: str) -> click.Command:
    @click.command(name, help=help_text)
    @domain_argument
    @click.argument("memory")
    @machine_option
    def command(domain: str, memory: str, machine: str) -> None:
        from xenolith.toolstack.values import parse_size

        ask(machine, name, domain=domain, memory=parse_size(memory))

    return command


@click.command("trigger")
@domain_argument
@click.argument("trigger")
@click.argument("vcpu", type=int, default=0)
@machine_option
def trigger(domain: str, trigger: str, vcpu: int, machine: str) -> None:
    """Send TRIGGER (nmi, reset, init, power, sleep) to a VCPU of DOMAIN."""
    ask(machine, "trigger", domain=domain, trigger=trigger, vcpu=vcpu)


@click.command("sysrq")
@domain_argument
@click.argument("letter")
@machine_option
def sysrq(domain: str, letter: str, machine: str) -> None:
    """Press the SysRq key LETTER in DOMAIN."""
    ask(machine, "sysrq", domain=domain, key=letter)


@click.command("sched-credit2")
@click.option("--domain", "-d", help="The domain, if not all are meant.")
@click.option("--weight", "-w", type=int, help="Its weight: 256 is usual, twice that is twice the time.")
@click.option("--cap", "-c", type=int, help="The most that it gets, in percent of one processor; 0 for no limit.")
@json_option
@machine_option
def sched_credit2(domain: str | None, weight: int | None, cap: int | None, as_json: bool, machine: str) -> None:
    """Show or set the weights and caps of domains."""
    if domain is None and (weight is not None or cap is not None):
        raise click.UsageError("name a --domain to set its weight or cap")
    rows = ask(machine, "sched-credit2", domain=domain, weight=weight, cap=cap)
    if as_json or (weight is None and cap is None):
        show(
            rows,
            [
                ("Name", lambda row: row["name"], "bold cyan"),
                ("ID", lambda row: str(row["domid"]), ""),
                ("Weight", lambda row: str(row["weight"]), ""),
                ("Cap", lambda row: str(row["cap"]), ""),
            ],
            as_json,
        )


COMMANDS: Final[dict[str, Any]] = {
    "list": list_,
    "destroy": _simple("destroy", "End DOMAIN at once, as by pulling the plug."),
    "pause": _simple("pause", "Let DOMAIN not run until it is unpaused."),
    "unpause": _simple("unpause", "Let a paused DOMAIN run again."),
    "shutdown": _ending("shutdown", "Ask DOMAIN, or all guests, to end."),
    "reboot": _ending("reboot", "Ask DOMAIN, or all guests, to start again."),
    "rename": rename,
    "domid": domid,
    "domname": domname,
    "uptime": uptime,
    "vcpu-list": vcpu_list,
    "vcpu-set": vcpu_set,
    "mem-set": _memory("mem-set", "Ask DOMAIN to use this much MEMORY, as in 200MiB."),
    "mem-max": _memory("mem-max", "Let DOMAIN have at most this much MEMORY, as in 512MiB."),
    "trigger": trigger,
    "sysrq": sysrq,
    "sched-credit2": sched_credit2,
}
