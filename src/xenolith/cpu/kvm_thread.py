"""Threads in which virtual processors of KVM's run beside the one that the machine's own thread runs.

A virtual processor stays with its thread for good: before Linux 6.12, KVM waits for milliseconds (an RCU grace period)
whenever another thread than the last one runs it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class RunThread:
    """A thread that does one piece of work after another, and waits in between. It ends when `close` is called."""

    def __init__(self) -> None:
        self._go, self._done = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._done.acquire()
        self._work: Callable[[], None] | None = None
        self._error: BaseException | None = None
        thread = threading.Thread(target=self._serve, name="xenolith-vcpu", daemon=True)
        thread.start()
        assert thread.ident is not None
        self.ident = thread.ident

    def start(self, work: Callable[[], None]) -> None:
        """Begin with `work`. `wait` must be called before the next."""
        self._work = work
        self._go.release()

    def wait(self, timeout_s: float = -1) -> bool:
        """Return when the work is done, or after so many seconds; whether it is done."""
        return self._done.acquire(timeout=timeout_s)

    def check(self) -> None:
        """Raise what the work has raised."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        self._go.release()

    def _serve(self) -> None:
        while True:
            self._go.acquire()
            work, self._work = self._work, None
            if work is None:
                return
            try:
                work()
            except BaseException as error:
                self._error = error
            del work  # it would keep the engine alive
            self._done.release()
