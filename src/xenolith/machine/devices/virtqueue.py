"""A split virtqueue as its device sees it: chains of buffers out of the available ring, answers into the used ring.

Everything in it is the guest's to write at any time, so it is read once, checked, and then used. What breaks a rule
raises QueueBroken; what is outside the guest's memory raises DmaFault.

Source: Virtual I/O Device (VIRTIO) 1.2, 2.6 (split virtqueues), 2.7.7 and 2.7.10 (suppressing notifications).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

MAX_QUEUE_SIZE: Final = 1024
"""Descriptors of the largest queue that a device here may offer."""
MAX_CHAIN: Final = 1024
"""Buffers of one chain. (Its table, where it has one of its own, may be longer than the queue: Linux makes it so.)"""
NO_VECTOR: Final = 0xFFFF

_DESCRIPTOR: Final = struct.Struct("<QIHH")
_NEXT: Final = 1
_WRITE: Final = 2
_INDIRECT: Final = 4
_USED: Final = struct.Struct("<II")
_RING_INDEX: Final = 2
_RING_ENTRIES: Final = 4
_NO_INTERRUPT: Final = 1


class QueueBroken(Exception):
    """The driver has broken a rule of the rings, so that they mean nothing any more."""


class Memory(Protocol):
    """A device's way to memory (PciDevice.memory)."""

    def __call__(self, maddr: int, length: int, write: bool = False) -> memoryview: ...


class Buffer(NamedTuple):
    """Memory that the driver lends, by its bus address and length in bytes."""

    maddr: int
    length: int


@dataclass(slots=True, eq=False)
class Chain:
    """Buffers that were lent together: `readable` for the device to read, then `writable` for it to write.

    It may be kept until it is answered; nothing of the guest's memory is in it. `read` and `write` go to memory, and
    raise DmaFault where the device may not go.
    """

    head: int
    readable: Sequence[Buffer]
    writable: Sequence[Buffer]
    epoch: int
    _memory: Memory

    @property
    def readable_bytes(self) -> int:
        return sum(buffer.length for buffer in self.readable)

    @property
    def writable_bytes(self) -> int:
        return sum(buffer.length for buffer in self.writable)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from byte `offset` of what can be read on; fewer where it ends before."""
        return b"".join(bytes(self._memory(maddr, length)) for maddr, length in parts(self.readable, offset, size))

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write `data` from byte `offset` of what can be written on, as far as it reaches; how many bytes that were."""
        done = 0
        for maddr, length in parts(self.writable, offset, len(data)):
            self._memory(maddr, length, write=True)[:] = data[done : done + length]
            done += length
        return done


def parts(buffers: Sequence[Buffer], offset: int, size: int) -> Iterator[Buffer]:
    """Where the bytes from `offset` on are, `size` of them at most."""
    for maddr, length in buffers:
        if offset >= length:
            offset -= length
            continue
        if size <= 0:
            return
        part = min(length - offset, size)
        yield Buffer(maddr + offset, part)
        size, offset = size - part, 0


