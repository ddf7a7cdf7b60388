"""A small AHCI driver for the tests: it works through registers and memory only."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.unit.machine.devices.board import MEMORY_AND_MASTER, Board
from tests.unit.machine.devices.disks import MemoryDisk, Worker
from xenolith.machine.devices.ahci import GHC, GHC_INTERRUPTS, PORT, Ahci
from xenolith.machine.devices.ahci_disk import READ_DMA_EXT, WRITE_DMA_EXT
from xenolith.machine.devices.ahci_fis import READ_QUEUED, WRITE_QUEUED
from xenolith.machine.devices.ahci_port import CI, CLB, CMD, CMD_RECEIVE, CMD_START, FB, IE, IS, SACT, SERR, TFD
from xenolith.machine.pci import COMMAND

BAR: Final = 5
LIST: Final = 0x1000
FRAMES: Final = 0x2000
_TABLES: Final = 0x4000
_TABLE_BYTES: Final = 0x1000
DATA: Final = 0x80000
"""Memory for what commands move, up to the end."""
_QUEUED: Final = (READ_QUEUED, WRITE_QUEUED)
_WRITES: Final = (WRITE_QUEUED, WRITE_DMA_EXT)


@dataclass
class Driver:
    disk: MemoryDisk = field(default_factory=MemoryDisk)
    worker: Worker = field(default_factory=Worker)

    def __post_init__(self) -> None:
        self.ahci = Ahci(self.disk, self.worker.submit)
        self.board = Board(self.ahci)

    # -- registers ----------------------------------------------------------------------------------------------------

    def read(self, register: int, size: int = 4) -> int:
        return self.board.read(BAR, register, size)

    def write(self, register: int, value: int, size: int = 4) -> None:
        self.board.write(BAR, register, size, value)

    def port(self, register: int) -> int:
        return self.read(PORT + register)

    def set_port(self, register: int, value: int) -> None:
        self.write(PORT + register, value)

    def start(self, *, msi: bool = True) -> None:
        """Until commands can be given."""
        if msi:
            self.board.use_msi()
        self.write(GHC, 1 << 31 | GHC_INTERRUPTS)
        self.set_port(CMD, 0)
        self.set_port(CLB, LIST)
        self.set_port(CLB + 4, 0)
        self.write(PORT + FB, FRAMES, 8)
        self.set_port(CMD, CMD_RECEIVE)
        self.set_port(SERR, 0xFFFFFFFF)
        self.set_port(IS, 0xFFFFFFFF)
        self.set_port(IE, 0xFFFFFFFF)
        self.set_port(CMD, CMD_RECEIVE | CMD_START)

    def restart(self) -> None:
        """What a driver does after an error."""
        self.set_port(CMD, CMD_RECEIVE)
        self.set_port(SERR, 0xFFFFFFFF)
        self.set_port(IS, 0xFFFFFFFF)
        self.set_port(CMD, CMD_RECEIVE | CMD_START)

    def reset_function(self) -> None:
        self.ahci.reset()
        self.board.write_config(COMMAND, 2, MEMORY_AND_MASTER)

    # -- commands -----------------------------------------------------------------------------------------------------

    def frame(
        self, command: int, lba: int = 0, count: int = 0, features: int = 0, device: int = 0x40, *, control: int = 0
    ) -> bytes:
        low = lba.to_bytes(6, "little")
        flags = 0 if control else 0x80
        head = bytes((0x27, flags, command, features & 0xFF)) + low[:3] + bytes((device,)) + low[3:]
        return head + bytes((features >> 8,)) + struct.pack("<HBB", count, 0, control) + bytes(4)

    def prepare(self, slot: int, frame: bytes, memory: Sequence[tuple[int, int]] = ()) -> None:
        """Put a command into a slot; `memory` is where its data is."""
        table = _TABLES + _TABLE_BYTES * slot
        prds = b"".join(struct.pack("<QII", maddr, 0, length - 1) for maddr, length in memory)
        self.board.put(table, frame.ljust(0x80, b"\0") + prds)
        self.board.put(LIST + 32 * slot, struct.pack("<HHIQ", 5, len(memory), 0, table))

    def issue(self, slots: int) -> None:
        self.set_port(CI, slots)

    def do(
        self,
        command: int,
        lba: int = 0,
        count: int = 0,
        memory: Sequence[tuple[int, int]] = ((DATA, 0x10000),),
        features: int = 0,
        device: int = 0x40,
    ) -> int:
        """One command in slot 0; the status and, in the upper byte, the error."""
        self.prepare(0, self.frame(command, lba, count, features, device), memory)
        self.issue(1)
        return self.port(TFD)

    def queue(self, slot: int, command: int, lba: int, sectors: int, maddr: int = DATA, device: int = 0x40) -> None:
        """Prepare a queued command and say that its tag is in use."""
        self.prepare(slot, self.frame(command, lba, slot << 3, sectors, device), [(maddr, sectors * 512)])
        self.set_port(SACT, 1 << slot)

    def transfer(self, command: int, lba: int, sectors: int, maddr: int = DATA) -> bool:
        """Move data by a command of any kind; whether that went well. An error is recovered from."""
        if command in _QUEUED:
            self.queue(3, command, lba, sectors, maddr)
            self.issue(1 << 3)
        else:
            self.do(command, lba, sectors, [(maddr, sectors * 512)])
        well = not self.port(TFD) & 1 and not self.port(SACT) and not self.port(CI)
        if not well:
            self.restart()
        return well

    def counted(self) -> int:
        """How many bytes the command in slot 0 has moved."""
        return self.board.word(LIST + 4, 4)

    def data(self, length: int, at: int = DATA) -> bytes:
        return bytes(self.board.memory[at : at + length])


READS: Final = (READ_DMA_EXT, READ_QUEUED)
WRITES: Final = (WRITE_DMA_EXT, WRITE_QUEUED)
