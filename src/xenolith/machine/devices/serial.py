"""A 16550A serial port whose other end is the host: a sink for what the guest sends, `feed` for what it receives.

Source: National Semiconductor PC16550D data sheet. The line is infinitely fast: what is written is sent at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import ClassVar

from xenolith.machine.buses import PortBus

COM1 = 0x3F8
COM1_IRQ = 4
FIFO_BYTES = 16

# Registers, as offsets from the base port.
DATA = 0
IER = 1
IIR = 2
FCR = 2
LCR = 3
MCR = 4
LSR = 5
MSR = 6
SCRATCH = 7

IER_RECEIVED = 1 << 0
IER_TRANSMITTED = 1 << 1
IER_LINE_STATUS = 1 << 2
IER_MODEM_STATUS = 1 << 3

IIR_NONE = 0x01
IIR_MODEM_STATUS = 0x00
IIR_TRANSMITTED = 0x02
IIR_RECEIVED = 0x04
IIR_LINE_STATUS = 0x06
IIR_TIMEOUT = 0x0C
IIR_FIFO = 0xC0

FCR_ENABLE = 1 << 0
FCR_CLEAR_RECEIVER = 1 << 1

LCR_DLAB = 1 << 7

MCR_DTR = 1 << 0
MCR_RTS = 1 << 1
MCR_OUT1 = 1 << 2
MCR_OUT2 = 1 << 3
MCR_LOOP = 1 << 4

LSR_DATA_READY = 1 << 0
LSR_OVERRUN = 1 << 1
LSR_TRANSMITTER_EMPTY = 0x60

MSR_CTS = 1 << 4
MSR_DSR = 1 << 5
MSR_DCD = 1 << 7

_TRIGGER_LEVELS = (1, 4, 8, 14)
_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD


class Serial:
    """A 16550A. `sink(data)` takes what the guest sends; `line(level)` is its interrupt wire.

    The cable has handshake lines: the host holds bytes back while the guest's RTS is off or its FIFO is full, so that
    none is lost before a driver opens the port or while it is slow.
    """

    def __init__(self, sink: Callable[[bytes], None], line: Callable[[bool], None]) -> None:
        self._sink = sink
        self._line = line
        self._held: deque[int] = deque()
        self._fifo: deque[int] = deque()
        self._overrun = False
        self._divisor = 12
        self._ier = 0
        self._lcr = 0
        self._mcr = 0
        self._scratch = 0
        self._fifo_enabled = False
        self._trigger = 1
        self._transmitted_pending = False
        self._modem_delta = 0

    def attach(self, ports: PortBus, base: int) -> None:
        """Claim the eight ports from `base`."""
        ports.claim(range(base, base + 8), self)

    def feed(self, data: bytes) -> None:
        """The host sends `data` to the guest."""
        self._held.extend(data)
        self._receive()

    @property
    def waiting(self) -> int:
        """Bytes fed that the guest has not yet read."""
        return len(self._held) + len(self._fifo)

    def read_port(self, port: int, size: int) -> int:
        offset = port & 7
        if self._lcr & LCR_DLAB and offset in (DATA, IER):
            return self._divisor >> 8 * offset & 0xFF
        return self._READ[offset](self)

    def write_port(self, port: int, size: int, value: int) -> None:
        offset = port & 7
        if self._lcr & LCR_DLAB and offset in (DATA, IER):
            shift = 8 * offset
            self._divisor = self._divisor & ~(0xFF << shift) | value << shift
        elif write := self._WRITE.get(offset):
            write(self, value)

    @property
    def _fifo_room(self) -> int:
        return (FIFO_BYTES if self._fifo_enabled else 1) - len(self._fifo)

    def _receive(self) -> None:
        """Take what the host holds and the FIFO has room for, if the guest is ready."""
        if self._mcr & (MCR_RTS | MCR_LOOP) == MCR_RTS:
            for _ in range(min(self._fifo_room, len(self._held))):
                self._fifo.append(self._held.popleft())
        self._update_line()

    def _read_data(self) -> int:
        value = self._fifo.popleft() if self._fifo else 0
        self._receive()
        return value

    def _write_data(self, value: int) -> None:
        # The byte leaves at once: the interrupt goes away and comes back, which an edge-triggered input must see.
        self._transmitted_pending = False
        self._update_line()
        if not self._mcr & MCR_LOOP:
            self._sink(bytes((value,)))
        elif self._fifo_room > 0:
            self._fifo.append(value)
        else:
            self._overrun = True
        self._transmitted_pending = True
        self._update_line()

    def _write_ier(self, value: int) -> None:
        if value & ~self._ier & IER_TRANSMITTED:
            self._transmitted_pending = True
        self._ier = value & 0x0F
        self._update_line()

    def _read_iir(self) -> int:
        cause = self._cause()
        if cause == IIR_TRANSMITTED:
            self._transmitted_pending = False
            self._update_line()
        return cause | (IIR_FIFO if self._fifo_enabled else 0)

    def _write_fcr(self, value: int) -> None:
        enable = bool(value & FCR_ENABLE)
        if value & FCR_CLEAR_RECEIVER or enable != self._fifo_enabled:
            self._fifo.clear()
        self._fifo_enabled = enable
        self._trigger = _TRIGGER_LEVELS[value >> 6 & 3] if enable else 1
        self._receive()

    def _write_lcr(self, value: int) -> None:
        self._lcr = value

    def _write_mcr(self, value: int) -> None:
        before = self._modem_status()
        self._mcr = value & 0x1F
        self._modem_delta |= (before ^ self._modem_status()) >> 4
        self._receive()

    def _read_lsr(self) -> int:
        overrun, self._overrun = self._overrun, False
        self._update_line()
        return LSR_TRANSMITTER_EMPTY | (LSR_OVERRUN if overrun else 0) | (LSR_DATA_READY if self._fifo else 0)

    def _read_msr(self) -> int:
        value = self._modem_status() | self._modem_delta
        self._modem_delta = 0
        self._update_line()
        return value

    def _write_scratch(self, value: int) -> None:
        self._scratch = value

    def _modem_status(self) -> int:
        """The four status inputs: a connected peer, or the outputs turned back in loopback."""
        if not self._mcr & MCR_LOOP:
            return _CONNECTED
        return (self._mcr & 0x0C) << 4 | (self._mcr & MCR_RTS) << 3 | (self._mcr & MCR_DTR) << 5

    def _cause(self) -> int:
        """The interrupt identification of the highest pending and enabled interrupt."""
        if self._ier & IER_LINE_STATUS and self._overrun:
            return IIR_LINE_STATUS
        if self._ier & IER_RECEIVED and self._fifo:
            return IIR_RECEIVED if len(self._fifo) >= self._trigger else IIR_TIMEOUT
        if self._ier & IER_TRANSMITTED and self._transmitted_pending:
            return IIR_TRANSMITTED
        if self._ier & IER_MODEM_STATUS and self._modem_delta:
            return IIR_MODEM_STATUS
        return IIR_NONE

    def _update_line(self) -> None:
        # On a PC, OUT2 gates the interrupt; in loopback the outputs are disconnected.
        gated = self._mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
        self._line(gated and self._cause() != IIR_NONE)

    _READ: ClassVar[dict[int, Callable[[Serial], int]]] = {
        DATA: _read_data,
        IER: lambda self: self._ier,
        IIR: _read_iir,
        LCR: lambda self: self._lcr,
        MCR: lambda self: self._mcr,
        LSR: _read_lsr,
        MSR: _read_msr,
        SCRATCH: lambda self: self._scratch,
    }
    _WRITE: ClassVar[dict[int, Callable[[Serial, int], None]]] = {
        DATA: _write_data,
        IER: _write_ier,
        FCR: _write_fcr,
        LCR: _write_lcr,
        MCR: _write_mcr,
        SCRATCH: _write_scratch,
    }
