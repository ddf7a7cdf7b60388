"""The command `xenolith` on a terminal: keys typed at it, and what the terminal shows."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.boot.command_line import XENOLITH, leftovers, temporary_files

_LIMIT_S: Final = 240.0
_ESCAPES: Final = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A terminal with `xenolith` in the foreground."""

    def __init__(self, process: subprocess.Popen[bytes], master: int, slave: int, temporary: Path) -> None:
        self.process = process
        self.shown = b""
        self._master = master
        self._slave = slave
        self._temporary = temporary
        self._read_to = 0

    @property
    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def press(self, key: str) -> None:
        """A key together with Ctrl."""
        os.write(self._master, bytes([ord(key) & 0x1F]))

    def expect(self, text: str, limit_s: float = _LIMIT_S) -> str:
        """Wait until `text` is shown, behind what was waited for last; what was shown on the way there."""
        deadline = time.monotonic() + limit_s
        while (at := self.shown.find(text.encode(), self._read_to)) < 0:
            assert self._read(deadline - time.monotonic()), f"'{text}' did not come; this came:\n{self._tail()}"
        passed = self.shown[self._read_to : at]
        self._read_to = at + len(text.encode())
        return passed.decode("utf-8", "replace")

    def settle(self, seconds: float) -> None:
        """Let time pass, and take what is shown meanwhile."""
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            pass

    def wait(self, limit_s: float = _LIMIT_S) -> int:
        """The exit status, once it has ended."""
        deadline = time.monotonic() + limit_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it did not end; this came:\n{self._tail()}"
            self._read(0.05)
        while self._read(0.05):
            pass
        return self.process.returncode

    def hang_up(self) -> None:
        """The terminal goes away."""
        os.close(self._master)
        self._master = -1

    def close(self) -> None:
        for fd in (self._master, self._slave):
            if fd >= 0:
                os.close(fd)

    def left(self) -> list[str]:
        """The processes and temporary files that are left."""
        return leftovers(self.process.pid, self._temporary)

    def processor_seconds(self) -> float:
        """The processor time that the command has used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _read(self, limit_s: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(limit_s, 0))
        if not ready:
            return False
        with contextlib.suppress(OSError):
            data = os.read(self._master, 65536)
            self.shown += _ESCAPES.sub(b"", data)
            return bool(data)
        return False

    def _tail(self) -> str:
        return self.shown[-3000:].decode("utf-8", "replace")


@contextlib.contextmanager
def terminal(*arguments: str | Path, **environment: str) -> Iterator[Terminal]:
    """Run `xenolith` as the session leader of a new terminal."""
    master, slave = pty.openpty()
    with temporary_files(environment) as (variables, temporary):
        process = subprocess.Popen(
            [XENOLITH, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=variables,
            start_new_session=True,
            preexec_fn=lambda: _take_terminal(slave),
        )
        screen = Terminal(process, master, slave, temporary)
        try:
            yield screen
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            screen.close()


def _take_terminal(fd: int) -> None:
    import fcntl

    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
