"""What a guest sends: packets out of the transmit ring (public/io/netif.h), in pieces that the guest grants.

Linux's netback is the model for what is refused, and for what makes the ring mean nothing any more.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from xenolith.abi.io.netif import (
    NETIF_RSP_ERROR,
    NETIF_RSP_NULL,
    NETIF_RSP_OKAY,
    XEN_NETIF_EXTRA_FLAG_MORE,
    XEN_NETIF_EXTRA_TYPE_GSO,
    XEN_NETIF_EXTRA_TYPE_MAX,
    XEN_NETIF_EXTRA_TYPE_MCAST_ADD,
    XEN_NETIF_EXTRA_TYPE_MCAST_DEL,
    XEN_NETIF_EXTRA_TYPE_NONE,
    XEN_NETIF_GSO_TYPE_NONE,
    XEN_NETIF_GSO_TYPE_TCPV4,
    XEN_NETIF_GSO_TYPE_TCPV6,
    XEN_NETIF_NR_SLOTS_MIN,
    NetifTxRequest,
    NETTXF_csum_blank,
    NETTXF_data_validated,
    NETTXF_extra_info,
    NETTXF_more_data,
)
from xenolith.abi.types import PAGE_SIZE
from xenolith.backends.net.multicast import MulticastFilter
from xenolith.backends.ring import BackRing, RingBroken
from xenolith.machine.offload import is_sound
from xenolith.machine.packet import ETH_HLEN, Packet

SLOT_BYTES: Final = NetifTxRequest.sizeof()
FATAL_SLOTS: Final = 20
"""A packet of so many slots is no mistake any more but an attack (netback's fatal_skb_slots)."""
BATCH_SLOTS: Final = 256
"""Slots whose content is copied at once."""
_REQUEST: Final = struct.Struct("<IHHHH")
_RESPONSE: Final = struct.Struct("<Hh")
_GSO: Final = struct.Struct("<HB")
_GSO_TYPES: Final = (XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6)


class Piece(NamedTuple):
    """Bytes in a page that the guest grants."""

    gref: int
    offset: int
    size: int


Gather = Callable[[Sequence[Piece]], Sequence[bytes | None]]
"""Copy pieces out of the guest's pages; None for each that is not granted."""
Admit = Callable[[int], bool]
"""Whether a packet of so many bytes may be sent now."""


@dataclass(slots=True)
class _Sent:
    """The slots of one packet, and the NETIF_RSP_* that answers each of them but those of extra information."""

    size: int
    flags: int
    pieces: list[Piece] = field(default_factory=list)
    ids: list[int | None] = field(default_factory=list)
    """Of each slot; None for one of extra information, which has no id."""
    status: int = NETIF_RSP_OKAY
    extras: dict[int, bytes] = field(default_factory=dict)
    """What extra information says after type and flags, by its type."""


class TxRing:
    """The transmit ring in `page`. Call `service` when the guest has signalled, once at the start, and when `held_back`
    and `admit` would now say yes.

    `forward` gets each packet; it is answered when all of its batch have been forwarded, in the order of the ring.
    `broken` is why the ring is served no more, if the guest broke it.
    """

    def __init__(
        self,
        page: memoryview,
        gather: Gather,
        forward: Callable[[Packet], None],
        multicast: MulticastFilter,
        admit: Admit = lambda size: True,
    ) -> None:
        self._ring = BackRing([page], SLOT_BYTES)
        self._gather = gather
        self._forward = forward
        self._multicast = multicast
        self._admit = admit
        self._slot: bytes | None = None
        self.broken = ""
        self.held_back = False

    def service(self) -> bool:
        """Forward and answer what there is. Returns whether the guest wants to be signalled for that."""
        notify = self.held_back = False
        while not self.broken:
            batch = self._take_batch()
            if not batch:
                break
            self._forward_batch(batch)
            notify = self._answer(batch) or notify
        return notify

    # -- out of the ring ----------------------------------------------------------------------------------------------

    def _take_batch(self) -> list[_Sent]:
        batch: list[_Sent] = []
        slots = 0
        try:
            while slots < BATCH_SLOTS and (self._slot or self._ring.waiting() or self._ring.ask_for_event()):
                if self._slot is None:
                    self._slot = self._ring.take()
                if not self._admit(_REQUEST.unpack(self._slot)[4]):
                    self.held_back = True
                    break
                batch.append(self._take_packet())
                slots += len(batch[-1].ids)
        except RingBroken as broken:
            self.broken = str(broken)
        return batch

    def _take_packet(self) -> _Sent:
        """The next packet with all its slots. Raises RingBroken."""
        assert self._slot is not None
        gref, offset, flags, identifier, size = _REQUEST.unpack(self._slot)
        self._slot = None
        sent = _Sent(size, flags, [Piece(gref, offset, size)], [identifier])
        if flags & NETTXF_extra_info:
            self._take_extras(sent)
        if XEN_NETIF_EXTRA_TYPE_MCAST_ADD in sent.extras or XEN_NETIF_EXTRA_TYPE_MCAST_DEL in sent.extras:
            sent.pieces = []  # such a request is no packet
            return sent
        if flags & NETTXF_more_data:
            self._take_rest(sent)
        first = sent.pieces[0]
        if sent.status == NETIF_RSP_OKAY and first.size < ETH_HLEN:
            sent.status = NETIF_RSP_ERROR
        if sent.status == NETIF_RSP_OKAY:
            _check_piece(first)
            _check_gso(sent.extras.get(XEN_NETIF_EXTRA_TYPE_GSO))
        return sent

    def _next(self, what: str) -> bytes:
        if not self._ring.waiting():
            raise RingBroken(f"a packet's {what} is missing")
        return self._ring.take()

    def _take_extras(self, sent: _Sent) -> None:
        more = True
        while more:
            slot = self._next("extra information")
            kind, flags = slot[0], slot[1]
            if not XEN_NETIF_EXTRA_TYPE_NONE < kind < XEN_NETIF_EXTRA_TYPE_MAX:
                raise RingBroken(f"there is no extra information of type {kind}")
            sent.extras[kind] = slot[2:8]
            sent.ids.append(None)
            more = bool(flags & XEN_NETIF_EXTRA_FLAG_MORE)

    def _take_rest(self, sent: _Sent) -> None:
        """The pieces after the first one, whose size is what they leave of the packet's."""
        left, more = sent.size, True
        while more:
            gref, offset, flags, identifier, size = _REQUEST.unpack(self._next("next piece"))
            piece = Piece(gref, offset, size)
            if len(sent.pieces) >= FATAL_SLOTS:
                raise RingBroken(f"a packet of more than {FATAL_SLOTS} slots")
            if len(sent.pieces) >= XEN_NETIF_NR_SLOTS_MIN or size > left:
                sent.status = NETIF_RSP_ERROR
            if sent.status == NETIF_RSP_OKAY:
                left -= size
            _check_piece(piece)
            sent.pieces.append(piece)
            sent.ids.append(identifier)
            more = bool(flags & NETTXF_more_data)
        sent.pieces[0] = sent.pieces[0]._replace(size=left)

    # -- on their way -------------------------------------------------------------------------------------------------

    def _forward_batch(self, batch: Sequence[_Sent]) -> None:
        wanted = [sent for sent in batch if sent.pieces and sent.status == NETIF_RSP_OKAY]
        content = iter(self._gather([piece for sent in wanted for piece in sent.pieces]))
        for sent in batch:
            if sent.status != NETIF_RSP_OKAY:
                continue
            if not sent.pieces:
                self._change_filter(sent)
                continue
            packet = _packet(sent, content)
            if packet is None:
                sent.status = NETIF_RSP_ERROR
            elif is_sound(packet):
                self._forward(packet)

    def _change_filter(self, sent: _Sent) -> None:
        added = sent.extras.get(XEN_NETIF_EXTRA_TYPE_MCAST_ADD)
        removed = sent.extras.get(XEN_NETIF_EXTRA_TYPE_MCAST_DEL)
        if added is not None and not self._multicast.add(added):
            sent.status = NETIF_RSP_ERROR
        if removed is not None:
            self._multicast.remove(removed)

    def _answer(self, batch: Sequence[_Sent]) -> bool:
        for sent in batch:
            for identifier in sent.ids:
                if identifier is None:
                    self._ring.respond(_RESPONSE.pack(0, NETIF_RSP_NULL))
                else:
                    self._ring.respond(_RESPONSE.pack(identifier, sent.status))
        return self._ring.publish()


def _check_piece(piece: Piece) -> None:
    if piece.offset + piece.size > PAGE_SIZE:
        raise RingBroken(f"{piece.size} bytes at {piece.offset} of a page")


def _check_gso(extra: bytes | None) -> None:
    if extra is None:
        return
    size, kind = _GSO.unpack_from(extra)
    if not size or kind not in _GSO_TYPES:
        raise RingBroken(f"segmentation of type {kind} into {size} bytes")


def _packet(sent: _Sent, content: Iterator[bytes | None]) -> Packet | None:
    """The packet of which `content` has the pieces; None if one of them could not be had."""
    parts = [next(content) for _ in sent.pieces]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    size, kind = 0, XEN_NETIF_GSO_TYPE_NONE
    if XEN_NETIF_EXTRA_TYPE_GSO in sent.extras:
        size, kind = _GSO.unpack_from(sent.extras[XEN_NETIF_EXTRA_TYPE_GSO])
    # A packet that is to be segmented has no checksum that is worth anything, whatever the guest says.
    blank = bool(sent.flags & NETTXF_csum_blank) or kind != XEN_NETIF_GSO_TYPE_NONE
    return Packet(b"".join(found), blank, blank or bool(sent.flags & NETTXF_data_validated), kind, size)
