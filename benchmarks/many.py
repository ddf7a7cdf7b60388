"""Many guests in one machine: our own memory and our own work for each, tiny guests and Linux."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from benchmarks import machine, peer, programs
from benchmarks.common import Contender, Mark, Metric, Report, alternate
from benchmarks.console import RunFailed
from benchmarks.machine import Machine

TINY = "tiny guests (1 MiB)"
LINUX = "Linux guests (128 MiB)"
LINUX_COUNT = int(os.environ.get("XENOLITH_LINUX_GUESTS", "20"))
TINY_COUNT = 200
_LINUX_SECONDS = 60
"""The longest that one guest's boot may take of all guests' time."""
_LOOK_SECONDS = 1
"""Between looks at the machine's memory: Linux goes through all of it for one, and the machine waits."""
_PROMPT = "guest:~# "
_KIB_MIB = 1024
MEMORY = Metric("our own memory for each", "MiB")
FIRST = Metric("of the first tenth: time for each", "s")
LAST = Metric("of the last tenth: time for each", "s")
ALL = Metric("until all are there: time for each", "s")
_PROCESSOR = Metric("processor time for each", "s")
_LIMIT_MIB = 5


def run(runs: int) -> Report:
    """Fills a machine `runs` times with guests of each kind."""
    question = f"What do {TINY_COUNT} tiny guests and {LINUX_COUNT} Linux guests in one machine cost?"
    report = Report("many", question, (MEMORY, FIRST, LAST, ALL, _PROCESSOR))
    alternate(report, (Contender(TINY, tiny_guests), Contender(LINUX, linux_guests)), runs)
    for kind in (TINY, LINUX):
        mark = f"our own memory for each of the {kind}, MiB"
        report.marks.append(Mark(mark, report.median(MEMORY.name, kind), _LIMIT_MIB, at_least=False))
    report.notes.append("one more guest is there before: memory is what the machine's own has grown by since then")
    return report


def tiny_guests(count: int = TINY_COUNT) -> Mapping[str, float]:
    """Fills a machine with tiny guests."""
    kernel = programs.tiny_kernel()
    with machine.machine(2 * count + 50) as host:
        return _fill(host, count, lambda name, _: host.create(name, kernel, memory="1MiB"), lambda name: True)


def linux_guests(count: int = LINUX_COUNT) -> Mapping[str, float]:
    """Fills a machine with Linux guests that each have a console, a disk and a network, all booting at once."""
    kernel = peer.files().kernel
    with machine.machine(130 * (count + 1) + 100) as host:

        def create(name: str, number: int) -> None:
            disk = programs.empty_disk(f"many{number}", 16)
            host.create(name, kernel, memory="128MiB", disk=(f"{disk},raw,xvda,rw",), vif=("bridge=lan",))

        return _fill(host, count, create, lambda name: _PROMPT in host.console(name))


def _fill(
    host: Machine, count: int, create: Callable[[str, int], None], is_up: Callable[[str], bool]
) -> Mapping[str, float]:
    names = [f"guest{number}" for number in range(count + 1)]
    create(names[0], 0)
    host.until(lambda: is_up(names[0]), "the first guest", _LINUX_SECONDS)
    alone, worked = host.usage().own_kib, host.processor_seconds()
    times, peak, looked = [time.monotonic()], 0, 0.0
    for number in range(1, count + 1):
        create(names[number], number)
        times.append(time.monotonic())

    def all_up() -> bool:
        nonlocal peak, looked
        if time.monotonic() > looked + _LOOK_SECONDS:
            peak, looked = max(peak, host.usage().own_kib), time.monotonic()
        return all(map(is_up, names))

    host.until(all_up, f"the last of {count} guests", _LINUX_SECONDS * count)
    spent = time.monotonic() - times[0]
    if host.guests() != count + 1:
        raise RunFailed(f"of {count + 1} guests {host.guests()} are there")
    part = max(1, count // 10)
    return {
        MEMORY.name: (peak - alone) / count / _KIB_MIB,
        FIRST.name: (times[part] - times[0]) / part,
        LAST.name: (times[-1] - times[-1 - part]) / part,
        ALL.name: spent / count,
        _PROCESSOR.name: (host.processor_seconds() - worked) / count,
    }
