"""Intel's 82574L, a gigabit network card behind PCI: its registers, and what they set going.

Of its two queues for each direction the first one works. Registers that only matter to a real wire (flow control,
timings, LEDs, wake-up) keep what is written into them; interrupts are not delayed, and its time stamps do not run.

Source: Intel 82574 GbE Controller Family datasheet, revision 3.4, chapter 10 (registers).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

from xenolith.machine.devices import e1000e_interrupts as causes
from xenolith.machine.devices.e1000e_interrupts import MSIX_VECTORS, Interrupts
from xenolith.machine.devices.e1000e_link import Nvm, Phy
from xenolith.machine.devices.e1000e_rx import ADDRESSES, HASH_WORDS, UNIT, Receiver
from xenolith.machine.devices.e1000e_tx import DESCRIPTOR_BYTES, Transmitter
from xenolith.machine.network import Network, PacketQueue
from xenolith.machine.offload import Offers
from xenolith.machine.packet import Packet
from xenolith.machine.pci import BarKind, DmaFault
from xenolith.machine.pci_device import PciDevice

_VENDOR: Final = 0x8086
_DEVICE: Final = 0x10D3
_ETHERNET: Final = 0x020000
_SUBSYSTEM: Final = 0xA01F
_BAR: Final = 0
_BAR_BYTES: Final = 0x20000
_MSIX_BAR: Final = 3
_WORD: Final = 0xFFFFFFFF

CTRL, STATUS, EECD, EERD, CTRL_EXT, MDIC, VET = 0x0000, 0x0008, 0x0010, 0x0014, 0x0018, 0x0020, 0x0038
ICR, ICS, IMS, IMC, EIAC, IAM, IVAR = 0x00C0, 0x00C8, 0x00D0, 0x00D8, 0x00DC, 0x00E0, 0x00E4
RCTL, TCTL, EEMNGCTL, EEWR, PSRCTL, RXCSUM, RFCTL = 0x0100, 0x0400, 0x1010, 0x102C, 0x2170, 0x5000, 0x5008
RDBAL, RDBAH, RDLEN, RDH, RDT = 0x2800, 0x2804, 0x2808, 0x2810, 0x2818
TDBAL, TDBAH, TDLEN, TDH, TDT = 0x3800, 0x3804, 0x3808, 0x3810, 0x3818
MTA, RA, VFTA = 0x5200, 0x5400, 0x5600

_KEPT: Final = (
    range(0x001C, 0x0020),  # flash access
    range(0x0024, 0x0034),  # SerDes, flow control
    range(0x00C4, 0x00C8),  # interrupt throttling, also of each message
    range(0x00E8, 0x0100),
    range(0x0170, 0x0174),
    range(0x0404, 0x0414),  # transmit timings
    range(0x0458, 0x045C),
    range(0x0E00, 0x0E04),  # LEDs
    range(0x0F00, 0x0F14),  # semaphores
    range(0x1000, 0x100C),  # packet buffers
    range(0x2160, 0x216C),
    range(0x2820, 0x2830),  # delays and thresholds
    range(0x2900, 0x2930),  # the second receive queue
    range(0x3820, 0x3844),
    range(0x3900, 0x3944),  # the second transmit queue
    range(0x5800, 0x5824),  # wake-up, management, spreading over queues
    range(0x5860, 0x5864),
    range(0x5B00, 0x5B04),
    range(0x5B50, 0x5B68),
    range(0x5C00, 0x5CA8),
    range(0xB608, 0xB60C),  # time stamps
    range(0xB614, 0xB618),
    range(0xB620, 0xB624),
    range(0xB634, 0xB63C),
)
"""Registers that keep what is written into them and have no effect."""

# Counters, which reading clears; those of octets have two words, of which the second one does.
MPC, GPRC, BPRC, MPRC, GPTC, GORC, GOTC, ROC, TOR, TOT, TPR, TPT, MPTC, BPTC = (
    *(0x4010, 0x4074, 0x4078, 0x407C, 0x4080, 0x4088, 0x4090, 0x40AC),
    *(0x40C0, 0x40C8, 0x40D0, 0x40D4, 0x40F0, 0x40F4),
)
_COUNTERS: Final = range(0x4000, 0x4128)
_OCTETS: Final = (GORC, GOTC, TOR, TOT)

_CTRL_DEFAULT: Final = 1 << 0 | 1 << 6 | 1 << 9
"""Full duplex, link up, 1000 Mb/s."""
_CTRL_NO_MASTER: Final = 1 << 2
_CTRL_RESET: Final = 1 << 26
_CTRL_VLAN: Final = 1 << 30
_CTRL_PHY_RESET: Final = 1 << 31
_STATUS_UP: Final = 1 << 1
_STATUS_FIXED: Final = 1 << 0 | 1 << 7 | 1 << 9
"""Full duplex, 1000 Mb/s, as was found out by itself."""
_STATUS_MASTER: Final = 1 << 19
_EECD: Final = 1 << 8 | 1 << 9
"""There is a memory, and the card has read it."""
_CONFIGURED: Final = 1 << 18
_TCTL_ENABLE: Final = 1 << 1
_ADDRESS_VALID: Final = 1 << 31
_RXCSUM_TCP_UDP: Final = 1 << 9
_RFCTL_EXTENDED: Final = 1 << 15
_VLAN_ETHERTYPE: Final = 0x8100
_POINTER: Final = 0xFFFF
_RING_LENGTH: Final = 0xFFF80
_RING_ALIGN: Final = 0xF


class E1000e(PciDevice):
    """A card (machine.network.Card) with the address `mac`, six bytes, at `network`. Its driver chooses the MTU."""

    def __init__(self, mac: bytes, mtu: int, network: Network) -> None:
        super().__init__(_VENDOR, _DEVICE, _ETHERNET, subsystem_vendor=_VENDOR, subsystem=_SUBSYSTEM, interrupt_pin=1)
        self._network = network
        self._nvm = Nvm(mac)
        self._phy = Phy()
        self._interrupts = Interrupts(self)
        self._transmitter = Transmitter(self.memory, self._sent)
        self._receiver = Receiver(self.memory)
        self.waiting = PacketQueue()
        self._readers = self._make_readers()
        self._writers = self._make_writers()
        self.add_bar(_BAR, _BAR_BYTES, BarKind.MEMORY32, self)
        self.add_msi()
        self.add_msix(MSIX_VECTORS, _MSIX_BAR)
        self.add_function_reset()
        self._start_afresh()
        network.connect(self)

    # -- Card ---------------------------------------------------------------------------------------------------------

    @property
    def offers(self) -> Offers:
        return Offers()

    @property
    def backlog(self) -> int:
        return self.waiting.bytes

    def deliver(self, packet: Packet) -> None:
        if not self._receiver.is_on:
            return
        if self._receiver.takes(packet):
            self.waiting.put(packet)
        elif self._receiver.filters.passes(packet):
            self._counters[ROC] += 1

    def set_link(self, up: bool) -> None:
        self._phy.cable = up
        self._interrupts.add(causes.LSC)

    def work(self) -> None:
        told = 0
        if self._registers.get(TCTL, 0) & _TCTL_ENABLE:
            if self._transmitter.work():
                told |= causes.TXDW | causes.TXQ0
            if self._transmitter.has_work:
                self._network.wake()
        if self._receive():
            told |= causes.RXT0 | causes.RXQ0
        if told:
            self._interrupts.add(told)

    def _receive(self) -> bool:
        """Give software what it has room for. Returns whether there was anything."""
        received = False
        while self.waiting:
            try:
                done = self._receiver.put(self.waiting.first)
            except DmaFault:
                done = None
            if done is False:
                break
            packet = self.waiting.take()
            if done is None:
                self._counters[MPC] += 1
                continue
            received = True
            self._count(packet, GPRC, TPR, GORC, TOR, BPRC, MPRC)
        return received

    def _sent(self, packet: Packet) -> None:
        self._count(packet, GPTC, TPT, GOTC, TOT, BPTC, MPTC)
        if self._phy.link:
            self._network.send(packet)

    def _count(self, packet: Packet, *counters: int) -> None:
        good, total, good_octets, total_octets, broadcast, multicast = counters
        for counter in (good, total):
            self._counters[counter] += 1
        for counter in (good_octets, total_octets):
            self._counters[counter] += len(packet.data) + 4
        if packet.data[0] & 1:
            self._counters[broadcast if packet.destination == b"\xff" * 6 else multicast] += 1

    # -- reset --------------------------------------------------------------------------------------------------------

    def _start_afresh(self) -> None:
        """As after a reset of all but the PHY."""
        self._registers: dict[int, int] = {VET: _VLAN_ETHERTYPE}
        self._counters: Counter[int] = Counter()
        self._control = _CTRL_DEFAULT
        self._interrupts.reset()
        self._transmitter.reset()
        self._receiver.reset()
        self.waiting.clear()
        mac = self._nvm.mac
        self._receiver.filters.addresses[:2] = (
            int.from_bytes(mac[:4], "little"),
            int.from_bytes(mac[4:], "little") | _ADDRESS_VALID,
        )

    def reset(self) -> None:
        super().reset()
        self._phy.reset()
        self._start_afresh()

    # -- registers ----------------------------------------------------------------------------------------------------

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        if size != 4 or offset % 4:
            return 0
        if offset in _COUNTERS:
            return self._read_counter(offset)
        reader = self._readers.get(offset)
        return reader() if reader is not None else self._registers.get(offset, 0)

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        if size != 4 or offset % 4:
            return
        writer = self._writers.get(offset)
        if writer is not None:
            writer(value)
        elif any(offset in kept for kept in _KEPT):
            self._registers[offset] = value

    def _read_counter(self, offset: int) -> int:
        if offset in _OCTETS:
            return self._counters[offset] & _WORD
        if offset - 4 in _OCTETS:
            return self._counters.pop(offset - 4, 0) >> 32 & _WORD
        return min(self._counters.pop(offset, 0), _WORD)

    def _make_readers(self) -> dict[int, Callable[[], int]]:
        interrupts, transmitter, receiver = self._interrupts, self._transmitter, self._receiver
        readers: dict[int, Callable[[], int]] = {
            CTRL: lambda: self._control,
            STATUS: self._status,
            EECD: lambda: _EECD,
            EERD: lambda: self._nvm.read_register,
            EEWR: lambda: self._nvm.write_register,
            EEMNGCTL: lambda: _CONFIGURED,
            MDIC: lambda: self._phy.command,
            CTRL_EXT: lambda: interrupts.control,
            ICR: interrupts.take,
            IMS: lambda: interrupts.mask,
            IAM: lambda: interrupts.auto_mask,
            EIAC: lambda: interrupts.auto_clear,
            IVAR: lambda: interrupts.vectors,
            RCTL: lambda: receiver.filters.control,
            RDH: lambda: receiver.head,
            RDT: lambda: receiver.tail,
            TDH: lambda: transmitter.head,
            TDT: lambda: transmitter.tail,
        }
        for start, count, words in self._tables():
            readers |= {start + 4 * at: partial(self._read_word, words, at) for at in range(count)}
        return readers

    def _make_writers(self) -> dict[int, Callable[[int], None]]:
        interrupts = self._interrupts
        writers: dict[int, Callable[[int], None]] = {
            CTRL: self._write_control,
            EERD: self._nvm.read,
            EEWR: self._nvm.write,
            MDIC: self._write_mdi,
            CTRL_EXT: partial(setattr, interrupts, "control"),
            ICR: interrupts.clear,
            ICS: interrupts.add,
            IMS: interrupts.unmask,
            IMC: interrupts.mask_off,
            IAM: partial(setattr, interrupts, "auto_mask"),
            EIAC: partial(setattr, interrupts, "auto_clear"),
            IVAR: partial(setattr, interrupts, "vectors"),
        }
        for offset in (VET, RCTL, TCTL, PSRCTL, RXCSUM, RFCTL, *range(RDBAL, RDT + 4, 4), *range(TDBAL, TDT + 4, 4)):
            writers[offset] = partial(self._write_setting, offset)
        for start, count, words in self._tables():
            writers |= {start + 4 * at: partial(self._write_word, words, at) for at in range(count)}
        return writers

    def _tables(self) -> tuple[tuple[int, int, Callable[[], list[int]]], ...]:
        """The registers of which there are many: where, how many, and what has them."""
        receiver = self._receiver
        return (
            (MTA, HASH_WORDS, lambda: receiver.filters.multicast),
            (RA, 2 * ADDRESSES, lambda: receiver.filters.addresses),
            (VFTA, HASH_WORDS, lambda: receiver.filters.vlans),
        )

    def _read_word(self, words: Callable[[], list[int]], at: int) -> int:
        return words()[at]

    def _write_word(self, words: Callable[[], list[int]], at: int, value: int) -> None:
        words()[at] = value

    def _status(self) -> int:
        status = _STATUS_FIXED | (_STATUS_UP if self._phy.link else 0)
        return status | (0 if self._control & _CTRL_NO_MASTER else _STATUS_MASTER)

    def _write_control(self, value: int) -> None:
        if value & _CTRL_PHY_RESET:
            self._phy.reset()
        if value & _CTRL_RESET:
            self._start_afresh()
            return
        self._control = value & ~_CTRL_PHY_RESET
        self._apply_settings()

    def _write_mdi(self, command: int) -> None:
        up = self._phy.link
        if self._phy.execute(command):
            self._interrupts.add(causes.MDAC)
        if self._phy.link != up:
            self._interrupts.add(causes.LSC)

    def _write_setting(self, offset: int, value: int) -> None:
        self._registers[offset] = value
        receiver, transmitter = self._receiver, self._transmitter
        if offset == TDT:
            transmitter.tail = value & _POINTER
            self._network.wake()
        elif offset == RDT:
            receiver.tail = value & _POINTER
            if self.waiting:
                self._network.wake()
        elif offset == TDH:
            transmitter.head = value & _POINTER
        elif offset == RDH:
            receiver.head = value & _POINTER
        else:
            self._apply_settings()

    def _apply_settings(self) -> None:
        """Have the rings work as the registers say."""
        registers, receiver, transmitter = self._registers, self._receiver, self._transmitter
        transmitter.base = registers.get(TDBAH, 0) << 32 | registers.get(TDBAL, 0) & ~_RING_ALIGN
        transmitter.count = (registers.get(TDLEN, 0) & _RING_LENGTH) // DESCRIPTOR_BYTES
        receiver.base = registers.get(RDBAH, 0) << 32 | registers.get(RDBAL, 0) & ~_RING_ALIGN
        receiver.count = (registers.get(RDLEN, 0) & _RING_LENGTH) // UNIT
        receiver.filters.control = registers.get(RCTL, 0)
        receiver.extended = bool(registers.get(RFCTL, 0) & _RFCTL_EXTENDED)
        receiver.checks_sums = bool(registers.get(RXCSUM, 0) & _RXCSUM_TCP_UDP)
        receiver.split_sizes = registers.get(PSRCTL, 0)
        transmitter.vlan_type = receiver.vlan_type = registers[VET] & 0xFFFF if self._control & _CTRL_VLAN else 0
        if not receiver.is_on:
            self.waiting.clear()
