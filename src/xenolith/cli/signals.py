"""The signals that ask the command to end, each answered once: by an exception, or in what way the caller can bear."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """One of the signals came. The exit status is that of a shell whose command it ended."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.sentence = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
        self.status = 128 + number


@contextlib.contextmanager
def heard(answer: Callable[[int], None]) -> Iterator[None]:
    """Within, the first of the signals calls `answer` with its number, in the main thread; others after it do nothing.

    A signal that is ignored already, as under nohup, stays so.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        answer(number)

    before = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(number: int) -> None:
    """The answer where the code can be left anywhere."""
    raise Interrupted(number)
