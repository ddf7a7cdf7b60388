"""What guests can do to the machine's devices in memory."""

from __future__ import annotations

from tests.unit.hypervisor.hypercalls.conftest import Machine
from xenolith.hypervisor import hardware
from xenolith.machine.devices.hpet import CONFIGURATION, COUNTER, ENABLE
from xenolith.machine.e820 import HPET_START


def test_the_event_timer_is_only_read() -> None:
    machine = Machine()
    for register in (CONFIGURATION, COUNTER):
        hardware.write(machine, machine.pc, HPET_START + register, 8, ENABLE)  # type: ignore[arg-type]
        assert machine.pc.mmio.read(HPET_START + register, 8) == 0
