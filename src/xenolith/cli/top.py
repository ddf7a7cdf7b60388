"""xenolith top: what domains use, again and again."""

from __future__ import annotations

import time

import click

from xenolith.cli.remote import ask, machine_option


@click.command("top")
@click.option("--delay", "-d", type=float, default=2.0, metavar="S", help="Seconds between two looks.")
@click.option("--iterations", "-i", type=int, metavar="N", help="End after so many looks.")
@machine_option
def command(delay: float, iterations: int | None, machine: str) -> None:
    """Watch what domains use, until Ctrl-C."""
    if not 0.1 <= delay <= 3600:
        raise click.UsageError("--delay is between 0.1 and 3600 seconds")
    before: dict[int, float] = {}
    looked, count = time.monotonic(), 0
    while iterations is None or count < iterations:
        if count:
            time.sleep(delay)
        rows, now = ask(machine, "list"), time.monotonic()
        _print(rows, before, now - looked)
        before, looked = {row["domid"]: row["time_s"] for row in rows}, now
        count += 1


def _print(rows: list[dict[str, object]], before: dict[int, float], seconds: float) -> None:
    import sys

    if sys.stdout.isatty():
        click.clear()
    click.echo(f"{'NAME':<20} {'STATE':<7} {'CPU(sec)':>9} {'CPU(%)':>7} {'MEM(MiB)':>9} {'VCPUS':>6}")
    for row in rows:
        domid, used = int(str(row["domid"])), float(str(row["time_s"]))
        share = 100 * (used - before[domid]) / seconds if domid in before and seconds > 0 else 0.0
        click.echo(
            f"{row['name']:<20} {row['state']:<7} {used:>9.1f} {share:>7.1f} {row['memory_mib']:>9} {row['vcpus']:>6}"
        )
