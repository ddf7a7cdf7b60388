"""The world outside a machine: host time, terminals and signals, as the hypervisor's `Host` wants them.

With the host's clock, one thread sleeps until the next deadline or until a file can be read, and then kicks the engine.
With the virtual clock nothing happens by itself: the engine stops after so much work, and idle time is skipped.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from xenolith.cpu.engine import Engine
from xenolith.machine.clock import Clock, VirtualClock

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_READ_SIZE: Final = 4096
_RETRY_S: Final = 0.001
_FOREVER_S: Final = 3600.0
"""How long a thread sleeps at once when there is nothing to wait for, or for longer."""
_WORKERS: Final = 4
Receiver = Callable[[bytes], None]
Action = Callable[[], None]
T = TypeVar("T")


class HostLoop:
    """Deadlines and input for a machine that runs with the host's time. Close it when the machine is gone."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._inbox: deque[Action] = deque()
        self._watched: dict[int, tuple[int, Action]] = {}
        self._workers: ThreadPoolExecutor | None = None
        self._arrived = threading.Condition()
        self._deadline: int | None = None
        self._sleeping_until: int | None = None
        self._closing = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._previous_wakeup = -1
        with contextlib.suppress(ValueError):  # not the main thread: then signals are somebody else's concern
            self._previous_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="xenolith-host", daemon=True)
        self._thread.start()

    def watch(self, fd: int, receiver: Receiver) -> None:
        """Give what can be read from `fd` to `receiver`, in the machine's own thread; b"" once at its end."""
        self._selector.register(fd, selectors.EVENT_READ, receiver)
        self._wake()

    def post(self, action: Action) -> None:
        """Have `action` done in the machine's own thread, soon. May be called from any thread."""
        self._put(action)
        self._wake()

    def watch_readable(self, fd: int, action: Action) -> None:
        """Have `action` done in the machine's own thread whenever `fd` can be read, until `unwatch`; it reads."""
        self._look(fd, selectors.EVENT_READ, action)

    def watch_writable(self, fd: int, action: Action) -> None:
        """The same for a file that can be written. A descriptor is watched for one of both: os.dup makes another."""
        self._look(fd, selectors.EVENT_WRITE, action)

    def _look(self, fd: int, events: int, action: Action) -> None:
        self._watched[fd] = events, action
        self._selector.register(fd, events)
        self._wake()

    def unwatch(self, fd: int) -> None:
        """Look at `fd` no more; to be called before it is closed."""
        self._watched.pop(fd, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    def submit(self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """Do `work` in another thread; `done` gets its result or its error, in the machine's own thread."""
        if self._workers is None:
            from concurrent.futures import ThreadPoolExecutor  # most machines never need it, and it is slow to import

            self._workers = ThreadPoolExecutor(_WORKERS, "xenolith-io")

        def do() -> None:
            try:
                result = work()
            except BaseException as error:
                self.post(lambda error=error: done(None, error))  # type: ignore[misc]
            else:
                self.post(lambda: done(result, None))

        self._workers.submit(do)

    def close(self) -> None:
        if self._workers is not None:
            self._workers.shutdown(cancel_futures=True)
        self._closing = True
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(self._previous_wakeup)
        self._wake()
        self._thread.join()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    # -- for the hypervisor -------------------------------------------------------------------------------------------

    def poll(self) -> None:
        self._deadline = None
        while self._inbox:
            self._inbox.popleft()()

    def arm(self, deadline_ns: int | None) -> None:
        self._deadline = deadline_ns
        sleeping = self._sleeping_until
        if deadline_ns is not None and (sleeping is None or deadline_ns < sleeping):
            self._wake()

    def wait(self, deadline_ns: int | None) -> None:
        timeout = self._seconds_until(deadline_ns)
        with self._arrived:
            if not self._inbox and timeout > 0:
                self._arrived.wait(timeout)

    def _seconds_until(self, deadline_ns: int | None) -> float:
        """How long to wait at once. A guest may name a time that the host's own calls do not take."""
        if deadline_ns is None:
            return _FOREVER_S
        return min((deadline_ns - self._clock.now_ns()) / 1e9, _FOREVER_S)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def _watch(self) -> None:
        while not self._closing:
            deadline = self._deadline
            timeout = self._seconds_until(deadline)
            if timeout <= 0 or self._inbox:
                # The engine may not run yet, or may just be starting: keep kicking until the machine has noticed.
                self._engine.kick()
                timeout = _RETRY_S
            self._sleeping_until = deadline
            ready = self._selector.select(timeout)
            self._sleeping_until = None
            for key, _events in ready:
                if key.fd in self._watched:
                    self._report(key.fd)
                elif key.data is not None or key.fd == self._wake_read:
                    self._receive(key.fd, key.data)

    def _report(self, fd: int) -> None:
        """Say so once, and look again when that has been answered."""
        with contextlib.suppress(KeyError, ValueError):  # nobody wants to know any more
            self._selector.unregister(fd)

        def answer() -> None:
            wish = self._watched.get(fd)
            if wish is None:
                return
            events, action = wish
            action()
            if self._watched.get(fd) is wish:
                self._selector.register(fd, events)

        self._put(answer)

    def _receive(self, fd: int, receiver: Receiver | None) -> None:
        try:
            data = os.read(fd, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if receiver is None:
            if any(data):  # a signal: the machine's thread must run some Python for its handler to be called
                self._put(lambda: None)
            return
        if not data:
            self._selector.unregister(fd)
        self._put(lambda: receiver(data))

    def _put(self, action: Callable[[], None]) -> None:
        with self._arrived:
            self._inbox.append(action)
            self._arrived.notify()


class Stalled(Exception):
    """Every domain waits for something that cannot come."""


class VirtualHost:
    """Deadlines for a machine whose time is its work. From outside come signals and what is posted, but no input."""

    def __init__(self, engine: Engine, clock: VirtualClock) -> None:
        self._engine = engine
        self._clock = clock
        self._outside = HostLoop(engine, clock)
        self.post = self._outside.post
        self.watch_readable = self._outside.watch_readable
        self.watch_writable = self._outside.watch_writable
        self.unwatch = self._outside.unwatch

    def submit(self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """Do `work` at once, so that every run goes the same way."""
        try:
            result = work()
        except Exception as error:
            done(None, error)
        else:
            done(result, None)

    def poll(self) -> None:
        self._outside.poll()
        self._engine.set_work_limit(None)

    def arm(self, deadline_ns: int | None) -> None:
        self._engine.set_work_limit(None if deadline_ns is None else self._clock.units_until(deadline_ns))

    def wait(self, deadline_ns: int | None) -> None:
        if deadline_ns is None:
            raise Stalled
        self._clock.skip_to(deadline_ns)

    def close(self) -> None:
        self._outside.close()
