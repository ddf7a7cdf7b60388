"""Software resets the machine by port 0xcf9 or through the keyboard controller, and by nothing less."""

from __future__ import annotations

import pytest

from xenolith.machine.buses import PortBus
from xenolith.machine.devices.reset import ResetPorts


class Machine:
    """The two reset ports on a bus, and how often the machine was reset."""

    def __init__(self) -> None:
        self.resets = 0
        self.ports = PortBus()
        ResetPorts(self.reset).attach(self.ports)

    def reset(self) -> None:
        self.resets += 1


@pytest.mark.parametrize(
    ("port", "values", "resets"),
    [
        (0xCF9, [0x02], 0),
        (0xCF9, [0x02, 0x06], 1),
        (0xCF9, [0x0E], 1),
        (0x64, [0xFE], 1),
        (0x64, [0x20], 0),
        (0x60, [0xFE], 0),
    ],
)
def test_what_resets(port: int, values: list[int], resets: int) -> None:
    machine = Machine()
    for value in values:
        machine.ports.write(port, 1, value)
    assert machine.resets == resets


def test_no_keyboard_controller_answers() -> None:
    ports = Machine().ports
    assert (ports.read(0x60, 1), ports.read(0x64, 1)) == (0xFF, 0xFF)


def test_the_reset_control_register_keeps_the_kind_of_reset() -> None:
    ports = Machine().ports
    ports.write(0xCF9, 1, 0xFB)
    assert ports.read(0xCF9, 1) == 0x0A
