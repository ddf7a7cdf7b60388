"""What goes between an AHCI controller and its disk: commands, and the frames (FIS) that tell how they ended.

Source: Serial ATA 3.0, section 10.3 (frame information structures); ATA8-ACS, chapter 6 (registers).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Self

REGISTER_BYTES: Final = 20
_HOST_TO_DEVICE: Final = 0x27
_DEVICE_TO_HOST: Final = 0x34
_PIO_SETUP: Final = 0x5F
_SET_DEVICE_BITS: Final = 0xA1
_IS_COMMAND: Final = 1 << 7
_INTERRUPT: Final = 1 << 6
_TO_HOST: Final = 1 << 5

READ_QUEUED: Final = 0x60
WRITE_QUEUED: Final = 0x61
QUEUED: Final = (READ_QUEUED, WRITE_QUEUED)

# The status register.
READY: Final = 0x50
BUSY: Final = 0x80
FAULT: Final = 0x20
DATA_REQUEST: Final = 0x08
ERROR: Final = 0x01
SOFT_RESET: Final = 0x04
"""In the control register."""


@dataclass(frozen=True, slots=True)
class Task:
    """The registers of a command. `lba` and `count` are all their bytes, `features` too."""

    is_command: bool
    """Else it is for the control register."""
    command: int
    features: int
    lba: int
    device: int
    count: int
    control: int

    @classmethod
    def parse(cls, frame: bytes) -> Self | None:
        """From the first 20 bytes of a command table; None if it is no register frame for the first device."""
        if frame[0] != _HOST_TO_DEVICE or frame[1] & 0x0F:
            return None
        return cls(
            bool(frame[1] & _IS_COMMAND),
            frame[2],
            frame[3] | frame[11] << 8,
            int.from_bytes(frame[4:7] + frame[8:11], "little"),
            frame[7],
            frame[12] | frame[13] << 8,
            frame[15],
        )

    @property
    def is_queued(self) -> bool:
        return self.is_command and self.command in QUEUED


def register_frame(status: int, error: int, task: Task) -> bytes:
    """The device's registers after a command, which interrupts."""
    lba = task.lba.to_bytes(6, "little")
    head = bytes((_DEVICE_TO_HOST, _INTERRUPT, status, error))
    return head + lba[:3] + bytes((task.device,)) + lba[3:] + b"\0" + struct.pack("<H", task.count) + bytes(6)


def pio_frame(length: int, task: Task) -> bytes:
    """What comes before the last block, of `length` bytes, that a command reads."""
    lba = task.lba.to_bytes(6, "little")
    head = bytes((_PIO_SETUP, _INTERRUPT | _TO_HOST, READY | DATA_REQUEST, 0))
    tail = struct.pack("<HxBHxx", task.count, READY, length)
    return head + lba[:3] + bytes((task.device,)) + lba[3:] + b"\0" + tail


def bits_frame(status: int, error: int, finished: int) -> bytes:
    """Queued commands, of which `finished` has the bits, have ended."""
    return struct.pack("<BBBBI", _SET_DEVICE_BITS, _INTERRUPT, status & 0x77, error, finished)
