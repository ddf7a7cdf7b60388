"""The block service between a real store and a frontend that is a native domain: xenbus, rings, media, restarts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.services.bench import Services
from tests.unit.services.frontend import Frontend
from xenolith.abi.io.blkif import (
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    BlkifRequest,
    BlkifResponse,
)
from xenolith.abi.io.ring import Sring
from xenolith.abi.io.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitialised,
    XenbusStateInitialising,
    XenbusStateInitWait,
)
from xenolith.hypervisor.native import Page
from xenolith.services.block import BlockService

SIZE = 1 << 20
DEVICE = 51712


class Guest(Frontend):
    """A domain with a disk: a ring with one request at a time."""

    def __init__(self, services: Services, name: str = "guest", **back: str | int) -> None:
        super().__init__(services, "block", "vbd", DEVICE, name)
        self.events = 0
        self.done = 0
        self.offer({name.replace("__", "/").replace("_", "-"): value for name, value in back.items()})

    def connect(self, **more: str | int) -> None:
        """What a frontend does when the back end waits for it."""
        self.shared = self.kernel.allocate_page()
        self.ring = Sring.from_buffer(self.shared.view)
        self.ring.req_event = self.ring.rsp_event = 1
        self.data = self.kernel.allocate_page()
        self.data_ref = self.kernel.grant(self.data, self.backend_domid)
        self.port = self.kernel.alloc_unbound(self.backend_domid, self._event)
        self.says(
            ring_ref=self.kernel.grant(self.shared, self.backend_domid),
            event_channel=self.port,
            protocol="x86_64-abi",
            **more,
        )
        self.says(state=XenbusStateInitialised)
        self.says(state=XenbusStateConnected)

    def _event(self) -> None:
        self.events += 1

    def ask(self, operation: int, sector: int, page: Page | None = None) -> None:
        """Put a request of eight sectors, and signal."""
        request = BlkifRequest(operation=operation, nr_segments=1, id=self.ring.req_prod, sector_number=sector)
        request.seg[0].gref, request.seg[0].last_sect = self.data_ref, 7
        if operation == BLKIF_OP_FLUSH_DISKCACHE:
            request.nr_segments = 0
        at = 64 + self.ring.req_prod % 32 * 112
        self.shared.view[at : at + 112] = request.to_bytes()
        self.ring.req_prod += 1
        self.kernel.notify(self.port)
        self.services.turn()

    def statuses(self) -> list[int]:
        found = []
        while self.done != self.ring.rsp_prod:
            response = BlkifResponse.from_bytes(self.shared.view[64 + self.done % 32 * 112 :])
            assert response.id == self.done
            found.append(response.status)
            self.done += 1
        self.ring.rsp_event = self.done + 1
        return found


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def services() -> Iterator[Services]:
    services = Services()
    services.start("block", BlockService)
    yield services
    assert services.supervisor.running["block"].last_failure in ("", "killed")
    services.supervisor.close()


@pytest.fixture
def guest(services: Services, disk: Path) -> Guest:
    return Guest(services, params=str(disk), mode="w")


def test_the_features_are_told_before_the_frontend_connects(guest: Guest, disk: Path) -> None:
    assert guest.back_state == XenbusStateInitWait
    told = {name: guest.back_node(name) for name in ("sectors", "sector-size", "info", "max-ring-page-order")}
    assert told == {"sectors": str(SIZE // 512), "sector-size": "512", "info": "0", "max-ring-page-order": "4"}
    for feature in ("flush-cache", "barrier", "persistent"):
        assert guest.back_node(f"feature-{feature}") == "1"
    assert guest.back_node("feature-max-indirect-segments") == "256"


def test_a_guest_reads_and_writes(guest: Guest, disk: Path) -> None:
    guest.connect()
    assert guest.back_state == XenbusStateConnected
    guest.ask(BLKIF_OP_READ, 16)
    assert guest.data.view == disk.read_bytes()[16 * 512 :][:4096]
    guest.data.view[:] = content = os.urandom(4096)
    guest.ask(BLKIF_OP_WRITE, 32)
    guest.ask(BLKIF_OP_FLUSH_DISKCACHE, 0)
    guest.ask(BLKIF_OP_READ, SIZE // 512)
    assert guest.statuses() == [BLKIF_RSP_OKAY] * 3 + [BLKIF_RSP_ERROR]
    assert disk.read_bytes()[32 * 512 :][:4096] == content
    assert guest.events >= 1


@pytest.mark.parametrize("keeps", [0, 1])
def test_a_frontend_that_closes_gets_everything_back(guest: Guest, services: Services, keeps: int) -> None:
    guest.connect(feature_persistent=keeps)
    guest.ask(BLKIF_OP_READ, 0)
    grants = services.hv.domains[guest.backend_domid].grants
    guest.says(state=XenbusStateClosing)
    assert guest.back_state == XenbusStateClosing
    guest.says(state=XenbusStateClosed)
    assert guest.back_state == XenbusStateClosed
    assert not [mapping for mapping in grants._mappings.values() if mapping.granter.domain.domid == guest.kernel.domid]
    guest.says(state=XenbusStateInitialising)
    assert guest.back_state == XenbusStateInitWait
    guest.done = 0
    guest.connect()
    guest.ask(BLKIF_OP_READ, 0)
    assert guest.statuses() == [BLKIF_RSP_OKAY]


def test_a_device_that_is_taken_away(guest: Guest, services: Services, disk: Path) -> None:
    guest.connect()
    services.write(guest.back, online=0)
    assert guest.back_state == XenbusStateClosing
    guest.says(state=XenbusStateClosed)
    assert guest.back_state == XenbusStateClosed
    services.do(services.toolstack, services.toolstack.store.remove(guest.back))
    services.turn()
    other = Guest(services, "other", params=str(disk), mode="w")
    assert other.back_state == XenbusStateInitWait, "the disk is free again"


def test_the_directory_of_a_device_that_is_gone_is_removed_where_the_toolstack_leaves_it(
    guest: Guest, services: Services
) -> None:
    """As libxl does with a driver domain's. It has had time to see the state, and another device may be there then."""
    guest.connect()
    services.write(guest.back, online=0)
    guest.says(state=XenbusStateClosed)
    services.write(guest.back, online=1)
    services.turn(3_000_000_000)
    assert guest.back_state == XenbusStateClosed
    services.write(guest.back, online=0)
    services.turn(3_000_000_000)
    assert guest.back_node("state") == ""


