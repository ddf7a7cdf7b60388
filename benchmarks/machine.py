"""A machine of Xenolith's in the background, as its users have it, watched from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from benchmarks import programs
from benchmarks.console import RunFailed
from benchmarks.memory import Usage, usage
from benchmarks.peer import xenolith_command
from xenolith.cli.remote import pack
from xenolith.errors import UserError
from xenolith.toolstack import client, guest_file
from xenolith.toolstack.places import Place

_VERB_SECONDS = 120
_POLL_SECONDS = 0.02
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Machine:
    """The machine of a runtime directory of its own."""

    runtime: Path

    def verb(self, verb: str, *arguments: str) -> str:
        """What a verb of the command line prints; raises RunFailed if it fails."""
        command = xenolith_command(verb, *arguments)
        ended = subprocess.run(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_VERB_SECONDS,
            check=False,
        )
        if ended.returncode:
            raise RunFailed(f"`{' '.join(command)}`: {ended.stderr.strip()}")
        return ended.stdout

    @property
    def environment(self) -> dict[str, str]:
        """In which the command line finds this machine, and no other."""
        own = {"XDG_RUNTIME_DIR": str(self.runtime)}
        return {name: value for name, value in os.environ.items() if name != "XENOLITH_MACHINE"} | own

    def create(self, name: str, kernel: Path, **options: Any) -> None:
        """Make a guest as `xenolith create` does, but without starting a process for it; raises RunFailed."""
        warned: list[str] = []
        config = guest_file.load(None, {"name": name, "kernel": str(kernel), **options}, (), warned.append)
        try:
            client.call(Place("default", self.place), "create", config=pack(config))
        except UserError as error:
            raise RunFailed(error.message) from None

    def guests(self) -> int:
        """How many guests there are."""
        return sum(not row["native"] for row in json.loads(self.verb("list", "--json")))

    def console(self, name: str) -> str:
        """What a guest has printed."""
        path = self.place / f"console-{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def until(self, condition: Callable[[], bool], what: str, limit: float) -> None:
        """Look about 50 times a second; raises RunFailed after `limit` seconds."""
        deadline = time.monotonic() + limit
        while not condition():
            if time.monotonic() > deadline:
                raise RunFailed(f"{what} did not come in {limit:g} s")
            time.sleep(_POLL_SECONDS)

    def find(self, name: str, pattern: str, limit: float) -> re.Match[str]:
        """The first match of `pattern` on a guest's console; raises RunFailed if there is none in `limit` seconds."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            found.extend(re.finditer(pattern, self.console(name)))
            return bool(found)

        try:
            self.until(look, f"/{pattern}/ on the console of {name}", limit)
        except RunFailed as failure:
            raise RunFailed(f"{failure}\n{self.console(name)[-800:]}") from None
        return found[0]

    @property
    def place(self) -> Path:
        """The machine's own directory."""
        return self.runtime / "xenolith" / "default"

    @cached_property
    def process(self) -> int:
        """The machine's process; raises RunFailed if it is gone."""
        wanted = f"XDG_RUNTIME_DIR={self.runtime}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    return int(entry.name)
        raise RunFailed("the machine is gone")

    def usage(self) -> Usage:
        """The memory of the machine's process."""
        return usage(self.process)

    def processor_seconds(self) -> float:
        """The processor time that the machine's process has used."""
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


def new() -> Machine:
    """A runtime directory of its own for a machine that is still to be started."""
    return Machine(Path(mkdtemp(dir=programs.directory())))


@contextlib.contextmanager
def machine(memory_mib: int, *arguments: str) -> Iterator[Machine]:
    """A machine of preset split with `memory_mib` for guests; it is switched off at the end."""
    started = new()
    try:
        started.verb("boot", "--preset", "split", "--detach", "--machine-memory", f"{memory_mib}MiB", *arguments)
        yield started
    finally:
        with contextlib.suppress(RunFailed, subprocess.TimeoutExpired):
            started.verb("halt")
        with contextlib.suppress(RunFailed, ProcessLookupError):
            os.kill(started.process, signal.SIGKILL)
