"""From power-on to the control domain's init: `xenolith boot` against QEMU with Xen."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import console, peer
from benchmarks.common import Contender, Mark, Metric, Report, alternate
from benchmarks.programs import READY, ready_ramdisk

BOOT_SECONDS = 180
_TO_INIT = Metric("process start to init", "s")
_TO_EXIT = Metric("process start to power-off", "s")
PROCESSOR = Metric("processor time until then", "s")


def run(runs: int) -> Report:
    """Boots both sides `runs` times in turn, one vCPU, the same compressed kernel and ramdisk."""
    question = "How long from power-on to dom0's init?"
    report = Report("boot_control_domain", question, (_TO_INIT, _TO_EXIT, PROCESSOR), ((peer.XENOLITH, peer.XEN),))
    contenders = (Contender(peer.XENOLITH, _xenolith), Contender(peer.XEN, _xen, is_peer=True))
    alternate(report, contenders, runs)
    advantage = report.advantage(_TO_INIT.name, peer.XENOLITH, peer.XEN)
    report.marks.append(Mark("dom0's init, times faster than QEMU + Xen", advantage, 1.5, at_least=True))
    report.notes.append("QEMU is given Xen already unpacked, because its loader cannot read xen.gz")
    return report


def boot_times(command: list[str]) -> Mapping[str, float]:
    """Seconds to init and to the end of one boot of the ready ramdisk."""
    session = console.run(command, timeout=BOOT_SECONDS)
    to_init = session.when(READY)
    if session.status != 0:
        raise console.RunFailed(f"reached init after {to_init:.1f} s, then ended with status {session.status}")
    return {_TO_INIT.name: to_init, _TO_EXIT.name: session.seconds, PROCESSOR.name: session.processor_seconds}


def _xenolith() -> Mapping[str, float]:
    return boot_times(peer.xenolith_linux("boot", ready_ramdisk()))


def _xen() -> Mapping[str, float]:
    return boot_times(peer.xen_command(ready_ramdisk()))
