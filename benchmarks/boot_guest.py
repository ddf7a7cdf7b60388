"""From process start to one guest's init: `xenolith run` against QEMU alone, the same compressed kernel."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import peer
from benchmarks.boot_control_domain import PROCESSOR, boot_times
from benchmarks.common import Contender, Mark, Metric, Report, alternate
from benchmarks.programs import ready_ramdisk

_TO_INIT = Metric("process start to init", "s")
_TO_EXIT = Metric("process start to power-off", "s")


def run(runs: int) -> Report:
    """Boots both sides `runs` times in turn, one vCPU."""
    question = "How long from process start to one guest's init?"
    report = Report("boot_guest", question, (_TO_INIT, _TO_EXIT, PROCESSOR), ((peer.XENOLITH, peer.QEMU),))
    contenders = (Contender(peer.XENOLITH, _xenolith), Contender(peer.QEMU, _qemu, is_peer=True))
    alternate(report, contenders, runs)
    advantage = report.advantage(_TO_INIT.name, peer.XENOLITH, peer.QEMU)
    report.marks.append(Mark("a guest's init, times faster than QEMU alone", advantage, 1.0, at_least=True))
    return report


def _xenolith() -> Mapping[str, float]:
    return boot_times(peer.xenolith_linux("run", ready_ramdisk()))


def _qemu() -> Mapping[str, float]:
    return boot_times(peer.qemu_command(ready_ramdisk()))
