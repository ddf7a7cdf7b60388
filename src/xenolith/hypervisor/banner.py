"""What the hypervisor's log begins with: what it is, and what machine it is on, in the words in which Xen tells it.

Facts are those of the messages in Xen 4.17's xen/arch/x86/setup.c, e820.c and cpu/common.c, xen/common/sched/core.c,
xen/drivers/char/console.c and xen/drivers/passthrough/iommu.c.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from xenolith import __version__
from xenolith.hypervisor import xstate
from xenolith.hypervisor.console_ring import RING_BYTES
from xenolith.hypervisor.cpuid import FAMILY_MODEL_STEPPING, LEVELS
from xenolith.hypervisor.release import CHANGESET

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor

_RAM: Final = 1
_KINDS: Final = {_RAM: "usable", 2: "reserved", 3: "ACPI data", 4: "ACPI NVS", 5: "unusable"}
"""Types of the memory map (ACPI 6.4, table 15.374)."""


def banner(hv: Hypervisor) -> Iterator[str]:
    """The lines, without the prefix that the log gives each."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield f"Xen version {hv.release.text} (xenolith {__version__}) (Python {python})"
    yield f"Latest ChangeSet: {CHANGESET}"
    yield f"Command line: {hv.command_line}".rstrip()
    yield from _memory(hv)
    yield from _processor(hv)
    yield "Using scheduler: that of Xenolith, with the parameters of credit2 (credit2)"
    yield f"Platform timer is 1.000GHz {'work that is done' if hv.clock.virtual else 'host clock'}"
    yield f"Detected {hv.tsc_khz // 1000}.{hv.tsc_khz % 1000:03} MHz processor."
    if hv.pc is None:
        yield "I/O virtualisation disabled"
    else:
        yield "I/O virtualisation enabled"
        yield " - Dom0 mode: Strict"
        yield "Interrupt remapping enabled"
    yield f"Allocated console ring of {RING_BYTES >> 10} KiB."
    yield f"Brought up {hv.engine.processors} CPUs"


def _memory(hv: Hypervisor) -> Iterator[str]:
    yield "Xen-e820 RAM map:"
    for start, length, kind in hv.machine_map:
        yield f" [{start:016x}, {start + length - 1:016x}] ({_KINDS[kind]})"
    total = sum(length for _, length, kind in hv.machine_map if kind == _RAM)
    yield f"System RAM: {total >> 20}MB ({total >> 10}kB)"


def _processor(hv: Hypervisor) -> Iterator[str]:
    """The processor that guests see, and what is behind it."""
    family, model = (
        FAMILY_MODEL_STEPPING >> 8 & 0xF,
        FAMILY_MODEL_STEPPING >> 12 & 0xF0 | FAMILY_MODEL_STEPPING >> 4 & 0xF,
    )
    yield (
        f"CPU Vendor: Intel, Family {family} ({family:#x}), Model {model} ({model:#x}),"
        f" Stepping {FAMILY_MODEL_STEPPING & 0xF} (raw {FAMILY_MODEL_STEPPING:08x})"
    )
    at_once = f", {hv.engine.processors} vCPUs at a time" if hv.engine.processors > 1 else ""
    yield f"CPU Engine: {hv.engine.name}{at_once}"
    if states := hv.engine.xcr0_mask & LEVELS[hv.cpu_level]:
        yield f"xstate: size: {xstate.size(hv.engine.host_cpuid, states):#x} and states: {states:#x}"
