"""Disks and networks of a guest: our native domains against blkback and netback in the peer's Linux control domain."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import domu
from benchmarks.common import Contender, Mark, Metric, Report, alternate
from benchmarks.console import RunFailed, Session

DISK_AMOUNTS = {"read 1 MiB": 64.0, "read 4 KiB": 1000 / 256, "write 1 MiB": 64.0, "write 4 KiB": 1000 / 256}
"""MiB, as guest/measure.sh has them."""
_AMOUNTS = {**DISK_AMOUNTS, "fetch": 24.0}
_NAMES = {
    "read 1 MiB": "disk, reading 1 MiB at once",
    "read 4 KiB": "disk, reading 4 KiB at once",
    "write 1 MiB": "disk, writing 1 MiB at once",
    "write 4 KiB": "disk, writing 4 KiB at once",
    "fetch": "network, fetching by HTTP",
}
METRICS = {part: Metric(name, "MiB/s", more_is_better=True) for part, name in _NAMES.items()}
READ_4K = METRICS["read 4 KiB"]
ROUND_TRIP = Metric("network, 100 round trips", "s")


def run(runs: int) -> Report:
    """Has a guest measure its devices `runs` times on each side; an adaptive ping, and direct I/O on the disk."""
    question = "How fast are a guest's disk and network?"
    report = Report("devices", question, (*METRICS.values(), ROUND_TRIP), ((domu.XENOLITH, domu.PEER),))
    alternate(report, (Contender(domu.XENOLITH, _xenolith), Contender(domu.PEER, _xl, is_peer=True)), runs)
    for metric in report.metrics:
        advantage = report.advantage(metric.name, domu.XENOLITH, domu.PEER)
        report.marks.append(Mark(f"{metric.name}, times better", advantage, 1, at_least=True))
    report.notes.append("the other end of the network is a second guest here, and the control domain in the peer")
    return report


def durations(session: Session) -> dict[str, float]:
    """The seconds of each thing that a shell script measured, timed from outside; raises RunFailed if one failed."""
    seconds, begun = dict[str, float](), ("", 0.0)
    for line in session.lines:
        words = line.text.strip()
        if words.startswith("BEGIN "):
            begun = words.removeprefix("BEGIN "), line.seconds
        elif words.startswith("END ") and begun[0]:
            if words != "END 0":
                raise RunFailed(f"'{begun[0]}' ended with status {words.removeprefix('END ')}")
            seconds[begun[0]] = line.seconds - begun[1]
    return seconds


def parse(session: Session) -> Mapping[str, float]:
    """The figures of a guest that ran guest/measure.sh; raises RunFailed if one is missing."""
    seconds = durations(session)
    if missing := {*_AMOUNTS, "round trips"} - seconds.keys():
        session.find(f"BEGIN {min(missing)}")
        raise RunFailed(f"'{min(missing)}' did not end")
    figures = {metric.name: _AMOUNTS[part] / seconds[part] for part, metric in METRICS.items()}
    return {**figures, ROUND_TRIP.name: seconds["round trips"]}


def _xenolith() -> Mapping[str, float]:
    with domu.running_machine() as host:
        return parse(domu.xenolith_devices(host))


def _xl() -> Mapping[str, float]:
    return parse(domu.xl(domu.MEASURE_DEVICES))
