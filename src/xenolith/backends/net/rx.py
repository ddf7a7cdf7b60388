"""What a guest gets: packets into the pages that it has put into the receive ring (public/io/netif.h)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from xenolith.abi.io.netif import (
    NETIF_RSP_ERROR,
    XEN_NETIF_EXTRA_TYPE_GSO,
    XEN_NETIF_GSO_TYPE_NONE,
    NetifRxRequest,
    NETRXF_csum_blank,
    NETRXF_data_validated,
    NETRXF_extra_info,
    NETRXF_more_data,
)
from xenolith.abi.types import PAGE_SIZE
from xenolith.backends.ring import BackRing, RingBroken
from xenolith.machine.network import PacketQueue
from xenolith.machine.packet import Packet

SLOT_BYTES: Final = NetifRxRequest.sizeof()
BATCH_SLOTS: Final = 256
"""Pages that are filled at once."""
_REQUEST: Final = struct.Struct("<HHI")
_RESPONSE: Final = struct.Struct("<HHHh")
_GSO_EXTRA: Final = struct.Struct("<BBHBBH")

Scatter = Callable[[Sequence[tuple[int, bytes]]], Sequence[bool]]
"""Copy bytes to the start of each of the guest's pages, by their grants; whether each was granted."""


class _Response(NamedTuple):
    identifier: int
    flags: int
    size: int


class RxRing:
    """The receive ring in `page`. Packets are queued by `queue` and given to the guest by `service`, which is to be
    called after that and when the guest has signalled.

    `scatter_gather`: the guest takes packets of several pages. `waiting` are the packets for which there are no pages.
    `broken` is why the ring is served no more, if the guest broke it.
    """

    def __init__(self, page: memoryview, scatter: Scatter, scatter_gather: bool = True) -> None:
        self._ring = BackRing([page], SLOT_BYTES)
        self._scatter = scatter
        self._scatter_gather = scatter_gather
        self.waiting = PacketQueue()
        self.broken = ""

    def queue(self, packet: Packet) -> None:
        """Have a packet given to the guest as soon as it has room for it."""
        if len(packet.data) <= PAGE_SIZE or self._scatter_gather:
            self.waiting.put(packet)
        else:
            self.waiting.lost += 1

    def service(self) -> bool:
        """Fill the guest's pages. Returns whether it wants to be signalled for that."""
        notify = False
        while not self.broken and self.waiting:
            pages: list[tuple[int, bytes]] = []
            responses: list[_Response | bytes] = []
            try:
                self._place_batch(pages, responses)
            except RingBroken as broken:
                self.broken = str(broken)
            if not responses:
                break
            self._answer(responses, self._scatter(pages))
            notify = self._ring.publish() or notify
        return notify

    def _place_batch(self, pages: list[tuple[int, bytes]], responses: list[_Response | bytes]) -> None:
        while self.waiting and len(responses) < BATCH_SLOTS:
            needed = _slots(self.waiting.first)
            if self._ring.waiting() < needed and not self._ring.ask_for_event(needed):
                return
            self._place(self.waiting.take(), pages, responses)

    def _place(self, packet: Packet, pages: list[tuple[int, bytes]], responses: list[_Response | bytes]) -> None:
        """Take pages for one packet, for which there are enough."""
        data, size = packet.data, len(packet.data)
        flags = NETRXF_csum_blank | NETRXF_data_validated if packet.blank else 0
        if packet.validated:
            flags |= NETRXF_data_validated
        if packet.gso_type != XEN_NETIF_GSO_TYPE_NONE:
            flags |= NETRXF_extra_info
        for at in range(0, size, PAGE_SIZE):
            identifier, _, gref = _REQUEST.unpack(self._ring.take())
            part = data[at : at + PAGE_SIZE]
            more = NETRXF_more_data if at + PAGE_SIZE < size else 0
            pages.append((gref, part))
            responses.append(_Response(identifier, flags | more, len(part)))
            if flags & NETRXF_extra_info:
                self._ring.take()  # whose page stays unused: the guest knows which it was by its place
                responses.append(_GSO_EXTRA.pack(XEN_NETIF_EXTRA_TYPE_GSO, 0, packet.gso_size, packet.gso_type, 0, 0))
            flags = 0

    def _answer(self, responses: Sequence[_Response | bytes], granted: Sequence[bool]) -> None:
        results = iter(granted)
        for response in responses:
            if isinstance(response, bytes):
                self._ring.respond(response)
                continue
            status = response.size if next(results) else NETIF_RSP_ERROR
            self._ring.respond(_RESPONSE.pack(response.identifier, 0, response.flags, status))


def _slots(packet: Packet) -> int:
    return -(-len(packet.data) // PAGE_SIZE) + (packet.gso_type != XEN_NETIF_GSO_TYPE_NONE)
