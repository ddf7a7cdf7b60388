"""The store's service: a native domain that keeps xenstore, for guests and native domains by their rings, and for the
host's tools by a unix socket. What it knows is in a journal that outlives its code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EINVAL, ENOENT, ESRCH, XenError
from xenolith.abi.event_channel import VIRQ_DOM_EXC
from xenolith.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from xenolith.backends.store import StoreRing, positions
from xenolith.hypervisor.grants import GrantError
from xenolith.hypervisor.native import Mapping
from xenolith.services.control import Control
from xenolith.services.service import Context
from xenolith.store.connections import Connection
from xenolith.store.server import Store

if TYPE_CHECKING:
    from xenolith.services.store_socket import StoreSocket

SOCKET_NAME: Final = "xenstored"
"""The socket's name in the machine's directory."""
_JOURNAL: Final = "journal"


@dataclass(slots=True)
class _End:
    """Our end of a domain's ring: the mapped page, our port, and who serves them once the store knows the domain."""

    mapping: Mapping
    port: int
    ring: StoreRing | None = None


class StoreService:
    """Maps rings, binds their event channels, and hears of domains that end."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._kernel = context.kernel
        self._control = Control(context.kernel)
        self._ends: dict[int, _End] = {}
        self._socket: StoreSocket | None = None
        kept = context.kernel.kept.setdefault(_JOURNAL, bytearray())
        self.store = Store(context.kernel.domid, kept=kept, rim=self)
        self.store.log = context.log
        for connection in self.store.introduced:
            if connection.domid != self._kernel.domid:  # our own client starts again with us
                self._serve_again(connection)
        self._kernel.bind_virq(VIRQ_DOM_EXC, self._sweep)

    async def start(self) -> None:
        self._sweep()
        if self._context.directory is not None:
            from xenolith.services.store_socket import StoreSocket

            self._socket = StoreSocket(
                self.store, self._context.directory / SOCKET_NAME, self._context.host, self._deliver
            )

    def stop(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def introduce(self, domid: int, frame: int, port: int, privileged: bool) -> None:
        """Serve a domain, as whoever starts the machine says; a domain that is served gets a new ring.

        Raises XenError(EINVAL) if there is no such ring or event channel.
        """
        if privileged != (domid in self.store.privileged):
            self.store.set_privileged(domid, privileged)
        self.store.introduce(domid, (frame, port), self.bind(domid, frame, port))
        self._ring(domid)
        self._deliver()

    # -- the hypervisor, as the store needs it ------------------------------------------------------------------------

    def bind(self, domid: int, frame: int, port: int) -> tuple[int, int]:
        """Map a domain's ring and bind its event channel, instead of what was; where the ring stands."""
        self.release(domid)
        mapping = self._map(domid, frame)
        try:
            local = self._kernel.bind_interdomain(domid, port, lambda: self._serve(domid))
        except XenError as error:
            mapping.unmap()
            raise XenError(EINVAL, str(error)) from error
        self._ends[domid] = _End(mapping, local)
        return positions(mapping.views[0])

    def release(self, domid: int) -> None:
        """Let go of a domain's ring and event channel, if there are any."""
        end = self._ends.pop(domid, None)
        if end is not None:
            end.mapping.unmap()
            self._kernel.close(end.port)

    def _map(self, domid: int, frame: int) -> Mapping:
        """By the grant that every domain's builder makes, or by control over the domain."""
        try:
            return self._kernel.map_grants(domid, [GNTTAB_RESERVED_XENSTORE])
        except (GrantError, XenError) as error:
            if not frame:
                raise XenError(EINVAL, str(error)) from error
        try:
            return self._kernel.map_frames(domid, [frame])
        except XenError as error:
            raise XenError(EINVAL, str(error)) from error

    # -- serving ------------------------------------------------------------------------------------------------------

    def _serve_again(self, connection: Connection) -> None:
        """The code before this one served the domain."""
        domid = connection.domid
        if domid == self._kernel.domid:
            return  # its other end has gone with the code, and is introduced anew
        if domid not in self._ends and connection.ring is not None:
            try:
                self.bind(domid, *connection.ring)
            except XenError as error:
                self._context.log(f"store: the ring of domain {domid} is lost: {error}")
                return
        self._ring(domid)

    def _ring(self, domid: int) -> StoreRing:
        """The ring of a domain that is introduced; it is begun and announced when it is asked for first."""
        end = self._ends[domid]
        if end.ring is None:
            page, port = end.mapping.views[0], end.port
            end.ring = StoreRing(page, self.store, self.store.connections[domid], lambda: self._kernel.notify(port))
            self._kernel.notify(port)
        return end.ring

    def _serve(self, domid: int) -> None:
        """A domain's event channel was signalled."""
        if self.store.is_introduced(domid) and domid in self._ends:
            self._ring(domid).service()
            self._deliver()

    def _deliver(self) -> None:
        """Give what waits for clients, and take what they could not be asked for before, until nothing moves."""
        store = self.store
        while store.active:
            number = next(iter(store.active))
            del store.active[number]
            if number in self._ends and store.is_introduced(number):
                self._ring(number).service()
            elif self._socket is not None and number in self._socket.clients:
                self._socket.clients[number].flush()

    def _sweep(self) -> None:
        """Some domain has ended: find out which, of those that the store has something of."""
        for domid in self.store.known - {self._kernel.domid}:
            try:
                info = self._control.info(domid)
            except XenError as error:
                if error.errno not in (ESRCH, ENOENT):
                    raise
                info = None
            if info is None or info.is_dying:
                self.release(domid)
                self.store.gone(domid)
            elif info.shutdown_reason is not None:
                self.store.shut_down(domid)
        self._deliver()
