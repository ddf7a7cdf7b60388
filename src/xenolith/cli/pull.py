"""xenolith pull: bring a kernel, its modules and busybox from the distribution's registry."""

from __future__ import annotations

import click


@click.command("pull")
@click.argument("names", nargs=-1, metavar="[NAME]…")
def command(names: tuple[str, ...]) -> None:
    """Bring kernels into the cache; without a NAME, the default one.

    No root is needed: packages are fetched with apt-get, checked against the distribution's signatures, and
    unpacked below ~/.cache/xenolith. `xenolith kernels` lists the names.
    """
    from xenolith.cli.terminal import progress_bar
    from xenolith.loader import registry

    for name in names or (registry.SOURCES[0].alias,):
        with progress_bar() as progress:
            pulled = registry.pull(name, progress)
        click.echo(f"{name}: {pulled.package} {pulled.version}, {pulled.file}")
