"""PCI devices as users write them, and where they come to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenolith.errors import UserError
from xenolith.machine.devices.disk_work import Outcome
from xenolith.machine.devices.nvme import Nvme
from xenolith.machine.devices.virtio_net import VirtioNet
from xenolith.services.network.networks import Networks
from xenolith.toolstack.cards import Cards
from xenolith.toolstack.config import DomainConfig, MachineConfig
from xenolith.toolstack.device_host import DeviceHost
from xenolith.toolstack.machine import Machine
from xenolith.toolstack.machine_devices import MachineDevice, MachineDevices, machine_device
from xenolith.toolstack.nics import Forward, Nic
from xenolith.toolstack.rights import rights


class Host:
    """Nothing is ever done."""

    def post(self, action: object) -> None: ...

    def watch_readable(self, fd: int, action: object) -> None: ...

    def watch_writable(self, fd: int, action: object) -> None: ...

    def unwatch(self, fd: int) -> None: ...

    def submit(self, work: object, done: object) -> None: ...


def made(*specs: str) -> dict[int, object]:
    host, networks = Host(), Networks()
    cards = Cards("test", lambda: 0, lambda: networks, lambda text: None)

    def make_host(slot: int) -> DeviceHost:
        return DeviceHost(host, host.post, lambda error: None)

    return dict(MachineDevices(map(machine_device, specs), make_host, cards).functions)


def test_a_card_is_connected_as_a_guests_device_is() -> None:
    device = machine_device("virtio-net,user,forward=2222:22,mac=0:16:3e:0:0:1,mtu=9000,pcap=a.pcap,slot=4")
    nic = Nic("00:16:3e:00:00:01", None, True, (Forward("tcp", 2222, 22),), pcap=Path("a.pcap"), mtu=9000)
    assert device == MachineDevice("virtio-net", nic=nic, slot=4)
    located = device.located(Path("/srv"))
    assert located.nic is not None
    assert located.nic.pcap == Path("/srv/a.pcap")
    assert machine_device({"model": "virtio-net"}) == MachineDevice("virtio-net", nic=Nic(bridge="xenbr0"))
    assert machine_device({"model": "virtio-net", "tap": "tap0", "slot": 2}).nic == Nic(bridge=None, tap="tap0")


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("", "the device has no model"),
        ("ne2000", "there is no model 'ne2000'"),
        ("virtio-net,bridge=a,tap=b", "at one of bridge, tap and user"),
        ("virtio-net,target=disk.img", "the virtio-net has no 'target'"),
        ("virtio-net,rate=1MB/s", "the virtio-net has no 'rate'"),
        ("virtio-net,mac=1:0:0:0:0:0", "no device can have the MAC address"),
        ("virtio-net,slot=0", "cannot be in slot 0"),
        ("virtio-net,slot=31", "cannot be in slot 31"),
    ],
)
def test_what_cannot_be_is_refused(spec: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        machine_device(spec)


def test_devices_take_the_slots_that_they_name_and_otherwise_the_first_that_are_free() -> None:
    functions = made("virtio-net", "virtio-net,slot=1", "virtio-net,slot=5", "virtio-net")
    assert functions.keys() == {1, 2, 3, 5}
    with pytest.raises(UserError, match="two devices are in slot 3"):
        made("virtio-net,slot=3", "virtio-net,slot=3")
    with pytest.raises(UserError, match="more devices than slots"):
        made(*["virtio-net"] * 31)


def test_each_card_has_an_address_of_its_own_and_always_the_same() -> None:
    def addresses(*specs: str) -> list[bytes]:
        return [bytes(card.registers[:6]) for card in made(*specs).values() if isinstance(card, VirtioNet)]

    first, second = addresses("virtio-net", "virtio-net")
    assert first != second
    assert first.startswith(b"\x00\x16\x3e")
    assert addresses("virtio-net", "virtio-net,mac=02:00:00:00:00:01") == [first, bytes.fromhex("020000000001")]


def test_a_bug_in_a_device_ends_the_device_and_not_the_machine(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    capabilities = rights(["hardware", "store", "create", "console"]).capabilities
    services = DomainConfig("all", memory=4 << 20, capabilities=capabilities, services=("store", "console", "builder"))
    devices = (machine_device(f"nvme,target={image}"),)
    machine = Machine(MachineConfig(memory=64 << 20, domains=[services], devices=devices))
    assert machine.pc is not None
    try:
        machine.power_on({})
        told: list[tuple[str, dict[str, object]]] = []
        machine.hv.subscribers.append(lambda kind, data: told.append((kind, data)))
        disk = machine.pc.pci.functions[1 << 3]
        assert isinstance(disk, Nvme)
        pci, ended = machine.pc.pci, list[Outcome]()
        disk._work.flush(ended.append)
        machine.hv.run(lambda: bool(ended))
        for _ in range(2):
            disk._work.flush(lambda outcome: 1 // 0)
        machine.hv.run(lambda: pci.read_config(1 << 3, 0, 4) == 0xFFFFFFFF)
        (bug,) = [data for kind, data in told if kind == "bug"]
        assert bug["device"] == 1
        assert "ZeroDivisionError" in str(bug["traceback"])
    finally:
        machine.close()
