"""What one network device leads to: a switch, or a way of its own to the host; and the capture of what passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from xenolith.backends.net.switch import Switch
from xenolith.machine.offload import adapt
from xenolith.machine.packet import Packet
from xenolith.services.network.capture import Capture
from xenolith.services.network.networks import Networks
from xenolith.services.network.uplink import Uplink, UplinkGone

_BACKLOG_BYTES: Final = 1 << 20
"""What may wait for a guest before its uplink is not read any more."""


class Watcher(Protocol):
    """The host's descriptors, as services.service.Outside has them."""

    def watch_readable(self, fd: int, action: Callable[[], None]) -> None: ...

    def watch_writable(self, fd: int, action: Callable[[], None]) -> None: ...

    def unwatch(self, fd: int) -> None: ...


class End(Protocol):
    """The device at the wire's end."""

    @property
    def backlog(self) -> int:
        """Bytes that wait for the guest to have room for them."""

    def take(self, packet: Packet) -> bool:
        """A packet has come, which the guest is to get by the next `settle`; False if it does not want it."""

    def settle(self) -> None:
        """Give the guest what it has room for."""

    def cut(self) -> None:
        """What was behind the uplink has ended."""


class Wire:
    """It carries nothing until `up`. Give it a `switch` or an `uplink` first (a Port of a Switch, and Due)."""

    def __init__(self, networks: Networks, host: Watcher, now_ns: Callable[[], int], end: End) -> None:
        self._networks = networks
        self._host = host
        self._now_ns = now_ns
        self._end = end
        self._up = self._reading = self._writing = False
        self.switch: Switch | None = None
        self.uplink: Uplink | None = None
        self.capture: Capture | None = None

    def up(self) -> None:
        """The guest's end works from now on."""
        self._up = True
        if self.switch is not None:
            self.switch.attach(self)
        self.look_after_reading()

    def down(self) -> None:
        """The guest's end works no more."""
        self._up = False
        if self.switch is not None:
            self.switch.detach(self)
        self.look_after_reading()

    # -- packets ------------------------------------------------------------------------------------------------------

    def send(self, packet: Packet) -> None:
        """The guest has sent a sound packet. The uplink takes it by the next `flush`."""
        self._record(packet)
        if self.uplink is not None:
            for adapted in adapt(packet, self.uplink.offers):
                self.uplink.send(adapted)
        elif self.switch is not None and self._up:
            self.switch.send(self, packet)

    def deliver(self, packet: Packet) -> None:
        """A packet for the guest has come; it gets it by the next `Networks.settle`."""
        if self._end.take(packet):
            self._record(packet)
            self._networks.is_due(self)

    def settle(self) -> None:
        """Have the guest given what it has room for."""
        self._end.settle()
        self.look_after_reading()
        if self.capture is not None:
            self.capture.flush()

    def _record(self, packet: Packet) -> None:
        if self.capture is not None:
            self.capture.add(packet.data, self._now_ns())

    # -- the uplink ---------------------------------------------------------------------------------------------------

    def look_after_reading(self) -> None:
        """Read from the uplink while there is a guest that keeps up with it."""
        uplink = self.uplink
        if uplink is None:
            return
        wanted = self._up and self._end.backlog < _BACKLOG_BYTES
        if wanted and not self._reading:
            self._host.watch_readable(uplink.reading, self._receive)
        elif self._reading and not wanted:
            self._host.unwatch(uplink.reading)
        self._reading = wanted

    def _receive(self) -> None:
        if self.uplink is None:
            return
        try:
            packets: Sequence[Packet] = self.uplink.receive()
        except UplinkGone:
            self._lost()
            return
        for packet in packets:
            self.deliver(packet)
        self._networks.settle()

    def flush(self) -> None:
        """Have the uplink take what waits for it."""
        uplink = self.uplink
        if uplink is None:
            return
        try:
            waits = uplink.flush()
        except UplinkGone:
            self._lost()
            return
        if waits and not self._writing:
            self._host.watch_writable(uplink.writing, self.flush)
        elif self._writing and not waits:
            self._host.unwatch(uplink.writing)
        self._writing = waits

    def let_go(self) -> None:
        """Use the uplink no more; it stays open."""
        uplink, self.uplink = self.uplink, None
        if uplink is not None:
            for watched, fd in ((self._reading, uplink.reading), (self._writing, uplink.writing)):
                if watched:
                    self._host.unwatch(fd)
        self._reading = self._writing = False

    def _lost(self) -> None:
        self.let_go()
        self._end.cut()
