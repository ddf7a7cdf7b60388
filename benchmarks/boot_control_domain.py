"""From power-on to the control domain's init: `xenolith boot` on each engine against QEMU with Xen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from benchmarks import console, peer
from benchmarks.common import Contender, Mark, Metric, Report, alternate
from benchmarks.programs import READY, ready_ramdisk

BOOT_SECONDS = 180
_LIMIT = 3
_TO_INIT = Metric("process start to init", "s")
_TO_EXIT = Metric("process start to power-off", "s")
PROCESSOR = Metric("processor time until then", "s")


def run(runs: int) -> Report:
    """Boots both sides `runs` times in turn, one vCPU, the same compressed kernel and ramdisk."""
    question = "How long from power-on to dom0's init?"
    ours = tuple(peer.on(engine) for engine in peer.ENGINES)
    pairs = tuple((mine, peer.XEN) for mine in ours)
    report = Report("boot_control_domain", question, (_TO_INIT, _TO_EXIT, PROCESSOR), pairs)
    contenders = (
        *(Contender(peer.on(engine), lambda engine=engine: _xenolith(engine)) for engine in peer.ENGINES),
        Contender(peer.XEN, lambda: boot_times(peer.xen_command(ready_ramdisk())), is_peer=True),
    )
    alternate(report, contenders, runs)
    advantage = best(report, _TO_INIT.name, ours, peer.XEN)
    report.marks.append(Mark("dom0's init, times faster than QEMU + Xen", advantage, _LIMIT, at_least=True))
    report.notes.append("QEMU is given Xen already unpacked, because its loader cannot read xen.gz")
    return report


def best(report: Report, metric: str, ours: Iterable[str], theirs: str) -> float | None:
    """The advantage over `theirs` of whichever of `ours` has the greatest; None if none could be measured."""
    found = [advantage for mine in ours if (advantage := report.advantage(metric, mine, theirs)) is not None]
    return max(found, default=None)


def boot_times(command: list[str]) -> Mapping[str, float]:
    """Seconds to init and to the end of one boot of the ready ramdisk."""
    session = console.run(command, timeout=BOOT_SECONDS)
    to_init = session.when(READY)
    if session.status != 0:
        raise console.RunFailed(f"reached init after {to_init:.1f} s, then ended with status {session.status}")
    return {_TO_INIT.name: to_init, _TO_EXIT.name: session.seconds, PROCESSOR.name: session.processor_seconds}


def _xenolith(engine: str) -> Mapping[str, float]:
    return boot_times(peer.xenolith_linux("boot", ready_ramdisk(), "", *peer.engine_options(engine)))
