"""Runs a command and notes, from outside, when each line of its console appeared."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

_CHUNK_BYTES = 65536
_POLL_SECONDS = 0.05


class RunFailed(Exception):
    """A measured command did not do what it was started for; the message ends with the last lines that it printed."""


@dataclass(frozen=True)
class Line:
    """A line of the console and when its end arrived, in seconds since the process was started."""

    seconds: float
    text: str


@dataclass
class Session:
    """What one command printed, and how it ended (`status` is None if it was stopped at its time limit).

    `processor_seconds` is the processor time of the command and of what it started.
    """

    lines: list[Line] = field(default_factory=list)
    seconds: float = 0.0
    processor_seconds: float = 0.0
    status: int | None = None

    def when(self, marker: str) -> float:
        """Seconds from the start until the first line that contains `marker`; raises RunFailed if none does."""
        return self.find(marker).seconds

    def find(self, marker: str) -> Line:
        """The first line that contains `marker`; raises RunFailed if none does."""
        for line in self.lines:
            if marker in line.text:
                return line
        end = "its time limit" if self.status is None else f"exit status {self.status}"
        tail = "\n".join(line.text for line in self.lines[-8:])
        raise RunFailed(f"no line with '{marker}' after {self.seconds:.1f} s ({end})\n{tail}")


class LineSplitter:
    """Cuts a byte stream into lines without their line ends; an unfinished line waits for its end."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        *complete, self._rest = (self._rest + data).split(b"\n")
        return [_text(line) for line in complete]

    def close(self) -> list[str]:
        """The last line, if the stream ended without a line end."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest else []


def run(
    command: Sequence[str],
    *,
    timeout: float,
    watch: Callable[[int], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Session:
    """Runs `command` to its end or for `timeout` seconds, with both its outputs joined and no standard input.

    `environment` is our own unless given. `watch`, if given, is called with the process id about every 50 ms. On return
    nothing that was started is left.
    """
    started, worked = time.monotonic(), _processor_seconds()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        session = _collect(process.stdout, started, timeout, lambda: watch(process.pid) if watch else None)
        remaining = max(0.0, started + timeout - time.monotonic())
        with contextlib.suppress(subprocess.TimeoutExpired):
            session.status = process.wait(remaining)
        session.seconds = time.monotonic() - started
        session.processor_seconds = _processor_seconds() - worked
        return session
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def _processor_seconds() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _collect(stream: IO[bytes], started: float, timeout: float, watch: Callable[[], None]) -> Session:
    session = Session()
    splitter = LineSplitter()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while (now := time.monotonic() - started) < timeout:
            if selector.select(min(_POLL_SECONDS, timeout - now)):
                data = os.read(stream.fileno(), _CHUNK_BYTES)
                arrived = time.monotonic() - started
                session.lines += [Line(arrived, text) for text in (splitter.feed(data) if data else splitter.close())]
                if not data:
                    break
            watch()
    return session


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")
