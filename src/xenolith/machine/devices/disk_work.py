"""What a disk's controller has done on its image: bounded, flushes after writes, and forgotten when it is reset.

What the host has in memory is read at once, and short writes go there, which costs less than a thread; everything else
is done in another thread, on private copies, because nobody may hold on to a guest's memory while others run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum, auto
from errno import EOPNOTSUPP
from typing import Any, Final, NamedTuple

from xenolith.machine.disk import Image
from xenolith.machine.pci import DmaFault

IN_FLIGHT_BYTES: Final = 16 << 20
"""How much may be copied for accesses that run; one that is longer runs alone."""
_TURN_BYTES: Final = 4 << 20
"""How much is done at once before others get their turn."""
_JOB_BYTES: Final = 16 << 10
_SEGMENT_BYTES: Final = 1 << 10
"""What an access, and each piece of memory in it, costs beside its bytes, in bytes."""
_ZEROS: Final = memoryview(bytes(1 << 20))

Submit = Callable[[Callable[[], Any], Callable[[Any, BaseException | None], None]], None]
"""Has work that may block done in another thread, and then tells its result or its error in the machine's thread."""
OpenMemory = Callable[[int, int, bool], memoryview]
"""Memory at a bus address, of so many bytes, to be written or not; to be used at once. Raises DmaFault."""


class Outcome(Enum):
    """How an access ended."""

    DONE = auto()
    FAILED = auto()
    """The host could not do it."""
    FAULTED = auto()
    """The memory that was named may not be used."""


Done = Callable[[Outcome], None]


Segments = Sequence[tuple[int, int]]
"""Memory in pieces: the bus address and the length in bytes of each."""


class Extent(NamedTuple):
    """A part of the disk, in bytes."""

    offset: int
    length: int


def serial_number(where: int) -> str:
    """Of the disk behind PCI function `where`: another for each disk of a machine, and the same at each start."""
    return f"XENOLITH{where:04X}"


class _Job:
    """One access. `begin` and `finish` are called in the machine's thread, and may raise DmaFault; `work` in another.

    `changes` says whether a flush waits for it.
    """

    changes = True
    length = 0
    cost = _JOB_BYTES
    """Of what is done in the machine's thread."""

    def __init__(self, done: Done) -> None:
        self.done = done
        self.cancelled = False

    def begin(self) -> bool:
        """Whether that was all."""
        return False

    def work(self) -> None: ...

    def finish(self) -> None: ...


class _Read(_Job):
    changes = False

    def __init__(self, image: Image, memory: OpenMemory, offset: int, segments: Segments, done: Done) -> None:
        super().__init__(done)
        self._image, self._memory = image, memory
        self._offset, self._segments = offset, segments
        self.length = sum(length for _, length in segments)
        self.cost = _JOB_BYTES + len(segments) * _SEGMENT_BYTES

    def begin(self) -> bool:
        views = [self._memory(maddr, length, True) for maddr, length in self._segments]
        if self._image.readv_at_once(self._offset, views):
            return True
        self._data = bytearray(self.length)
        return False

    def work(self) -> None:
        self._image.readv(self._offset, [memoryview(self._data)])

    def finish(self) -> None:
        views = [self._memory(maddr, length, True) for maddr, length in self._segments]
        at = 0
        for view in views:
            view[:] = self._data[at : at + len(view)]
            at += len(view)


class _Write(_Job):
    def __init__(
        self, image: Image, memory: OpenMemory, offset: int, segments: Segments, safe: bool, done: Done
    ) -> None:
        super().__init__(done)
        self._image, self._memory = image, memory
        self._offset, self._segments, self._safe = offset, segments, safe
        self.length = sum(length for _, length in segments)
        self.cost = _JOB_BYTES + len(segments) * _SEGMENT_BYTES

    def begin(self) -> bool:
        views = [self._memory(maddr, length, False) for maddr, length in self._segments]
        if not self._safe and self._image.writev_at_once(self._offset, views):
            return True
        self._data = b"".join(views)
        return False

    def work(self) -> None:
        self._image.writev(self._offset, [memoryview(self._data)])
        if self._safe:
            self._image.flush()


class _Zero(_Job):
    def __init__(self, image: Image, extents: Sequence[Extent], safe: bool, done: Done) -> None:
        super().__init__(done)
        self._image, self._extents, self._safe = image, extents, safe

    def work(self) -> None:
        for offset, length in self._extents:
            for at in range(0, length, len(_ZEROS)):
                self._image.writev(offset + at, [_ZEROS[: length - at]])
        if self._safe:
            self._image.flush()


