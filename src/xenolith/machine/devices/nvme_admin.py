"""The admin commands of an NVMe controller: its identity, its features, its queues, its events.

Source: NVM Express 1.4, chapter 5.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from xenolith.machine.devices.disk_work import OpenMemory
from xenolith.machine.devices.nvme_commands import Admin, Command, Refused, Status
from xenolith.machine.devices.nvme_data import (
    MAX_EVENT_REQUESTS,
    MAX_TRANSFER_SHIFT,
    Health,
    error_log,
    firmware_log,
    identify_controller,
    identify_descriptors,
    identify_namespace,
    identify_namespaces,
)
from xenolith.machine.devices.nvme_io import ALL_NAMESPACES, NAMESPACE
from xenolith.machine.devices.nvme_prp import PAGE, segments
from xenolith.machine.devices.nvme_queues import CompletionQueue, SubmissionQueue
from xenolith.machine.disk import Image

MAX_QUEUE_ENTRIES: Final = 1024
IO_QUEUES: Final = 8
"""Pairs of I/O queues, numbered from 1."""
VECTORS: Final = IO_QUEUES + 1
"""One for the admin queue, and one for each pair."""
_LOG_ERRORS: Final = 1
_LOG_HEALTH: Final = 2
_LOG_FIRMWARE: Final = 3

_CONTIGUOUS: Final = 1 << 0
_INTERRUPTS: Final = 1 << 1
_SAVE: Final = 1 << 31
_RETAIN_EVENT: Final = 1 << 15
_NOT_ABORTED: Final = 1
_ERROR_EVENT: Final = _LOG_ERRORS << 16


class Feature(IntEnum):
    """Feature identifiers."""

    ARBITRATION = 0x01
    POWER = 0x02
    TEMPERATURE = 0x04
    ERROR_RECOVERY = 0x05
    WRITE_CACHE = 0x06
    QUEUES = 0x07
    COALESCING = 0x08
    VECTOR = 0x09
    ATOMICITY = 0x0A
    EVENTS = 0x0B


_KEPT: Final = {
    Feature.ARBITRATION: (0, 0xFFFFFF07),
    Feature.POWER: (0, 0),
    Feature.TEMPERATURE: (0xFFFF, 0xFFFF),
    Feature.ERROR_RECOVERY: (0, 0xFFFF),
    Feature.WRITE_CACHE: (1, 1),
    Feature.COALESCING: (0, 0xFFFF),
    Feature.ATOMICITY: (0, 1),
    Feature.EVENTS: (0, 0x7FFF),
}
"""Features that are a number which is kept: what it is at first, and the bits that it has."""
_UNDER: Final = 1 << 20
_THRESHOLD_SELECTOR: Final = 0x3F0000
"""Which threshold: of which sensor (0, all together, is what there is), over or under."""
_VECTOR_BITS: Final = 0x1FFFF

Reply = Callable[[Status, int], None]


class Queues:
    """The queues that there are, by their numbers; 0 is the admin queue."""

    def __init__(self) -> None:
        self.submission: dict[int, SubmissionQueue] = {}
        self.completion: dict[int, CompletionQueue] = {}

    def clear(self) -> None:
        self.submission.clear()
        self.completion.clear()


class AdminCommands:
    """Executes the commands of the admin queue. `serial` is asked for when the controller is identified."""

    def __init__(
        self, image: Image, memory: OpenMemory, queues: Queues, health: Health, vendor: int, serial: Callable[[], str]
    ) -> None:
        self._image = image
        self._memory = memory
        self._queues = queues
        self._health = health
        self._vendor = vendor
        self._serial = serial
        self.entry_sizes_set: Callable[[], bool] = lambda: True
        """Whether the driver has said how big entries of I/O queues are."""
        self.write_cache_changed: Callable[[bool], None] = lambda on: None
        self._handlers: Final[dict[int, Callable[[Command, Reply], int | None]]] = {
            Admin.DELETE_SQ: self._delete_sq,
            Admin.CREATE_SQ: self._create_sq,
            Admin.GET_LOG_PAGE: self._get_log_page,
            Admin.DELETE_CQ: self._delete_cq,
            Admin.CREATE_CQ: self._create_cq,
            Admin.IDENTIFY: self._identify,
            Admin.ABORT: self._abort,
            Admin.SET_FEATURES: self._set_features,
            Admin.GET_FEATURES: self._get_features,
            Admin.ASYNC_EVENT: self._await_event,
        }
        self.reset()

    def reset(self) -> None:
        """Forget what the driver has set and asked for."""
        self._kept: dict[tuple[int, int], int] = {}
        self._event_requests: deque[Reply] = deque()
        self._event: int | None = None
        self._errors_told = False
        self.write_cache_changed(True)

    def execute(self, command: Command, reply: Reply) -> None:
        """Do a command; `reply` is called when it is done. Raises Refused, or DmaFault, when nothing was done."""
        handler = self._handlers.get(command.opcode)
        if handler is None:
            raise Refused(Status.INVALID_OPCODE)
        result = handler(command, reply)
        if result is not None:
            reply(Status.SUCCESS, result)

    # -- queues -------------------------------------------------------------------------------------------------------

    def _create_cq(self, command: Command, reply: Reply) -> int:
        identifier, size = self._new_queue(command, self._queues.completion)
        vector = command.dwords[1] >> 16
        if vector >= VECTORS:
            raise Refused(Status.INTERRUPT_VECTOR)
        wanted = vector if command.dwords[1] & _INTERRUPTS else None
        self._queues.completion[identifier] = CompletionQueue(self._memory, identifier, command.prp1, size, wanted)
        return 0

    def _create_sq(self, command: Command, reply: Reply) -> int:
        identifier, size = self._new_queue(command, self._queues.submission)
        completions = self._queues.completion.get(command.dwords[1] >> 16)
        if completions is None or not completions.identifier:
            raise Refused(Status.COMPLETION_QUEUE_INVALID)
        queue = SubmissionQueue(self._memory, identifier, command.prp1, size, completions)
        self._queues.submission[identifier] = queue
        return 0

    def _new_queue(
        self, command: Command, present: dict[int, CompletionQueue] | dict[int, SubmissionQueue]
    ) -> tuple[int, int]:
        identifier, size = command.dwords[0] & 0xFFFF, (command.dwords[0] >> 16) + 1
        if not 1 <= identifier <= IO_QUEUES or identifier in present:
            raise Refused(Status.QUEUE_IDENTIFIER)
        if not 2 <= size <= MAX_QUEUE_ENTRIES:
            raise Refused(Status.QUEUE_SIZE)
        if not command.dwords[1] & _CONTIGUOUS or not self.entry_sizes_set():
            raise Refused(Status.INVALID_FIELD)
        if command.prp1 % PAGE:
            raise Refused(Status.PRP_OFFSET)
        return identifier, size

    def _delete_sq(self, command: Command, reply: Reply) -> None:
        identifier = command.dwords[0] & 0xFFFF
        queue = self._queues.submission.get(identifier)
        if not identifier or queue is None or queue.is_closing:
            raise Refused(Status.QUEUE_IDENTIFIER)

        def emptied() -> None:
            del self._queues.submission[identifier]
            reply(Status.SUCCESS, 0)

        queue.close(emptied)

    def _delete_cq(self, command: Command, reply: Reply) -> int:
        identifier = command.dwords[0] & 0xFFFF
        queue = self._queues.completion.get(identifier)
        if not identifier or queue is None:
            raise Refused(Status.QUEUE_IDENTIFIER)
        if any(submission.completions is queue for submission in self._queues.submission.values()):
            raise Refused(Status.QUEUE_DELETION)
        del self._queues.completion[identifier]
        return 0

    def _abort(self, command: Command, reply: Reply) -> int:
        if command.dwords[0] & 0xFFFF not in self._queues.submission:
            raise Refused(Status.INVALID_FIELD)
        return _NOT_ABORTED

    # -- what it is ---------------------------------------------------------------------------------------------------

    def _identify(self, command: Command, reply: Reply) -> int:
        self._send(command, self._identity(command), PAGE)
        return 0

    def _identity(self, command: Command) -> bytes:
        kind = command.dwords[0] & 0xFF
        if kind == 1:
            return identify_controller(self._serial(), self._vendor, self._image)
        if kind == 2:
            if command.namespace >= ALL_NAMESPACES - 1:
                raise Refused(Status.INVALID_NAMESPACE)
            return identify_namespaces(command.namespace)
        if kind not in (0, 3):
            raise Refused(Status.INVALID_FIELD)
        if command.namespace != NAMESPACE:
            raise Refused(Status.INVALID_NAMESPACE)
        return identify_descriptors(self._serial()) if kind else identify_namespace(self._image)

    def _get_log_page(self, command: Command, reply: Reply) -> int:
        low, high, offset_low, offset_high = command.dwords[:4]
        length = ((low >> 16 | (high & 0xFFFF) << 16) + 1) * 4
        offset = offset_low | offset_high << 32
        if length > PAGE << MAX_TRANSFER_SHIFT or offset % 4:
            raise Refused(Status.INVALID_FIELD)
        page = self._log(low & 0xFF)
        if offset > len(page):
            raise Refused(Status.INVALID_FIELD)
        self._send(command, page[offset : offset + length], length)
        if low & 0xFF == _LOG_ERRORS and not low & _RETAIN_EVENT:
            self._errors_told = False
        return 0

    def _log(self, identifier: int) -> bytes:
        if identifier == _LOG_ERRORS:
            return error_log()
        if identifier == _LOG_HEALTH:
            return self._health.log()
        if identifier == _LOG_FIRMWARE:
            return firmware_log()
        raise Refused(Status.LOG_PAGE)

    def _send(self, command: Command, page: bytes, length: int) -> None:
        """Write a page to the memory that the command names, with zeros up to `length` bytes."""
        content = page.ljust(length, b"\0")
        views = [self._memory(*part, True) for part in segments(self._memory, command.prp1, command.prp2, length)]
        at = 0
        for view in views:
            view[:] = content[at : at + len(view)]
            at += len(view)

    # -- features -----------------------------------------------------------------------------------------------------

    def _set_features(self, command: Command, reply: Reply) -> int:
        feature, value = command.dwords[0] & 0xFF, command.dwords[1]
        if command.dwords[0] & _SAVE:
            raise Refused(Status.NOT_SAVEABLE)
        if feature == Feature.QUEUES:
            return self._set_queues(value)
        key, _, bits = self._feature(feature, value)
        if feature == Feature.POWER and value & 0x1F:
            raise Refused(Status.INVALID_FIELD)
        self._kept[key] = value & bits
        if feature == Feature.WRITE_CACHE:
            self.write_cache_changed(bool(value & 1))
        return 0

    def _get_features(self, command: Command, reply: Reply) -> int:
        feature, value = command.dwords[0] & 0xFF, command.dwords[1]
        if command.dwords[0] & 0x700:  # other than the present value
            raise Refused(Status.INVALID_FIELD)
        if feature == Feature.QUEUES:
            return IO_QUEUES - 1 | (IO_QUEUES - 1) << 16
        key, default, _ = self._feature(feature, value)
        return self._kept.get(key, default)

    def _feature(self, feature: int, value: int) -> tuple[tuple[int, int], int, int]:
        """Where a feature's number is kept, what it is at first, and the bits that it has."""
        if feature == Feature.VECTOR:
            vector = value & 0xFFFF
            if vector >= VECTORS:
                raise Refused(Status.INVALID_FIELD)
            return (feature, vector), vector, _VECTOR_BITS
        if feature not in _KEPT:
            raise Refused(Status.INVALID_FIELD)
        default, bits = _KEPT[Feature(feature)]
        if feature != Feature.TEMPERATURE:
            return (feature, 0), default, bits
        selector = value & _THRESHOLD_SELECTOR
        if selector not in (0, _UNDER):
            raise Refused(Status.INVALID_FIELD)
        return (feature, selector), 0 if selector else default, bits

    def _set_queues(self, value: int) -> int:
        submission, completion = value & 0xFFFF, value >> 16
        if 0xFFFF in (submission, completion):
            raise Refused(Status.INVALID_FIELD)
        if len(self._queues.completion) > 1:
            raise Refused(Status.COMMAND_SEQUENCE)
        return IO_QUEUES - 1 | (IO_QUEUES - 1) << 16

    # -- events -------------------------------------------------------------------------------------------------------

    def _await_event(self, command: Command, reply: Reply) -> None:
        if len(self._event_requests) >= MAX_EVENT_REQUESTS:
            raise Refused(Status.EVENT_LIMIT)
        self._event_requests.append(reply)
        self._tell_event()

    def tell_error(self, information: int) -> None:
        """An error that belongs to no command has occurred; told once until the driver reads the log of errors."""
        if not self._errors_told:
            self._errors_told = True
            self._event = _ERROR_EVENT | information << 8
            self._tell_event()

    def _tell_event(self) -> None:
        event = self._event
        if event is not None and self._event_requests:
            self._event = None
            self._event_requests.popleft()(Status.SUCCESS, event)
