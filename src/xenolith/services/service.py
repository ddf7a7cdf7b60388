"""What the code of a native domain is given, and what it must be able to do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from xenolith.services.tasks import Future, Tasks

if TYPE_CHECKING:
    from xenolith.hypervisor.native import NativeKernel
    from xenolith.services.store_client import StoreClient

T = TypeVar("T")


class Outside(Protocol):
    """The host, as far as a service may use it. Everything is told in the machine's own thread."""

    def post(self, action: Callable[[], None]) -> None:
        """Have `action` done in the machine's thread, soon. May be called from any thread."""

    def watch_readable(self, fd: int, action: Callable[[], None]) -> None:
        """Have `action` done in the machine's thread whenever `fd`, which must not block, can be read; it reads."""

    def watch_writable(self, fd: int, action: Callable[[], None]) -> None:
        """Have `action` done in the machine's thread whenever `fd`, which is not watched otherwise, can be written."""

    def unwatch(self, fd: int) -> None:
        """Look at `fd` no more; to be called before it is closed."""

    def submit(self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """Do `work`, which may block, in a thread of its own; `done` is told its result or its error."""


class Access:
    """A service's way to the host. When the service is gone, nothing comes to it any more."""

    def __init__(self, outside: Outside, on_failure: Callable[[Exception], None]) -> None:
        self._outside = outside
        self._on_failure = on_failure
        self._watched: set[int] = set()
        self._working = 0
        self._rested = threading.Condition()
        self._closed = False

    def _guarded(self, action: Callable[[], None]) -> None:
        if self._closed:
            return
        try:
            action()
        except Exception as error:
            self._on_failure(error)

    def post(self, action: Callable[[], None]) -> None:
        """Have `action` done in the machine's thread, soon. May be called from any thread."""
        self._outside.post(lambda: self._guarded(action))

    def watch_readable(self, fd: int, action: Callable[[], None]) -> None:
        """Have `action` done whenever `fd`, which must not block, can be read."""
        self._watched.add(fd)
        self._outside.watch_readable(fd, lambda: self._guarded(action))

    def watch_writable(self, fd: int, action: Callable[[], None]) -> None:
        """Have `action` done whenever `fd`, which must not block and is not watched otherwise, can be written."""
        self._watched.add(fd)
        self._outside.watch_writable(fd, lambda: self._guarded(action))

    def unwatch(self, fd: int) -> None:
        self._watched.discard(fd)
        self._outside.unwatch(fd)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Do `work`, which may block, in another thread; `await` its result, which may be an error."""
        future: Future[T] = Future()

        def done(result: T | None, error: BaseException | None) -> None:
            if error is not None:
                self._guarded(lambda: future.set_error(error))
            else:
                self._guarded(lambda: future.set_result(result))  # type: ignore[arg-type]

        with self._rested:
            self._working += 1
        self._outside.submit(lambda: self._work(work), done)
        return future

    def _work(self, work: Callable[[], T]) -> T:
        try:
            return work()
        finally:
            with self._rested:
                self._working -= 1
                self._rested.notify_all()

    def close(self) -> None:
        """The service is gone. Work that other threads do for it is waited for: it may be in memory of guests."""
        self._closed = True
        with self._rested:
            self._rested.wait_for(lambda: not self._working)
        for fd in self._watched:
            self._outside.unwatch(fd)
        self._watched.clear()


@dataclass(slots=True)
class Context:
    """A service's world: the kernel of its domain, its coroutines, xenstore, the host, and where it may leave files."""

    kernel: NativeKernel
    tasks: Tasks
    store: StoreClient
    host: Access
    log: Callable[[str], None]
    directory: Path | None = None


class Service(Protocol):
    """The code of a native domain, or a part of it. It may be dropped at any moment and made again.

    `stop` gives back what the host gave (files, sockets); it must not fail and not wait.
    """

    async def start(self) -> None:
        """Begin, or go on where the one before was dropped."""

    def stop(self) -> None:
        """Be gone."""


Factory = Callable[[Context], Service]
