"""What the verbs share that ask a running machine: which one, and how its answers are printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

_F = TypeVar("_F", bound=Callable[..., Any])


def _machine_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from xenolith.toolstack.places import living

    return [place.name for place in living() if place.name.startswith(incomplete)]


machine_option = click.option(
    "--machine",
    "-M",
    default="default",
    envvar="XENOLITH_MACHINE",
    metavar="NAME",
    shell_complete=_machine_names,
    help="The machine that is meant, if it is not called default.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _domain_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from xenolith.errors import UserError

    try:
        rows = ask(context.params.get("machine") or "default", "list")
    except UserError:
        return []
    return [
        CompletionItem(row["name"], help=f"domain {row['domid']}") for row in rows if row["name"].startswith(incomplete)
    ]


domain_argument = click.argument("domain", shell_complete=_domain_names)
optional_domain = click.argument("domain", required=False, shell_complete=_domain_names)


def ask(machine: str, verb: str, **arguments: Any) -> Any:
    """Have a machine do something and return its result, with a progress bar if it tells of progress.

    Its warnings go to standard error.
    """
    from xenolith.cli.terminal import progress_bar
    from xenolith.toolstack.client import call
    from xenolith.toolstack.places import place

    with progress_bar() as report:

        def told(message: dict[str, Any]) -> None:
            if "progress" in message:
                report(message["progress"], message["part"])
            elif "warning" in message:
                click.echo(f"xenolith: warning: {message['warning']}", err=True)

        return call(place(machine), verb, told, **arguments)


def show(
    rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, Callable[[dict[str, Any]], str], str]], as_json: bool
) -> None:
    """A table, or JSON: for each column its title, what it says of a row, and its style on a terminal."""
    from xenolith.cli.terminal import print_json, print_table

    if as_json:
        print_json(rows)
        return
    titles, texts, styles = zip(*columns, strict=True)
    print_table(titles, [[text(row) for text in texts] for row in rows], styles)


def pack(value: object) -> str:
    """An object for the machine, which is of the same user and the same program."""
    import base64
    import pickle

    return base64.b64encode(pickle.dumps(value)).decode()
