"""Coroutines without an event loop of their own: what waits goes on when a domain's event handler completes it.

A native domain runs only when one of its events, or an answer from the host, has come. A coroutine waits on a `Future`
and is continued in the turn in which somebody sets that future's result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Future(Generic[T]):
    """A result that will come; `await` it in a task, or have it told to a callback."""

    def __init__(self) -> None:
        self._done = False
        self._result: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Future[T]], None]] = []

    @property
    def done(self) -> bool:
        return self._done

    def result(self) -> T:
        """What came; raises what was set as an error."""
        if self._error is not None:
            raise self._error
        return cast(T, self._result)

    def set_result(self, result: T) -> None:
        """Whoever waits goes on. Nothing happens if the result has come before."""
        self._settle(result, None)

    def set_error(self, error: BaseException) -> None:
        self._settle(None, error)

    def _settle(self, result: T | None, error: BaseException | None) -> None:
        if self._done:
            return
        self._done, self._result, self._error = True, result, error
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def on_done(self, callback: Callable[[Future[T]], None]) -> None:
        """Call when the result has come, or now if it has."""
        if self._done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def __await__(self) -> Generator[Future[Any], None, T]:
        if not self._done:
            yield cast("Future[Any]", self)
        return self.result()


class Tasks:
    """The coroutines of one domain's code. `on_failure` is told of an exception that one of them let out."""

    def __init__(self, on_failure: Callable[[Exception], None]) -> None:
        self._on_failure = on_failure
        self._running: set[Coroutine[Any, Any, Any]] = set()
        self._ready: deque[Coroutine[Any, Any, Any]] = deque()
        self._stepping = False
        self._closed = False

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine until it waits; it goes on by itself. An exception goes to who awaits the future, if anybody
        does, and to `on_failure` otherwise."""
        future: Future[T] = Future()
        self._start(self._finish(coroutine, future))
        return future

    async def _finish(self, coroutine: Coroutine[Any, Any, T], future: Future[T]) -> None:
        try:
            result = await coroutine
        except Exception as error:
            if not future._callbacks:
                raise
            future.set_error(error)
        else:
            future.set_result(result)

    def _start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._running.add(coroutine)
        self._ready.append(coroutine)
        self._step()

    def _step(self) -> None:
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._ready and not self._closed:
                self._advance(self._ready.popleft())
        finally:
            self._stepping = False

    def _advance(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            future = coroutine.send(None)
        except StopIteration:
            self._running.discard(coroutine)
        except Exception as error:
            self._running.discard(coroutine)
            self._on_failure(error)
        else:
            future.on_done(lambda _: self._resume(coroutine))

    def _resume(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        if not self._closed:
            self._ready.append(coroutine)
            self._step()

    def close(self) -> None:
        """End all coroutines where they wait; none goes on."""
        self._closed = True
        for coroutine in list(self._running):
            if coroutine not in self._ready or not self._stepping:
                coroutine.close()
        self._running.clear()
        self._ready.clear()
