"""From the command that makes a guest in a running machine to its init: `xenolith create` against `xl create`."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import domu
from benchmarks.common import Contender, Mark, Metric, Report, alternate
from benchmarks.programs import READY

_TO_INIT = Metric("command to the guest's init", "s")
_LIMIT = 4


def run(runs: int) -> Report:
    """Makes a guest `runs` times on each side, with 256 MiB and one vCPU, in a machine that has just started."""
    question = "How long does a guest in a running machine take to its init?"
    report = Report("create_guest", question, (_TO_INIT,), ((domu.XENOLITH, domu.PEER),))
    alternate(report, (Contender(domu.XENOLITH, _xenolith), Contender(domu.PEER, _xl, is_peer=True)), runs)
    advantage = report.advantage(_TO_INIT.name, domu.XENOLITH, domu.PEER)
    report.marks.append(Mark("a guest's init, times faster than xl create", advantage, _LIMIT, at_least=True))
    return report


def _xenolith() -> Mapping[str, float]:
    with domu.running_machine() as host:
        return {_TO_INIT.name: domu.xenolith(host).when(READY)}


def _xl() -> Mapping[str, float]:
    session = domu.xl()
    return {_TO_INIT.name: session.when(READY) - session.when(domu.XL_CREATE)}