def test_a_frontend_that_asks_for_the_impossible(guest: Guest, services: Services) -> None:
    for number, wrong in enumerate(
        (
            {"ring_page_order": 5},
            {"protocol": "x86_32-abi"},
            {"event_channel": 999},
            {"ring_ref": 4000},
            {"ring_ref": "x"},
        )
    ):
        guest.connect()
        guest.says(state=XenbusStateInitialising)
        guest.says(**wrong)  # type: ignore[arg-type]
        guest.says(state=XenbusStateInitialised)
        assert guest.back_state == XenbusStateClosing, wrong
        assert guest.back_node("error")
        guest.says(ring_page_order=0, state=XenbusStateInitialising)
        assert guest.back_state == XenbusStateInitWait, number
    guest.connect()
    assert guest.back_state == XenbusStateConnected


def test_a_ring_that_is_broken_closes_the_device(guest: Guest, services: Services, disk: Path) -> None:
    other_disk = disk.with_name("other")
    other_disk.write_bytes(bytes(SIZE))
    other = Guest(services, "other", params=str(other_disk), mode="w")
    other.connect()
    guest.connect()
    guest.ring.req_prod = 1000
    guest.kernel.notify(guest.port)
    services.turn()
    assert guest.back_state == XenbusStateClosing
    assert "broken the ring" in guest.back_node("error")
    other.ask(BLKIF_OP_READ, 0)
    assert other.statuses() == [BLKIF_RSP_OKAY]


@pytest.mark.parametrize(
    ("back", "said"),
    [
        ({"params": "/nowhere/disk"}, "does not exist"),
        ({"params": "/dev/null"}, "neither a file nor a block device"),
        ({"params": "/", "type": "betamax"}, "no format"),
    ],
)
def test_a_disk_that_cannot_be_had(services: Services, back: dict[str, str | int], said: str) -> None:
    guest = Guest(services, mode="w", **back)
    assert said in guest.back_node("error")
    assert guest.back_state == XenbusStateClosing


def test_two_guests_do_not_write_to_one_disk(guest: Guest, services: Services, disk: Path) -> None:
    other = Guest(services, "other", params=str(disk), mode="w")
    assert "in use elsewhere" in other.back_node("error")


