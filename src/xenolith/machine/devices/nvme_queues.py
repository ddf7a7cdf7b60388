"""The queues of an NVMe controller: rings in memory, of which one side is the driver's.

Source: NVM Express 1.4, section 4.1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from xenolith.machine.devices.disk_work import OpenMemory
from xenolith.machine.devices.nvme_commands import COMMAND_BYTES, COMPLETION_BYTES, Command, Status, completion

_PHASE_AT: Final = 12
"""Offset of the part of a completion that says that it is there."""


class Answer(NamedTuple):
    """A completion that is to be posted."""

    result: int
    head: int
    queue: int
    identifier: int
    status: Status


class CompletionQueue:
    """Where answers go: `size` entries from `base` on. `vector` is None for a queue that does not interrupt."""

    def __init__(self, memory: OpenMemory, identifier: int, base: int, size: int, vector: int | None) -> None:
        self._memory = memory
        self.identifier, self.size, self.vector = identifier, size, vector
        self._base = base
        self._head = self._tail = 0
        self._phase = 1
        self._waiting: deque[Answer] = deque()

    @property
    def is_blocked(self) -> bool:
        """Whether answers wait for the driver to make room."""
        return bool(self._waiting)

    @property
    def has_news(self) -> bool:
        """Whether there are answers that the driver has not taken."""
        return self._head != self._tail

    def add(self, answer: Answer) -> bool:
        """Post an answer, or keep it until there is room; whether something was posted. Raises DmaFault."""
        self._waiting.append(answer)
        return self._post()

    def move_head(self, head: int) -> bool:
        """The driver has taken what is before `head` (below `size`); whether more was posted. Raises DmaFault."""
        self._head = head
        return self._post()

    def _post(self) -> bool:
        posted = False
        while self._waiting and (self._tail + 1) % self.size != self._head:
            entry = self._memory(self._base + self._tail * COMPLETION_BYTES, COMPLETION_BYTES, True)
            content = completion(*self._waiting.popleft(), self._phase)
            entry[:_PHASE_AT] = content[:_PHASE_AT]
            entry[_PHASE_AT:] = content[_PHASE_AT:]
            self._tail = (self._tail + 1) % self.size
            self._phase ^= not self._tail
            posted = True
        return posted


class SubmissionQueue:
    """Where commands come from: `size` entries from `base` on, answered in `completions`."""

    def __init__(self, memory: OpenMemory, identifier: int, base: int, size: int, completions: CompletionQueue) -> None:
        self._memory = memory
        self.identifier, self.size, self.completions = identifier, size, completions
        self._base = base
        self.head = 0
        self.tail = 0
        """What the driver says; always below `size`."""
        self.unanswered = 0
        self._emptied: Callable[[], None] | None = None

    @property
    def is_closing(self) -> bool:
        return self._emptied is not None

    def take(self) -> Command:
        """The next command, if `head` is not `tail`. Raises DmaFault."""
        entry = self._memory(self._base + self.head * COMMAND_BYTES, COMMAND_BYTES, False)
        command = Command.parse(entry)
        self.head = (self.head + 1) % self.size
        self.unanswered += 1
        return command

    def answered(self) -> None:
        """One of its commands has its answer."""
        self.unanswered -= 1
        if self._emptied is not None and not self.unanswered:
            self._emptied()

    def close(self, emptied: Callable[[], None]) -> None:
        """Take no more; `emptied` is called when all that was taken has been answered."""
        self._emptied = emptied
        if not self.unanswered:
            emptied()
