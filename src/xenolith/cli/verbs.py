"""The verbs as click sees them, each imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from xenolith import __version__
from xenolith.cli.main import SECTIONS, VERBS

_FAMILIES: Final = {
    **dict.fromkeys(("machines", "halt", "info", "dmesg", "events", "policy", "service"), "machines"),
    **dict.fromkeys(SECTIONS["Domains"], "domains"),
    **dict.fromkeys(SECTIONS["Devices"], "devices"),
    "create": "create",
    "config-update": "create",
    "console": "console",
    "top": "top",
}
"""The module of each verb that shares one with others, or that lies in a section that does."""


class _Verbs(click.Group):
    """Imports a verb's module when the verb is used, so that `xenolith run` does not pay for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = import_module(f"xenolith.cli.{_FAMILIES.get(cmd_name, cmd_name)}")
        commands: dict[str, click.Command] = getattr(module, "COMMANDS", {})
        return commands.get(cmd_name) or module.command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(verbs.items()))

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
