"""PCI devices as users write them, and where they come to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenolith.errors import UserError
from xenolith.machine.devices.virtio_net import VirtioNet
from xenolith.services.network.networks import Networks
from xenolith.toolstack.cards import Cards
from xenolith.toolstack.machine_devices import MachineDevice, MachineDevices, machine_device
from xenolith.toolstack.nics import Forward, Nic


class Host:
    """Nothing is ever done."""

    def post(self, action: object) -> None: ...

    def watch_readable(self, fd: int, action: object) -> None: ...

    def watch_writable(self, fd: int, action: object) -> None: ...

    def unwatch(self, fd: int) -> None: ...

    def submit(self, work: object, done: object) -> None: ...


def made(*specs: str) -> dict[int, object]:
    host, networks = Host(), Networks()
    cards = Cards("test", host, host.post, lambda: 0, lambda: networks, lambda text: None)
    return dict(MachineDevices(map(machine_device, specs), host.submit, cards).functions)


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
