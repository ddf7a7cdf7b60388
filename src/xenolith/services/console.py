"""The console service: a native domain at the other end of other domains' PV consoles.

It finds them as it would any device, below its own `backend/console`. What they print goes to a `Terminal`, which is on
the host and outlives the service: history, log file and viewers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from xenolith.abi.errno import XenError
from xenolith.abi.grant_table import GNTTAB_RESERVED_CONSOLE
from xenolith.backends.console import ConsoleRing
from xenolith.errors import UserError
from xenolith.hypervisor.grants import GrantError
from xenolith.hypervisor.native import Mapping
from xenolith.services.backend import Ends
from xenolith.services.service import Context
from xenolith.services.tasks import Future

HISTORY_BYTES: Final = 64 << 10
LOG_BYTES: Final = 8 << 20
"""How long a log becomes before it is turned over; one older one is kept."""
Viewer = Callable[[bytes], None]


class Terminal:
    """The host's side of one console. `log` is the file that keeps all of it; viewers get it as it comes."""

    def __init__(self, log: Path | None) -> None:
        self.viewers: list[Viewer] = []
        self.ended: list[Future[str]] = []
        """Set when the domain is gone, for those who wait with it."""
        self.keys: Callable[[bytes], None] = lambda data: None
        """Gives the guest what was typed; set by the service while it serves the console."""
        self._history = bytearray()
        self._path = log
        self._file: BinaryIO | None = None
        self._written = 0

    @property
    def history(self) -> bytes:
        """The last of what was printed."""
        return bytes(self._history)

    def show(self, data: bytes) -> None:
        """The guest has printed."""
        self._history += data
        del self._history[:-HISTORY_BYTES]
        self._record(data)
        for viewer in list(self.viewers):
            viewer(data)

    def _record(self, data: bytes) -> None:
        if self._path is None:
            return
        try:
            if self._file is None:
                self._file = self._path.open("ab", buffering=0)
                self._written = self._file.tell()
            if self._written + len(data) > LOG_BYTES:
                self._file.close()
                self._path.replace(self._path.with_suffix(".log.1"))
                self._file = self._path.open("wb", buffering=0)
                self._written = 0
            self._file.write(data)
            self._written += len(data)
        except OSError:
            self._path = None  # a full disk of the host is no reason to stop a guest

    def close(self) -> None:
        for future in self.ended:
            future.set_result("the domain is gone")
        if self._file is not None:
            self._file.close()
            self._file = None


class Terminals:
    """All consoles of a machine, by domid. A dead guest's can still be read."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._terminals: dict[int, Terminal] = {}

    def of(self, domid: int, name: str = "") -> Terminal:
        """The terminal of a domain; `name` is that of the log file, if it is new."""
        if domid not in self._terminals:
            directory = self._directory
            self._terminals[domid] = Terminal(directory / f"console-{name or domid}.log" if directory else None)
        return self._terminals[domid]

    def forget(self, domid: int) -> None:
        terminal = self._terminals.pop(domid, None)
        if terminal is not None:
            terminal.close()

    def close(self) -> None:
        for domid in list(self._terminals):
            self.forget(domid)


class ConsoleService:
    """Serves every console that `backend/console` of its domain describes."""

    def __init__(self, context: Context, terminals: Terminals) -> None:
        self._context = context
        self._terminals = terminals
        self._root = f"/local/domain/{context.kernel.domid}/backend/console"
        self._served: dict[int, tuple[Mapping, int]] = {}

    async def start(self) -> None:
        await self._context.store.watch(self._root, self._noticed)

    def stop(self) -> None:
        for domid in self._served:
            self._terminals.of(domid).keys = lambda data: None

    def _noticed(self, path: str) -> None:
        domid = path[len(self._root) + 1 :].partition("/")[0]
        self._context.tasks.spawn(self._look_at(int(domid)) if domid.isdecimal() else self._look())

    async def _look(self) -> None:
        """At all consoles: those that there were before this code began."""
        for name in await self._context.store.names(self._root):
            await self._look_at(int(name))

    async def _look_at(self, domid: int) -> None:
        ends = Ends(self._context, f"{self._root}/{domid}/0", domid, "0")
        ends.frontend = await ends.read("frontend")
        if not ends.frontend:
            self._leave(domid)
        elif domid not in self._served and await ends.front("port"):
            await self._serve(ends)

    async def _serve(self, ends: Ends) -> None:
        kernel = self._context.kernel
        port = await ends.front_number("port")
        name = (await ends.read("name")) or str(ends.domid)
        if ends.domid in self._served:
            return
        terminal = self._terminals.of(ends.domid, name)
        try:
            mapping = kernel.map_grants(ends.domid, [GNTTAB_RESERVED_CONSOLE])
            local = kernel.bind_interdomain(ends.domid, port, lambda: ring.service())
        except (GrantError, XenError, UserError) as error:
            self._context.log(f"the console of domain {ends.domid} cannot be served: {error}")
            return
        ring = ConsoleRing(mapping.views[0], terminal.show, lambda: kernel.notify(local))
        terminal.keys = ring.type
        self._served[ends.domid] = mapping, local

    def _leave(self, domid: int) -> None:
        if domid not in self._served:
            return
        mapping, port = self._served.pop(domid)
        self._terminals.of(domid).keys = lambda data: None
        self._context.kernel.close(port)
        mapping.unmap()
