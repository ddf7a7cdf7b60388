"""Where a boot's time goes: `python -m benchmarks.profile_boot [boot|run]` splits it by layer and by module.

Linux's sampler (`perf`) tells Python, the engine's own code and translated guest code apart. It cannot see which Python
function runs, so a second boot under Python's own profiler divides the Python part among the modules.
"""

from __future__ import annotations

import argparse
import marshal
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import console, peer, programs
from benchmarks.boot_control_domain import BOOT_SECONDS
from benchmarks.common import Mark, Unavailable, mark_line, table
from benchmarks.programs import READY, ready_ramdisk

PYTHON = "Python"
BRIDGE = "calls between Python and the engine"
ENGINE = "the engine's own code"
GUEST = "translated guest code"
KERNEL = "host kernel"

_SAMPLES_PER_SECOND = 499
_SHOWN = 15
_PYTHON_SHARE = 0.2
_PROFILED_SLOWDOWN = 5

_LAYERS = (
    (re.compile(r"\[kernel|\[guest\.kernel"), KERNEL),
    (re.compile(r"\[JIT\]|//anon|anon_inode|\[unknown\]"), GUEST),
    (re.compile(r"libunicorn"), ENGINE),
    (re.compile(r"_ctypes|_cffi|libffi"), BRIDGE),
    (re.compile(r"libpython|^python"), PYTHON),
)
"""A sample's layer by the object that holds its address; what no pattern matches is a library of its own name."""

_ENGINE_ENTRY = re.compile(r"xenolith\.cpu\.\w+:run$")
"""Functions whose own time, to Python's profiler, is the time that the engine ran."""


@dataclass(frozen=True)
class Sampled:
    """Samples of one boot by layer, and by layer and symbol, with its wall time in seconds."""

    seconds: float
    layers: Counter[str]
    symbols: Counter[tuple[str, str]]

    @property
    def python_share(self) -> float:
        """The part of the samples, 0 to 1, that fell into Python and into calls between it and the engine."""
        return (self.layers[PYTHON] + self.layers[BRIDGE]) / max(1, self.layers.total())


def layer_of(shared_object: str) -> str:
    """The layer that an address in `shared_object`, as perf names it, belongs to."""
    for pattern, layer in _LAYERS:
        if pattern.search(shared_object):
            return layer
    return f"library {shared_object}"


def parse_samples(listing: str) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Samples by layer, and by layer and symbol, from `perf report -F sample,dso,sym -t '|'`."""
    layers: Counter[str] = Counter()
    symbols: Counter[tuple[str, str]] = Counter()
    for line in listing.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 3 or not fields[0].isdigit():
            continue
        layer = layer_of(fields[1])
        layers[layer] += int(fields[0])
        if layer != GUEST:
            symbols[layer, fields[2].partition("] ")[2]] += int(fields[0])
    return layers, symbols


def module_of(path: str) -> str:
    """The module that a source file is, dotted from its package; what is not Xenolith's is named by its origin."""
    if path in ("~", ""):
        return "(built in)"
    if path.startswith("<"):
        return "(imports)" if "importlib" in path else "(generated)"
    parts = Path(path).with_suffix("").parts
    if "xenolith" in parts and "site-packages" not in parts[parts.index("xenolith") :]:
        start = len(parts) - 1 - parts[::-1].index("xenolith")
        return ".".join(parts[start:]).removesuffix(".__init__")
    if "site-packages" in parts:
        return f"({parts[parts.index('site-packages') + 1]})"
    return "(standard library)"


def module_seconds(functions: Iterable[tuple[str, str, float]]) -> dict[str, float]:
    """Own seconds by module, from (file, function, own seconds), without the time that the engine ran."""
    seconds: dict[str, float] = {}
    for path, function, own in functions:
        module = module_of(path)
        if _ENGINE_ENTRY.match(f"{module}:{function}"):
            continue
        seconds[module] = seconds.get(module, 0.0) + own
    return seconds


