"""The host as one PCI device of the machine uses it: a bug of ours in what it does there stops that device alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from xenolith.services.service import Outside

Action = Callable[[], None]
T = TypeVar("T")


class DeviceHost:
    """An Outside. Once something that is done for the device raises an error, `failed` is told of it, nothing more is
    done for the device, and its descriptors are not watched any more.

    `outside` is the machine's, and `soon` has something done when no guest runs, once.
    """

    def __init__(self, outside: Outside, soon: Callable[[Action], None], failed: Callable[[Exception], None]) -> None:
        self._outside = outside
        self._soon = soon
        self._failed = failed
        self._watched: set[int] = set()
        self._stopped = False

    def soon(self, action: Action) -> None:
        self._soon(_Guarded(self, action))

    def post(self, action: Action) -> None:
        self._outside.post(_Guarded(self, action))

    def watch_readable(self, fd: int, action: Action) -> None:
        self._watched.add(fd)
        self._outside.watch_readable(fd, _Guarded(self, action))

    def watch_writable(self, fd: int, action: Action) -> None:
        self._watched.add(fd)
        self._outside.watch_writable(fd, _Guarded(self, action))

    def unwatch(self, fd: int) -> None:
        self._watched.discard(fd)
        self._outside.unwatch(fd)

    def submit(self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        self._outside.submit(work, lambda result, error: self.do(lambda: done(result, error)))

    def do(self, action: Action) -> None:
        """Do something for the device, if that has not failed."""
        if self._stopped:
            return
        try:
            action()
        except Exception as error:
            self._stop()
            self._failed(error)

    def _stop(self) -> None:
        self._stopped = True
        for fd in self._watched:
            self._outside.unwatch(fd)


@dataclass(frozen=True, slots=True)
class _Guarded:
    """Equal for equal actions, so that what is asked for twice is still done once."""

    host: DeviceHost
    action: Action

    def __call__(self) -> None:
        self.host.do(self.action)
