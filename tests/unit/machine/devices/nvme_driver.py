"""A small NVMe driver for the tests: it works through registers and memory only."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from tests.unit.machine.devices.board import MEMORY_AND_MASTER, Board
from tests.unit.machine.devices.disks import MemoryDisk, Worker
from xenolith.machine.devices.nvme import (
    ACQ,
    AQA,
    ASQ,
    CC,
    CC_ENABLE,
    CC_ENTRY_SIZES,
    CSTS,
    DOORBELLS,
    Nvme,
)
from xenolith.machine.devices.nvme_commands import Admin, Io
from xenolith.machine.pci import COMMAND

ADMIN_ENTRIES: Final = 16
IO_ENTRIES: Final = 8
DATA: Final = 0x80000
"""Memory for what commands move, up to the end."""
PAGE: Final = 4096


@dataclass
class Queue:
    """A pair of queues as the driver knows it."""

    number: int
    submission: int
    completion: int
    size: int
    tail: int = 0
    head: int = 0
    phase: int = 1


@dataclass(frozen=True)
class Answer:
    result: int
    head: int
    queue: int
    identifier: int
    status: int
    is_final: bool


@dataclass
class Driver:
    disk: MemoryDisk = field(default_factory=MemoryDisk)
    worker: Worker = field(default_factory=Worker)

    def __post_init__(self) -> None:
        self.nvme = Nvme(self.disk, self.worker.submit)
        self.board = Board(self.nvme)
        self.identifier = 0
        self.admin = Queue(0, 0x1000, 0x2000, ADMIN_ENTRIES)
        self.io = Queue(1, 0x3000, 0x4000, IO_ENTRIES)

    # -- registers ----------------------------------------------------------------------------------------------------

    def read(self, register: int, size: int = 4) -> int:
        return self.board.read(0, register, size)

    def write(self, register: int, value: int, size: int = 4) -> None:
        self.board.write(0, register, size, value)

    def ring(self, doorbell: int, value: int) -> None:
        self.write(DOORBELLS + 4 * doorbell, value)

    def enable(self) -> None:
        for queue in (self.admin, self.io):
            queue.tail = queue.head = 0
            queue.phase = 1
            self.board.put(queue.completion, bytes(16 * queue.size))
        self.write(AQA, (ADMIN_ENTRIES - 1) << 16 | ADMIN_ENTRIES - 1)
        self.write(ASQ, self.admin.submission, 8)
        self.write(ACQ, self.admin.completion, 8)
        self.write(CC, CC_ENTRY_SIZES | CC_ENABLE)

    def start(self) -> None:
        """Until there is a pair of I/O queues."""
        self.board.use_msix()
        self.enable()
        assert self.read(CSTS) == 1
        self.create_queues(self.io)

    def create_queues(self, queue: Queue, *, contiguous: int = 1) -> None:
        size = queue.number | (queue.size - 1) << 16
        flags = contiguous | 2
        assert self.do(self.admin, Admin.CREATE_CQ, queue.completion, 0, size, flags | queue.number << 16).status == 0
        assert (
            self.do(self.admin, Admin.CREATE_SQ, queue.submission, 0, size, contiguous | queue.number << 16).status == 0
        )

    def reset_function(self) -> None:
        """Reset it by the way that PCI has for that, and let it reach memory again."""
        self.nvme.reset()
        self.board.write_config(COMMAND, 2, MEMORY_AND_MASTER)

    # -- commands -----------------------------------------------------------------------------------------------------

    def put(
        self, queue: Queue, opcode: int, prp1: int = 0, prp2: int = 0, *dwords: int, namespace: int = 1, flags: int = 0
    ) -> int:
        """Write a command into a queue; returns its identifier."""
        self.identifier = self.identifier + 1 & 0xFFFF
        words = [*dwords, 0, 0, 0, 0, 0, 0][:6]
        entry = struct.pack("<BBHI16xQQ6I", opcode, flags, self.identifier, namespace, prp1, prp2, *words)
        self.board.put(queue.submission + 64 * queue.tail, entry)
        queue.tail = (queue.tail + 1) % queue.size
        return self.identifier

    def submit(self, queue: Queue) -> None:
        self.ring(2 * queue.number, queue.tail)

    def take(self, queue: Queue) -> list[Answer]:
        """All answers that are there, and the doorbell that says so."""
        found = []
        while True:
            entry = bytes(self.board.memory[queue.completion + 16 * queue.head :][:16])
            result, _, head, number, identifier, status = struct.unpack("<IIHHHH", entry)
            if status & 1 != queue.phase:
                break
            found.append(Answer(result, head, number, identifier, status >> 1 & 0x7FF, bool(status & 0x8000)))
            queue.head = (queue.head + 1) % queue.size
            queue.phase ^= not queue.head
        if found:
            self.ring(2 * queue.number + 1, queue.head)
        return found

    def do(
        self, queue: Queue, opcode: int, prp1: int = 0, prp2: int = 0, *dwords: int, namespace: int = 1, flags: int = 0
    ) -> Answer:
        """One command and its answer."""
        identifier = self.put(queue, opcode, prp1, prp2, *dwords, namespace=namespace, flags=flags)
        self.submit(queue)
        (answer,) = self.take(queue)
        assert (answer.identifier, answer.queue) == (identifier, queue.number)
        return answer

    def transfer(
        self, opcode: Io, sector: int, sectors: int, prp1: int = DATA, prp2: int = 0, flags: int = 0
    ) -> Answer:
        return self.do(self.io, opcode, prp1, prp2, sector & 0xFFFFFFFF, sector >> 32, sectors - 1 | flags)

    def data(self, length: int, at: int = DATA) -> bytes:
        return bytes(self.board.memory[at : at + length])
