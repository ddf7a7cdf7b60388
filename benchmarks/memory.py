"""Peak memory above the guest's own, while a control domain boots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import console, peer
from benchmarks.boot_control_domain import BOOT_SECONDS
from benchmarks.common import Contender, Mark, Metric, Report, alternate
from benchmarks.programs import READY, ready_ramdisk

_MIB_KIB = 1024
_ABOVE = Metric("peak above the guest's own", "MiB")
_GUEST = Metric("guest memory touched", "MiB")


@dataclass(frozen=True)
class Usage:
    """A process tree's proportional set size at one moment, in KiB: all of it, and the shared-memory part."""

    total_kib: int = 0
    shared_kib: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.total_kib + other.total_kib, self.shared_kib + other.shared_kib)

    @property
    def own_kib(self) -> int:
        """What is not shared memory."""
        return self.total_kib - self.shared_kib

    def above_kib(self, guest_kib: int) -> int:
        """What is not the guest's: everything, less its memory (the shared part, but no more than `guest_kib`)."""
        return self.total_kib - min(self.shared_kib, guest_kib)


class Watch:
    """Remembers the highest usage above `guest_kib` that was seen; call it with a process id, again and again."""

    def __init__(self, guest_kib: int) -> None:
        self._guest_kib = guest_kib
        self.above_kib = 0
        self.guest_kib = 0

    def __call__(self, process: int) -> None:
        usage = tree_usage(process)
        self.above_kib = max(self.above_kib, usage.above_kib(self._guest_kib))
        self.guest_kib = max(self.guest_kib, min(usage.shared_kib, self._guest_kib))


def run(runs: int) -> Report:
    """Boots each side `runs` times in turn and watches its processes' memory from /proc, about 20 times a second."""
    question = "How much memory does the hypervisor use above its guest's?"
    report = Report("memory", question, (_ABOVE, _GUEST), ((peer.XENOLITH, peer.XEN),))
    contenders = (
        Contender(peer.XENOLITH, lambda: _peaks(peer.xenolith_linux("boot", ready_ramdisk()))),
        Contender(peer.XEN, lambda: _peaks(peer.xen_command(ready_ramdisk())), is_peer=True),
        Contender(peer.QEMU, lambda: _peaks(peer.qemu_command(ready_ramdisk())), is_peer=True),
    )
    alternate(report, contenders, runs)
    peak = report.median(_ABOVE.name, peer.XENOLITH)
    report.marks.append(Mark("hypervisor memory above the guest's, MiB", peak, 150, at_least=False))
    report.notes.append(f"guest memory is the shared mapping, up to the {peer.MEMORY_MIB} MiB that the guest was given")
    return report


def parse_rollup(text: str) -> Usage:
    """The usage that /proc/PID/smaps_rollup tells (Linux, Documentation/filesystems/proc.rst)."""
    fields = {}
    for line in text.splitlines()[1:]:
        key, _, value = line.partition(":")
        fields[key] = int(value.split()[0])
    return Usage(fields.get("Pss", 0), fields.get("Pss_Shmem", 0))


def tree_usage(process: int) -> Usage:
    """The usage of `process` and its descendants; processes that are gone count nothing."""
    try:
        usage = parse_rollup(Path(f"/proc/{process}/smaps_rollup").read_text())
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return Usage()
    return sum((tree_usage(int(child)) for child in children), start=usage)


def _peaks(command: list[str]) -> Mapping[str, float]:
    watch = Watch(peer.MEMORY_MIB * _MIB_KIB)
    session = console.run(command, timeout=BOOT_SECONDS, watch=watch)
    session.find(READY)
    return {_ABOVE.name: watch.above_kib / _MIB_KIB, _GUEST.name: watch.guest_kib / _MIB_KIB}
