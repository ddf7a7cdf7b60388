"""What guests could leave behind in a machine, counted."""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path

from tests.guest.pvguest import TestMachine, is_native
from xenolith.hypervisor.domain import Domain
from xenolith.toolstack.lifecycle import Guest


def settle(machine: TestMachine) -> None:
    """Let everything happen that can."""
    for _ in range(100):
        machine.turn()


def census(machine: TestMachine) -> dict[str, object]:
    """All that a guest could leave behind, but the process's memory (`resident`)."""
    natives = [domain for domain in machine.hv.domains.values() if is_native(domain)]
    nodes = machine.do(_nodes(machine))
    gc.collect()
    return {
        "frames": machine.hv.frames.free_frames,
        "domains": sorted(machine.hv.domains),
        "ports": [len(list(domain.events)) for domain in natives],
        "mappings": [len(domain.grants._mappings) for domain in natives],
        "grants": [len(domain.grants._active) for domain in natives],
        "kept": machine.kept(),
        "nodes": nodes,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "objects": Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, Domain | Guest)),
    }


async def _nodes(machine: TestMachine) -> list[str]:
    return [path async for path, _, _ in machine.toolstack.walk("/")]


def resident() -> int:
    """The memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
