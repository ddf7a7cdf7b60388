"""Debian's own dom0 with Debian's own xl, blkback and netback: under Xenolith, and under QEMU with Xen."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import devices, domu
from benchmarks.common import Contender, Mark, Metric, Report, alternate
from benchmarks.console import RunFailed, Session
from benchmarks.programs import READY

_XENOLITH = "xenolith, Debian's dom0"
_READY = "CONTROL-READY"
_TO_TOOLS = Metric("process start to xl being ready", "s")
_TO_INIT = Metric("xl create to the guest's init", "s")
_LIST = Metric("xl list", "s")
_WRITES = Metric("xenstore writes", "per s", more_is_better=True)
_LISTS = 5
_WRITTEN = 500


def run(runs: int) -> Report:
    """Boots both sides `runs` times in turn: one ramdisk, in which xl makes a guest that measures its devices."""
    question = "How fast are Debian's tools and backends in Debian's dom0?"
    metrics = (_TO_TOOLS, _TO_INIT, _LIST, _WRITES, *devices.METRICS.values(), devices.ROUND_TRIP)
    report = Report("control_tools", question, metrics, ((_XENOLITH, domu.PEER),))
    contenders = (
        Contender(_XENOLITH, lambda: _figures(domu.xenolith_xl(domu.MEASURE_TOOLS))),
        Contender(domu.PEER, lambda: _figures(domu.xl(domu.MEASURE_TOOLS)), is_peer=True),
    )
    alternate(report, contenders, runs)
    for metric in report.metrics:
        advantage = report.advantage(metric.name, _XENOLITH, domu.PEER)
        report.marks.append(Mark(f"{metric.name}, times better", advantage, 1, at_least=True))
    return report


def _figures(session: Session) -> Mapping[str, float]:
    spent = devices.durations(session)
    ready, created = session.when(_READY), session.when(domu.XL_CREATE)
    try:
        own = {_LIST.name: spent["five lists"] / _LISTS, _WRITES.name: _WRITTEN / spent["500 writes"]}
    except KeyError as missing:
        raise RunFailed(f"{missing} did not end") from None
    return {
        _TO_TOOLS.name: ready,
        _TO_INIT.name: session.when(READY) - created,
        **own,
        **devices.parse(session),
    }
