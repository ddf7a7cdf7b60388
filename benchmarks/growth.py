"""How boot time and memory grow: `python -m benchmarks.growth` measures, and writes data and plots to docs/plots/."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import console, host, many, peer, programs
from benchmarks.common import Unavailable
from benchmarks.memory import Watch
from benchmarks.plot import Panel, svg
from benchmarks.programs import READY, ready_ramdisk

_PLOTS = Path(__file__).parent.parent / "docs" / "plots"
_SECONDS = 300
_KIB_MIB = 1024
_BOOT = "time to init, s"


@dataclass(frozen=True)
class Sweep:
    """One thing that grows: its values, and a run with one of them, whose results are (seconds, MiB of our own)."""

    name: str
    label: str
    time: str
    values: Sequence[int]
    measure: Callable[[int], tuple[float, float]]


def _boot(memory_mib: int, vcpus: int) -> tuple[float, float]:
    watch = Watch(memory_mib * _KIB_MIB)
    kernel, size = str(peer.files().kernel), ("--memory", f"{memory_mib}MiB", "--vcpus", str(vcpus))
    command = peer.xenolith_command("run", kernel, "--ramdisk", str(ready_ramdisk()), *size)
    session = console.run(command, timeout=_SECONDS, watch=watch)
    return session.when(READY), watch.above_kib / _KIB_MIB


def _beside_another(filled: Callable[[int], Mapping[str, float]], guests: int) -> tuple[float, float]:
    """The figures of `many` are for guests that are made while one is there already."""
    found = filled(guests)
    return found[many.ALL.name] * guests, found[many.MEMORY.name] * guests


SWEEPS = (
    Sweep("memory", "memory of the guest, MiB", _BOOT, (128, 512, 1024, 2048, 4096), lambda mib: _boot(mib, 1)),
    Sweep("vcpus", "vCPUs of the guest", _BOOT, (1, 2, 4, 8), lambda vcpus: _boot(512, vcpus)),
    Sweep(
        "linux-guests",
        "Linux guests that boot together, beside one",
        "time until all are up, s",
        (1, 5, 10, 20),
        lambda guests: _beside_another(many.linux_guests, guests),
    ),
    Sweep(
        "tiny-guests",
        "tiny guests, beside one",
        "time until all are there, s",
        (1, 50, 100, 150, 200),
        lambda guests: _beside_another(many.tiny_guests, guests),
    ),
)


def main(arguments: list[str] | None = None) -> int:
    """Measures the sweeps and plots medians; 1 if something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *(sweep.name for sweep in SWEEPS)])
    parser.add_argument("--runs", type=int, default=3, help="runs with each value (%(default)s)")
    parser.add_argument("--output", type=Path, default=_PLOTS, help="the directory of data and plots (%(default)s)")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        for sweep in SWEEPS:
            if sweep.name in (options.names or [each.name for each in SWEEPS]):
                _run(sweep, options.runs, options.output)
    except (Unavailable, console.RunFailed) as reason:
        print(f"not measured: {reason}", file=sys.stderr)
        return 1
    finally:
        programs.remove()
    return 0


def _run(sweep: Sweep, runs: int, directory: Path) -> None:
    samples: dict[int, list[tuple[float, float]]] = {value: [] for value in sweep.values}
    for turn in range(runs):
        for value in sweep.values:
            print(f"  {sweep.name} {value}, run {turn + 1} of {runs}", file=sys.stderr, flush=True)
            samples[value].append(sweep.measure(value))
    document = {"host": host.describe(), "x": sweep.label, "samples": samples}
    (directory / f"{sweep.name}.json").write_text(json.dumps(document, indent=1) + "\n")
    medians = [
        [(value, statistics.median(sample[part] for sample in taken)) for value, taken in samples.items()]
        for part in (0, 1)
    ]
    titles = (sweep.time, "our own memory, MiB")
    panels = [Panel(title, sweep.label, points) for title, points in zip(titles, medians, strict=True)]
    (directory / f"{sweep.name}.svg").write_text(svg(panels))


if __name__ == "__main__":
    sys.exit(main())
