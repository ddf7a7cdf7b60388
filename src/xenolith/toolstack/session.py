"""One run of a machine from beginning to end: what its domains start with, their consoles, and how it ended."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from xenolith.hypervisor.domain import Capability, Domain
from xenolith.loader.exit_marker import EXIT_MARKER, exit_status
from xenolith.toolstack.config import DomainConfig, MachineConfig
from xenolith.toolstack.guest_config import Action
from xenolith.toolstack.host import Stalled
from xenolith.toolstack.images import Progress, prepare
from xenolith.toolstack.machine import Boot, Machine, crashed

if TYPE_CHECKING:
    from xenolith.hypervisor.crash import CrashReport
    from xenolith.toolstack.places import Place

ENDED: Final = 0
GUEST_FAILED: Final = 3
GUEST_CRASHED: Final = 4
OUR_BUG: Final = 5
TIME_LIMIT: Final = 6
_NAMES: Final = {0: "poweroff", 1: "reboot", 2: "suspend", 3: "crash", 4: "watchdog", 5: "soft reset"}
_LINE_LIMIT: Final = 4096


@dataclass(slots=True)
class Outcome:
    """How a run ended: `status` is the exit status of the verb, `reports` the crashes, `bugs` our own tracebacks."""

    status: int
    seconds: float
    message: str = ""
    shutdowns: dict[str, str] = field(default_factory=dict)
    reports: list[CrashReport] = field(default_factory=list)
    bugs: list[str] = field(default_factory=list)


def _reason(code: int) -> str:
    return _NAMES.get(code, f"number {code}, which Xen has no name for")


def _once(domain: DomainConfig) -> DomainConfig:
    """A domain that stays as it is when it has stopped."""
    return replace(
        domain,
        on_poweroff=Action.PRESERVE,
        on_reboot=Action.PRESERVE,
        on_crash=Action.PRESERVE,
        on_watchdog=Action.PRESERVE,
        on_soft_reset=Action.PRESERVE,
    )


class _Lines:
    """Watches a console for the line in which init reports a command's exit status."""

    def __init__(self) -> None:
        self._rest = b""
        self.status: int | None = None

    def feed(self, data: bytes) -> None:
        self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        self._rest = self._rest[-_LINE_LIMIT:]
        for line in lines:
            if EXIT_MARKER.encode() in line:
                found = exit_status(line.decode("latin-1"))
                self.status = self.status if found is None else found


def _models(config: MachineConfig, domain: DomainConfig) -> list[str]:
    """The models of those devices of the machine that a domain may have to drive."""
    drives = Capability.HARDWARE in domain.capabilities
    return sorted({device.model for device in config.devices}) if drives else []


class Session:
    """`output(data)` takes the console of the first guest. With a `place` the machine takes commands there, and goes on
    until it is switched off; without one it ends with its guests, none of which is started again."""

    def __init__(
        self,
        config: MachineConfig,
        output: Callable[[bytes], None],
        progress: Progress,
        place: Place | None = None,
    ) -> None:
        if place is None:
            config.domains = [domain if domain.services else _once(domain) for domain in config.domains]
        self._config = config
        self._place = place
        self._first = next((domain for domain in config.domains if not domain.services), None)
        self._output = output
        self._lines = _Lines()
        self._stop: str | None = None
        self._timed_out = False
        self.boots = {
            domain.name: Boot(domain, prepare(domain, progress, _models(config, domain)))
            for domain in config.domains
            if not domain.services
        }
        self.machine = Machine(config, self._console_of, place.path if place is not None else None)
        self.machine.log = self._log
        self.domains: list[Domain] = []

    def _console_of(self, name: str) -> Callable[[bytes], None]:
        if self._first is None or name != self._first.name:
            return lambda data: None
        return self._first_console

    def _first_console(self, data: bytes) -> None:
        self._output(data)
        self._lines.feed(data)

    def type(self, data: bytes) -> None:
        """Keys for the first guest's console."""
        for domain in self.domains:
            if self._first is not None and domain.name == self._first.name:
                self.machine.type(domain, data)

    def _log(self, text: str) -> None:
        if self._place is not None:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def leave(self, message: str) -> None:
        """End the run, from any thread or a signal's handler; `message` says why, if that is to be told."""
        self._stop = message

    def run(self, timeout: float | None = None, up: Callable[[], None] = lambda: None) -> Outcome:
        """Start the domains and run until all have ended, or `timeout` seconds have passed.

        `up` is called when the machine takes commands, if it does.
        """
        started = time.monotonic()
        timer = self._start_timer(timeout)
        message = ""
        try:
            self.domains = self.machine.power_on(self.boots)
            self.boots = {}
            if self._place is None:
                self.machine.run(lambda: self._stop is not None)
            else:
                self._serve(self._place, up)
        except Stalled:
            message = "every domain waits, and with a virtual clock nothing can come from outside"
        finally:
            if timer is not None:
                timer.cancel()
        return self._outcome(time.monotonic() - started, message)

    def _serve(self, place: Place, up: Callable[[], None]) -> None:
        from xenolith.toolstack.server import Server
        from xenolith.toolstack.verbs import Verbs

        machine = self.machine
        server = Server(place.control, machine.host.post, machine.spawn, Verbs(machine, place.name).find)
        try:
            up()
            machine.hv.run(lambda: self._stop is not None)
        finally:
            server.close()

    def _start_timer(self, timeout: float | None) -> threading.Timer | None:
        host = self.machine.host
        if timeout is None:
            return None

        def expire() -> None:
            self._timed_out = True
            self._stop = f"the time limit of {timeout:g} s is over"
            host.post(lambda: None)

        timer = threading.Timer(timeout, expire)
        timer.daemon = True
        timer.start()
        return timer

    def _outcome(self, seconds: float, message: str) -> Outcome:
        reports = [domain.crash_report for domain in self.domains if domain.crash_report is not None]
        shutdowns = {
            domain.name: _reason(domain.shutdown_code) for domain in self.domains if domain.shutdown_code is not None
        }
        bugs = [domain.bug for domain in self.domains if domain.bug]
        status = self._status(message)
        if status == GUEST_FAILED and self._is_silent():
            message = "the guest ended without telling the command's exit status"
        message = message or self._stop or self._unreported_crash()
        return Outcome(status, seconds, message, shutdowns, reports, bugs)

    def _status(self, message: str) -> int:
        if any(domain.bug for domain in self.domains):
            return OUR_BUG
        if self._timed_out:
            return TIME_LIMIT
        if message or any(crashed(domain) for domain in self.domains):
            return GUEST_CRASHED
        return GUEST_FAILED if self._lines.status or self._is_silent() else ENDED

    def _unreported_crash(self) -> str:
        """What there is to say of a guest that ended itself as crashed, so that the hypervisor has no report of it."""
        for domain in self.domains:
            if crashed(domain) and domain.crash_report is None and domain.shutdown_code is not None:
                return f"{domain.name} shut itself down and gave as its reason: {_reason(domain.shutdown_code)}"
        return ""

    def _is_silent(self) -> bool:
        """Whether the first domain was to run a command, and ended by itself without telling how that went."""
        first = self._first
        return first is not None and first.command is not None and self._lines.status is None and self._stop is None

    def close(self) -> None:
        self.machine.close()
