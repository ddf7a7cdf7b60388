"""The command `xenolith`: finds the verb, and turns every error into its one sentence and exit status."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Final

import click

from xenolith import __version__
from xenolith.errors import UserError

VERBS: Final = {
    "boot": "Start a machine whose control domain starts by itself.",
    "run": "Run one unprivileged guest and nothing else.",
    "kernels": "List the kernels on this host and in the cache.",
    "inspect": "Say what a kernel image says about itself.",
    "pull": "Bring kernels from the distribution's registry.",
    "ramdisk": "Build an initramfs.",
    "doctor": "Say what this host offers.",
}

USER_MISTAKE: Final = 1
INTERNAL_ERROR: Final = 5
INTERRUPTED: Final = 130


class _Verbs(click.Group):
    """Imports a verb's module when the verb is used, so that `xenolith run` does not pay for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"xenolith.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            import difflib

            close = difflib.get_close_matches(args[0], VERBS, 1)
            ctx.fail(f"there is no verb '{args[0]}'" + (f"; did you mean '{close[0]}'?" if close else ""))
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="xenolith")
def cli() -> None:
    """Xenolith: a Xen hypervisor in user space."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 the user's mistake, 2 usage, 3-6 of a guest, 130 interrupted."""
    # numpy is used for scans only: the threads that its linear algebra would start cost time at every start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        status = cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except UserError as error:
        _complain(error.message, error.hint)
        status = USER_MISTAKE
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted", "")
        status = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = USER_MISTAKE
    sys.exit(status if isinstance(status, int) else 0)


def _complain(message: str, hint: str) -> None:
    click.echo(f"xenolith: {message}", err=True)
    if hint:
        click.echo(f"          {hint}", err=True)
