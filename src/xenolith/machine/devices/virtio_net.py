"""The network card of virtio: one queue for each direction, checksum and segmentation offload, merged buffers.

Source: Virtual I/O Device (VIRTIO) 1.2, 5.1.
"""

from __future__ import annotations

from typing import Final

from xenolith.machine.devices.virtio_pci import VirtioDevice
from xenolith.machine.devices.virtqueue import Chain, QueueBroken, Virtqueue
from xenolith.machine.network import Network, PacketQueue
from xenolith.machine.offload import Offers, is_sound
from xenolith.machine.packet import ETH_HLEN, MAX_PACKET, Packet
from xenolith.machine.vnet_header import HEADER_BYTES, header_of, packet_of

_KIND: Final = 1
_ETHERNET: Final = 0x020000
_QUEUE_SIZE: Final = 256
_RX, _TX = range(2)

CSUM: Final = 1 << 0
GUEST_CSUM: Final = 1 << 1
MTU: Final = 1 << 3
MAC: Final = 1 << 5
GUEST_TSO4: Final = 1 << 7
GUEST_TSO6: Final = 1 << 8
HOST_TSO4: Final = 1 << 11
HOST_TSO6: Final = 1 << 12
MRG_RXBUF: Final = 1 << 15
STATUS: Final = 1 << 16
_FEATURES: Final = CSUM | GUEST_CSUM | MTU | MAC | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6 | MRG_RXBUF | STATUS

# The configuration: address, status, pairs of queues (without the feature for it, 0), MTU.
_STATUS_AT: Final = 6
_LINK_UP: Final = 1

_HEADER_BYTES: Final = HEADER_BYTES + 2
"""With the number of merged buffers at its end."""


class VirtioNet(VirtioDevice):
    """A card (machine.network.Card) with the address `mac`, six bytes, at `network`, whose packets have at most `mtu`
    bytes behind their Ethernet header."""

    def __init__(self, mac: bytes, mtu: int, network: Network) -> None:
        registers = mac + _LINK_UP.to_bytes(2, "little") + bytes(2) + mtu.to_bytes(2, "little")
        super().__init__(_KIND, _ETHERNET, _FEATURES, (_QUEUE_SIZE, _QUEUE_SIZE), registers)
        self._network = network
        self.waiting = PacketQueue()
        network.connect(self)

    @property
    def offers(self) -> Offers:
        checksum = self.has(GUEST_CSUM)
        return Offers(checksum and self.has(GUEST_TSO4), checksum and self.has(GUEST_TSO6), checksum, checksum)

    @property
    def backlog(self) -> int:
        return self.waiting.bytes

    def deliver(self, packet: Packet) -> None:
        if self.running:
            self.waiting.put(packet)

    def set_link(self, up: bool) -> None:
        self.change_registers(_STATUS_AT, (_LINK_UP if up else 0).to_bytes(2, "little"))

    def notified(self, queue: Virtqueue) -> None:
        self._network.wake()

    def stopped(self) -> None:
        self.waiting.clear()

    def work(self) -> None:
        self.attempt(self._serve_tx)
        self.attempt(self._serve_rx)

    # -- what the driver sends ----------------------------------------------------------------------------------------

    def _serve_tx(self) -> None:
        queue = self.queues[_TX]
        for _ in range(queue.size):
            chain = queue.take()
            if chain is None:
                break
            self._send_chain(chain)
            queue.put(chain, 0)
        else:
            self._network.wake()  # there may be more, but others wait, too
        self.flush(queue)

    def _send_chain(self, chain: Chain) -> None:
        """Send what a chain holds, if it is a packet that can be."""
        if not _HEADER_BYTES + ETH_HLEN <= chain.readable_bytes <= _HEADER_BYTES + MAX_PACKET:
            return
        content = chain.read(0, _HEADER_BYTES + MAX_PACKET)
        packet = packet_of(content[:HEADER_BYTES], content[_HEADER_BYTES:])
        if packet is not None and is_sound(packet):
            self._network.send(packet)

    # -- what it gets -------------------------------------------------------------------------------------------------

    def _serve_rx(self) -> None:
        queue = self.queues[_RX]
        while self.waiting:
            chains = self._chains_for(queue, _HEADER_BYTES + len(self.waiting.first.data))
            if chains is None:
                break
            packet = self.waiting.take()
            if chains:
                self._fill(queue, chains, packet)
            else:
                self.waiting.lost += 1
        self.flush(queue)

    def _chains_for(self, queue: Virtqueue, size: int) -> list[Chain] | None:
        """Buffers for a packet with its header: None if there are not enough yet, none if there never will be."""
        chains: list[Chain] = []
        most = queue.size if self.has(MRG_RXBUF) else 1
        while size > 0:
            if len(chains) == most:
                queue.put_back(len(chains))
                return []
            chain = queue.take()
            if chain is None:
                queue.put_back(len(chains))
                return None
            if not chain.writable_bytes:
                raise QueueBroken("a buffer for packets has no room at all")
            chains.append(chain)
            size -= chain.writable_bytes
        return chains

    def _fill(self, queue: Virtqueue, chains: list[Chain], packet: Packet) -> None:
        content = memoryview(header_of(packet) + len(chains).to_bytes(2, "little") + packet.data)
        for chain in chains:
            written = chain.write(0, content)
            content = content[written:]
            queue.put(chain, written)