class Virtqueue:
    """One queue of up to `most` descriptors (a power of two).

    A device takes chains until there are none (`take`), answers each, in any order (`put`), and then tells the driver
    (`flush`), which says whether it wants an interrupt for that. The transport configures it; `clear` forgets all.
    """

    def __init__(self, index: int, most: int, memory: Memory) -> None:
        if not 0 < most <= MAX_QUEUE_SIZE or most & (most - 1):
            raise ValueError(f"a queue cannot have {most} descriptors")
        self.index = index
        self.most = most
        self._memory = memory
        self._epoch = 0
        self.clear()

    def clear(self) -> None:
        """Be as after a reset. Chains that were taken before will not be answered any more."""
        self._epoch += 1
        self.size = self.most
        self.enabled = False
        self.has_event_index = self.has_indirect = False
        self.vector = NO_VECTOR
        self.descriptors = self.available = self.used = 0
        """The bus addresses of the table and the two rings."""
        self._next = 0
        self._known = 0
        self._answered = 0
        self._told = 0

    # -- from the driver ----------------------------------------------------------------------------------------------

    def take(self) -> Chain | None:
        """The next chain, or None; then the driver will notify when there is another. Raises QueueBroken, DmaFault."""
        if not self.enabled or (self._next == self._known and not self._look_again()):
            return None
        entry = self.available + _RING_ENTRIES + 2 * (self._next % self.size)
        head = int.from_bytes(self._memory(entry, 2), "little")
        chain = self._chain(head)
        self._next = self._next + 1 & 0xFFFF
        return chain

    def put_back(self, count: int) -> None:
        """The last `count` chains that were taken are taken again later."""
        self._next = self._next - count & 0xFFFF

    def _look_again(self) -> bool:
        if self._read_index():
            return True
        if not self.has_event_index:
            return False
        self._memory(self.used + _RING_ENTRIES + 8 * self.size, 2, write=True)[:] = self._next.to_bytes(2, "little")
        return self._read_index()  # once more, for what came before the driver could see that

    def _read_index(self) -> bool:
        index = int.from_bytes(self._memory(self.available + _RING_INDEX, 2), "little")
        if (index - self._next & 0xFFFF) > self.size:
            raise QueueBroken(f"queue {self.index}: {index - self._next & 0xFFFF} chains in a ring of {self.size}")
        self._known = index
        return index != self._next

    def _chain(self, head: int) -> Chain:
        table, entries = self.descriptors, self.size
        if head >= entries:
            raise QueueBroken(f"queue {self.index}: descriptor {head} of {entries}")
        maddr, length, flags, following = self._descriptor(table, head)
        if flags & _INDIRECT:
            if not self.has_indirect or flags & _NEXT or not length or length % _DESCRIPTOR.size:
                raise QueueBroken(f"queue {self.index}: a table of {length} bytes that cannot be")
            table, entries = maddr, length // _DESCRIPTOR.size
            maddr, length, flags, following = self._descriptor(table, 0)
        readable: list[Buffer] = []
        writable: list[Buffer] = []
        most = min(entries, MAX_CHAIN)
        while True:
            if flags & _INDIRECT or (writable and not flags & _WRITE) or len(readable) + len(writable) >= most:
                raise QueueBroken(f"queue {self.index}: a chain that is too long, or in no order")
            (writable if flags & _WRITE else readable).append(Buffer(maddr, length))
            if not flags & _NEXT:
                return Chain(head, readable, writable, self._epoch, self._memory)
            if following >= entries:
                raise QueueBroken(f"queue {self.index}: descriptor {following} of {entries}")
            maddr, length, flags, following = self._descriptor(table, following)

    def _descriptor(self, table: int, index: int) -> tuple[int, int, int, int]:
        return _DESCRIPTOR.unpack(self._memory(table + _DESCRIPTOR.size * index, _DESCRIPTOR.size))

    # -- to the driver ------------------------------------------------------------------------------------------------

    def put(self, chain: Chain, written: int) -> None:
        """Answer a chain, of which the first `written` bytes of what can be written were. Raises DmaFault.

        The driver sees it at the next `flush`. Nothing happens if the device was reset since the chain was taken.
        """
        if chain.epoch != self._epoch:
            return
        entry = self.used + _RING_ENTRIES + 8 * (self._answered % self.size)
        self._memory(entry, _USED.size, write=True)[:] = _USED.pack(chain.head, written)
        self._answered = self._answered + 1 & 0xFFFF

    def flush(self) -> bool:
        """Let the driver see what was answered. Returns whether it wants an interrupt. Raises DmaFault."""
        before, after = self._told, self._answered
        if before == after:
            return False
        self._memory(self.used + _RING_INDEX, 2, write=True)[:] = after.to_bytes(2, "little")
        self._told = after
        if not self.has_event_index:
            return not self._memory(self.available, 1)[0] & _NO_INTERRUPT
        wanted = int.from_bytes(self._memory(self.available + _RING_ENTRIES + 2 * self.size, 2), "little")
        return (after - wanted - 1 & 0xFFFF) < (after - before & 0xFFFF)
