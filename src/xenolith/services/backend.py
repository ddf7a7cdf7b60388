"""What all device backends have in common: finding their devices in xenstore, and the states of the xenbus protocol.

A backend watches its own directory `backend/KIND`, in which the toolstack describes one device for each guest and
device number; the frontend has a directory in the guest's home. Both have a `state` (io/xenbus.h), which only its owner
writes, and follows the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

from xenolith.abi.errno import EACCES, ENOENT, XenError
from xenolith.abi.io.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitialised,
    XenbusStateInitialising,
    XenbusStateInitWait,
    XenbusStateUnknown,
)
from xenolith.errors import UserError
from xenolith.hypervisor.grants import GrantError
from xenolith.services.service import Context
from xenolith.services.tasks import Future

_LINGER_NS: Final = 2_000_000_000
"""How long the directory of a device that is gone stays: libxl looks at its state, and does not remove it."""
_READY: Final = (XenbusStateInitialised, XenbusStateConnected)
Nodes = Mapping[str, str | int]


@dataclass(slots=True)
class Ends:
    """The two directories of a device. `read` and `front` give the values of nodes, "" where there is none."""

    context: Context
    path: str
    domid: int
    devid: str
    frontend: str = ""

    async def read(self, name: str) -> str:
        return await self._value(f"{self.path}/{name}")

    async def front(self, name: str) -> str:
        return await self._value(f"{self.frontend}/{name}")

    async def _value(self, path: str) -> str:
        """Where the directory is gone, the one above it is not ours to look into."""
        try:
            return await self.context.store.read(path)
        except XenError as error:
            if error.errno not in (ENOENT, EACCES):
                raise
            return ""

    async def front_number(self, name: str, default: int | None = None) -> int:
        """A number that the frontend has written. UserError if there is none and no default: the guest is at fault."""
        text = await self.front(name)
        if not text and default is not None:
            return default
        if not text.isdecimal() or len(text) > 10:
            raise UserError(f"domain {self.domid} gives {text!r} for {name}")
        return int(text)

    async def write(self, nodes: Nodes) -> None:
        for name, value in nodes.items():
            await self.context.store.write(f"{self.path}/{name}", value)


class Device(Protocol):
    """One device of one guest. A UserError from `prepare` or `connect` is told in the backend's `error` node."""

    async def prepare(self) -> Nodes:
        """Get ready what stands behind the device; the nodes that tell the frontend what it can have."""

    async def connect(self) -> Nodes:
        """Map the rings that the frontend has described and serve them; the nodes that are then told."""

    async def changed(self) -> None:
        """A node of the backend's own directory was written, by the toolstack perhaps."""

    def disconnect(self) -> None:
        """Let go of the frontend's rings; nothing happens if there are none."""

    def close(self) -> None:
        """Let go of what stands behind the device."""


@dataclass(slots=True)
class _Watched:
    """A device and how far it is. `woken` is set when something may have changed."""

    ends: Ends
    device: Device
    state: int = XenbusStateUnknown
    prepared: bool = False
    connected: bool = False
    refused: int | None = None
    """The frontend's state in which it was found wanting; nothing more is tried until that changes."""
    watches: list[tuple[str, str]] = field(default_factory=list)
    woken: Future[None] = field(default_factory=Future)


