"""How fast a guest's system calls, processes, faults and arithmetic are, timed from outside the guest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks import console, peer
from benchmarks.common import Contender, Metric, Report, alternate
from benchmarks.console import Line, RunFailed
from benchmarks.programs import rates_ramdisk

_SECONDS = 300
_CONTROL_DOMAIN = f"{peer.XENOLITH} dom0"
_BEGIN = "RATES begin "
_END = "RATES end "

METRICS = (
    Metric("getpid", "/s", more_is_better=True),
    Metric("fork_exit", "/s", more_is_better=True),
    Metric("page_fault", "/s", more_is_better=True),
    Metric("pipe_round_trip", "/s", more_is_better=True),
    Metric("sha256_kib", "KiB/s", more_is_better=True),
)
NAMES = tuple(metric.name for metric in METRICS)


def run(runs: int) -> Report:
    """Runs guest/rates.c in Xenolith's control domain and guest, in the peer's control domain and in bare QEMU."""
    comparisons = ((_CONTROL_DOMAIN, peer.XEN), (peer.XENOLITH, peer.QEMU))
    report = Report("guest_rates", "How fast is work inside a guest?", METRICS, comparisons)
    contenders = (
        Contender(peer.XENOLITH, lambda: measured(peer.xenolith_linux("run", rates_ramdisk()))),
        Contender(_CONTROL_DOMAIN, lambda: measured(peer.xenolith_linux("boot", rates_ramdisk()))),
        Contender(peer.XEN, lambda: measured(peer.xen_command(rates_ramdisk())), is_peer=True),
        Contender(peer.QEMU, lambda: measured(peer.qemu_command(rates_ramdisk())), is_peer=True),
    )
    alternate(report, contenders, runs)
    return report


def measured(command: list[str]) -> Mapping[str, float]:
    """The rates of one run of the rates ramdisk."""
    session = console.run(command, timeout=_SECONDS)
    session.find("RATES done")
    return rates(session.lines)


def rates(lines: Sequence[Line], wanted: Iterable[str] = NAMES) -> dict[str, float]:
    """Operations per second by test, by the observer's clock, from a console that carries guest/rates.c's lines.

    Raises RunFailed if a test has no end, or if one of those `wanted` is not there.
    """
    found: dict[str, float] = {}
    running: tuple[str, int, float] | None = None
    for line in lines:
        if _BEGIN in line.text:
            name, count = line.text.partition(_BEGIN)[2].split()[:2]
            running = name, int(count), line.seconds
        elif _END in line.text and running is not None:
            name, count_done, started = running
            found[name] = count_done / (line.seconds - started)
            running = None
    absent = [name for name in wanted if name not in found]
    if absent:
        raise RunFailed(f"no rate printed for {', '.join(absent)}")
    return found
