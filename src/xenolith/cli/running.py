"""What the verbs that run guests share: their options, the terminal, the log, and telling how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from xenolith.errors import UserError

if TYPE_CHECKING:
    from xenolith.cpu.engine import Engine
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.observe.report import Symbols
    from xenolith.toolstack.config import DomainConfig, MachineConfig
    from xenolith.toolstack.places import Place
    from xenolith.toolstack.session import Outcome, Session

LEAVE_KEY: Final = b"\x1d"
"""Ctrl-]"""
_F = TypeVar("_F", bound=Callable[..., Any])

_OPTIONS: Final = (
    click.option("--ramdisk", type=click.Path(path_type=Path), metavar="R", help="The initramfs; if none, it is made."),
    click.option("--cmdline", metavar="C", help="More for the kernel's command line."),
    click.option("--memory", metavar="SIZE", help="Memory of the domain, as in 512MiB."),
    click.option("--vcpus", type=int, metavar="N", help="Virtual processors of the domain."),
    click.option("--exec", "shell_command", metavar="CMD", help="Run this shell command in the guest and power off."),
    click.option("--timeout", type=float, metavar="S", help="End after this many seconds, with exit status 6."),
    click.option("--clock", type=click.Choice(["host", "virtual"]), help="Time that passes, or time that is worked."),
    click.option("--engine", type=click.Choice(["auto", "unicorn", "kvm"]), help="What executes the guests' code."),
    click.option(
        "--cpu",
        type=click.Choice(["host", "x86-64-v4", "x86-64-v3", "x86-64-v2"]),
        help="How much of the processor guests are shown.",
    ),
    click.option(
        "--xen-version",
        type=click.Choice(["4.17", "4.18"]),
        help="The release of Xen that domains are told, and whose toolstacks are served.",
    ),
    click.option("--log", type=click.Path(path_type=Path), metavar="FILE", help="Write what happens, one JSON a line."),
    click.option(
        "--symbols", type=click.Path(path_type=Path), metavar="FILE", help="System.map or vmlinux for reports."
    ),
    click.option("--json", "as_json", is_flag=True, help="Tell how it ended as JSON; the console goes to stderr."),
)


def run_options(function: _F) -> _F:
    """The options that `boot` and `run` have in common."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def override(
    domain: DomainConfig,
    ramdisk: Path | None,
    cmdline: str | None,
    memory: str | None,
    vcpus: int | None,
    shell_command: str | None,
) -> DomainConfig:
    """The domain with what was given on the command line, which wins over the machine description."""
    from dataclasses import replace

    from xenolith.toolstack.values import check_vcpus, parse_size

    given: dict[str, Any] = {
        "ramdisk": ramdisk,
        "cmdline": cmdline,
        "memory": parse_size(memory, "--memory") if memory is not None else None,
        "vcpus": check_vcpus(vcpus) if vcpus is not None else None,
        "command": shell_command,
    }
    return replace(domain, **{name: value for name, value in given.items() if value is not None})


def run_machine(
    config: MachineConfig,
    timeout: float | None,
    log: Path | None,
    symbols: Path | None,
    as_json: bool,
    place: Place | None = None,
    up: Callable[[], None] = lambda: None,
) -> int:
    """Run a machine with this terminal as the console of its first guest. Returns the exit status.

    With a `place` it takes commands there; `up` is called when it does.
    """
    from xenolith.cli.signals import end, heard
    from xenolith.cli.terminal import progress_bar
    from xenolith.observe.report import Symbols
    from xenolith.toolstack.session import OUR_BUG, Session

    output = sys.stderr if as_json else sys.stdout
    sys.stdout.flush()
    if timeout is not None and not 0 < timeout <= threading.TIMEOUT_MAX:
        raise UserError(f"a time limit of {timeout:g} s is impossible", "give --timeout a number of seconds above 0")
    names = Symbols.read(symbols) if symbols is not None else Symbols()
    with progress_bar() as progress:
        session = Session(config, _writer(output.fileno()), progress, place)
    warn_of_engine(session.machine.engine, config.cpu)
    signals: list[int] = []

    def leave(number: int) -> None:
        signals.append(number)
        session.leave("")

    try:
        # An exception out of a signal's handler could be lost in a callback of the engine.
        with _event_log(session.machine.hv, log), _keyboard(session), heard(leave):
            outcome = session.run(timeout, up)
        if signals:
            end(signals[0])
    except (UserError, MemoryError):
        raise
    except Exception:
        _report_bug(session)
        return OUR_BUG
    finally:
        session.close()
    _tell(outcome, names, as_json)
    return outcome.status