def sample(command: list[str]) -> Sampled:
    """Boots once under perf; raises Unavailable where perf cannot be used."""
    if shutil.which("perf") is None:
        raise Unavailable("perf is not installed; `apt-get install linux-perf` brings it")
    recorded = programs.directory() / "perf.data"
    record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(_SAMPLES_PER_SECOND), "-o", str(recorded), "--"]
    session = console.run([*record, *command], timeout=2 * BOOT_SECONDS)
    session.find(READY)
    report = ["perf", "report", "-i", str(recorded), "--stdio", "-F", "sample,dso,sym", "-t", "|"]
    listing = subprocess.run(report, capture_output=True, text=True, check=False)
    layers, symbols = parse_samples(listing.stdout)
    if not layers:
        raise Unavailable(f"perf recorded nothing: {listing.stderr.strip().rpartition(chr(10))[2]}")
    return Sampled(session.seconds, layers, symbols)


def python_modules(command: list[str]) -> dict[str, float]:
    """Boots once under Python's profiler; own seconds by module, profiler's slowdown included."""
    recorded = programs.directory() / "python.profile"
    profiler = [sys.executable, "-m", "cProfile", "-o", str(recorded)]
    session = console.run([*profiler, *command], timeout=_PROFILED_SLOWDOWN * BOOT_SECONDS)
    session.find(READY)
    # The file that cProfile writes is its table, marshalled: (file, line, function) to (…, …, own seconds, …, …).
    profile = marshal.loads(recorded.read_bytes())
    return module_seconds((path, function, own[2]) for (path, _, function), own in profile.items())


def layers_text(sampled: Sampled) -> str:
    """The layers and the busiest symbols as tables, in seconds of processor time and shares of it."""
    total = sampled.layers.total()
    rows = [["layer", "s", "share"]]
    rows += [_share_row(layer, count, total) for layer, count in sampled.layers.most_common(_SHOWN)]
    busy = [["symbol", "s", "share"]]
    busy += [_share_row(f"{symbol} ({layer})", n, total) for (layer, symbol), n in sampled.symbols.most_common(_SHOWN)]
    processor = total / _SAMPLES_PER_SECOND
    heading = f"{sampled.seconds:.2f} s from process start to exit, {processor:.2f} s of processor time"
    return "\n\n".join([heading, table(rows), table(busy)])


def modules_text(seconds: Mapping[str, float]) -> str:
    """The modules' shares of Python's time as a table."""
    total = sum(seconds.values()) or 1.0
    ranked = sorted(seconds.items(), key=lambda item: -item[1])
    rows = [["Python's time by module", "share"]]
    rows += [[module, f"{own / total:.1%}"] for module, own in ranked[:_SHOWN]]
    return table(rows)


def main(arguments: list[str] | None = None) -> int:
    """Profiles a boot of the control domain (`boot`) or of one guest (`run`) and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_boot", description=__doc__)
    parser.add_argument("verb", nargs="?", choices=("boot", "run"), default="boot")
    options = parser.parse_args(arguments)
    try:
        command = peer.xenolith_linux(options.verb, ready_ramdisk())
        print(_layers(command), flush=True)
        print(modules_text(python_modules(command)))
    except (Unavailable, console.RunFailed) as reason:
        print(f"not profiled: {reason}", file=sys.stderr)
        return 1
    finally:
        programs.remove()
    return 0


def _layers(command: list[str]) -> str:
    try:
        sampled = sample(command)
    except Unavailable as reason:
        return f"no split by layer: {reason}\n"
    mark = Mark("Python's share of a boot's processor time", sampled.python_share, _PYTHON_SHARE, at_least=False)
    return f"{layers_text(sampled)}\n\n{mark_line(mark)}\n"


def _share_row(name: str, count: int, total: int) -> list[str]:
    return [name, f"{count / _SAMPLES_PER_SECOND:.2f}", f"{count / total:.1%}"]


if __name__ == "__main__":
    sys.exit(main())
