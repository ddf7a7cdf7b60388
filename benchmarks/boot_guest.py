"""From process start to one guest's init: `xenolith run` on each engine against QEMU alone.

QEMU is given the same compressed kernel, and in other runs the kernel that is in it, which it need not unpack.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import peer
from benchmarks.boot_control_domain import PROCESSOR, best, boot_times
from benchmarks.common import Contender, Mark, Metric, Report, alternate
from benchmarks.programs import ready_ramdisk

_TO_INIT = Metric("process start to init", "s")
_TO_EXIT = Metric("process start to power-off", "s")
_PEERS = (peer.QEMU, peer.QEMU_UNPACKED)


def run(runs: int) -> Report:
    """Boots all sides `runs` times in turn, one vCPU."""
    question = "How long from process start to one guest's init?"
    ours = tuple(peer.on(engine) for engine in peer.ENGINES)
    pairs = tuple((mine, other) for other in _PEERS for mine in ours)
    report = Report("boot_guest", question, (_TO_INIT, _TO_EXIT, PROCESSOR), pairs)
    contenders = (
        *(Contender(peer.on(engine), lambda engine=engine: _xenolith(engine)) for engine in peer.ENGINES),
        Contender(peer.QEMU, lambda: boot_times(peer.qemu_command(ready_ramdisk())), is_peer=True),
        Contender(peer.QEMU_UNPACKED, _qemu_unpacked, is_peer=True),
    )
    alternate(report, contenders, runs)
    for other in _PEERS:
        advantage = best(report, _TO_INIT.name, ours, other)
        report.marks.append(Mark(f"a guest's init, times faster than {other}", advantage, 1.0, at_least=True))
    return report


def _xenolith(engine: str) -> Mapping[str, float]:
    return boot_times(peer.xenolith_linux("run", ready_ramdisk(), "", *peer.engine_options(engine)))


def _qemu_unpacked() -> Mapping[str, float]:
    return boot_times(peer.qemu_command(ready_ramdisk(), kernel=peer.unpacked_kernel()))