class _Verify(_Job):
    changes = False

    def __init__(self, image: Image, extent: Extent, done: Done) -> None:
        super().__init__(done)
        self._image, self._extent = image, extent

    def work(self) -> None:
        offset, length = self._extent
        data = memoryview(bytearray(min(length, len(_ZEROS))))
        for at in range(0, length, len(data)):
            self._image.readv(offset + at, [data[: length - at]])


class _Discard(_Job):
    def __init__(self, image: Image, extents: Sequence[Extent], done: Done) -> None:
        super().__init__(done)
        self._image, self._extents = image, extents

    def work(self) -> None:
        for offset, length in self._extents:
            try:
                self._image.discard(offset, length)
            except OSError as error:
                if error.errno != EOPNOTSUPP:  # which is no failure: it was advice
                    raise


class _Flush(_Job):
    changes = False

    def __init__(self, image: Image, done: Done) -> None:
        super().__init__(done)
        self._image = image

    def work(self) -> None:
        self._image.flush()


class DiskWork:
    """Accesses of one controller to `image`, started in the order in which they are asked for.

    Offsets and lengths are bytes, in whole sectors, and have been checked. How each ended is told to its `done`, often
    before the call returns. A flush starts when all earlier writes are done.
    """

    def __init__(self, image: Image, memory: OpenMemory, submit: Submit) -> None:
        self._image = image
        self._memory = memory
        self._submit = submit
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._in_flight = 0
        self._turn = _TURN_BYTES
        self._serving = False

    def read(self, offset: int, segments: Segments, done: Done) -> None:
        self._add(_Read(self._image, self._memory, offset, segments, done))

    def write(self, offset: int, segments: Segments, done: Done, *, safe: bool = False) -> None:
        """`safe` asks that it survives a loss of power."""
        self._add(_Write(self._image, self._memory, offset, segments, safe, done))

    def zero(self, extents: Sequence[Extent], done: Done, *, safe: bool = False) -> None:
        """Write zeros."""
        self._add(_Zero(self._image, extents, safe, done))

    def verify(self, extent: Extent, done: Done) -> None:
        """See whether it can be read."""
        self._add(_Verify(self._image, extent, done))

    def discard(self, extents: Sequence[Extent], done: Done) -> None:
        """These parts are wanted no more."""
        self._add(_Discard(self._image, extents, done))

    def flush(self, done: Done) -> None:
        self._add(_Flush(self._image, done))

    def cancel(self) -> None:
        """Tell nobody any more how what was asked for ends, and touch no memory for it.

        What runs already cannot be stopped; what is asked for from now on starts when it has ended, so that no old
        write comes after a new one.
        """
        self._waiting.clear()
        for job in self._running:
            job.cancelled = True

    def _add(self, job: _Job) -> None:
        self._waiting.append(job)
        self._service()

    def _service(self) -> None:
        if self._serving:
            return
        self._serving = True
        try:
            while self._waiting and self._may_start(self._waiting[0]):
                self._start(self._waiting.popleft())
        finally:
            self._serving = False

    def _may_start(self, job: _Job) -> bool:
        if self._turn <= 0 or any(running.cancelled for running in self._running):
            return False
        if isinstance(job, _Flush):
            return not any(running.changes for running in self._running)
        return not self._running or self._in_flight + job.length <= IN_FLIGHT_BYTES

    def _start(self, job: _Job) -> None:
        try:
            at_once = job.begin()
        except DmaFault:
            job.done(Outcome.FAULTED)
            return
        self._count_turn(job.cost + (job.length if at_once else 0))
        if at_once:
            job.done(Outcome.DONE)
            return
        self._running.append(job)
        self._in_flight += job.length
        self._submit(job.work, lambda _, error: self._finish(job, error))

    def _count_turn(self, cost: int) -> None:
        self._turn -= cost
        if self._turn <= 0:
            self._submit(lambda: None, lambda _, error: self._next_turn())

    def _next_turn(self) -> None:
        self._turn = _TURN_BYTES
        self._service()

    def _finish(self, job: _Job, error: BaseException | None) -> None:
        self._running.remove(job)
        self._in_flight -= job.length
        if not job.cancelled:
            job.done(_outcome(job, error))
        self._service()


def _outcome(job: _Job, error: BaseException | None) -> Outcome:
    if isinstance(error, OSError):
        return Outcome.FAILED
    if error is not None:
        raise error
    with suppress(DmaFault):
        job.finish()
        return Outcome.DONE
    return Outcome.FAULTED
