"""The block service: the other end of guests' disks (public/io/blkif.h), each with an image of the host behind it."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from xenolith.abi.errno import XenError
from xenolith.abi.io.blkif import VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE
from xenolith.abi.io.protocols import XEN_IO_PROTO_ABI_NATIVE
from xenolith.abi.io.xenbus import XenbusStateConnected
from xenolith.backends.block.pages import GrantRefused, GuestPages, Mapping, NoRoom
from xenolith.backends.block.requests import MAX_INDIRECT_SEGMENTS
from xenolith.backends.block.ring import BlockRing
from xenolith.errors import UserError
from xenolith.hypervisor.grants import GrantError
from xenolith.machine.disk import SECTOR_SIZE, Image, NoMedium
from xenolith.services.backend import Backend, Ends, Nodes
from xenolith.services.disks.file import HostFile
from xenolith.services.disks.open import DiskSource
from xenolith.services.service import Context
from xenolith.services.tasks import Future

_MAX_RING_ORDER: Final = 4
_KEPT_PAGES: Final = 1056
"""Pages that stay mapped for each disk whose frontend wants that: as many as Linux's blkback keeps for a ring."""
_FORMATS: Final = {"": "raw", "phy": "raw"}
"""What libxl says of images that are as they are."""
_LOOK_AGAIN_NS: Final = 1_000_000_000
"""How long after the last look the next request makes us look whether the image has another size."""


