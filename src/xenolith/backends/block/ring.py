"""A disk's ring: requests taken, done on an image, and answered in their order (public/io/blkif.h).

Worker threads do what may wait for the host; what it has in memory is read at once, and short writes go there, which
costs less than a thread.

The order of the answers is what makes the ring its own journal: whoever takes the ring over finds in it exactly what
was not answered, and doing that again does no harm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from errno import EOPNOTSUPP
from typing import Final

from xenolith.abi.io.blkif import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
)
from xenolith.backends.block.pages import GrantRefused, GuestPages, Held, NoRoom
from xenolith.backends.block.requests import SLOT_BYTES, Refused, Request, read
from xenolith.backends.ring import BackRing, RingBroken
from xenolith.machine.disk import SECTOR_SIZE, Image

IN_FLIGHT_SEGMENTS: Final = 1024
"""Pages that one ring may have mapped for requests that are being done; one request may have them all."""

Submit = Callable[[Callable[[], Sequence[int]], Callable[[Sequence[int]], None]], None]
"""Have the first done somewhere else, and the second called with its result in the machine's own thread."""


@dataclass(slots=True, eq=False)
class _Job:
    """Requests that are done by one access to the image: adjacent ones of one kind, or a single one."""

    requests: list[Request] = field(default_factory=list)
    buffers: list[memoryview] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)

    @property
    def operation(self) -> int:
        return self.requests[0].operation


def _is_flush(request: Request) -> bool:
    return request.operation == BLKIF_OP_FLUSH_DISKCACHE and not request.segments


def _is_barrier(request: Request) -> bool:
    """Whether all earlier requests must be done before it starts, and it before any later one starts.

    So it is for a barrier, and for a flush that carries data.
    """
    plain = (BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_DISCARD)
    return request.operation not in plain and not _is_flush(request)


