"""xenolith completion: what a shell needs to complete verbs, options and the names of domains."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion for SHELL: as in  source <(xenolith completion bash)."""
    from click.shell_completion import get_completion_class

    from xenolith.cli.verbs import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "xenolith", "_XENOLITH_COMPLETE").source())
