"""The service of shared directories: the other end of guests' 9P file systems (Xen's docs/misc/9pfs.pandoc).

The requests of one share are done one after another, in threads that may wait for the host's file system. What a guest
has open, and what was done but not yet answered, is kept in the domain and not in the code: code that is started again
goes on where the one before was.
"""

from __future__ import annotations

import os
import resource
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xenolith.abi.errno import XenError
from xenolith.abi.io.ninepfs import Xen9pfsDataIntf
from xenolith.backends.ninepfs import protocol
from xenolith.backends.ninepfs.ring import Ring, RingBroken
from xenolith.backends.ninepfs.server import Server, forget
from xenolith.errors import UserError
from xenolith.hypervisor.native import Mapping
from xenolith.services.backend import Backend, Ends, Nodes
from xenolith.services.service import Context
from xenolith.services.shares.directory import Allowance, SharedDirectory
from xenolith.services.tasks import Future

_VERSION: Final = "1"
_MAX_RINGS: Final = 4
_MAX_RING_ORDER: Final = 7
"""Rings of 256 KiB for each direction: twice the longest message that Linux sends unless it is told otherwise. The
transport would allow 9, which takes 4 MiB of a Linux guest's memory for each share."""
_MAX_FILES: Final = 1024
"""Files that a guest may have open at once in one share."""
_NAME: Final = "9pfs {}/{}"
"""What is kept of a guest's device has names that begin so."""
_TYPE_AT: Final = 4
"""Where a message has its type."""
_PLACE: Final = struct.Struct("<II7s")


def _refs(view: memoryview) -> list[int]:
    """The grants of a ring's pages, as its interface page has them now. Raises UserError."""
    order = Xen9pfsDataIntf.from_bytes(view).ring_order
    if not 1 <= order <= _MAX_RING_ORDER:
        raise UserError(f"the guest has a ring of 2^{order} pages")
    return list(view[Xen9pfsDataIntf.sizeof() :].cast("I")[: 1 << order])


class NinePfsService:
    """Serves what the toolstack describes in this domain's backend/9pfs."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._backend = Backend(context, "9pfs", self._make)
        self._allowance = Allowance(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self.stopping = False
        """Whether the code ends, and not a device."""

    async def start(self) -> None:
        await self._forget_the_gone()
        await self._backend.start()

    async def _forget_the_gone(self) -> None:
        """Devices that were taken away while there was no code."""
        kernel, store = self._context.kernel, self._context.store
        prefix = _NAME.partition("{")[0]
        for device in {key.split()[1] for key in kernel.kept if key.startswith(prefix)}:
            path = f"/local/domain/{kernel.domid}/backend/9pfs/{device}"
            if not await store.read_or(f"{path}/frontend", ""):
                for handle in forget(kernel.kept, prefix + device):
                    os.close(handle)

    def stop(self) -> None:
        self.stopping = True
        self._backend.stop()

    def _make(self, ends: Ends) -> Share:
        return Share(self._context, ends, self, self._allowance)


@dataclass(slots=True)
class _Link:
    """One of a share's rings, with the port by which both ends wake each other."""

    number: int
    ring: Ring
    port: int


