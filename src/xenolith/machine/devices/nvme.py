"""An NVMe controller with one namespace: registers, queues in memory, an interrupt for each queue.

Source: NVM Express 1.4, chapter 3 (registers), 4.1 (queues), 7.3, 7.5, 7.6 (reset, interrupts, initialisation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xenolith.machine.devices.disk_work import DiskWork, Outcome, Submit, serial_number
from xenolith.machine.devices.nvme_admin import IO_QUEUES, MAX_QUEUE_ENTRIES, VECTORS, AdminCommands, Queues
from xenolith.machine.devices.nvme_commands import Command, Refused, Status
from xenolith.machine.devices.nvme_data import VERSION, Health
from xenolith.machine.devices.nvme_io import NvmCommands
from xenolith.machine.devices.nvme_prp import PAGE
from xenolith.machine.devices.nvme_queues import Answer, CompletionQueue, SubmissionQueue
from xenolith.machine.disk import Image
from xenolith.machine.pci import BarKind, DmaFault
from xenolith.machine.pci_device import PciDevice

_VENDOR: Final = 0x5853
"""XenSource, Inc. Drivers know a controller by its class."""
_DEVICE: Final = 0x4E56
_CLASS: Final = 0x010802
_REGISTER_BYTES: Final = 0x4000
_MSIX_BAR: Final = 4
_MAX_RUNNING: Final = 256
"""Commands that are taken and not answered yet, beside those that wait for an event."""

# Registers (section 3.1).
CAP: Final = 0x00
VS: Final = 0x08
INTMS: Final = 0x0C
INTMC: Final = 0x10
CC: Final = 0x14
CSTS: Final = 0x1C
AQA: Final = 0x24
ASQ: Final = 0x28
ACQ: Final = 0x30
DOORBELLS: Final = 0x1000
_DOORBELLS_END: Final = DOORBELLS + 8 * (IO_QUEUES + 1)

_CAPABILITIES: Final = MAX_QUEUE_ENTRIES - 1 | 1 << 16 | 20 << 24 | 1 << 37
"""Entries of a queue; queues must be contiguous; 10 s to become ready at most; the NVM command set; pages of 4 KiB."""
_AQA_BITS: Final = 0x0FFF0FFF

CC_ENABLE: Final = 1 << 0
CC_SHUTDOWN: Final = 3 << 14
_CC_BITS: Final = 0x00FFFFF1
_CC_SETTINGS: Final = 0x3FF0
"""Command set, page size and arbitration: all 0 is what we have."""
CC_ENTRY_SIZES: Final = 6 << 16 | 4 << 20
_CC_ENTRY_BITS: Final = 0xFF << 16

CSTS_READY: Final = 1 << 0
CSTS_FATAL: Final = 1 << 1
_CSTS_SHUTTING: Final = 1 << 2
CSTS_SHUT: Final = 2 << 2

_UNKNOWN_DOORBELL: Final = 0
_BAD_DOORBELL: Final = 1


class Nvme(PciDevice):
    """`image` behind an NVMe controller; `submit` has work done in other threads."""

    def __init__(self, image: Image, submit: Submit) -> None:
        super().__init__(_VENDOR, _DEVICE, _CLASS, subsystem_vendor=_VENDOR, subsystem=_DEVICE, interrupt_pin=1)
        self.add_bar(0, _REGISTER_BYTES, BarKind.MEMORY64, self)
        self.add_msix(VECTORS, _MSIX_BAR)
        self.add_function_reset()
        self._work = DiskWork(image, self.memory, submit)
        self._queues = Queues()
        health = Health()
        self._io = NvmCommands(image, self._work, self.memory, health)
        self._admin = AdminCommands(
            image, self.memory, self._queues, health, _VENDOR, lambda: serial_number(self.where)
        )
        self._admin.entry_sizes_set = lambda: self._configuration & _CC_ENTRY_BITS == CC_ENTRY_SIZES
        self._admin.write_cache_changed = self._set_write_cache
        self._news: dict[int, CompletionQueue] = {}
        self._processing = False
        self._pin = False
        self._clear_registers()

    def _set_write_cache(self, on: bool) -> None:
        self._io.write_cache = on

    def _clear_registers(self) -> None:
        self._configuration = 0
        self._status = 0
        self._masked = 0
        self._admin_sizes = 0
        self._bases = {ASQ: 0, ACQ: 0}
        self._running = 0

    def reset(self) -> None:
        super().reset()
        self._disable()
        self._clear_registers()

    # -- registers ----------------------------------------------------------------------------------------------------

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        if size == 8:
            return self._read(offset) | self._read(offset + 4) << 32
        return self._read(offset & ~3) >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def _read(self, register: int) -> int:
        base, shift = (
            (register & ~7, 8 * (register & 4)) if register < VS or ASQ <= register < ACQ + 8 else (register, 0)
        )
        values = {
            CAP: _CAPABILITIES,
            VS: VERSION,
            INTMS: self._masked,
            INTMC: self._masked,
            CC: self._configuration,
            CSTS: self._status,
            AQA: self._admin_sizes,
            **self._bases,
        }
        return values.get(base, 0) >> shift & 0xFFFFFFFF

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        """Registers take aligned accesses of 32 and 64 bits; others are ignored."""
        if size >= 4 and not offset & 3:
            for at in range(0, size, 4):
                self._write(offset + at, value >> 8 * at & 0xFFFFFFFF)

    def _write(self, register: int, value: int) -> None:
        if register >= DOORBELLS:
            self._ring(register, value)
        elif register == INTMS:
            self._masked |= value
            self._drive()
        elif register == INTMC:
            self._masked &= ~value
            self._drive()
        elif register == CC:
            self._configure(value & _CC_BITS)
        elif not self._configuration & CC_ENABLE:
            self._place_admin_queue(register, value)

    def _place_admin_queue(self, register: int, value: int) -> None:
        if register == AQA:
            self._admin_sizes = value & _AQA_BITS
        elif register & ~4 in self._bases:
            shift = 8 * (register & 4)
            kept = self._bases[register & ~4] & 0xFFFFFFFF << (32 - shift)
            self._bases[register & ~4] = (kept | value << shift) & -PAGE

    def _configure(self, value: int) -> None:
        before, self._configuration = self._configuration, value
        if value & CC_ENABLE and not before & CC_ENABLE:
            self._enable()
        elif before & CC_ENABLE and not value & CC_ENABLE:
            self._disable()
        if value & CC_SHUTDOWN and not before & CC_SHUTDOWN:
            self._shut_down()

    def _enable(self) -> None:
        submission, completion = (self._admin_sizes & 0xFFFF) + 1, (self._admin_sizes >> 16) + 1
        if self._configuration & _CC_SETTINGS or min(submission, completion) < 2:
            self._status |= CSTS_FATAL
            return
        completions = CompletionQueue(self.memory, 0, self._bases[ACQ], completion, 0)
        self._queues.completion[0] = completions
        self._queues.submission[0] = SubmissionQueue(self.memory, 0, self._bases[ASQ], submission, completions)
        self._status |= CSTS_READY

    def _disable(self) -> None:
        """Forget everything but where the admin queue is to be."""
        self._work.cancel()
        self._queues.clear()
        self._admin.reset()
        self._news.clear()
        self._status = self._masked = self._running = 0
        self._drive()

    def _shut_down(self) -> None:
        self._status = self._status & ~CSTS_SHUT | _CSTS_SHUTTING

        def done(outcome: Outcome) -> None:
            self._status = self._status & ~_CSTS_SHUTTING | CSTS_SHUT

        self._work.flush(done)

    def _fail(self) -> None:
        """A queue is where it may not be: there is no way to tell but this."""
        self._status |= CSTS_FATAL
        self._work.cancel()

    @property
    def _is_working(self) -> bool:
        return self._status & (CSTS_READY | CSTS_FATAL) == CSTS_READY

    # -- queues -------------------------------------------------------------------------------------------------------

    def _ring(self, register: int, value: int) -> None:
        """A doorbell: the driver has moved the tail of a submission queue, or the head of a completion queue."""
        if not self._is_working:
            return
        number, is_head = divmod(register - DOORBELLS >> 2, 2)
        queue = self._queues.completion.get(number) if is_head else self._queues.submission.get(number)
        if queue is None or register >= _DOORBELLS_END:
            self._admin.tell_error(_UNKNOWN_DOORBELL)
        elif value >= queue.size:
            self._admin.tell_error(_BAD_DOORBELL)
        elif isinstance(queue, SubmissionQueue):
            queue.tail = value
            self._process([queue])
            return
        else:
            self._take_answers(queue, value)
        self._interrupt()

    def _take_answers(self, queue: CompletionQueue, head: int) -> None:
        """The driver has made room in a queue: what waited for that goes on."""
        try:
            posted = queue.move_head(head)
        except DmaFault:
            self._fail()
            return
        if posted:
            self._news[queue.identifier] = queue
            self._process(list(self._queues.submission.values()))

    def _process(self, queues: Sequence[SubmissionQueue]) -> None:
        """Take commands from these queues in turn, as far as there is room for their answers; then interrupt."""
        if self._processing:
            return
        self._processing = True
        try:
            while sum(self._take(queue) for queue in queues):
                pass
        finally:
            self._processing = False
        self._interrupt()

    def _take(self, queue: SubmissionQueue) -> bool:
        """Take a command and start it; whether there was one that could be taken."""
        if queue.head == queue.tail or not self._is_working or queue.is_closing or queue.completions.is_blocked:
            return False
        if self._running >= _MAX_RUNNING and queue.identifier:
            return False
        try:
            command = queue.take()
        except DmaFault:
            self._fail()
            return False
        self._running += 1
        self._execute(queue, command)
        return True

    def _execute(self, queue: SubmissionQueue, command: Command) -> None:
        try:
            command.check_flags()
            if queue.identifier:
                self._io.execute(command, lambda status: self._answer(queue, command, status))
            else:
                self._admin.execute(command, lambda status, result: self._answer(queue, command, status, result))
        except Refused as refused:
            self._answer(queue, command, refused.status)
        except DmaFault:
            self._answer(queue, command, Status.DATA_TRANSFER_ERROR)

    def _answer(self, queue: SubmissionQueue, command: Command, status: Status, result: int = 0) -> None:
        was_full = self._running >= _MAX_RUNNING
        self._running -= 1
        if not self._is_working:
            return
        completions = queue.completions
        try:
            posted = completions.add(Answer(result, queue.head, queue.identifier, command.identifier, status))
        except DmaFault:
            self._fail()
            return
        if posted:
            self._news[completions.identifier] = completions
        queue.answered()
        self._process(list(self._queues.submission.values()) if was_full else [])

    # -- interrupts ---------------------------------------------------------------------------------------------------

    def _interrupt(self) -> None:
        news, self._news = self._news, {}
        for queue in news.values():
            if queue.vector is not None:
                self.interrupt(queue.vector)
        self._drive()

    @property
    def _has_news(self) -> bool:
        return any(queue.has_news and queue.vector is not None for queue in self._queues.completion.values())

    def _drive(self) -> None:
        """The interrupt pin is up while there are answers that the driver has not taken."""
        level = not self._masked & 1 and not self.message_vectors and self._has_news
        if level != self._pin:
            self._pin = level
            self.set_intx(level)
