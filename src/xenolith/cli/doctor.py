"""xenolith doctor: what this host offers, and what to install for more."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from rich.console import Console

    from xenolith.toolstack.doctor import EngineReport, HostReport

NOT_READY: Final = 1
_Row = tuple[str, str, bool | None]
"""What, how it is, and whether that is good (None: it does not matter)."""
_MARKS: Final = {True: ("+", "green"), False: ("-", "yellow"), None: (" ", "")}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Say what this host offers: engines and their speed, memory, kernels and tools.

    Exit status: 0 if a machine can be started, 1 if not.
    """
    from xenolith.cli.terminal import print_json
    from xenolith.toolstack.doctor import examine

    report = examine()
    if as_json:
        print_json(_record(report))
    else:
        _print(report)
    sys.exit(0 if report.ready else NOT_READY)


def _record(report: HostReport) -> dict[str, Any]:
    """Everything, for programs."""
    return {"ready": report.ready, **dataclasses.asdict(report)}


def _print(report: HostReport) -> None:
    from rich.text import Text

    from xenolith.cli.terminal import console

    out = console()
    for title, rows in _sections(report):
        out.print(Text(title, "bold"))
        _print_rows(out, rows)
    if report.ready:
        out.print(Text("A machine can be started: xenolith boot", "bold green"))
    else:
        out.print(Text("No machine can be started here.", "bold red"))
    for sentence in report.advice:
        out.print(Text(f"  {sentence}"))


def _print_rows(out: Console, rows: list[_Row]) -> None:
    """On a terminal a long text goes on below itself; in a pipe each row is one line."""
    from rich.table import Table
    from rich.text import Text

    if not out.is_terminal:
        width = max(len(name) for name, _, _ in rows)
        for name, value, good in rows:
            out.print(Text(f"  {_MARKS[good][0]} {name:<{width}}  {value}"))
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value, good in rows:
        mark, style = _MARKS[good]
        table.add_row(Text(f"  {mark} {name}"), Text(value, style))
    out.print(table)


def _sections(report: HostReport) -> list[tuple[str, list[_Row]]]:
    enough = report.memory_available >= report.memory_needed
    memory = f"{report.memory_available >> 20} MiB free, {report.memory_needed >> 20} MiB for the usual machine"
    return [
        (
            "Host",
            [
                ("processor", f"{report.processors} × {report.processor} ({report.architecture})", None),
                ("memory", memory, enough),
            ],
        ),
        ("Engines", [*(row for engine in report.engines for row in _engine_rows(engine, report)), _helper_row(report)]),
        (
            "Kernels",
            [(kernel.name, f"{kernel.origin}: {kernel.verdict}", kernel.boots) for kernel in report.kernels]
            or [("none", "xenolith pull brings one", False)],
        ),
        (
            "Tools",
            [
                (tool.name, f"{tool.path or 'missing'}, for {tool.purpose}", tool.path is not None)
                for tool in report.tools
            ],
        ),
    ]


def _engine_rows(engine: EngineReport, report: HostReport) -> list[tuple[str, str, bool | None]]:
    """One row for the engine, and one for each thing that it lacks."""
    words = _engine(engine)
    if engine.name == report.chosen and len(report.engines) > 1:
        words += "; chosen by --engine auto"
    return [(engine.name, words, engine.usable), *(("", f"but {what}", None) for what in engine.lacks)]


def _helper_row(report: HostReport) -> _Row:
    if report.helper_missing is None:
        return ("helper", "the commonest exits are handled natively", True)
    return ("helper", f"none, so that all exits are handled by Python: {report.helper_missing}", None)


def _engine(engine: EngineReport) -> str:
    words = [engine.about]
    if engine.version is not None:
        words.insert(0, engine.version)
    if engine.preemptible is not None:
        words.append(f"{'stops' if engine.preemptible else 'cannot stop'} a guest that spins")
    if engine.exit_us is not None:
        words.append(f"{engine.exit_us} µs an exit")
    if engine.million_instructions_per_second is not None:
        words.append(f"{engine.million_instructions_per_second:.0f} million instructions a second in a tight loop")
    if engine.runs_loops is not None:
        words.append(f"hot loops run {'on the host processor' if engine.runs_loops else 'in the emulator'}")
    if engine.processors is not None and engine.processors > 1:
        words.append(f"runs {engine.processors} vCPUs at the same time")
    if engine.works_in_ring0:
        words.append("handles the commonest exits in ring 0")
    return "; ".join(words)
