"""The network service: the other end of guests' network devices (public/io/netif.h), and what these lead to."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xenolith.abi.errno import XenError
from xenolith.backends.net.credit import Credit, parse_rate
from xenolith.backends.net.multicast import MulticastFilter
from xenolith.backends.net.rx import RxRing
from xenolith.backends.net.tx import TxRing
from xenolith.errors import UserError
from xenolith.hypervisor.native import Mapping
from xenolith.loader.registry import Progress
from xenolith.machine.offload import Offers, adapt
from xenolith.machine.packet import Packet, flow
from xenolith.services.backend import Backend, Ends, Nodes
from xenolith.services.network.copies import GrantCopies
from xenolith.services.network.networks import Networks
from xenolith.services.network.passt import UserNetwork
from xenolith.services.network.tap import Tap
from xenolith.services.network.uplink import Uplink
from xenolith.services.network.wire import Wire
from xenolith.services.service import Context

_MAX_QUEUES: Final = 4
_REOPEN_NS: Final = 1_000_000_000
_FEATURES: Final[Nodes] = {
    "feature-rx-copy": 1,
    "feature-rx-flip": 0,
    "feature-sg": 1,
    "feature-gso-tcpv4": 1,
    "feature-gso-tcpv6": 1,
    "feature-ipv6-csum-offload": 1,
    "feature-multicast-control": 1,
    "feature-split-event-channels": 1,
    "feature-ctrl-ring": 0,
    "multi-queue-max-queues": _MAX_QUEUES,
}


class NetService:
    """Serves what the toolstack describes in this domain's backend/vif, as Linux's netback and its scripts do."""

    def __init__(self, context: Context, networks: Networks) -> None:
        self.context = context
        self.networks = networks
        self.copies = GrantCopies(context.kernel)
        self.stopping = False
        """Whether the code ends, and not a device."""
        self._backend = Backend(context, "vif", lambda ends: Vif(self, ends))

    async def start(self) -> None:
        await self._backend.start()

    def stop(self) -> None:
        self.stopping = True
        self._backend.stop()

    def progress(self) -> Progress:
        """Logs each thing that is done on the way to a network, once."""
        told: set[str] = set()

        def tell(what: str, share: float) -> None:
            if what not in told:
                told.add(what)
                self.context.host.post(lambda: self.context.log(what))

        return tell


@dataclass(slots=True)
class _Queue:
    """A pair of rings and the ports by which they are signalled, which may be one."""

    tx: TxRing
    rx: RxRing
    shared: Mapping
    tx_port: int = 0
    rx_port: int = 0


class Vif:
    """One network device of one guest (a Device, and the End of a Wire)."""

    def __init__(self, service: NetService, ends: Ends) -> None:
        self._service = service
        self._context = service.context
        self._kernel = service.context.kernel
        self._networks = service.networks
        self._ends = ends
        self._key = ends.domid, ends.devid
        self._queues: list[_Queue] = []
        self._offers = Offers()
        self._multicast = MulticastFilter()
        self._credit: Credit | None = None
        self._waits_for_credit = False
        self._source: UserNetwork | Tap | None = None
        self._wire = Wire(self._networks, service.context.host, self._kernel.now_ns, self)

    # -- Device -------------------------------------------------------------------------------------------------------

    async def prepare(self) -> Nodes:
        ends = self._ends
        self._credit = parse_rate(await ends.read("rate"), self._kernel.now_ns())
        path = await ends.read("xenolith/pcap")
        if path:
            self._wire.capture = self._networks.capture(self._key, Path(path), self._kernel.now_ns())
        self._source = await self._read_source()
        if self._source is None:
            self._wire.switch = self._networks.switch(await ends.read("bridge"))
        else:
            await self._open_uplink(self._source)
        return {**_FEATURES, "carrier": 1}

    async def connect(self) -> Nodes:
        ends = self._ends
        if await ends.front_number("request-rx-copy", 0) != 1:
            raise UserError(f"domain {ends.domid} wants to be given pages, which nobody does any more")
        self._offers = await self._read_offers()
        scatter_gather = bool(await ends.front_number("feature-sg", 0))
        self._multicast = MulticastFilter()
        self._multicast.active = bool(await ends.front_number("request-multicast-control", 0))
        count = await ends.front_number("multi-queue-num-queues", 1)
        if not 1 <= count <= _MAX_QUEUES:
            raise UserError(f"domain {ends.domid} wants {count} queues, and can have 1 to {_MAX_QUEUES}")
        places = [""] if count == 1 else [f"queue-{number}/" for number in range(count)]
        described = [await self._read_queue(place) for place in places]
        try:
            for refs, ports in described:
                self._queues.append(self._make_queue(refs, ports, scatter_gather))
        except Exception:
            self.disconnect()
            raise
        self._wire.up()
        return {}

    async def changed(self) -> None:
        broken = next((ring.broken for queue in self._queues for ring in (queue.tx, queue.rx) if ring.broken), "")
        if broken:
            raise UserError(f"the guest has broken the ring: {broken}")

    def disconnect(self) -> None:
        self._wire.down()
        queues, self._queues = self._queues, []
        for queue in queues:
            for port in {queue.tx_port, queue.rx_port} - {0}:
                with suppress(XenError):
                    self._kernel.close(port)
            queue.shared.unmap()

    def close(self) -> None:
        self._wire.let_go()
        if not self._service.stopping:
            self._networks.forget(self._key)

    # -- what the ends say --------------------------------------------------------------------------------------------

    async def _read_source(self) -> UserNetwork | Tap | None:
        """What the device leads to, if it is no switch."""
        ends = self._ends
        name = await ends.read("xenolith/tap")
        if name:
            return Tap(name)
        if await ends.read("xenolith/user") != "1":
            return None
        try:
            mac = bytes.fromhex((await ends.read("mac")).replace(":", ""))
            mtu = int(await ends.read("mtu"))
        except ValueError:
            raise UserError(f"{ends.path} has no mac or no mtu") from None
        return UserNetwork(mac, mtu, tuple((await ends.read("xenolith/forwards")).split()))

    async def _read_offers(self) -> Offers:
        async def says(name: str) -> bool:
            return bool(await self._ends.front_number(name, 0))

        return Offers(
            gso_v4=await says("feature-gso-tcpv4"),
            gso_v6=await says("feature-gso-tcpv6"),
            csum_v4=not await says("feature-no-csum-offload"),
            csum_v6=await says("feature-ipv6-csum-offload"),
        )

    async def _read_queue(self, place: str) -> tuple[list[int], list[int]]:
        """The grants of the two rings of a queue, and its ports for them, which may be one."""
        ends = self._ends
        refs = [await ends.front_number(f"{place}{name}-ring-ref") for name in ("tx", "rx")]
        if await ends.front(f"{place}event-channel-tx"):
            return refs, [await ends.front_number(f"{place}event-channel-{name}") for name in ("tx", "rx")]
        return refs, [await ends.front_number(f"{place}event-channel")] * 2

    def _make_queue(self, refs: list[int], ports: list[int], scatter_gather: bool) -> _Queue:
        kernel, domid, copies = self._kernel, self._ends.domid, self._service.copies
        shared = kernel.map_grants(domid, refs)
        tx_page, rx_page = shared.views
        queue = _Queue(
            TxRing(tx_page, lambda pieces: copies.gather(domid, pieces), self._wire.send, self._multicast, self._admit),
            RxRing(rx_page, lambda pages: copies.scatter(domid, pages), scatter_gather),
            shared,
        )
        try:
            queue.tx_port = queue.rx_port = kernel.bind_interdomain(domid, ports[0], lambda: self._signalled(queue))
            if ports[1] != ports[0]:
                queue.rx_port = kernel.bind_interdomain(domid, ports[1], lambda: self._signalled(queue))
        except XenError:
            if queue.tx_port:
                kernel.close(queue.tx_port)
            shared.unmap()
            raise
        return queue

    # -- packets of the guest -----------------------------------------------------------------------------------------

    def _signalled(self, queue: _Queue) -> None:
        """The frontend has signalled: it sends, or it has room for what waits for it, or both."""
        self._send_on(queue)
        self._wire.settle()
        self._networks.settle()

    def _send_on(self, queue: _Queue) -> None:
        if queue.tx.service():
            self._notify(queue.tx_port)
        if queue.tx.held_back:
            self._wait_for_credit()
        self._look_after_ring(queue.tx)
        self._wire.flush()

    def _admit(self, size: int) -> bool:
        return self._credit is None or self._credit.take(size, self._kernel.now_ns())

    def _wait_for_credit(self) -> None:
        if self._waits_for_credit or self._credit is None:
            return
        self._waits_for_credit = True

        def given() -> None:
            self._waits_for_credit = False
            for queue in self._queues:
                self._send_on(queue)
            self._networks.settle()

        self._kernel.at(self._credit.next_ns, given)

    # -- packets for the guest (End) ----------------------------------------------------------------------------------

    @property
    def backlog(self) -> int:
        return sum(queue.rx.waiting.bytes for queue in self._queues)

    def take(self, packet: Packet) -> bool:
        if not self._queues or not self._multicast.passes(packet):
            return False
        queue = self._queues[0]
        if len(self._queues) > 1:
            queue = self._queues[zlib.crc32(flow(packet.data)) % len(self._queues)]
        for adapted in adapt(packet, self._offers):
            queue.rx.queue(adapted)
        return True

    def settle(self) -> None:
        for queue in self._queues:
            if queue.rx.service():
                self._notify(queue.rx_port)
            self._look_after_ring(queue.rx)

    def _notify(self, port: int) -> None:
        with suppress(XenError):  # a guest that has closed its end is not there to be told
            self._kernel.notify(port)

    def _look_after_ring(self, ring: TxRing | RxRing) -> None:
        if ring.broken:
            self._context.tasks.spawn(self._ends.write({"error": ring.broken}))  # which makes `changed` be called

    # -- the uplink ---------------------------------------------------------------------------------------------------

    async def _open_uplink(self, source: UserNetwork | Tap) -> None:
        progress = self._service.progress()
        make: Callable[[], Uplink] = source.open if isinstance(source, Tap) else lambda: source.open(progress)
        self._wire.uplink = await self._context.host.submit(lambda: self._networks.uplink(self._key, make))

    def cut(self) -> None:
        """The guest's cable is out until there is another network."""
        self._networks.drop_uplink(self._key)
        self._context.log(f"{self._ends.path}: the network behind the device has ended; it is started again")
        self._context.tasks.spawn(self._ends.write({"carrier": 0}))
        self._kernel.at(self._kernel.now_ns() + _REOPEN_NS, self._begin_again)

    def _begin_again(self) -> None:
        self._context.tasks.spawn(self._reopen())

    async def _reopen(self) -> None:
        if not self._queues or self._source is None or self._wire.uplink is not None:
            return
        try:
            await self._open_uplink(self._source)
        except UserError as error:
            self._context.log(f"{self._ends.path}: {error}")
            return
        self._wire.look_after_reading()
        await self._ends.write({"carrier": 1})
