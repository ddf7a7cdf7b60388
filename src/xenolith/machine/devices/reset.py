"""The two ways software resets a PC: the reset control register, and the keyboard controller's pulse command."""

from __future__ import annotations

from collections.abc import Callable

from xenolith.machine.buses import PortBus

RESET_PORT = 0xCF9
KEYBOARD_DATA = 0x60
KEYBOARD_COMMAND = 0x64

RESET_CPU = 1 << 2
RESET_VALUE = 0x06
"""What the FADT tells software to write to port 0xcf9: a hard reset."""
KEYBOARD_RESET = 0xFE
_HARD_RESET_KINDS = 0x0A


class ResetPorts:
    """Port 0xcf9 (Intel ICH9 data sheet, 13.7.5) and ports 0x60/0x64. `reset()` is called when software asks for it.

    No keyboard controller stands behind the latter two: they read all ones, which a driver takes as absent.
    """

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset
        self._control = 0

    def attach(self, ports: PortBus) -> None:
        """Claim port 0xcf9 and the keyboard controller's two ports."""
        for port in (RESET_PORT, KEYBOARD_DATA, KEYBOARD_COMMAND):
            ports.claim(range(port, port + 1), self)

    def read_port(self, port: int, size: int) -> int:
        return self._control if port == RESET_PORT else 0xFF

    def write_port(self, port: int, size: int, value: int) -> None:
        if port == RESET_PORT:
            self._control = value & _HARD_RESET_KINDS
            if value & RESET_CPU:
                self._reset()
        elif port == KEYBOARD_COMMAND and value == KEYBOARD_RESET:
            self._reset()
