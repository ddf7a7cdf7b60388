"""The console's service: what a guest prints is shown, kept and recorded, through restarts of the service."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.services.bench import Services
from xenolith.abi.grant_table import GNTTAB_RESERVED_CONSOLE
from xenolith.abi.io.console import XenconsInterface
from xenolith.services import console
from xenolith.services.console import ConsoleService, Terminal, Terminals
from xenolith.services.service import Context

_SECOND = 1_000_000_000


class Guest:
    """A domain with a console ring."""

    def __init__(self, services: Services, domid: int) -> None:
        self.services = services
        self.context: Context = services.domain("guest")
        kernel = self.context.kernel
        self.page = kernel.allocate_page()
        kernel.grant_as(GNTTAB_RESERVED_CONSOLE, self.page.mfn, domid)
        self.port = kernel.alloc_unbound(domid, lambda: None)
        self.front, self.back = f"/local/domain/{kernel.domid}/console", f"/local/domain/{domid}/backend/console"
        own = f"{self.back}/{kernel.domid}/0"
        for path in (self.front, own):
            services.write(path, made=1)
            services.do(services.toolstack, services.toolstack.store.set_permissions(path, [f"n{domid}"]))
        services.write(self.front, ring_ref=self.page.mfn, port=self.port)
        services.write(own, name="guest", frontend=self.front)
        services.turn()

    def print(self, text: bytes) -> None:
        ring = XenconsInterface.from_buffer(self.page.view)
        for byte in text:
            ring.out[ring.out_prod % 2048] = byte
            ring.out_prod += 1
        self.context.kernel.notify(self.port)
        self.services.turn()

    def typed(self) -> bytes:
        ring = XenconsInterface.from_buffer(self.page.view)
        data = bytes(ring.in_[index % 1024] for index in range(ring.in_cons, ring.in_prod))
        ring.in_cons = ring.in_prod
        return data


@pytest.fixture
def services() -> Services:
    return Services()


@pytest.fixture
def terminals(tmp_path: Path) -> Terminals:
    return Terminals(tmp_path)


def test_a_guest_prints_and_is_typed_at_through_restarts(
    services: Services, terminals: Terminals, tmp_path: Path
) -> None:
    running = services.start("console", lambda context: ConsoleService(context, terminals))
    guest = Guest(services, running.kernel.domid)
    terminal = terminals.of(guest.context.kernel.domid)
    shown = bytearray()
    terminal.viewers.append(shown.extend)
    guest.print(b"one ")
    for _ in range(3):
        services.supervisor.kill("console")
        guest.print(b"more ")
        services.turn(_SECOND)
    terminal.keys(b"keys")
    assert shown == terminal.history == b"one more more more "
    assert guest.typed() == b"keys"
    assert (tmp_path / "console-guest.log").read_bytes() == shown


def test_a_console_that_goes_is_let_go_of(services: Services, terminals: Terminals) -> None:
    running = services.start("console", lambda context: ConsoleService(context, terminals))
    guest = Guest(services, running.kernel.domid)
    ports = len(list(running.kernel.domain.events))
    store = services.toolstack.store
    services.do(services.toolstack, store.remove(f"{guest.back}/{guest.context.kernel.domid}"))
    services.turn()
    assert len(list(running.kernel.domain.events)) == ports - 1
    mapped = [active.ref for active in guest.context.kernel.domain.grants.active_grants()]
    assert GNTTAB_RESERVED_CONSOLE not in mapped


def test_a_console_without_a_ring_is_refused_and_said_to_be(services: Services, terminals: Terminals) -> None:
    running = services.start("console", lambda context: ConsoleService(context, terminals))
    guest = Guest(services, running.kernel.domid)
    services.supervisor.kill("console")
    services.write(guest.front, port=999)
    services.turn(_SECOND)
    assert running.is_up
    assert any("cannot be served" in line for line in services.log)


def test_history_and_log_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LOG_BYTES", 1000)
    terminal = Terminal(tmp_path / "console-x.log")
    for number in range(40):
        terminal.show(b"%04d " % number * 10)
    assert len((tmp_path / "console-x.log").read_bytes()) <= 1000
    assert len((tmp_path / "console-x.log.1").read_bytes()) <= 1000
    assert terminal.history.endswith(b"0039 ")
    terminal.show(b"x" * 200_000)
    assert len(terminal.history) == console.HISTORY_BYTES
    terminal.close()
