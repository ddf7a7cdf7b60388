"""How fast a guest's system calls, processes, faults and arithmetic are on each engine, timed from outside the guest.

The same program on the host itself tells what of the processor's speed is left for arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks import console, peer
from benchmarks.boot_control_domain import best
from benchmarks.common import Contender, Mark, Metric, Report, alternate
from benchmarks.console import Line, RunFailed
from benchmarks.programs import rates_program, rates_ramdisk

_SECONDS = 300
_HOST = "the host itself"
_NATIVE_SHARE = 0.9
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
    """Runs guest/rates.c in Xenolith's guest and control domain, in the peer's, in bare QEMU, and natively."""
    ours = tuple(peer.on(engine, "boot") for engine in peer.ENGINES)
    comparisons = (*((mine, peer.XEN) for mine in ours), *((peer.on(engine), peer.QEMU) for engine in peer.ENGINES))
    report = Report("guest_rates", "How fast is work inside a guest?", METRICS, comparisons)
    contenders = (
        *(
            Contender(peer.on(engine, verb), lambda engine=engine, verb=verb: _xenolith(engine, verb))
            for verb in ("run", "boot")
            for engine in peer.ENGINES
        ),
        Contender(peer.XEN, lambda: measured(peer.xen_command(rates_ramdisk())), is_peer=True),
        Contender(peer.QEMU, lambda: measured(peer.qemu_command(rates_ramdisk())), is_peer=True),
        Contender(_HOST, lambda: measured([str(rates_program())]), is_peer=True),
    )
    alternate(report, contenders, runs)
    for metric in METRICS[:-1]:
        advantage = best(report, metric.name, ours, peer.XEN)
        report.marks.append(Mark(f"{metric.name}, times QEMU + Xen's rate", advantage, 1.0, at_least=True))
    share = report.advantage(METRICS[-1].name, peer.on("kvm"), _HOST)
    report.marks.append(Mark("arithmetic on KVM, share of the host's", share, _NATIVE_SHARE, at_least=True))
    return report


def _xenolith(engine: str, verb: str) -> Mapping[str, float]:
    return measured(peer.xenolith_linux(verb, rates_ramdisk(), "", *peer.engine_options(engine)))


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
