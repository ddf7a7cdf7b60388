"""The command `xenolith`: turns every error into its one sentence and exit status.

Little is imported before signals are heard, so that Ctrl-C is answered as it should be from the first moment on.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Final

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
_COLLECT_AFTER: Final = 100_000
"""New objects after which Python looks for cycles; with its own 700 it does so a hundred times before a guest runs."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 the user's mistake, 2 usage, 3-6 of a guest, 128 + n by signal n."""
    from xenolith.cli.signals import Interrupted, end, heard

    gc.set_threshold(_COLLECT_AFTER)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads for linear algebra, of which there is none
    try:
        with heard(end):
            status = _run()
    except Interrupted as interruption:
        complain(interruption.sentence)
        status = interruption.status
    sys.exit(status)


def _run() -> int:
    import click

    from xenolith.cli.verbs import cli
    from xenolith.errors import UserError

    try:
        status = cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except UserError as error:
        complain(error.message, error.hint)
        return USER_MISTAKE
    except MemoryError:
        complain("this host has not enough free memory", "give the machine less memory, or free some")
        return USER_MISTAKE
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USER_MISTAKE
    return status if isinstance(status, int) else 0


def complain(message: str, hint: str = "") -> None:
    """One sentence on standard error, and below it what to do."""
    print(f"xenolith: {message}", file=sys.stderr)
    if hint:
        print(f"          {hint}", file=sys.stderr)
