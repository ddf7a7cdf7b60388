"""xenolith kernels: the kernels that can be booted here, and those that can be pulled."""

from __future__ import annotations

from typing import Any

import click


@click.command("kernels")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the kernels in the cache, on this host, and in the registry.

    A kernel's name is what --kernel takes. Those marked "registry" are brought when they are first named, or by
    `xenolith pull`.
    """
    from xenolith.cli.terminal import print_json, print_table

    entries = _entries()
    if as_json:
        print_json(entries)
        return
    rows = [
        (
            entry["name"],
            entry["origin"],
            "" if entry["boots"] is None else "yes" if entry["boots"] else "no",
            _about(entry),
        )
        for entry in entries
    ]
    print_table(("NAME", "WHERE", "BOOTS", "WHAT"), rows, ("bold cyan", "", "green", ""))


def _entries() -> list[dict[str, Any]]:
    """One record for each kernel: the cache's, the host's, the registry's."""
    from xenolith.loader import kernels, registry

    found = [_entry(kernel) for kernel in (*kernels.cached(), *kernels.host())]
    present = {entry["name"] for entry in found}
    return found + [
        {
            "name": source.alias,
            "origin": "registry",
            "path": None,
            "modules": None,
            "description": source.description,
            "boots": None,
            "verdict": None,
        }
        for source in registry.SOURCES
        if source.alias not in present
    ]


def _entry(kernel: Any) -> dict[str, Any]:
    from xenolith.errors import UserError

    try:
        verdict = kernel.image().verdict
        boots, sentence = verdict.bootable, verdict.sentence
    except UserError as error:
        boots, sentence = False, error.message
    return {
        "name": kernel.name,
        "origin": kernel.origin,
        "path": str(kernel.path),
        "modules": str(kernel.modules) if kernel.modules else None,
        "description": kernel.description,
        "boots": boots,
        "verdict": sentence,
    }


def _about(entry: dict[str, Any]) -> str:
    """What the last column says: why a kernel does not boot is worth more than what it is."""
    return str(entry["verdict"] if entry["boots"] is False else entry["description"])
