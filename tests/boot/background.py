"""A machine in the background, as users have it: started by one command, asked by others, and always ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.boot.command_line import XENOLITH
from tests.patience import PATIENCE

_LIMIT_S: Final = 120.0
_PROMPT: Final = "guest:~# "


class Background:
    """The machine "default" of a runtime directory of its own."""

    def __init__(self, runtime: Path) -> None:
        self.place = runtime / "xenolith" / "default"
        self._environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
        self._environment.pop("XENOLITH_MACHINE", None)

    def try_(self, *arguments: str | Path, limit_s: float = _LIMIT_S) -> subprocess.CompletedProcess[str]:
        """Run `xenolith` with these arguments, whatever comes of it."""
        return subprocess.run(
            [XENOLITH, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s * PATIENCE,
        )

    def do(self, *arguments: str | Path, limit_s: float = _LIMIT_S) -> str:
        """Run `xenolith`, which must succeed; its output."""
        ended = self.try_(*arguments, limit_s=limit_s)
        assert ended.returncode == 0, f"{arguments}: {ended.stdout}\n{ended.stderr}\n{self.log}"
        return ended.stdout

    def refused(self, *arguments: str | Path) -> str:
        """Run `xenolith`, which must refuse with one sentence and a hint; what it says."""
        ended = self.try_(*arguments)
        assert ended.returncode == 1, ended.stdout
        assert "Traceback" not in ended.stderr
        assert len(ended.stderr.splitlines()) <= 2, ended.stderr
        return ended.stderr

    def json(self, *arguments: str) -> Any:
        return json.loads(self.do(*arguments, "--json"))

    def domains(self) -> dict[str, dict[str, Any]]:
        """All domains by name."""
        return {row["name"]: row for row in self.json("list")}

    @property
    def log(self) -> str:
        path = self.place / "log"
        return path.read_text() if path.exists() else ""

    def console(self, name: str) -> str:
        """What a guest has printed."""
        path = self.place / f"console-{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait(self, condition: Callable[[], object], what: str, limit_s: float = _LIMIT_S) -> None:
        deadline = time.monotonic() + limit_s * PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come\n{self.log}"
            time.sleep(0.1)

    def wait_console(self, name: str, text: str, limit_s: float = _LIMIT_S) -> None:
        self.wait(lambda: text in self.console(name), f"{text!r} on the console of {name}", limit_s)

    def wait_prompt(self, name: str, limit_s: float = _LIMIT_S) -> None:
        self.wait_console(name, _PROMPT, limit_s)

    def run(self, name: str, command: str, limit_s: float = _LIMIT_S) -> str:
        """Type a shell command at a guest's console; what it prints, until it has ended."""
        mark = f"end-{time.monotonic_ns()}"
        with self.at_console(name) as process:
            assert process.stdin is not None
            # The marks as they are typed, and perhaps broken into lines, are not what is looked for.
            process.stdin.write(f"echo begin''-{mark}; {command}; echo {mark[:3]}''{mark[3:]}=$?\r".encode())
            process.stdin.flush()
            found: list[re.Match[str]] = []

            def ended() -> bool:
                said = self.console(name).replace("\r", "")
                found[:] = re.finditer(rf"(?s)begin-{mark}\n(.*){mark}=(\d+)", said)
                return bool(found)

            self.wait(ended, f"the end of {command!r}", limit_s)
        return found[0][1]

    @contextlib.contextmanager
    def at_console(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """`xenolith console` with a pipe for a keyboard."""
        process = subprocess.Popen(
            [XENOLITH, "console", name],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def close(self) -> None:
        """Switch it off, by force if need be."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.try_("halt", limit_s=20)
        for stat in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (stat / "environ").read_bytes()
                if f"XDG_RUNTIME_DIR={self._environment['XDG_RUNTIME_DIR']}".encode() in environment.split(b"\0"):
                    os.kill(int(stat.name), signal.SIGKILL)


@contextlib.contextmanager
def background(runtime: Path, *arguments: str | Path) -> Iterator[Background]:
    """A machine that was started with these arguments of `boot`."""
    machine = Background(runtime)
    try:
        machine.do("boot", *arguments, "--detach")
        yield machine
    finally:
        machine.close()
