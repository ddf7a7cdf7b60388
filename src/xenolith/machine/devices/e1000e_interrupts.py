"""The interrupts of an 82574L: causes, masks, and the ways by which they reach software.

By the pin or by MSI there is one interrupt for all causes, which reading them ends. By MSI-X each queue has a message,
and all other causes have one together; a cause may be cleared, and masked, when its message is sent.

Source: Intel 82574 GbE Controller Family datasheet, 7.4 (interrupts) and 10.2.4 (their registers).
"""

from __future__ import annotations

from typing import Final, Protocol

TXDW: Final = 1 << 0
LSC: Final = 1 << 2
RXT0: Final = 1 << 7
MDAC: Final = 1 << 9
RXQ0: Final = 1 << 20
TXQ0: Final = 1 << 22
OTHER: Final = 1 << 24
ASSERTED: Final = 1 << 31
_OTHER_EVENTS: Final = LSC | 1 << 6 | MDAC | 1 << 16 | 1 << 17 | 1 << 18
"""What is not a queue's: the link, overruns, the PHY, small packets, acknowledgements, management."""
_CAUSES: Final = 0x01F7_FFFF & ~(1 << 19)
MSIX_VECTORS: Final = 5
_MESSAGES: Final = {RXQ0: 0, 1 << 21: 4, TXQ0: 8, 1 << 23: 12, OTHER: 16}
"""Causes with messages of their own, and where their vectors are in the register IVAR."""
_VECTOR_VALID: Final = 1 << 3

# The extended control register: what happens by itself.
_MASK_ON_READ: Final = 1 << 27
_MASK_ON_MESSAGE: Final = 1 << 24


class Function(Protocol):
    """The PCI function."""

    @property
    def message_vectors(self) -> int: ...

    def interrupt(self, vector: int = 0) -> None: ...

    def set_intx(self, level: bool) -> None: ...


class Interrupts:
    """`control` is the register CTRL_EXT, `auto_mask` is IAM, `auto_clear` is EIAC and `vectors` is IVAR."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._clear()

    def _clear(self) -> None:
        self.control = self.auto_mask = self.auto_clear = self.vectors = 0
        self._causes = self.mask = 0
        self._told = 0
        """The causes that software has been told of and that it has not dealt with yet."""

    def reset(self) -> None:
        self._clear()
        self._function.set_intx(False)

    def add(self, causes: int) -> None:
        """Something has happened."""
        self._causes |= causes & _CAUSES
        if causes & _OTHER_EVENTS:
            self._causes |= OTHER
        self._tell()

    def take(self) -> int:
        """Software reads the causes, which clears them."""
        causes = self._causes | (ASSERTED if self._causes & self.mask else 0)
        self._causes = 0
        if causes & ASSERTED and self.control & _MASK_ON_READ:
            self.mask &= ~self.auto_mask
        self._tell()
        return causes

    def clear(self, causes: int) -> None:
        """Software writes the causes that it has dealt with."""
        self._causes &= ~causes
        self._tell()

    def unmask(self, causes: int) -> None:
        self.mask |= causes & _CAUSES
        self._tell()

    def mask_off(self, causes: int) -> None:
        self.mask &= ~causes
        self._tell()

    def _tell(self) -> None:
        active = self._causes & self.mask
        self._told &= active
        vectors = self._function.message_vectors
        if vectors == MSIX_VECTORS:
            self._send_messages(active & ~self._told)
            return
        if vectors and active and not self._told:
            self._function.interrupt()
        self._told = active
        self._function.set_intx(bool(active))

    def _send_messages(self, causes: int) -> None:
        for cause, shift in _MESSAGES.items():
            vector = self.vectors >> shift & 0xF
            if not causes & cause or not vector & _VECTOR_VALID:
                continue
            self._told |= cause
            if self.control & _MASK_ON_MESSAGE:
                self.mask &= ~(self.auto_mask & cause)
            self._causes &= ~(self.auto_clear & cause)
            self._told &= self._causes & self.mask
            self._function.interrupt(vector & ~_VECTOR_VALID)
