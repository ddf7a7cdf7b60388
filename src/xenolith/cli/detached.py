"""Leaving a machine in the background: its process tells the caller that it is up, or why it is not."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from xenolith.errors import UserError


def detach(log: Path, run: Callable[[Callable[[], None]], int]) -> None:
    """Have `run(up)` carried out by a process of its own; return when it has called `up`. Its output goes to `log`.

    UserError, or the error's sentence as one, if it ended before.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become(log, writer, run)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        said = told.read()
    if not said:
        raise UserError("the machine ended before it was up", f"see {log}")
    message = json.loads(said)
    if "error" in message:
        raise UserError(message["error"], message["hint"])


def _become(log: Path, writer: int, run: Callable[[Callable[[], None]], int]) -> None:
    """The process in the background; it never returns."""

    def tell(**message: str) -> None:
        nonlocal writer
        if writer >= 0:
            os.write(writer, json.dumps(message).encode())
            os.close(writer)
            writer = -1

    status = 1
    try:
        os.setsid()
        nothing, output = os.open(os.devnull, os.O_RDWR), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for fd, source in ((0, nothing), (1, output), (2, output)):
            os.dup2(source, fd)
        status = run(lambda: tell(up="yes"))
    except UserError as error:
        tell(error=error.message, hint=error.hint)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        tell(error=f"the machine could not be started: {error!r}", hint=f"see {log}")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