class BlockService:
    """Serves what the toolstack describes in this domain's backend/vbd, as Linux's blkback does."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._backend = Backend(context, "vbd", self._make)
        self._disks: set[Disk] = set()
        self.stopping = False
        """Whether the code ends, and not a device."""

    async def start(self) -> None:
        await self._backend.start()

    def stop(self) -> None:
        self.stopping = True
        self._backend.stop()

    def _make(self, ends: Ends) -> Disk:
        disk = Disk(self._context, ends, self)
        self._disks.add(disk)
        return disk

    def gone(self, disk: Disk) -> None:
        self._disks.discard(disk)

    def relieve(self) -> None:
        """Let disks go on that wait for room to map pages, now that there may be some."""
        rings = [disk.ring for disk in self._disks if disk.ring is not None and disk.ring.starved]
        if rings:
            for disk in self._disks:
                disk.forget_pages()
            for ring in rings:
                ring.service()


class _Medium:
    """An image, and what is being done on it: it is closed when nothing is, and it is not wanted any more."""

    def __init__(self, context: Context, image: Image, source: DiskSource | None) -> None:
        self._context = context
        self.image = image
        self.source = source
        self._running = 0
        self._retired = False

    def submit(self, work: Callable[[], Sequence[int]], done: Callable[[Sequence[int]], None]) -> None:
        self._running += 1

        def finished(future: Future[Sequence[int]]) -> None:
            self._running -= 1
            done(future.result())
            self._close_if_idle()

        self._context.host.submit(work).on_done(finished)

    def retire(self) -> None:
        self._retired = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._retired and not self._running:
            self._context.host.submit(self.image.close)


class Disk:
    """One disk of one guest (a Device)."""

    def __init__(self, context: Context, ends: Ends, service: BlockService) -> None:
        self._context = context
        self._kernel = context.kernel
        self._ends = ends
        self._service = service
        self._medium = _Medium(context, NoMedium(), None)
        self._pages: GuestPages | None = None
        self._port = 0
        self._closed: Future[None] = Future()
        self._closed.set_result(None)
        self._told_sectors = 0
        self._looked_ns = 0
        self.ring: BlockRing | None = None

    # -- Device -------------------------------------------------------------------------------------------------------

    async def prepare(self) -> Nodes:
        await self._load(await self._source())
        return {
            "max-ring-page-order": _MAX_RING_ORDER,
            "max-ring-pages": 1 << _MAX_RING_ORDER,
            "feature-max-indirect-segments": MAX_INDIRECT_SEGMENTS,
            "feature-persistent": int(_KEPT_PAGES > 0),
            **await self._features(),
            **await self._properties(),
        }

    async def connect(self) -> Nodes:
        await self._closed  # a ring that was served before
        grefs, port, keeps = await self._transport()
        shared = self._kernel.map_grants(self._ends.domid, grefs)
        pages = self._pages = GuestPages(self._map, _KEPT_PAGES if keeps else 0)
        ring = BlockRing(shared.views, self._medium.image, pages, self._submit, self._notify)
        self._closed = Future()
        self._shared = shared
        self.ring = ring
        try:
            self._port = self._kernel.bind_interdomain(self._ends.domid, port, self._service_ring)
        except XenError:
            self.disconnect()
            raise
        return await self._properties()

    async def changed(self) -> None:
        if self.ring is not None and self.ring.broken:
            raise UserError(f"the guest has broken the ring: {self.ring.broken}")
        source = await self._source()
        if source != self._medium.source:
            await self._load(source)
        await self._look_at_size()

    def disconnect(self) -> None:
        ring, self.ring = self.ring, None
        if ring is None:
            return
        if self._port:
            with suppress(XenError):
                self._kernel.close(self._port)
            self._port = 0
        shared, closed = self._shared, self._closed

        def end() -> None:
            shared.unmap()
            closed.set_result(None)

        ring.close(end)

    def close(self) -> None:
        self._service.gone(self)
        if self._service.stopping:
            self._medium.image.close()  # nothing runs on it: the service's threads have been waited for
            return
        self._medium.retire()
        self._drop_passing_overlay()

    # -- the image ----------------------------------------------------------------------------------------------------

    async def _source(self) -> DiskSource | None:
        """What the toolstack says that the disk is; None for a drive without a medium."""
        ends = self._ends
        location = await ends.read("physical-device-path") or await ends.read("params")
        overlay = await ends.read("xenolith/overlay")
        readonly = (await ends.read("mode")).startswith("r")
        if not location:
            return None
        kept = overlay == "1" if overlay in ("", "0", "1") else Path(overlay)
        format = await ends.read("type")
        return DiskSource(location, _FORMATS.get(format, format), readonly, kept)

    async def _load(self, source: DiskSource | None) -> None:
        """Put another medium in the place of the one that there is. UserError if it cannot be had."""
        if source is None:
            medium = _Medium(self._context, NoMedium(), None)
        else:
            if self._medium.source is not None:
                self._drop_passing_overlay()
            kept = self._passing_overlay()
            image, passing = await self._context.host.submit(lambda: source.open(kept))
            if passing is not None and kept is None:
                self._kernel.kept[self._passing_name] = bytearray(str(os.dup(passing.fileno())).encode())
            medium = _Medium(self._context, image, source)
        before, self._medium = self._medium, medium
        before.retire()
        if self.ring is not None:
            self.ring.insert(medium.image)

    async def _features(self) -> Nodes:
        image = self._medium.image
        discards = image.discard_granularity and await self._ends.read("discard-enable") != "0"
        nodes: dict[str, str | int] = {
            "feature-flush-cache": int(not image.readonly),
            "feature-barrier": int(not image.readonly),
            "feature-discard": int(bool(discards)),
        }
        if discards:
            nodes |= {"discard-granularity": image.discard_granularity, "discard-alignment": 0, "discard-secure": 0}
        return nodes

    async def _properties(self) -> Nodes:
        image = self._medium.image
        self._told_sectors = image.size // SECTOR_SIZE
        info = VDISK_READONLY if image.readonly else 0
        info |= VDISK_CDROM if await self._ends.read("device-type") == "cdrom" else 0
        info |= VDISK_REMOVABLE if await self._ends.read("removable") == "1" else 0
        return {
            "sectors": self._told_sectors,
            "sector-size": SECTOR_SIZE,
            "physical-sector-size": image.physical_sector_size,
            "info": info,
        }

    async def _look_at_size(self) -> None:
        """Tell the frontend if the image has another size: it looks when the state is written, even the same one."""
        self._looked_ns = self._kernel.now_ns()
        with suppress(OSError):
            await self._context.host.submit(self._medium.image.measure)
        if self._medium.image.size // SECTOR_SIZE != self._told_sectors:
            nodes = await self._properties()
            if self.ring is not None:
                await self._ends.write({**nodes, "state": XenbusStateConnected})

    # -- overlays that do not last ------------------------------------------------------------------------------------
    # Their files have no name; a descriptor outlives the code, so that the code that is started again finds them.

    @property
    def _passing_name(self) -> str:
        return f"overlay {self._ends.domid}/{self._ends.devid}"

    def _passing_overlay(self) -> HostFile | None:
        kept = self._kernel.kept.get(self._passing_name)
        return HostFile(os.dup(int(kept)), readonly=False) if kept else None

    def _drop_passing_overlay(self) -> None:
        kept = self._kernel.kept.pop(self._passing_name, None)
        if kept is not None:
            os.close(int(kept))

    # -- the ring -----------------------------------------------------------------------------------------------------

    async def _transport(self) -> tuple[list[int], int, bool]:
        """What the frontend has written: the grants of its ring, its port, and whether it wants pages kept mapped."""
        ends = self._ends
        protocol = await ends.front("protocol")
        if protocol not in ("", XEN_IO_PROTO_ABI_NATIVE):
            raise UserError(
                f"domain {ends.domid} speaks '{protocol}', and only {XEN_IO_PROTO_ABI_NATIVE} is spoken here"
            )
        order = await ends.front_number("ring-page-order", 0)
        if order > _MAX_RING_ORDER:
            raise UserError(f"domain {ends.domid} has a ring of 2^{order} pages")
        names = [f"ring-ref{number}" for number in range(1 << order)]
        if not order and await ends.front("ring-ref"):
            names = ["ring-ref"]
        grefs = [await ends.front_number(name) for name in names]
        keeps = await ends.front_number("feature-persistent", 0)
        return grefs, await ends.front_number("event-channel"), bool(keeps)

    def _service_ring(self) -> None:
        """The frontend has signalled."""
        if self.ring is not None:
            self.ring.service()
            self._look_after_ring()
            if self._kernel.now_ns() - self._looked_ns > _LOOK_AGAIN_NS:
                self._context.tasks.spawn(self._tell(self._look_at_size()))

    def _look_after_ring(self) -> None:
        self._service.relieve()
        if self.ring is not None and self.ring.broken:
            # What is written here makes `changed` be called, too.
            self._context.tasks.spawn(self._tell(self._ends.write({"error": self.ring.broken})))

    @staticmethod
    async def _tell(telling: Coroutine[Any, Any, None]) -> None:
        """Write something, unless the toolstack has taken the device away meanwhile."""
        with suppress(XenError):
            await telling

    def forget_pages(self) -> None:
        """Unmap pages that are mapped only because they might be used again."""
        if self._pages is not None:
            self._pages.forget()

    def _submit(self, work: Callable[[], Sequence[int]], done: Callable[[Sequence[int]], None]) -> None:
        def finished(statuses: Sequence[int]) -> None:
            done(statuses)
            self._look_after_ring()

        self._medium.submit(work, finished)

    def _notify(self) -> None:
        with suppress(XenError):  # a guest that has closed its end is not there to be told
            self._kernel.notify(self._port)

    def _map(self, grefs: Sequence[int], readonly: bool) -> Mapping:
        try:
            return self._kernel.map_grants(self._ends.domid, grefs, readonly)
        except GrantError as error:
            raise GrantRefused(str(error)) from None
        except XenError as error:
            raise NoRoom(str(error)) from None
