"""Virtio devices behind PCI: the modern transport, which is the same for all of them.

A model inherits VirtioDevice. It says in `__init__` what it is (its number, its features, the sizes of its queues, its
configuration), and works in `notified`:

    def notified(self, queue):                  # the driver says that it has put something into a queue
        while chain := queue.take():
            ... chain.read(0, 16), chain.write(0, data) ...
            queue.put(chain, written)
        self.flush(queue)

Rings that mean nothing, and memory that the device may not use, raise QueueBroken and DmaFault from all of these; the
transport catches them and stops the device until the driver resets it. What a model does at another time (when a file
was read, when a packet has come) it does in `attempt`, which catches them, too, and does nothing while the driver does
not use the device. A Chain may be kept as long as the model likes: after a reset it is simply not answered. A
memoryview of guest memory may not.

Source: Virtual I/O Device (VIRTIO) 1.2, chapter 2 (facilities) and 4.1 (PCI bus, without the legacy interface).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from xenolith.machine.devices.virtqueue import NO_VECTOR, QueueBroken, Virtqueue
from xenolith.machine.pci import BarKind, DmaFault
from xenolith.machine.pci_device import PciDevice

_VENDOR: Final = 0x1AF4
_FIRST_DEVICE: Final = 0x1040
_SUBSYSTEM: Final = 0x1100

INDIRECT_DESC: Final = 1 << 28
EVENT_IDX: Final = 1 << 29
VERSION_1: Final = 1 << 32
ACCESS_PLATFORM: Final = 1 << 33
"""Addresses are those of the bus, and there is an IOMMU."""
_TRANSPORT_FEATURES: Final = INDIRECT_DESC | EVENT_IDX | VERSION_1 | ACCESS_PLATFORM

DRIVER_OK: Final = 1 << 2
FEATURES_OK: Final = 1 << 3
NEEDS_RESET: Final = 1 << 6
_STATUS_WRITABLE: Final = 0x8F

_ISR_QUEUE: Final = 1 << 0
_ISR_CONFIG: Final = 1 << 1

# Vendor capabilities: what each is for, and where in the register space.
_VENDOR_CAPABILITY: Final = 0x09
_COMMON, _NOTIFY, _ISR, _DEVICE, _PCI_WINDOW = range(1, 6)
_BAR: Final = 0
_MSIX_BAR: Final = 1
_BAR_BYTES: Final = 0x4000
_COMMON_AT: Final = 0x0000
_ISR_AT: Final = 0x1000
_DEVICE_AT: Final = 0x2000
_NOTIFY_AT: Final = 0x3000
_SECTION_BYTES: Final = 0x1000
_NOTIFY_STEP: Final = 4
_COMMON_LAYOUT: Final = struct.Struct("<IIIIHHBBHHHHHQQQ")

# The window into the registers that is in configuration space: offsets in its capability.
_WINDOW_BAR: Final = 4
_WINDOW_OFFSET: Final = 8
_WINDOW_LENGTH: Final = 12
_WINDOW_DATA: Final = 16


def _section(kind: int, offset: int, length: int) -> bytes:
    """The body of a capability that says where a structure is (4.1.4)."""
    size = 20 if kind in (_NOTIFY, _PCI_WINDOW) else 16
    return struct.pack("<BBBBxxII", size, kind, _BAR, 0, offset, length)


class VirtioDevice(PciDevice):
    """A virtio device of type `kind` (chapter 5) with class code `class_code`.

    `features` are those of the model; the transport adds its own. `queue_sizes` are the most descriptors of each queue,
    and `registers` the model's own configuration, which it may change with `change_registers`.
    """

    def __init__(
        self, kind: int, class_code: int, features: int, queue_sizes: Sequence[int], registers: bytes = b""
    ) -> None:
        super().__init__(
            _VENDOR,
            _FIRST_DEVICE + kind,
            class_code,
            revision=1,
            subsystem_vendor=_VENDOR,
            subsystem=_SUBSYSTEM,
            interrupt_pin=1,
        )
        self.queues = [Virtqueue(index, size, self.memory) for index, size in enumerate(queue_sizes)]
        self.offered = features | _TRANSPORT_FEATURES
        self.registers = bytearray(registers)
        self._generation = 0
        self._start_afresh()
        self.add_bar(_BAR, _BAR_BYTES, BarKind.MEMORY32, self)
        self.add_msix(len(queue_sizes) + 1, _MSIX_BAR)
        self.add_capability(_VENDOR_CAPABILITY, _section(_COMMON, _COMMON_AT, _COMMON_LAYOUT.size))
        self.add_capability(_VENDOR_CAPABILITY, _section(_ISR, _ISR_AT, 1))
        if registers:
            self.add_capability(_VENDOR_CAPABILITY, _section(_DEVICE, _DEVICE_AT, len(registers)))
        notify = _section(_NOTIFY, _NOTIFY_AT, _NOTIFY_STEP * len(queue_sizes))
        self.add_capability(_VENDOR_CAPABILITY, notify + _NOTIFY_STEP.to_bytes(4, "little"))
        window = _section(_PCI_WINDOW, 0, 0) + bytes(4)
        self._window_at = self.add_capability(_VENDOR_CAPABILITY, window, b"\0\0\xff\0\0\0" + b"\xff" * 8)
        self.add_function_reset()

    # -- what a model does --------------------------------------------------------------------------------------------

    def started(self) -> None:
        """The driver is ready: features are negotiated and queues are set up."""

    def stopped(self) -> None:
        """The driver, or the loss of it, has reset the device: what it was doing is to be forgotten."""

    def notified(self, queue: Virtqueue) -> None:
        """The driver has put chains into a queue. May raise QueueBroken and DmaFault."""

    def write_registers(self, offset: int, size: int, value: int) -> None:
        """The driver writes to the model's own configuration, which most models do not let it change."""

    # -- what a model uses --------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the driver uses the device, and has broken nothing."""
        return self._status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK

    def has(self, feature: int) -> bool:
        """Whether the driver has taken a feature."""
        return bool(self._accepted & feature)

    def attempt(self, work: Callable[[], None]) -> None:
        """Do something with the queues, if the driver uses the device; if that cannot be done, the device stops."""
        if not self.running:
            return
        try:
            work()
        except (QueueBroken, DmaFault) as error:
            self.failure = str(error)
            self._status |= NEEDS_RESET
            self._interrupt(self._config_vector, _ISR_CONFIG)

    def flush(self, queue: Virtqueue) -> None:
        """Tell the driver what was answered in a queue. Raises DmaFault."""
        if queue.flush():
            self._interrupt(queue.vector, _ISR_QUEUE)

    def change_registers(self, offset: int, data: bytes) -> None:
        """Change the model's own configuration, and tell the driver."""
        self.registers[offset : offset + len(data)] = data
        self._generation = self._generation + 1 & 0xFF
        if self.running:
            self._interrupt(self._config_vector, _ISR_CONFIG)

    def _interrupt(self, vector: int, cause: int) -> None:
        if self.message_vectors:
            if vector != NO_VECTOR:
                self.interrupt(vector)
            return
        self._isr |= cause
        self.set_intx(True)

    # -- reset --------------------------------------------------------------------------------------------------------

    def _start_afresh(self) -> None:
        self.failure = ""
        """Why the device has stopped until the driver resets it, if it has."""
        self._status = 0
        self._accepted = 0
        self._device_select = self._driver_select = 0
        self._selected = 0
        self._config_vector = NO_VECTOR
        self._isr = 0
        for queue in self.queues:
            queue.clear()

    def _stop(self) -> None:
        self._start_afresh()
        self.set_intx(False)
        self.stopped()

    def reset(self) -> None:
        super().reset()
        self._stop()

    # -- registers ----------------------------------------------------------------------------------------------------

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        section, at = offset & ~(_SECTION_BYTES - 1), offset % _SECTION_BYTES
        if section == _COMMON_AT:
            return int.from_bytes(self._common()[at : at + size], "little")
        if section == _DEVICE_AT:
            return int.from_bytes(self.registers[at : at + size], "little")
        return self._take_isr() if offset == _ISR_AT else 0

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        section, at = offset & ~(_SECTION_BYTES - 1), offset % _SECTION_BYTES
        if section == _COMMON_AT:
            self._write_common(at, size, value)
        elif section == _DEVICE_AT and at + size <= len(self.registers):
            self.write_registers(at, size, value)
        elif section == _NOTIFY_AT and at // _NOTIFY_STEP < len(self.queues):
            queue = self.queues[at // _NOTIFY_STEP]
            self.attempt(lambda: self.notified(queue))

    def _take_isr(self) -> int:
        isr, self._isr = self._isr, 0
        self.set_intx(False)
        return isr

    @property
    def _queue(self) -> Virtqueue | None:
        return self.queues[self._selected] if self._selected < len(self.queues) else None

    def _common(self) -> bytes:
        """The structure virtio_pci_common_cfg (4.1.4.3)."""
        queue = self._queue
        offered = self.offered >> 32 * self._device_select & 0xFFFFFFFF if self._device_select < 2 else 0
        accepted = self._accepted >> 32 * self._driver_select & 0xFFFFFFFF if self._driver_select < 2 else 0
        head = (self._device_select, offered, self._driver_select, accepted, self._config_vector, len(self.queues))
        state = (self._status, self._generation, self._selected)
        if queue is None:
            return _COMMON_LAYOUT.pack(*head, *state, 0, NO_VECTOR, 0, 0, 0, 0, 0)
        places = (queue.descriptors, queue.available, queue.used)
        return _COMMON_LAYOUT.pack(*head, *state, queue.size, queue.vector, queue.enabled, queue.index, *places)

    def _write_common(self, offset: int, size: int, value: int) -> None:
        match offset, size:
            case 0, 4:
                self._device_select = value
            case 8, 4:
                self._driver_select = value
            case 12, 4:
                self._accept(value)
            case 16, 2:
                self._config_vector = self._known_vector(value)
            case 20, 1:
                self._write_status(value)
            case 22, 2:
                self._selected = value
            case _:
                if self._queue is not None:
                    self._write_queue(self._queue, offset, size, value)

    def _accept(self, value: int) -> None:
        if self._driver_select < 2 and not self._status & FEATURES_OK:
            shift = 32 * self._driver_select
            self._accepted = self._accepted & ~(0xFFFFFFFF << shift) | value << shift

    def _known_vector(self, vector: int) -> int:
        return vector if vector <= len(self.queues) else NO_VECTOR

    def _write_status(self, value: int) -> None:
        if not value:
            self._stop()
            return
        value &= _STATUS_WRITABLE
        if self._accepted & ~self.offered or not self._accepted & VERSION_1:
            value &= ~FEATURES_OK  # by which the driver sees that it asked for what cannot be
        if not value & FEATURES_OK:
            value &= ~DRIVER_OK
        begins = value & DRIVER_OK and not self._status & DRIVER_OK
        self._status |= value
        if begins:
            self.started()

    def _write_queue(self, queue: Virtqueue, offset: int, size: int, value: int) -> None:
        if (offset, size) == (26, 2):
            queue.vector = self._known_vector(value)
            return
        if queue.enabled:
            return
        match offset, size:
            case 24, 2:
                if 0 < value <= queue.most and not value & (value - 1):
                    queue.size = value
            case 28, 2:
                queue.has_event_index, queue.has_indirect = self.has(EVENT_IDX), self.has(INDIRECT_DESC)
                queue.enabled = value == 1 and bool(self._status & FEATURES_OK)
            case 32 | 36, 4 | 8:
                queue.descriptors = _merged(queue.descriptors, offset - 32, size, value)
            case 40 | 44, 4 | 8:
                queue.available = _merged(queue.available, offset - 40, size, value)
            case 48 | 52, 4 | 8:
                queue.used = _merged(queue.used, offset - 48, size, value)

    # -- the window in configuration space ----------------------------------------------------------------------------

    def read_config(self, offset: int, size: int) -> int:
        if offset == self._window_at + _WINDOW_DATA and (found := self._window()) is not None:
            return self.read_bar(_BAR, *found) & (1 << 8 * size) - 1
        return super().read_config(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        if offset == self._window_at + _WINDOW_DATA:
            if (found := self._window()) is not None:
                self.write_bar(_BAR, *found, value & (1 << 8 * found[1]) - 1)
            return
        super().write_config(offset, size, value)

    def _window(self) -> tuple[int, int] | None:
        """Offset and size of the registers to which the window leads, if it leads anywhere (4.1.4.9)."""
        at = self._window_at
        offset, size = self.get(at + _WINDOW_OFFSET, 4), self.get(at + _WINDOW_LENGTH, 4)
        is_there = self.get(at + _WINDOW_BAR, 1) == _BAR and size in (1, 2, 4) and offset + size <= _BAR_BYTES
        return (offset, size) if is_there and offset % size == 0 else None


def _merged(before: int, at: int, size: int, value: int) -> int:
    """A 64-bit register after a write of `size` bytes at byte `at` of it."""
    mask = (1 << 8 * size) - 1 << 8 * at & (1 << 64) - 1
    return before & ~mask | value << 8 * at & mask