class _Connection:
    """A share's rings while they are served. `on_broken` is called if the guest breaks one; nothing is served then."""

    def __init__(self, context: Context, ends: Ends, files: SharedDirectory, on_broken: Callable[[], None]) -> None:
        self._context = context
        self._kernel = context.kernel
        self._domid = ends.domid
        self._name = _NAME.format(ends.domid, ends.devid)
        self._files = files
        self._on_broken = on_broken
        self._links: deque[_Link] = deque()
        self._mappings: list[Mapping] = []
        self._woken: Future[None] = Future()
        self._closed = False
        self.broken = ""
        """What the guest did that breaks a ring."""
        self.ended: Future[None] = Future()
        """Nothing is done any more, and nothing kept."""

    def add(self, gref: int, port: int) -> None:
        """Map a ring. Raises UserError, GrantError and XenError; `close` lets go of what there is."""
        interface = self._map([gref])
        data = self._map(_refs(interface.views[0]))
        try:
            ring = Ring(interface.views[0], data.views)
        except RingBroken as error:
            raise UserError(f"the guest has broken a ring: {error}") from None
        local = self._kernel.bind_interdomain(self._domid, port, self._wake)
        self._links.append(_Link(len(self._links), ring, local))

    def _map(self, grefs: list[int]) -> Mapping:
        mapping = self._kernel.map_grants(self._domid, grefs)
        self._mappings.append(mapping)
        return mapping

    def close(self) -> None:
        """Let go of the guest's pages. What is being done is done first, before `ended`."""
        self._closed = True
        for link in self._links:
            with suppress(XenError):
                self._kernel.close(link.port)
        for mapping in self._mappings:
            mapping.unmap()
        self._wake()

    def _wake(self) -> None:
        self._woken.set_result(None)

    async def _something(self) -> None:
        """Wait until something may have changed."""
        self._woken = Future()
        await self._woken

    async def serve(self) -> None:
        """Answer requests until `close`."""
        server = Server(self._files, self._kernel.kept, self._name, min(link.ring.size for link in self._links))
        try:
            while not self._closed:
                await self._serve_one(server)
        except RingBroken as error:
            self.broken = str(error)
            self._on_broken()
            while not self._closed:
                await self._something()
        server.close()
        self.ended.set_result(None)

    async def _serve_one(self, server: Server) -> None:
        first = self._first(server.longest)
        if first is None:
            await self._something()
            return
        link, request = first
        place = _PLACE.pack(link.number, link.ring.position, request)
        answer = await self._context.host.submit(lambda: server.answer(place, request))
        while not self._closed and not link.ring.answer(request, answer):
            await self._something()
        if not self._closed:
            server.delivered()
            with suppress(XenError):  # a guest that has closed its end is not there to be told
                self._kernel.notify(link.port)

    def _first(self, longest: int) -> tuple[_Link, bytes] | None:
        """The request that is to be done next: of each ring in turn, but a flush after all others, because what it
        speaks of may be in another ring."""
        flush = None
        self._links.rotate(-1)
        for link in self._links:
            request = link.ring.request(longest)
            if request is not None and request[_TYPE_AT] != protocol.Tflush:
                return link, request
            if request is not None:
                flush = link, request
        return flush


class Share:
    """One shared directory of one guest (a Device)."""

    def __init__(self, context: Context, ends: Ends, service: NinePfsService, allowance: Allowance) -> None:
        self._context = context
        self._ends = ends
        self._service = service
        self._allowance = allowance
        self._files: SharedDirectory | None = None
        self._connection: _Connection | None = None
        self._ended: Future[None] = Future()
        self._ended.set_result(None)

    async def prepare(self) -> Nodes:
        path = await self._ends.read("path")
        model = await self._ends.read("security_model")
        if model not in ("", "none"):
            raise UserError(f"there is no security model '{model}' here, but 'none'")
        allowance = self._allowance
        self._files = await self._context.host.submit(lambda: SharedDirectory(Path(path), _MAX_FILES, allowance))
        return {"versions": _VERSION, "max-rings": _MAX_RINGS, "max-ring-page-order": _MAX_RING_ORDER}

    async def connect(self) -> Nodes:
        await self._ended  # what was served before
        ends = self._ends
        version = await ends.front("version")
        if version != _VERSION:
            raise UserError(f"domain {ends.domid} wants version '{version}', and there is only {_VERSION}")
        count = await ends.front_number("num-rings")
        if not 1 <= count <= _MAX_RINGS:
            raise UserError(f"domain {ends.domid} has {count} rings")
        rings = [
            (await ends.front_number(f"ring-ref{number}"), await ends.front_number(f"event-channel-{number}"))
            for number in range(count)
        ]
        assert self._files is not None
        connection = _Connection(self._context, ends, self._files, self._tell_broken)
        try:
            for gref, port in rings:
                connection.add(gref, port)
        except BaseException:
            connection.close()
            raise
        self._connection, self._ended = connection, connection.ended
        self._context.tasks.spawn(connection.serve())
        return {}

    def _tell_broken(self) -> None:
        async def tell() -> None:
            with suppress(XenError):  # the toolstack has taken the device away meanwhile
                await self._ends.write({"error": "the guest has broken a ring"})  # makes `changed` be called, too

        self._context.tasks.spawn(tell())

    async def changed(self) -> None:
        if self._connection is not None and self._connection.broken:
            raise UserError(f"the guest has broken a ring: {self._connection.broken}")

    def disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        files, self._files = self._files, None
        if files is None:
            return
        if self._service.stopping:
            files.release()  # nothing is done with it: the service's threads have been waited for
        else:
            self._ended.on_done(lambda _: self._forget(files))

    def _forget(self, files: SharedDirectory) -> None:
        files.release()
        for handle in forget(self._context.kernel.kept, _NAME.format(self._ends.domid, self._ends.devid)):
            files.close(handle)  # of a connection that was not taken up again
