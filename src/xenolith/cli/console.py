"""xenolith console: this terminal becomes that of a domain."""

from __future__ import annotations

import click

from xenolith.cli.remote import domain_argument, machine_option


@click.command("console")
@domain_argument
@machine_option
def command(domain: str, machine: str) -> None:
    """Be at the console of DOMAIN. Ctrl-] leaves it; several can look at one console."""
    attach(machine, domain)


def attach(machine: str, domain: str) -> None:
    """Show a console, and give it what is typed or piped, until Ctrl-] or until the domain is gone."""
    import os
    import sys
    import threading

    from xenolith.cli.running import LEAVE_KEY, raw_terminal
    from xenolith.toolstack.client import Call
    from xenolith.toolstack.places import place

    with Call(place(machine), "console", domain=domain) as call:

        def carry_keys(fd: int) -> None:
            while data := os.read(fd, 4096):
                before, found, _ = data.partition(LEAVE_KEY)
                if before:
                    call.type(before)
                if found:
                    break
            else:
                if not os.isatty(fd):
                    return  # the pipe has ended, and who looks at the console may go on
            call.leave()

        with raw_terminal() as terminal:
            keys = terminal if terminal is not None else sys.stdin.fileno() if sys.stdin else None
            if keys is not None:
                threading.Thread(target=carry_keys, args=(keys,), daemon=True).start()
            for message in call.messages():
                if "data" in message:
                    sys.stdout.buffer.write(message["data"].encode("latin-1"))
                    sys.stdout.flush()
                elif message.get("result"):
                    click.echo(f"\nxenolith: {message['result']}", err=True)
