"""The command `xenolith` as a user calls it: a process of its own, and what is left when it has ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.patience import PATIENCE

XENOLITH: Final = Path(sys.executable).with_name("xenolith")
_LIMIT_S: Final = 240.0


@dataclass(slots=True)
class Ended:
    """A command that has ended: `lines` are those of its standard output with the times (seconds) of their arrival.

    `left` names the processes and temporary files that it left behind.
    """

    status: int
    errors: str
    lines: list[tuple[float, str]]
    seconds: float
    left: list[str]

    @property
    def output(self) -> str:
        return "".join(f"{line}\n" for _, line in self.lines)

    @property
    def log(self) -> str:
        """All of it, to be shown when something went wrong."""
        return f"{self.output}\n--- standard error:\n{self.errors}\n--- exit status {self.status}"


@dataclass(slots=True)
class Started:
    """A command that runs."""

    process: subprocess.Popen[bytes]
    lines: list[tuple[float, str]] = field(default_factory=list)

    def wait_for(self, text: str, limit_s: float = _LIMIT_S) -> None:
        """Wait until a line of output contains `text`."""
        deadline = time.monotonic() + limit_s * PATIENCE
        while not any(text in line for _, line in list(self.lines)):
            assert time.monotonic() < deadline, f"'{text}' did not come"
            assert self.process.poll() is None, f"it ended before '{text}' came"
            time.sleep(0.02)


def run(
    *arguments: str | Path,
    meanwhile: Callable[[Started], None] | None = None,
    limit_s: float = _LIMIT_S,
    address_space: int | None = None,
    **environment: str,
) -> Ended:
    """Run `xenolith` with these arguments, without a terminal; `meanwhile` is called while it runs.

    `address_space` is the most that it may map, in bytes.
    """
    limit = () if address_space is None else ("prlimit", f"--as={address_space}")
    with temporary_files(environment) as (variables, temporary), tempfile.TemporaryFile() as errors:
        begin = time.monotonic()
        process = subprocess.Popen(
            [*limit, XENOLITH, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=variables,
            start_new_session=True,
        )
        started = Started(process)
        reader = threading.Thread(target=_read, args=(process, started.lines))
        reader.start()
        try:
            if meanwhile is not None:
                meanwhile(started)
            status = process.wait(limit_s * PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
            process.wait()
            reader.join()
        seconds = time.monotonic() - begin
        errors.seek(0)
        text = errors.read().decode("utf-8", "replace")
        return Ended(status, text, started.lines, seconds, leftovers(process.pid, temporary))


def _read(process: subprocess.Popen[bytes], lines: list[tuple[float, str]]) -> None:
    assert process.stdout is not None
    with process.stdout as output:
        lines.extend((time.monotonic(), line.decode("utf-8", "replace").rstrip("\r\n")) for line in output)


@contextlib.contextmanager
def temporary_files(environment: dict[str, str]) -> Iterator[tuple[dict[str, str], Path]]:
    """The environment of a command whose temporary files go to an empty directory, and that directory."""
    with tempfile.TemporaryDirectory() as directory:
        yield {**os.environ, "TMPDIR": directory, **environment}, Path(directory)


def leftovers(session: int, temporary: Path) -> list[str]:
    """The processes of a session that still live, and the temporary files that are still there."""
    found = [str(path) for path in temporary.iterdir()]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(f"process {stat.parent.name}")
    return found
