"""A tap device of the host (Linux's Documentation/networking/tuntap.rst), with the offloads that guests have."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from errno import EBUSY, EPERM
from pathlib import Path
from typing import Final

from xenolith.errors import UserError
from xenolith.machine.offload import EVERYTHING, is_sound
from xenolith.machine.packet import MAX_PACKET, Packet
from xenolith.machine.vnet_header import HEADER_BYTES, header_of, packet_of
from xenolith.services.network.uplink import UplinkGone

_CONTROL: Final = Path("/dev/net/tun")
# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_TUN_F_CSUM_TSO4_TSO6: Final = 0x07
_PACKETS_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class Tap:
    """The tap device of that name."""

    name: str

    def open(self) -> TapUplink:
        """UserError where there is no right to it."""
        return TapUplink(self.name)


class TapUplink:
    """One end of a tap device (an Uplink)."""

    offers: Final = EVERYTHING

    def __init__(self, name: str) -> None:
        try:
            self.reading = os.open(_CONTROL, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"tap devices cannot be had on this host: {_CONTROL}: {error.strerror}") from None
        try:
            flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
            fcntl.ioctl(self.reading, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            fcntl.ioctl(self.reading, _TUNSETVNETHDRSZ, struct.pack("i", HEADER_BYTES))
            fcntl.ioctl(self.reading, _TUNSETOFFLOAD, _TUN_F_CSUM_TSO4_TSO6)
        except OSError as error:
            os.close(self.reading)
            raise _refusal(name, error) from None
        self.writing = os.dup(self.reading)

    def send(self, packet: Packet) -> None:
        try:
            os.writev(self.writing, [header_of(packet), packet.data])
        except OSError:
            return  # the device is down, or has no room: a packet that is lost, as on a wire

    def flush(self) -> bool:
        return False

    def receive(self) -> Sequence[Packet]:
        packets: list[Packet] = []
        try:
            while len(packets) < _PACKETS_AT_ONCE:
                data = os.read(self.reading, HEADER_BYTES + MAX_PACKET)
                packet = packet_of(data[:HEADER_BYTES], data[HEADER_BYTES:])
                if packet is not None and is_sound(packet):
                    packets.append(packet)
        except BlockingIOError:
            pass
        except OSError:
            raise UplinkGone from None
        return packets

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


def _refusal(name: str, error: OSError) -> UserError:
    if error.errno == EPERM:
        return UserError(
            f"there is no right to the tap device {name}",
            f"have it made for this user: ip tuntap add {name} mode tap user $USER vnet_hdr",
        )
    if error.errno == EBUSY:
        return UserError(f"the tap device {name} is in use", "give every guest one of its own")
    return UserError(f"the tap device {name} cannot be had: {error.strerror}")
