"""The cable of a network card of the machine: to a switch, to user-mode networking or to a tap, as guests have them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from xenolith.errors import UserError
from xenolith.loader.registry import Progress
from xenolith.machine.network import Card
from xenolith.machine.offload import adapt
from xenolith.machine.packet import Packet
from xenolith.services.network.networks import Networks
from xenolith.services.network.passt import UserNetwork
from xenolith.services.network.tap import Tap
from xenolith.services.network.uplink import Uplink
from xenolith.services.network.wire import Wire
from xenolith.services.service import Outside

_REOPEN_S: Final = 1.0


class Cable:
    """Leads to `place`: the switch of that name, or a way of its own to the host (machine.network.Network, wire.End).

    `key` tells it from the other cables. `capture` is a file that gets every packet. `soon` has something done when no
    guest runs, once. `log` is told what happens to the network behind the cable. UserError if that cannot be had.
    """

    def __init__(
        self,
        networks: Networks,
        key: str,
        place: str | UserNetwork | Tap,
        capture: Path | None,
        host: Outside,
        soon: Callable[[Callable[[], None]], None],
        now_ns: Callable[[], int],
        log: Callable[[str], None],
    ) -> None:
        self._networks = networks
        self._key = None, key
        self._place = place
        self._host = host
        self._soon = soon
        self._log = log
        self._wire = Wire(networks, host, now_ns, self)
        self._card: Card | None = None
        self._working = False
        if capture is not None:
            self._wire.capture = networks.capture(self._key, capture, now_ns())
        if isinstance(place, str):
            self._wire.switch = networks.switch(place)
        else:
            self._wire.uplink = self._open(place)

    def _open(self, place: UserNetwork | Tap) -> Uplink:
        def tell(what: str, share: float) -> None: ...

        progress: Progress = tell
        make: Callable[[], Uplink] = place.open if isinstance(place, Tap) else lambda: place.open(progress)
        return self._networks.uplink(self._key, make)

    # -- Network ------------------------------------------------------------------------------------------------------

    def connect(self, card: Card) -> None:
        self._card = card
        self._wire.up()

    def wake(self) -> None:
        if self._working:
            self._host.post(self._work)  # when guests have run again: one that sends without end is not the only one
        else:
            self._soon(self._work)

    def send(self, packet: Packet) -> None:
        self._wire.send(packet)

    def _work(self) -> None:
        self._working = True
        self._wire.settle()
        self._working = False
        self._networks.settle()

    # -- End of the wire ----------------------------------------------------------------------------------------------

    @property
    def backlog(self) -> int:
        return 0 if self._card is None else self._card.backlog

    def take(self, packet: Packet) -> bool:
        if self._card is None:
            return False
        for adapted in adapt(packet, self._card.offers):
            self._card.deliver(adapted)
        return True

    def settle(self) -> None:
        if self._card is not None:
            self._card.work()
        self._wire.flush()

    def cut(self) -> None:
        self._networks.drop_uplink(self._key)
        self._log(f"the network behind the card in slot {self._key[1]} has ended; it is started again")
        self._set_link(False)
        self._begin_again()

    def _set_link(self, up: bool) -> None:
        if self._card is not None:
            self._card.set_link(up)

    def _begin_again(self) -> None:
        place = self._place
        assert not isinstance(place, str)

        def reopen() -> Uplink:
            time.sleep(_REOPEN_S)
            return self._open(place)

        self._host.submit(reopen, self._reopened)

    def _reopened(self, uplink: Uplink | None, error: BaseException | None) -> None:
        if isinstance(error, UserError):
            self._log(f"the card in slot {self._key[1]}: {error}")
        elif error is not None:
            raise error
        else:
            self._wire.uplink = uplink
            self._wire.look_after_reading()
            self._set_link(True)
