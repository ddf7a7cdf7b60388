"""What a driver does with a virtio device: finds its registers, negotiates, sets queues up, lends buffers."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from tests.unit.machine.devices.board import MEMORY_BYTES, Board
from xenolith.machine.devices.virtio_pci import DRIVER_OK, FEATURES_OK, VERSION_1, VirtioDevice

ACKNOWLEDGE: Final = 1
DRIVER: Final = 2
NEXT, WRITE, INDIRECT = 1, 2, 4
COMMON, NOTIFY, ISR, DEVICE, WINDOW = range(1, 6)
_QUEUES_AT: Final = 0x1000
_QUEUE_BYTES: Final = 0x4000
_BUFFERS_AT: Final = 0x20000


class Driver:
    """Queue N lies at `rings(N)`: 8 KiB for descriptors, then the available ring, then the used ring."""

    def __init__(self, device: VirtioDevice, queue_size: int = 8) -> None:
        self.board = Board(device)
        self.device = device
        self.size = queue_size
        self.places: dict[int, tuple[int, int]] = {}
        """Where each structure is: base address register and offset."""
        for number, at in self.board.capabilities():
            if number == 0x09:
                kind, bar = self.board.read_config(at + 3, 1), self.board.read_config(at + 4, 1)
                self.places[kind] = bar, self.board.read_config(at + 8, 4)
                if kind == NOTIFY:
                    self.notify_step = self.board.read_config(at + 16, 4)
        self.used_seen: dict[int, int] = {}
        self.next_buffer = _BUFFERS_AT
        self.free = list(range(queue_size))

    def read(self, kind: int, offset: int, size: int) -> int:
        bar, at = self.places[kind]
        return self.board.read(bar, at + offset, size)

    def write(self, kind: int, offset: int, size: int, value: int) -> None:
        bar, at = self.places[kind]
        self.board.write(bar, at + offset, size, value)

    # -- start of day -------------------------------------------------------------------------------------------------

    @property
    def status(self) -> int:
        return self.read(COMMON, 20, 1)

    def set_status(self, value: int) -> None:
        self.write(COMMON, 20, 1, value)

    def offered(self) -> int:
        features = 0
        for half in (0, 1):
            self.write(COMMON, 0, 4, half)
            features |= self.read(COMMON, 4, 4) << 32 * half
        return features

    def negotiate(self, features: int) -> bool:
        """Reset the device and ask for features; whether it goes along."""
        self.set_status(0)
        self.set_status(ACKNOWLEDGE | DRIVER)
        for half in (0, 1):
            self.write(COMMON, 8, 4, half)
            self.write(COMMON, 12, 4, features >> 32 * half & 0xFFFFFFFF)
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
        return bool(self.status & FEATURES_OK)

    def rings(self, queue: int) -> tuple[int, int, int]:
        at = _QUEUES_AT + _QUEUE_BYTES * queue
        return at, at + 0x2000, at + 0x3000

    def set_up(self, queue: int) -> None:
        self.write(COMMON, 22, 2, queue)
        self.write(COMMON, 24, 2, self.size)
        self.write(COMMON, 26, 2, queue + 1)
        for offset, place in zip((32, 40, 48), self.rings(queue), strict=True):
            self.write(COMMON, offset, 4, place)
            self.write(COMMON, offset + 4, 4, 0)
        self.write(COMMON, 28, 2, 1)
        self.used_seen[queue] = 0

    def start(self, features: int = 0, queues: int | None = None) -> Driver:
        """All that it takes to use the device, with messages: 100 for its configuration, 101 and up for its queues."""
        assert self.negotiate(features | VERSION_1)
        self.board.use_msix()
        self.write(COMMON, 16, 2, 0)
        for queue in range(self.read(COMMON, 18, 2) if queues is None else queues):
            self.set_up(queue)
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
        return self

    # -- buffers ------------------------------------------------------------------------------------------------------

    def place(self, data: bytes) -> int:
        """Where `data` now lies. Memory for that is used again and again."""
        if self.next_buffer + len(data) > MEMORY_BYTES:
            self.next_buffer = _BUFFERS_AT
        at, self.next_buffer = self.next_buffer, self.next_buffer + len(data)
        self.board.put(at, data)
        return at

    def describe(self, queue: int, index: int, maddr: int, length: int, flags: int = 0, following: int = 0) -> None:
        at = self.rings(queue)[0] + 16 * index
        self.board.put(at, struct.pack("<QIHH", maddr, length, flags, following))

    def offer(self, queue: int, head: int) -> None:
        """Put a chain into the available ring."""
        available = self.rings(queue)[1]
        index = self.board.word(available + 2, 2)
        self.board.set_word(available + 4 + 2 * (index % self.size), 2, head)
        self.board.set_word(available + 2, 2, index + 1 & 0xFFFF)

    def lend(self, queue: int, readable: Sequence[bytes] = (), writable: Sequence[int] = ()) -> list[int]:
        """Lend a chain; where its buffers are. It is described from descriptor 0 on, or where the last one ended."""
        parts = [(self.place(data), len(data), 0) for data in readable]
        parts += [(self.place(bytes(size)), size, WRITE) for size in writable]
        indexes = [self.free.pop(0) for _ in parts]
        for number, (maddr, length, flags) in enumerate(parts):
            more = number + 1 < len(parts)
            following = indexes[number + 1] if more else 0
            self.describe(queue, indexes[number], maddr, length, flags | (NEXT if more else 0), following)
        self.free += indexes
        self.offer(queue, indexes[0])
        return [maddr for maddr, _, _ in parts]

    def kick(self, queue: int) -> None:
        self.write(NOTIFY, self.notify_step * queue, 2, queue)

    def answers(self, queue: int) -> list[tuple[int, int]]:
        """Head and length of what was answered since the last look."""
        used = self.rings(queue)[2]
        index = self.board.word(used + 2, 2)
        found = []
        while self.used_seen[queue] != index:
            at = used + 4 + 8 * (self.used_seen[queue] % self.size)
            found.append((self.board.word(at, 4), self.board.word(at + 4, 4)))
            self.used_seen[queue] = self.used_seen[queue] + 1 & 0xFFFF
        return found