def test_a_disk_that_grows(guest: Guest, services: Services, disk: Path) -> None:
    guest.connect()
    os.truncate(disk, 2 * SIZE)
    told: list[str] = []
    services.do(guest.context, guest.context.store.watch(f"{guest.back}/state", told.append))
    services.turn()
    told.clear()
    services.turn(2_000_000_000)
    guest.ask(BLKIF_OP_READ, 0)
    assert guest.back_node("sectors") == str(2 * SIZE // 512)
    assert told, "the state is written again, which frontends watch"
    guest.ask(BLKIF_OP_READ, SIZE // 512)
    assert guest.statuses() == [BLKIF_RSP_OKAY] * 2


def test_a_drive_whose_medium_is_changed(services: Services, disk: Path) -> None:
    guest = Guest(services, params="", mode="r", device_type="cdrom", removable=1)
    assert (guest.back_node("sectors"), guest.back_node("info")) == ("0", "7")
    guest.connect()
    guest.ask(BLKIF_OP_READ, 0)
    services.write(guest.back, params=str(disk))
    assert guest.back_node("sectors") == str(SIZE // 512)
    guest.ask(BLKIF_OP_READ, 8)
    assert guest.data.view == disk.read_bytes()[8 * 512 :][:4096]
    services.write(guest.back, params="")
    assert guest.back_node("sectors") == "0"
    guest.ask(BLKIF_OP_READ, 0)
    assert guest.statuses() == [BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, BLKIF_RSP_ERROR]
    disk.open("r+b").close()


def kill(services: Services) -> None:
    """Kill the service's code, and let it start again."""
    services.supervisor.kill("block")
    services.turn(20_000_000)
    services.turn()
    assert services.supervisor.running["block"].is_up


def test_a_killed_service_goes_on_where_it_was(guest: Guest, services: Services, disk: Path) -> None:
    guest.connect(feature_persistent=1)
    services.outside.at_once = False
    guest.data.view[:] = content = os.urandom(4096)
    guest.ask(BLKIF_OP_WRITE, 33)  # no whole page, so that it is not written at once
    guest.ask(BLKIF_OP_FLUSH_DISKCACHE, 0)
    assert guest.statuses() == []
    services.outside.work(tell=False)  # the write is done in its thread, and the service does not hear of it
    services.outside.at_once = True
    kill(services)
    assert guest.back_state == XenbusStateConnected
    assert guest.statuses() == [BLKIF_RSP_OKAY] * 2
    assert disk.read_bytes()[33 * 512 :][:4096] == content
    guest.ask(BLKIF_OP_READ, 33)
    assert guest.statuses() == [BLKIF_RSP_OKAY]


@pytest.mark.parametrize("overlay", ["1", "file"])
def test_an_overlay_outlives_the_service(services: Services, disk: Path, overlay: str, tmp_path: Path) -> None:
    before = disk.read_bytes()
    where = "1" if overlay == "1" else str(tmp_path / "overlay")
    guest = Guest(services, params=str(disk), mode="w", xenolith__overlay=where)
    guest.connect()
    guest.data.view[:] = content = os.urandom(4096)
    guest.ask(BLKIF_OP_WRITE, 32)
    kill(services)
    guest.data.view[:] = bytes(4096)
    guest.ask(BLKIF_OP_READ, 32)
    assert guest.statuses() == [BLKIF_RSP_OKAY] * 2
    assert guest.data.view == content
    assert disk.read_bytes() == before
    files = len(os.listdir("/proc/self/fd"))
    services.do(services.toolstack, services.toolstack.store.remove(guest.back))
    services.turn()
    assert len(os.listdir("/proc/self/fd")) < files
    assert services.supervisor.running["block"].kernel.kept == {}


def test_a_guest_that_is_gone_leaves_nothing(services: Services, disk: Path) -> None:
    files = len(os.listdir("/proc/self/fd"))
    guest = Guest(services, params=str(disk), mode="w")
    guest.connect(feature_persistent=1)
    guest.ask(BLKIF_OP_READ, 0)
    backend = services.hv.domains[guest.backend_domid]
    services.do(services.toolstack, services.toolstack.store.remove(guest.front))
    services.do(services.toolstack, services.toolstack.store.remove(guest.back))
    services.turn()
    assert not [m for m in backend.grants._mappings.values() if m.granter.domain.domid == guest.kernel.domid]
    assert len(os.listdir("/proc/self/fd")) == files


def test_many_disks_share_little_room(disk: Path, tmp_path: Path) -> None:
    services = Services()
    services.start("block", BlockService, tables=1)
    guests = []
    for number in range(3):
        path = tmp_path / f"disk{number}"
        path.write_bytes(disk.read_bytes())
        guests.append(Guest(services, f"guest{number}", params=str(path), mode="w"))
        guests[-1].connect(feature_persistent=1)
    room = services.supervisor.running["block"].kernel._space.take_slots
    taken = room(512 - 3 - 1 - 3)  # the store's grant table, the three rings, and three more are left
    services.outside.at_once = False
    for _ in range(3):
        for guest in guests:
            guest.ask(BLKIF_OP_READ, 0)
    while services.outside.submitted:
        services.outside.work()
        services.turn()
    for guest in guests:
        assert guest.statuses() == [BLKIF_RSP_OKAY] * 3
    assert taken
    services.supervisor.close()