class BlockRing:
    """Serves `image` to the frontend behind the ring pages `shared`, whose pages `pages` maps.

    Call `service` when the frontend has signalled, once at the start, and when it said `starved` and others let go of
    pages. `broken` is why the ring is served no more, if the frontend broke it. Linux's blkback is the model for every
    status.
    """

    def __init__(
        self, shared: Sequence[memoryview], image: Image, pages: GuestPages, submit: Submit, notify: Callable[[], None]
    ) -> None:
        self._ring = BackRing(shared, SLOT_BYTES)
        self._image = image
        self._pages = pages
        self._submit = submit
        self._notify = notify
        self._unanswered: deque[Request] = deque()
        self._slot: bytes | None = None
        self._next: Request | None = None
        self._running: list[_Job] = []
        self._in_flight = 0
        self._serving = False
        self._closed: Callable[[], None] | None = None
        self.broken = ""
        self.starved = False

    def service(self) -> None:
        """Start what can be started, and answer what is done."""
        if self._serving or self._closed is not None or self.broken:
            return
        self._serving = True
        self.starved = False
        while self._start_next():
            pass
        self._serving = False
        self._answer()

    def close(self, closed: Callable[[], None]) -> None:
        """Start and answer nothing more; `closed` is called when nothing runs and no page is mapped any more."""
        self._closed = closed
        self._end_if_idle()

    def insert(self, image: Image) -> None:
        """Serve another image from now on. What runs on the one before is finished there."""
        self._image = image

    # -- taking requests ----------------------------------------------------------------------------------------------

    def _peek(self) -> Request | None:
        """The request that is to be started next; None if there is none. Raises NoRoom."""
        while self._next is None and self._take():
            assert self._slot is not None
            request = read(self._slot, self._read_pages)
            self._slot = None
            self._unanswered.append(request)
            if request.status is None:
                request.status = self._refusal(request)
            if request.status is None:
                self._next = request
        return self._next

    def _take(self) -> bool:
        """Have the next slot's copy in `_slot`; False if there is none."""
        try:
            if self._slot is None and (self._ring.waiting() or self._ring.ask_for_event()):
                self._slot = self._ring.take()
        except RingBroken as broken:
            self.broken = str(broken)
        return self._slot is not None

    def _refusal(self, request: Request) -> int | None:
        if self._image.readonly and request.operation != BLKIF_OP_READ:
            return BLKIF_RSP_ERROR
        if request.operation == BLKIF_OP_DISCARD and not self._image.discard_granularity:
            return BLKIF_RSP_EOPNOTSUPP
        if request.sectors and request.end > self._image.size // SECTOR_SIZE:
            return BLKIF_RSP_ERROR
        return None

    def _read_pages(self, grefs: Sequence[int]) -> bytes:
        try:
            held = self._pages.take(grefs, True)
        except GrantRefused as error:
            raise Refused(BLKIF_RSP_ERROR, str(error)) from None
        content = b"".join(held.views)
        held.release()
        return content

    # -- starting them ------------------------------------------------------------------------------------------------

    def _start_next(self) -> bool:
        """Start the next request with those that can go along; False if none can be started now."""
        job = _Job()
        try:
            if not self._begin(job):
                return False
            self._extend(job)
        except NoRoom:
            if not job.requests:
                self.starved = True
                return False
        if job.requests:
            image = self._image  # the one that is there now, even if another takes its place
            self._running.append(job)
            if _perform_at_once(image, job):
                self._finish(job, [BLKIF_RSP_OKAY] * len(job.requests))
                return True
            self._submit(lambda: _perform(image, job), lambda statuses: self._finish(job, statuses))
        return True

    def _begin(self, job: _Job) -> bool:
        request = self._peek()
        if request is None or not self._may_start(request):
            return False
        self._add(job, request)
        return True

    def _may_start(self, request: Request) -> bool:
        if any(_is_barrier(job.requests[0]) for job in self._running):
            return False
        if _is_barrier(request):
            return not self._running
        if _is_flush(request):
            return all(job.operation == BLKIF_OP_READ for job in self._running)
        return self._fits(request)

    def _fits(self, request: Request) -> bool:
        return not self._in_flight or self._in_flight + len(request.segments) <= IN_FLIGHT_SEGMENTS

    def _extend(self, job: _Job) -> None:
        """Let requests go along that follow in the ring and on the disk. Raises NoRoom when pages run out."""
        while job.requests and job.operation in (BLKIF_OP_READ, BLKIF_OP_WRITE):
            request = self._peek()
            if request is None or request.operation != job.operation or request.sector != job.requests[-1].end:
                return
            if not self._fits(request) or not self._add(job, request):
                return

    def _add(self, job: _Job, request: Request) -> bool:
        """Make the next request part of a job; False if the frontend does not grant its pages. Raises NoRoom."""
        if request.segments:
            try:
                self._hold(job, request)
            except GrantRefused:
                request.status = BLKIF_RSP_ERROR
                self._next = None
                return False
        job.requests.append(request)
        self._next = None
        return True

    def _hold(self, job: _Job, request: Request) -> None:
        readonly = request.operation != BLKIF_OP_READ
        held = self._pages.take([segment.gref for segment in request.segments], readonly)
        self._in_flight += len(request.segments)
        job.held.append(held)
        job.buffers += [
            view[segment.first * SECTOR_SIZE : (segment.last + 1) * SECTOR_SIZE]
            for view, segment in zip(held.views, request.segments, strict=True)
        ]

    # -- when they are done -------------------------------------------------------------------------------------------

    def _finish(self, job: _Job, statuses: Sequence[int]) -> None:
        self._running.remove(job)
        self._in_flight -= sum(len(request.segments) for request in job.requests)
        for held in job.held:
            held.release()
        for request, status in zip(job.requests, statuses, strict=True):
            request.status = status
        if self._closed is not None:
            self._end_if_idle()
        else:
            self.service()

    def _answer(self) -> None:
        answered = False
        while self._unanswered and self._unanswered[0].status is not None and not self.broken:
            self._ring.respond(self._unanswered.popleft().answer())
            answered = True
        if answered and self._ring.publish():
            self._notify()

    def _end_if_idle(self) -> None:
        if not self._running and self._closed is not None:
            self._pages.forget()
            self._closed()


def _perform_at_once(image: Image, job: _Job) -> bool:
    """Do a job on the image, if that waits for nothing; whether it is done."""
    if job.operation == BLKIF_OP_READ:
        return image.readv_at_once(job.requests[0].offset, job.buffers)
    return job.operation == BLKIF_OP_WRITE and image.writev_at_once(job.requests[0].offset, job.buffers)


def _perform(image: Image, job: _Job) -> list[int]:
    """Do a job on the image; the status of each of its requests. Any thread may run this."""
    status = _access(image, job.operation, job.requests[0], job.buffers)
    if status == BLKIF_RSP_OKAY or len(job.requests) == 1:
        return [status] * len(job.requests)
    return _perform_singly(image, job)


def _perform_singly(image: Image, job: _Job) -> list[int]:
    """What failed for all may succeed for some."""
    statuses, at = [], 0
    for request in job.requests:
        buffers = job.buffers[at : at + len(request.segments)]
        at += len(request.segments)
        statuses.append(_access(image, job.operation, request, buffers))
    return statuses


def _access(image: Image, operation: int, request: Request, buffers: Sequence[memoryview]) -> int:
    try:
        if operation == BLKIF_OP_READ:
            image.readv(request.offset, buffers)
        elif operation == BLKIF_OP_WRITE:
            image.writev(request.offset, buffers)
        elif operation == BLKIF_OP_DISCARD:
            image.discard(request.offset, request.length)
        else:
            image.flush()
            if buffers:
                image.writev(request.offset, buffers)
                image.flush()
    except OSError as error:
        return BLKIF_RSP_EOPNOTSUPP if error.errno == EOPNOTSUPP else BLKIF_RSP_ERROR
    return BLKIF_RSP_OKAY
