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
    """A process tree's proportional set size at one moment, in KiB: all of it, and what of it is a machine's memory."""

    total_kib: int = 0
    machine_kib: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.total_kib + other.total_kib, self.machine_kib + other.machine_kib)

    @property
    def own_kib(self) -> int:
        """What is no machine's memory."""
        return self.total_kib - self.machine_kib

    def above_kib(self, guest_kib: int) -> int:
        """What is not the guest's: everything, less its memory (the machine's, but no more than `guest_kib`)."""
        return self.total_kib - min(self.machine_kib, guest_kib)


class Watch:
    """Remembers the highest usage above `guest_kib` that was seen; call it with a process id, again and again."""

    def __init__(self, guest_kib: int) -> None:
        self._guest_kib = guest_kib
        self.above_kib = 0
        self.guest_kib = 0

    def __call__(self, process: int) -> None:
        found = tree_usage(process)
        self.above_kib = max(self.above_kib, found.above_kib(self._guest_kib))
        self.guest_kib = max(self.guest_kib, min(found.machine_kib, self._guest_kib))


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
    report.notes.append(f"guest memory is what the machine has, up to the {peer.MEMORY_MIB} MiB that the guest has")
    return report


def usage(process: int) -> Usage:
    """The usage of one process (Linux, Documentation/filesystems/proc.rst). OSError if it is gone."""
    place = Path(f"/proc/{process}")
    total = parse_rollup((place / "smaps_rollup").read_text())
    return total + Usage(machine_kib=private_memory_kib((place / "smaps").read_text()))


def parse_rollup(text: str) -> Usage:
    """The usage that smaps_rollup tells, in which a machine's memory is what can be shared."""
    fields = {}
    for line in text.splitlines()[1:]:
        key, _, value = line.partition(":")
        fields[key] = int(value.split()[0])
    return Usage(fields.get("Pss", 0), fields.get("Pss_Shmem", 0))


def private_memory_kib(text: str) -> int:
    """What smaps tells of a machine's memory that nobody shares: no swap is reserved for it, and no child has it."""
    found = size = 0
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == "Pss":
            size = int(value.split()[0])
        elif key == "VmFlags" and {"nr", "dc"} <= set(value.split()):
            found += size
    return found


def tree_usage(process: int) -> Usage:
    """The usage of `process` and its descendants; processes that are gone count nothing."""
    try:
        own = usage(process)
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return Usage()
    return sum((tree_usage(int(child)) for child in children), start=own)


def _peaks(command: list[str]) -> Mapping[str, float]:
    watch = Watch(peer.MEMORY_MIB * _MIB_KIB)
    session = console.run(command, timeout=BOOT_SECONDS, watch=watch)
    session.find(READY)
    return {_ABOVE.name: watch.above_kib / _MIB_KIB, _GUEST.name: watch.guest_kib / _MIB_KIB}
