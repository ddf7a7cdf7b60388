"""A hello-world guest from process start to exit: what `xenolith run` costs before a guest does anything."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import console, peer
from benchmarks.boot_control_domain import PROCESSOR
from benchmarks.common import Contender, Mark, Metric, Report, alternate
from benchmarks.programs import hello_kernel

_SECONDS = 30
_MESSAGE = "Hello, world"
_TO_MESSAGE = Metric("process start to message", "s")
_TO_EXIT = Metric("process start to exit", "s")


def run(runs: int) -> Report:
    """Runs guest/hello.S `runs` times (it has no peer)."""
    report = Report(
        "hello", "How long does a hello-world guest take, imports and all?", (_TO_MESSAGE, _TO_EXIT, PROCESSOR)
    )
    alternate(report, (Contender(peer.XENOLITH, _hello),), runs)
    taken = report.median(_TO_EXIT.name, peer.XENOLITH)
    report.marks.append(Mark("hello-world, seconds from process start to exit", taken, 0.4, at_least=False))
    return report


def _hello() -> Mapping[str, float]:
    command = peer.xenolith_command("run", str(hello_kernel()), "--memory", "16MiB")
    session = console.run(command, timeout=_SECONDS)
    to_message = session.when(_MESSAGE)
    if session.status != 0:
        raise console.RunFailed(f"printed its message, then ended with status {session.status}")
    return {_TO_MESSAGE.name: to_message, _TO_EXIT.name: session.seconds, PROCESSOR.name: session.processor_seconds}
