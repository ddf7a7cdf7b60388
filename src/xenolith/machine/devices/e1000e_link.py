"""What of an 82574L is not its packets: the memory with its address, and the PHY at the end of the cable.

Source: Intel 82574 GbE Controller Family datasheet, chapters 6 (NVM map) and 9 (PHY registers); IEEE 802.3, clause 22.
"""

from __future__ import annotations

from typing import Final

_NVM_WORDS: Final = 64
_NVM_SUM: Final = 0xBABA
_START: Final = 1 << 0
_DONE: Final = 1 << 1
_NVM_DEFAULTS: Final = {
    0x03: 0x0420,  # compatibility
    0x0A: 0x026B,  # initialization control 1
    0x0C: 0x8086,  # subsystem vendor
    0x0D: 0x10D3,  # device
}

# PHY registers.
_CONTROL: Final = 0
_STATUS: Final = 1
_SPECIFIC_STATUS: Final = 17
_PAGE_SELECT: Final = 22
_LAST_PAGE_FREE: Final = 15
"""Registers up to this one are the same on all pages."""
_CONTROL_RESET: Final = 1 << 15
_CONTROL_RESTART: Final = 1 << 9
_CONTROL_POWER_DOWN: Final = 1 << 11
_STATUS_LINK: Final = 1 << 5 | 1 << 2
"""Negotiation is complete; the link is up."""
_SPECIFIC_LINK: Final = 1 << 11 | 1 << 10
"""Speed and duplex are resolved; the link is up."""
_PHY_DEFAULTS: Final = {
    _CONTROL: 0x1140,  # 1000 Mb/s, full duplex, negotiation
    _STATUS: 0x7949,  # what it can do
    2: 0x0141,  # the number of the PHY
    3: 0x0CB1,
    4: 0x0DE1,  # what is advertised
    5: 0x4DE1,  # and what by the other end
    6: 0x0005,
    9: 0x0E00,
    10: 0x7C00,  # the other end has 1000 Mb/s, and both receive
    15: 0x3000,
    _SPECIFIC_STATUS: 0xA000,  # 1000 Mb/s, full duplex
}
_READ_ONLY: Final = (_STATUS, 2, 3, 5, 6, 10, 15, _SPECIFIC_STATUS)

# The MDI control register.
_MDI_WRITE: Final = 1
_MDI_READ: Final = 2
_MDI_READY: Final = 1 << 28
_MDI_INTERRUPT: Final = 1 << 29
_MDI_ERROR: Final = 1 << 30
_PHY_ADDRESS: Final = 1


class Nvm:
    """The non-volatile memory. What software writes into it lasts as long as the machine."""

    def __init__(self, mac: bytes) -> None:
        self._words = [0] * _NVM_WORDS
        for at in range(3):
            self._words[at] = int.from_bytes(mac[2 * at : 2 * at + 2], "little")
        for at, word in _NVM_DEFAULTS.items():
            self._words[at] = word
        self._words[-1] = (_NVM_SUM - sum(self._words)) & 0xFFFF
        self.read_register = self.write_register = _DONE

    @property
    def mac(self) -> bytes:
        """The card's address, as the memory has it."""
        return b"".join(word.to_bytes(2, "little") for word in self._words[:3])

    def read(self, command: int) -> None:
        """Software writes the register EERD."""
        at = command >> 2 & 0x3FFF
        word = self._words[at] if at < _NVM_WORDS else 0xFFFF
        self.read_register = word << 16 | at << 2 | _DONE if command & _START else self.read_register

    def write(self, command: int) -> None:
        """Software writes the register EEWR."""
        at = command >> 2 & 0x3FFF
        if command & _START and at < _NVM_WORDS:
            self._words[at] = command >> 16


class Phy:
    """The PHY, whose other end is at once ready to talk: with 1000 Mb/s, in both directions at once."""

    def __init__(self) -> None:
        self.cable = True
        """Whether the cable leads somewhere."""
        self.reset()

    def reset(self) -> None:
        self._registers = dict(_PHY_DEFAULTS)
        self._page = 0
        self._command = 0

    @property
    def link(self) -> bool:
        return self.cable and not self._registers[_CONTROL] & _CONTROL_POWER_DOWN

    @property
    def command(self) -> int:
        """The register MDIC."""
        return self._command

    def execute(self, command: int) -> bool:
        """Software writes the register MDIC. Returns whether it wants an interrupt when that is done, which it is."""
        register, operation = command >> 16 & 31, command >> 26 & 3
        result = command & ~(_MDI_READY | _MDI_ERROR)
        if command >> 21 & 31 != _PHY_ADDRESS or operation not in (_MDI_WRITE, _MDI_READ):
            result |= _MDI_ERROR
        elif operation == _MDI_READ:
            result = result & ~0xFFFF | self._read(register)
        else:
            self._write(register, command & 0xFFFF)
        self._command = result | _MDI_READY
        return bool(command & _MDI_INTERRUPT)

    def _is_there(self, register: int) -> bool:
        return register <= _LAST_PAGE_FREE or not self._page

    def _read(self, register: int) -> int:
        if register == _PAGE_SELECT:
            return self._page
        if not self._is_there(register):
            return 0
        extra = {_STATUS: _STATUS_LINK, _SPECIFIC_STATUS: _SPECIFIC_LINK}.get(register, 0) if self.link else 0
        return self._registers.get(register, 0) | extra

    def _write(self, register: int, value: int) -> None:
        if register == _PAGE_SELECT:
            self._page = value
        elif register == _CONTROL and value & _CONTROL_RESET:
            self.reset()
        elif register == _CONTROL:
            self._registers[_CONTROL] = value & ~_CONTROL_RESTART
        elif register not in _READ_ONLY and self._is_there(register):
            self._registers[register] = value
