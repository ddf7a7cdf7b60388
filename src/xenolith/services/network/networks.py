"""What outlives the code of network services: switches, taps and user-mode networks, captures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from xenolith.backends.net.switch import Switch
from xenolith.services.network.capture import Capture
from xenolith.services.network.uplink import Uplink

Key = tuple[int | None, str]
"""A device: the guest's domid, and the device's number; without a domid, a card of the machine."""


class Due(Protocol):
    """A device with packets that are to be given to its guest."""

    def settle(self) -> None: ...


class Networks:
    """All of a machine's, whichever domains serve them."""

    def __init__(self) -> None:
        self._switches: dict[str, Switch] = {}
        self._uplinks: dict[Key, Uplink] = {}
        self._captures: dict[Key, Capture] = {}
        self._due: dict[Due, None] = {}

    def switch(self, name: str) -> Switch:
        """The switch of that name; there is one as soon as somebody asks for it."""
        return self._switches.setdefault(name, Switch())

    def uplink(self, key: Key, make: Callable[[], Uplink]) -> Uplink:
        """A device's own way to the host, made if there is none yet. May be called from any thread."""
        if key not in self._uplinks:
            self._uplinks[key] = make()
        return self._uplinks[key]

    def drop_uplink(self, key: Key) -> None:
        uplink = self._uplinks.pop(key, None)
        if uplink is not None:
            uplink.close()

    def capture(self, key: Key, path: Path, now_ns: int) -> Capture:
        """A device's capture file, which goes on if there is one. UserError if it cannot be written."""
        if key not in self._captures:
            self._captures[key] = Capture(path, now_ns)
        return self._captures[key]

    def forget(self, key: Key) -> None:
        """A device is no more."""
        self.drop_uplink(key)
        capture = self._captures.pop(key, None)
        if capture is not None:
            capture.close()

    def close(self) -> None:
        """The machine is switched off."""
        for key in [*self._uplinks, *self._captures]:
            self.forget(key)

    # -- packets on their way -----------------------------------------------------------------------------------------

    def is_due(self, device: Due) -> None:
        """A device has packets that are to be given to its guest together, by the next `settle`."""
        self._due[device] = None

    def settle(self) -> None:
        """Let all devices that are due pass on what they have got."""
        while self._due:
            self._due.popitem()[0].settle()