class Backend:
    """The service of one kind of device ("vbd", "vif", …). `make` gets a new device for what a guest was given."""

    def __init__(self, context: Context, kind: str, make: Callable[[Ends], Device]) -> None:
        self._context = context
        self._make = make
        self._root = f"/local/domain/{context.kernel.domid}/backend/{kind}"
        self._devices: dict[tuple[int, str], _Watched] = {}

    async def start(self) -> None:
        await self._context.store.watch(self._root, self._noticed)

    def stop(self) -> None:
        for watched in self._devices.values():
            watched.device.disconnect()
            watched.device.close()
        self._devices.clear()

    @property
    def devices(self) -> dict[tuple[int, str], Device]:
        """The devices that there are, by the guest's domid and the device's number."""
        return {key: watched.device for key, watched in self._devices.items()}

    def _noticed(self, path: str) -> None:
        parts = path[len(self._root) + 1 :].split("/")
        if len(parts) >= 2 and parts[0].isdecimal():
            self._look_at(int(parts[0]), parts[1])
        else:
            self._context.tasks.spawn(self._look_at_all())

    async def _look_at_all(self) -> None:
        store = self._context.store
        for domid in await store.names(self._root):
            for devid in await store.names(f"{self._root}/{domid}"):
                self._look_at(int(domid), devid)
        for watched in list(self._devices.values()):
            watched.woken.set_result(None)

    def _look_at(self, domid: int, devid: str) -> None:
        watched = self._devices.get((domid, devid))
        if watched is None:
            ends = Ends(self._context, f"{self._root}/{domid}/{devid}", domid, devid)
            watched = self._devices[domid, devid] = _Watched(ends, self._make(ends))
            self._context.tasks.spawn(self._follow(watched))
        else:
            watched.woken.set_result(None)

    # -- one device ---------------------------------------------------------------------------------------------------

    async def _follow(self, watched: _Watched) -> None:
        """Bring a device where it belongs whenever something has changed, until it is gone."""
        while await self._step(watched):
            await watched.woken
        del self._devices[watched.ends.domid, watched.ends.devid]
        watched.device.disconnect()
        watched.device.close()
        for path, token in watched.watches:
            await self._context.store.unwatch(path, token)

    async def _step(self, watched: _Watched) -> bool:
        """One look at both ends. False when the device is no more."""
        watched.woken = Future()
        ends, store = watched.ends, self._context.store
        if not ends.frontend:
            ends.frontend = await ends.read("frontend")
            if not ends.frontend:
                return await ends.read("state") != "" or bool(await store.names(ends.path))
            path = f"{ends.frontend}/state"
            watched.watches.append((path, await store.watch(path, lambda _: watched.woken.set_result(None))))
        if await ends.read("frontend") == "":
            return False
        front = _number(await ends.front("state"))
        if front == watched.refused:
            return True
        try:
            await self._advance(watched, front)
            watched.refused = None
        except (UserError, GrantError, XenError) as error:
            if await ends.read("frontend") == "":
                return False  # the toolstack has taken the directory away meanwhile
            watched.refused = front
            self._context.log(f"{ends.path}: {error}")
            watched.device.disconnect()
            watched.connected = False
            with suppress(XenError):
                await ends.write({"error": str(error)})
                await self._set_state(watched, XenbusStateClosing)
        return True

    async def _advance(self, watched: _Watched, front: int) -> None:
        ends, device = watched.ends, watched.device
        online = await ends.read("online") != "0"
        if watched.prepared:
            await device.changed()
        if watched.connected and front not in _READY:
            device.disconnect()
            watched.connected = False
        if front == XenbusStateClosing:
            await self._set_state(watched, XenbusStateClosing)
        elif front == XenbusStateClosed or (front == XenbusStateUnknown and not online):
            await self._set_state(watched, XenbusStateClosed)
            if not online:
                self._clear_later(ends)
        elif front in (XenbusStateInitialising, XenbusStateUnknown):
            await self._prepare(watched)
            await self._set_state(watched, XenbusStateInitWait)
        elif front in _READY and not watched.connected:
            await self._prepare(watched)
            await ends.write(await device.connect())
            watched.connected = True
            await self._set_state(watched, XenbusStateConnected)
        elif not online and front == XenbusStateConnected:
            await self._set_state(watched, XenbusStateClosing)

    def _clear_later(self, ends: Ends) -> None:
        """Remove the directory of a device that is gone, unless the toolstack has done that, as `xl devd` does."""
        kernel, tasks = self._context.kernel, self._context.tasks

        def clear() -> None:
            tasks.spawn(self._clear(ends))

        kernel.at(kernel.now_ns() + _LINGER_NS, clear)

    async def _clear(self, ends: Ends) -> None:
        if (await ends.read("state"), await ends.read("online")) != (str(XenbusStateClosed), "0"):
            return
        store, parent = self._context.store, ends.path.rpartition("/")[0]
        with suppress(XenError):
            await store.remove(ends.path)
            if not await store.names(parent):
                await store.remove(parent)

    async def _prepare(self, watched: _Watched) -> None:
        if not watched.prepared:
            await watched.ends.write(await watched.device.prepare())
            watched.prepared = True

    async def _set_state(self, watched: _Watched, state: int) -> None:
        if watched.state != state:
            watched.state = state
            await watched.ends.write({"state": state})


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 4 else XenbusStateUnknown