def warn_of_engine(engine: Engine, cpu: str = "host") -> None:
    """Say on standard error what this engine cannot be relied on for."""
    if not engine.preemptible:
        click.echo(
            "xenolith: warning: with this build of Unicorn a guest that spins cannot be stopped;"
            " unicorn==2.1.4 from PyPI can do it",
            err=True,
        )

    if cpu != "host" and "cpuid" in engine.lacks:
        click.echo(
            f"xenolith: warning: --cpu {cpu} is for kernels only: on this host's KVM programs see the host's processor",
            err=True,
        )


def _writer(fd: int) -> Callable[[bytes], None]:
    """Writes to a descriptor; once nobody reads there any more, output is dropped and the guest goes on."""
    gone = False

    def write(data: bytes) -> None:
        nonlocal gone
        while data and not gone:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:
                import select

                select.select([], [fd], [], 1.0)
            except OSError:
                gone = True

    return write


@contextlib.contextmanager
def _event_log(hv: Hypervisor, path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    try:
        file = path.open("w", buffering=1)
    except OSError as error:
        raise UserError(f"the log {path} cannot be written: {error.strerror}", "name a file that can be") from None

    def note(kind: str, data: dict[str, Any]) -> None:
        print(json.dumps({"ns": hv.now_ns(), "event": kind, **data}), file=file)

    with file:
        hv.subscribers.append(note)
        try:
            yield
        finally:
            # The machine is taken apart after this, which makes events of its own.
            hv.subscribers.remove(note)


@contextlib.contextmanager
def _keyboard(session: Session) -> Iterator[None]:
    """Keys go to the guest, one by one, until Ctrl-]; the terminal is as before afterwards."""
    from xenolith.toolstack.host import HostLoop

    host = session.machine.host

    def receive(data: bytes) -> None:
        before, found, _ = data.partition(LEAVE_KEY)
        if before:
            session.type(before)
        if found or not data:
            session.leave("the console was left, and the machine switched off")

    with contextlib.ExitStack() as stack:
        if isinstance(host, HostLoop):
            fd = stack.enter_context(raw_terminal())
            if fd is not None:
                host.watch(fd, receive)
        yield


@contextlib.contextmanager
def raw_terminal() -> Iterator[int | None]:
    """Standard input, if it is a terminal, as a descriptor from which keys come one by one; None otherwise.

    Output keeps its usual processing: our own messages go to the same terminal. It is as before afterwards.
    """
    fd = sys.stdin.fileno() if sys.stdin and not sys.stdin.closed else -1
    if fd < 0 or not os.isatty(fd):
        yield None
        return
    import termios
    import tty

    saved = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        mode = termios.tcgetattr(fd)
        mode[1] = saved[1]
        termios.tcsetattr(fd, termios.TCSADRAIN, mode)
        yield fd
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, saved)


def _tell(outcome: Outcome, names: Symbols, as_json: bool) -> None:
    from xenolith.observe.report import as_dict, render

    if as_json:
        print(
            json.dumps(
                {
                    "status": outcome.status,
                    "seconds": round(outcome.seconds, 3),
                    "message": outcome.message,
                    "shutdowns": outcome.shutdowns,
                    "crashes": [as_dict(report) for report in outcome.reports],
                    "bugs": outcome.bugs,
                }
            )
        )
        return
    for bug in outcome.bugs:
        click.echo(f"xenolith: this is a bug of Xenolith; please report what follows\n{bug}", err=True)
    for report in outcome.reports:
        click.echo(render(report, names), err=True)
    if outcome.message:
        click.echo(f"xenolith: {outcome.message}", err=True)


def _report_bug(session: Session) -> None:
    import traceback

    from xenolith.observe.report import Symbols, render

    hv = session.machine.hv
    click.echo("xenolith: this is a bug of Xenolith; please report what follows", err=True)
    traceback.print_exc()
    current = hv.traps.current
    if current is not None:
        from xenolith.hypervisor.crash import describe

        with contextlib.suppress(Exception):
            click.echo(render(describe(hv, current, "an internal error"), Symbols()), err=True)
