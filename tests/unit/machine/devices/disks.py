"""A disk in memory, and a worker that does what it is given when the test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from errno import EIO, EOPNOTSUPP
from typing import Any, Final

SECTORS: Final = 2048


def pattern(sectors: int) -> bytes:
    """Content in which every sector is another."""
    return b"".join(number.to_bytes(4, "little") * 128 for number in range(sectors))


class MemoryDisk:
    """An Image. `cached` is whether it can be read at once; `failing` makes the host fail. `calls` is what was done."""

    def __init__(self, sectors: int = SECTORS) -> None:
        self.content = bytearray(pattern(sectors))
        self.readonly = False
        self.physical_sector_size = 4096
        self.discard_granularity = 4096
        self.cached = True
        self.quick = False
        """Whether it takes writes at once."""
        self.failing = False
        self.calls: list[str] = []

    @property
    def size(self) -> int:
        return len(self.content)

    def _check(self, call: str, offset: int = 0, length: int = 0) -> None:
        assert 0 <= offset <= offset + length <= self.size
        assert not (offset | length) % 512
        self.calls.append(call)
        if self.failing:
            raise OSError(EIO, "as the test says")

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._check("read", offset, sum(map(len, buffers)))
        for buffer in buffers:
            buffer[:] = self.content[offset : offset + len(buffer)]
            offset += len(buffer)

    def readv_at_once(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        if self.cached and not self.failing:
            self.readv(offset, buffers)
            return True
        return False

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._check("write", offset, sum(map(len, buffers)))
        for buffer in buffers:
            self.content[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    def writev_at_once(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        if self.quick and not self.failing:
            self.writev(offset, buffers)
            return True
        return False

    def flush(self) -> None:
        self._check("flush")

    def discard(self, offset: int, length: int) -> None:
        self._check("discard", offset, length)
        if not self.discard_granularity:
            raise OSError(EOPNOTSUPP, "no")
        self.content[offset : offset + length] = bytes(length)

    def measure(self) -> int:
        return self.size

    def close(self) -> None: ...


class Worker:
    """Does what is submitted at once, or, without `at_once`, when the test says `run`."""

    def __init__(self, at_once: bool = True) -> None:
        self.at_once = at_once
        self.queue: deque[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]] = deque()

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        self.queue.append((work, done))
        if self.at_once:
            self.run()

    def run(self, number: int = 0) -> None:
        """Do one piece of work."""
        work, done = self.queue[number]
        del self.queue[number]
        try:
            result = work()
        except OSError as error:
            done(None, error)
        else:
            done(result, None)

    def run_all(self) -> None:
        while self.queue:
            self.run()
