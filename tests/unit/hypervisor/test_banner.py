"""What the log begins with: true of this machine, and in Xen's words where it has them."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.support import Bench, Clock, Engine, Host
from xenolith import __version__
from xenolith.hypervisor.console_ring import RING_BYTES
from xenolith.hypervisor.machine import Hypervisor
from xenolith.machine.pc import Pc
from xenolith.machine.ram import Ram


def lines(hv: Hypervisor) -> list[str]:
    return [line.removeprefix("(XEN) ") for line in hv.log.read(RING_BYTES)[0].decode().splitlines()]


@pytest.fixture
def pc() -> Hypervisor:
    pc = Pc(16 << 20, Clock(), 1, lambda data: None, lambda: None, lambda: None)
    memory = pc.memory_map

    class Mapped(Engine):
        processors = 4
        xcr0_mask = 7
        tsc_khz = 2_596_143

        def host_cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
            return (256, 576, 0, 0) if (leaf, subleaf) == (0xD, 2) else (0, 0, 0, 0)

        def unmapped(self, end: int) -> list[range]:
            return []

        def map_mmio(self, *arguments: object) -> None: ...

    ram = Ram(memory.top_frame << 12)
    return Hypervisor(ram, Mapped(), Clock(), Host(), pc, command_line="dom0_mem=8M,max:8M")  # type: ignore[arg-type]


def test_a_bare_machine() -> None:
    hv = Bench(frames=512, release="4.18")
    told = lines(hv)
    assert told[0].startswith(f"Xen version 4.18.0-xenolith (xenolith {__version__}) (")
    assert told[1:6] == [
        f"Latest ChangeSet: xenolith {__version__}",
        "Command line:",
        "Xen-e820 RAM map:",
        " [0000000000000000, 00000000001fffff] (usable)",
        "System RAM: 2MB (2048kB)",
    ]
    assert "CPU Engine: unicorn" in told
    assert "Detected 1000.000 MHz processor." in told
    assert "Platform timer is 1.000GHz work that is done" in told
    assert "I/O virtualisation disabled" in told
    assert not any(line.startswith("xstate") for line in told)


def test_a_pc(pc: Hypervisor) -> None:
    told = lines(pc)
    assert told[2] == "Command line: dom0_mem=8M,max:8M"
    kinds = {line.rpartition("(")[2].rstrip(")") for line in told if line.startswith(" [")}
    assert kinds == {"usable", "reserved", "ACPI data", "ACPI NVS"}
    assert "CPU Engine: unicorn, 4 vCPUs at a time" in told
    assert "xstate: size: 0x340 and states: 0x7" in told
    assert "Detected 2596.143 MHz processor." in told
    assert told[told.index("I/O virtualisation enabled") + 2] == "Interrupt remapping enabled"
    assert f"Allocated console ring of {RING_BYTES >> 10} KiB." in told
