"""xenolith bench: what to make of measurements."""

from __future__ import annotations

from pathlib import Path

import click

from xenolith.cli.remote import json_option


@click.group("bench")
def command() -> None:
    """Compare measurements that `make bench` has written."""


@command.command("compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@json_option
@click.pass_context
def compare_(context: click.Context, before: Path, after: Path, as_json: bool) -> None:
    """Print the medians of BEFORE and AFTER, and by how much AFTER is better.

    A regression is what was measured three times at least on each side and is worse in every sample than in all
    before. With one the exit status is 1.
    """
    from xenolith.cli.terminal import print_json, print_table
    from xenolith.observe import comparison

    old, new = comparison.read(before), comparison.read(after)
    changes = list(comparison.compare(old, new))
    lost = list(comparison.missing(old, new))
    if as_json:
        print_json({"changes": [change._asdict() for change in changes], "missing": lost})
    else:
        rows = [
            [
                change.question,
                f"{change.metric} ({change.unit})",
                change.contender,
                f"{change.before:.4g}",
                f"{change.after:.4g}",
                f"{change.ratio:.2f}",
                change.verdict,
            ]
            for change in changes
        ]
        header = ("Question", "Metric", "Contender", "Before", "After", "Times better", "")
        print_table(header, rows, ("bold", "", "cyan", "", "", "", "yellow"))
        for text in lost:
            click.echo(f"not measured any more: {text}")
    if any(change.verdict == "regression" for change in changes):
        context.exit(1)
