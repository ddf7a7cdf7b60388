"""A port of an AHCI controller: its registers, its 32 command slots, and the frames that it puts into memory.

Source: Serial ATA AHCI 1.3.1, 3.3 (port registers), 4 (structures in memory), 5 (how commands run), 6.2 (errors), 10.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from xenolith.machine.devices.ahci_disk import QUEUE_DEPTH, Aborted, AtaDisk, Ended
from xenolith.machine.devices.ahci_fis import (
    BUSY,
    DATA_REQUEST,
    READY,
    REGISTER_BYTES,
    SOFT_RESET,
    Task,
    bits_frame,
    pio_frame,
    register_frame,
)
from xenolith.machine.devices.disk_work import DiskWork, OpenMemory
from xenolith.machine.disk import SECTOR_SIZE
from xenolith.machine.pci import DmaFault

# Registers (3.3).
CLB: Final = 0x00
FB: Final = 0x08
IS: Final = 0x10
IE: Final = 0x14
CMD: Final = 0x18
TFD: Final = 0x20
SIG: Final = 0x24
SSTS: Final = 0x28
SCTL: Final = 0x2C
SERR: Final = 0x30
SACT: Final = 0x34
CI: Final = 0x38

# Interrupt status.
IS_REGISTERS: Final = 1 << 0
IS_PIO: Final = 1 << 1
IS_BITS: Final = 1 << 3
IS_CONNECT: Final = 1 << 6
IS_BUS_FATAL: Final = 1 << 29
IS_TASK_ERROR: Final = 1 << 30
_IS_BITS: Final = 0xFDC000AF
_ERRORS_CONNECT: Final = 1 << 26
"""Exchanged, in SERR, which IS shows as a change of the connection as long as it is set."""

# Command and status.
CMD_START: Final = 1 << 0
_CMD_FIXED: Final = 1 << 1 | 1 << 2
"""Spun up, powered."""
CMD_CLEAR_BUSY: Final = 1 << 3
CMD_RECEIVE: Final = 1 << 4
_CMD_SLOT_SHIFT: Final = 8
CMD_RECEIVING: Final = 1 << 14
CMD_RUNNING: Final = 1 << 15

SIGNATURE: Final = 0x101
CONNECTED: Final = 0x133
"""A device is there, with the third speed, and active."""
_DETECT: Final = 0x0F
_DETECT_RESET: Final = 1
_DETECT_OFF: Final = 4
_CONTROL_BITS: Final = 0xFFF

_HEADER: Final = struct.Struct("<HHIQ")
_HEADER_BYTES: Final = 32
_PRD: Final = struct.Struct("<QII")
_PRDS_AT: Final = 0x80
_PRD_BYTES: Final = 0x3FFFFF
MAX_PRDS: Final = 8193
"""Enough for the longest command in pages; a longer table is refused."""
_FRAME_DWORDS: Final = 0x1F
_IS_ATAPI: Final = 1 << 5

# Where frames go.
_PIO_AT: Final = 0x20
_REGISTERS_AT: Final = 0x40
_BITS_AT: Final = 0x58
_RESET_TASK: Final = Task(True, 0, 0, 1, 0, 1, 0)
"""Registers after a reset: the signature of a disk."""


class _Table:
    """The memory that a command table describes (a Transfer)."""

    def __init__(self, memory: OpenMemory, table: int, entries: int) -> None:
        self._memory = memory
        self._at = table + _PRDS_AT
        self._entries = entries

    def segments(self, length: int) -> list[tuple[int, int]]:
        if self._entries > MAX_PRDS:
            raise Aborted
        table = self._memory(self._at, self._entries * _PRD.size, False)
        found = []
        for maddr, _, size in _PRD.iter_unpack(table):
            part = min((size & _PRD_BYTES) + 1, length)
            found.append((maddr, part))
            length -= part
            if not length:
                return found
        raise Aborted

    def read(self, length: int) -> bytes:
        return b"".join([self._memory(maddr, part, False) for maddr, part in self.segments(length)])

    def write(self, data: bytes) -> None:
        views = [self._memory(maddr, part, True) for maddr, part in self.segments(len(data))]
        at = 0
        for view in views:
            view[:] = data[at : at + len(view)]
            at += len(view)


class Port:
    """The port that `disk` is at. `changed` is called when its interrupt status has got new bits, or lost some."""

    def __init__(self, memory: OpenMemory, disk: AtaDisk, work: DiskWork, changed: Callable[[bool], None]) -> None:
        self._memory = memory
        self._disk = disk
        self._work = work
        self._changed = changed
        self._processing = False
        self._list = self._frames = 0
        self.reset()

    def reset(self) -> None:
        """Be as when power came on, except for where the structures in memory are."""
        self._enabled = 0
        self._control = 0
        self._command = 0
        self._stop()
        self._pending = 0
        self._connect()
        self._errors = 0

    @property
    def interrupts(self) -> bool:
        """Whether it has something to tell that the driver wants to know."""
        return bool(self._interrupt_status & self._enabled)

    @property
    def _interrupt_status(self) -> int:
        return self._pending | (IS_CONNECT if self._errors & _ERRORS_CONNECT else 0)

    # -- registers ----------------------------------------------------------------------------------------------------

    def read(self, register: int) -> int:
        """The 32 bits at `register`, from the port's first."""
        values = {
            CLB: self._list & 0xFFFFFFFF,
            CLB + 4: self._list >> 32,
            FB: self._frames & 0xFFFFFFFF,
            FB + 4: self._frames >> 32,
            IS: self._interrupt_status,
            IE: self._enabled,
            CMD: self._command_register,
            TFD: self._status | self._error << 8,
            SIG: self._signature,
            SSTS: self._link,
            SCTL: self._control,
            SERR: self._errors,
            SACT: self._active,
            CI: self._issued,
        }
        return values.get(register, 0)

    @property
    def _command_register(self) -> int:
        running = CMD_RUNNING if self._command & CMD_START else 0
        receiving = CMD_RECEIVING if self._command & CMD_RECEIVE else 0
        return self._command | _CMD_FIXED | running | receiving | self._slot << _CMD_SLOT_SHIFT

    def write(self, register: int, value: int) -> None:
        if register in (CLB, CLB + 4) and not self._command & CMD_START:
            self._list = _merged(self._list, register - CLB, value) & -1024
        elif register in (FB, FB + 4) and not self._command & CMD_RECEIVE:
            self._frames = _merged(self._frames, register - FB, value) & -256
        elif register == IS:
            self._pending &= ~value
            self._changed(False)
        elif register == IE:
            self._enabled = value & _IS_BITS
            self._changed(False)
        elif register == SERR:
            self._errors &= ~value
            self._changed(False)
        elif register == CMD:
            self._write_command(value)
        elif register == SCTL:
            self._write_control(value & _CONTROL_BITS)
        elif self._is_working and register == SACT:
            self._active |= value
        elif self._is_working and register == CI:
            self._issued |= value
            self._process()

    def _write_command(self, value: int) -> None:
        before, self._command = self._command, value & (CMD_START | CMD_RECEIVE)
        if value & CMD_CLEAR_BUSY:
            self._status &= ~(BUSY | DATA_REQUEST)
        if before & CMD_START and not value & CMD_START:
            self._stop()
        if value & CMD_RECEIVE and self._greets:
            self._greet()

    def _write_control(self, value: int) -> None:
        before, self._control = self._control & _DETECT, value
        wanted = value & _DETECT
        if wanted in (_DETECT_RESET, _DETECT_OFF):
            self._stop()
            self._link = 0 if wanted == _DETECT_RESET else _DETECT_OFF
            self._status, self._error = BUSY, 0
        elif not wanted and before:
            self._connect()
            self._changed(True)

    # -- reset --------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """No command is there any more, and none goes on."""
        self._work.cancel()
        self._issued = self._active = 0
        self._started: set[int] = set()
        self._alone = False
        """Whether a command runs that is not queued."""
        self._halted = False
        """After an error, until the driver stops and starts the port."""
        self._slot = self._next = 0
        self._in_reset = False
        self._status, self._error = READY, 0

    def _connect(self) -> None:
        """The disk has come, or come back: it tells what it is."""
        self._stop()
        self._disk.reset()
        self._link = CONNECTED
        self._errors = _ERRORS_CONNECT
        self._signature = SIGNATURE
        self._greets = True
        self._error = 1
        if self._command & CMD_RECEIVE:
            self._greet()

    def _greet(self) -> None:
        """The frame that a disk sends after a reset."""
        self._greets = False
        try:
            self._send(_REGISTERS_AT, register_frame(self._status, self._error, _RESET_TASK))
        except DmaFault:
            self._fail()

    # -- commands -----------------------------------------------------------------------------------------------------

    @property
    def _is_working(self) -> bool:
        return bool(self._command & CMD_START) and not self._halted and self._link == CONNECTED

    def _process(self) -> None:
        """Start commands: queued ones together, and every other alone."""
        if self._processing:
            return
        self._processing = True
        before = self._pending
        try:
            while self._start_next():
                pass
        except DmaFault:
            self._fail()
        finally:
            self._processing = False
        self._changed(bool(self._pending & ~before))

    def _start_next(self) -> bool:
        if not self._is_working or self._alone:
            return False
        waiting = [slot for slot in range(QUEUE_DEPTH) if self._issued >> slot & 1 and slot not in self._started]
        if not waiting:
            return False
        slot = next((slot for slot in waiting if slot >= self._next), waiting[0])
        options, prds, _, table = _HEADER.unpack_from(
            self._memory(self._list + slot * _HEADER_BYTES, _HEADER_BYTES, False)
        )
        task = Task.parse(bytes(self._memory(table, REGISTER_BYTES, False)))
        if (task is None or not task.is_queued) and self._started:
            return False
        self._slot, self._next = slot, slot + 1
        if task is None or options & _IS_ATAPI or options & _FRAME_DWORDS < REGISTER_BYTES // 4:
            self._end_alone(slot, task or _RESET_TASK, Aborted().ended)
        elif not task.is_command:
            self._write_device_control(slot, task)
        else:
            self._start(slot, task, _Table(self._memory, table, prds))
        return True

    def _write_device_control(self, slot: int, task: Task) -> None:
        """The two frames of a reset by software: one begins it, the next ends it."""
        self._issued &= ~(1 << slot)
        if task.control & SOFT_RESET:
            self._in_reset = True
        elif self._in_reset:
            self._in_reset = False
            self._disk.reset()
            self._status, self._error, self._signature = READY, 1, SIGNATURE
            self._send(_REGISTERS_AT, register_frame(self._status, self._error, _RESET_TASK))

    def _start(self, slot: int, task: Task, table: _Table) -> None:
        self._started.add(slot)
        if task.is_queued:
            self._issued &= ~(1 << slot)
            end = self._end_queued
        else:
            self._alone = True
            self._status, self._error = READY | BUSY, 0
            end = self._end_alone
        try:
            if task.is_queued and task.count >> 3 & 0x1F != slot:
                raise Aborted
            self._disk.execute(task, table, lambda ended: self._end(end, slot, task, ended))
        except Aborted as aborted:
            end(slot, task, aborted.ended)

    def _end(self, end: Callable[[int, Task, Ended], None], slot: int, task: Task, ended: Ended) -> None:
        """A command has ended, at once or later."""
        before = self._pending
        try:
            if ended.is_faulted:
                raise DmaFault("the data of a command")
            end(slot, task, ended)
        except DmaFault:
            self._fail()
        if not self._processing:
            self._changed(bool(self._pending & ~before))
            self._process()

    def _end_alone(self, slot: int, task: Task, ended: Ended) -> None:
        self._started.discard(slot)
        self._alone = False
        self._status = READY | ended.status
        self._error = ended.error
        told = task if ended.count is None else replace(task, count=ended.count)
        if ended.has_failed:
            self._send(_REGISTERS_AT, register_frame(self._status, self._error, told))
            self._pending |= IS_TASK_ERROR | IS_REGISTERS
            self._halt()
            return
        counted = self._memory(self._list + slot * _HEADER_BYTES + 4, 4, True)
        counted[:] = ended.moved.to_bytes(4, "little")
        if self._disk.is_pio_in(task):
            self._send(_PIO_AT, pio_frame(min(ended.moved, SECTOR_SIZE), told))
            self._pending |= IS_PIO
        else:
            self._send(_REGISTERS_AT, register_frame(self._status, self._error, told))
            self._pending |= IS_REGISTERS
        self._issued &= ~(1 << slot)

    def _end_queued(self, slot: int, task: Task, ended: Ended) -> None:
        self._started.discard(slot)
        self._status = READY | ended.status
        self._error = ended.error
        finished = 0 if ended.has_failed else 1 << slot
        self._send(_BITS_AT, bits_frame(self._status, self._error, finished))
        self._active &= ~finished
        self._pending |= IS_BITS
        if ended.has_failed:
            self._disk.remember_error(task, slot, self._status, self._error)
            self._pending |= IS_TASK_ERROR
            self._halt()

    def _halt(self) -> None:
        self._halted = True
        self._work.cancel()

    def _fail(self) -> None:
        """Something that the driver named is where the port may not go."""
        self._pending |= IS_BUS_FATAL
        self._halt()

    def _send(self, at: int, frame: bytes) -> None:
        """Put a frame where the driver looks for it. Raises DmaFault."""
        if self._command & CMD_RECEIVE:
            self._memory(self._frames + at, len(frame), True)[:] = frame


def _merged(before: int, at: int, value: int) -> int:
    """A 64-bit register after a write of the 32 bits at byte `at`."""
    return before & 0xFFFFFFFF << (32 - 8 * at) | value << 8 * at
