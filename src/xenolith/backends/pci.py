"""The other end of pcifront: one guest's virtual PCI bus, on which it sees the functions that work for it (io/pciif.h).

The guest reads the configuration of its functions, and writes what a driver must: the command register, registers that
are only remembered, and the sizing of base address registers, which stay where they are. Interrupt messages are
switched on and off by requests of their own.

Source: Linux's drivers/xen/xen-pciback (conf_space_header.c, pciback_ops.c), which is the model for what passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from xenolith.abi.errno import XenError
from xenolith.abi.io import pciif
from xenolith.abi.io.pciif import XenPciOp
from xenolith.machine.pci import BAR0, BARS, CAPABILITIES, COMMAND, INTERRUPT_LINE, STATUS, STATUS_CAPABILITIES, BarKind
from xenolith.machine.pci_device import MSI, MSIX

_COMMAND_GUEST: Final = 0x0407
"""What a guest may switch: ports, memory, bus mastering, the interrupt pin."""
_REMEMBERED: Final = frozenset((0x0C, 0x0D, INTERRUPT_LINE))
"""Cache line size, latency timer, interrupt line."""
_ROM: Final = range(0x30, 0x34)
_CONFIG_BYTES: Final = 4096
_ONES: Final = 0xFFFF_FFFF


class Function(Protocol):
    """A function as its host reaches it. `map_*` and `unmap_all` are for the guest that it works for."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...

    def map_msi(self, count: int) -> int:
        """Have messages by MSI; the first pirq. Raises XenError."""

    def map_msix(self, entry: int) -> int:
        """Have one message by MSI-X; its pirq. Raises XenError."""

    def unmap_all(self) -> None:
        """Have no messages any more."""


class _Slot:
    """One function on the guest's bus. Which base address registers are being sized is the guest's own affair."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self._sizing: dict[int, int] = {}
        self._sizes = self._measure()
        self.msix_at = self._capability(MSIX)
        self.msi_at = self._capability(MSI)

    def _measure(self) -> dict[int, int]:
        """What each base address register reads after all ones were written, while the function decodes nothing."""
        function = self.function
        command = function.read(COMMAND, 2)
        function.write(COMMAND, 2, command & ~3)
        sizes = {}
        for at in range(BAR0, BAR0 + 4 * BARS, 4):
            placed = function.read(at, 4)
            function.write(at, 4, _ONES)
            sizes[at] = function.read(at, 4)
            function.write(at, 4, placed)
        function.write(COMMAND, 2, command)
        return sizes

    def _capability(self, identifier: int) -> int:
        """Where a capability is; 0 if there is none."""
        at = self.function.read(CAPABILITIES, 1) if self.function.read(STATUS, 2) & STATUS_CAPABILITIES else 0
        for _ in range(48):
            if not at or self.function.read(at, 1) == identifier:
                return at
            at = self.function.read(at + 1, 1) & ~3
        return 0

    def read(self, offset: int, size: int) -> int:
        if offset in self._sizes or offset & ~3 in self._sizing:
            word = self._sizing.get(offset & ~3, self.function.read(offset & ~3, 4))
            return word >> 8 * (offset & 3) & (1 << 8 * size) - 1
        return 0 if offset in _ROM else self.function.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        if offset in self._sizes:
            if size == 4 and value == _ONES:
                self._sizing[offset] = self._sizes[offset]
            else:
                self._sizing.pop(offset, None)
        elif offset == COMMAND and size >= 2:
            kept = self.function.read(COMMAND, 2) & ~_COMMAND_GUEST
            self.function.write(COMMAND, 2, kept | value & _COMMAND_GUEST)
        elif offset in _REMEMBERED and size == 1:
            self.function.write(offset, 1, value)

    def resources(self) -> tuple[list[range], list[range]]:
        """The ports and the machine addresses that its base address registers decode."""
        ports, memory = [], []
        at, end = BAR0, BAR0 + 4 * BARS
        while at < end:
            word, size = self.function.read(at, 4), self._sizes[at]
            is_wide = not word & BarKind.IO.value and word & 6 == BarKind.MEMORY64.value
            if word & BarKind.IO.value:
                start, length = word & ~3, -(size & ~3) & 0xFFFF
                ports += [range(start, start + length)] if length else []
            else:
                start = word & ~15 | (self.function.read(at + 4, 4) << 32 if is_wide else 0)
                length = -(size & ~15) & _ONES
                memory += [range(start, start + length)] if length else []
            at += 8 if is_wide else 4
        return ports, memory


class PciBackend:
    """Serves the requests of one guest for `functions`, which it sees in the slots 0, 1, … of its bus."""

    def __init__(self, functions: Sequence[Function]) -> None:
        self._slots = [_Slot(function) for function in functions]

    def resources(self) -> tuple[list[range], list[range]]:
        """The ports and the machine addresses of all functions."""
        found = [slot.resources() for slot in self._slots]
        return [part for ports, _ in found for part in ports], [part for _, memory in found for part in memory]

    def serve(self, op: XenPciOp) -> None:
        """Do what `op`, a copy that the guest cannot change, asks for, and put the answer into it."""
        slot = self._slot(op)
        if slot is None:
            op.err = pciif.XEN_PCI_ERR_dev_not_found
            return
        try:
            op.err = self._do(slot, op)
        except XenError:
            op.err = pciif.XEN_PCI_ERR_op_failed

    def _slot(self, op: XenPciOp) -> _Slot | None:
        number, function = divmod(op.devfn, 8)
        is_there = not op.domain and not op.bus and not function and number < len(self._slots)
        return self._slots[number] if is_there else None

    def _do(self, slot: _Slot, op: XenPciOp) -> int:
        if op.cmd in (pciif.XEN_PCI_OP_conf_read, pciif.XEN_PCI_OP_conf_write):
            if op.size not in (1, 2, 4) or op.offset % op.size or not 0 <= op.offset <= _CONFIG_BYTES - op.size:
                return pciif.XEN_PCI_ERR_invalid_offset
            if op.cmd == pciif.XEN_PCI_OP_conf_read:
                op.value = slot.read(op.offset, op.size)
            else:
                slot.write(op.offset, op.size, op.value)
        elif op.cmd == pciif.XEN_PCI_OP_enable_msi:
            op.value = slot.function.map_msi(1)
        elif op.cmd == pciif.XEN_PCI_OP_enable_msix:
            return self._enable_msix(slot, op)
        elif op.cmd in (pciif.XEN_PCI_OP_disable_msi, pciif.XEN_PCI_OP_disable_msix):
            self._disable_messages(slot)
            op.value = 0
        else:
            return pciif.XEN_PCI_ERR_not_implemented
        return pciif.XEN_PCI_ERR_success

    def _enable_msix(self, slot: _Slot, op: XenPciOp) -> int:
        if not slot.msix_at or not 1 <= op.value <= pciif.SH_INFO_MAX_VEC:
            return pciif.XEN_PCI_ERR_op_failed
        try:
            for entry in op.msix_entries[: op.value]:
                entry.vector = slot.function.map_msix(entry.entry)
        except XenError:
            self._disable_messages(slot)
            raise
        slot.function.write(slot.msix_at + 2, 2, slot.function.read(slot.msix_at + 2, 2) | 1 << 15)
        op.value = 0
        return pciif.XEN_PCI_ERR_success

    def _disable_messages(self, slot: _Slot) -> None:
        slot.function.unmap_all()
        if slot.msix_at:
            slot.function.write(slot.msix_at + 2, 2, slot.function.read(slot.msix_at + 2, 2) & ~(1 << 15))
