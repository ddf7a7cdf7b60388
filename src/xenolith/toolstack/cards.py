"""Network cards of a machine: the models that there are, and the cable from each to what it is connected to."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from xenolith.toolstack.nics import DEFAULT_MTU, USER_MTU, Nic, mac_of

if TYPE_CHECKING:
    from xenolith.machine.network import Network
    from xenolith.machine.pci_device import PciDevice
    from xenolith.services.network.networks import Networks
    from xenolith.services.network.passt import UserNetwork
    from xenolith.services.network.tap import Tap
    from xenolith.toolstack.device_host import DeviceHost

_NAMESPACE: Final = uuid.UUID("6d7bd1a4-2c1f-5a53-9a1e-0d2f35f3a3c6")
"""Of the names of machines."""
MakeCard = Callable[[bytes, int, "Network"], "PciDevice"]
"""Makes a card with an address, for packets of so many bytes, at a network."""


class CardModel(NamedTuple):
    """How a model is found, and the MTU with user-mode networking: what its driver takes without being asked to."""

    find: Callable[[], MakeCard]
    user_mtu: int


def _virtio_net() -> MakeCard:
    from xenolith.machine.devices.virtio_net import VirtioNet

    return VirtioNet


def _e1000e() -> MakeCard:
    from xenolith.machine.devices.e1000e import E1000e

    return E1000e


CARD_MODELS: Final[dict[str, CardModel]] = {
    "virtio-net": CardModel(_virtio_net, USER_MTU),
    "e1000e": CardModel(_e1000e, DEFAULT_MTU),
}
"""Models of network cards by name; each is imported when a machine has one."""


@dataclass(frozen=True, slots=True)
class Cards:
    """Makes the cards of the machine called `machine`."""

    machine: str
    now_ns: Callable[[], int]
    networks: Callable[[], Networks]
    log: Callable[[str], None]

    def make(self, model: str, slot: int, nic: Nic, host: DeviceHost) -> PciDevice:
        """A card in a slot. UserError if there is no network as it is to have."""
        from xenolith.services.network.cable import Cable

        mac = bytes.fromhex((nic.mac or mac_of(uuid.uuid5(_NAMESPACE, self.machine), slot)).replace(":", ""))
        mtu = nic.mtu or (CARD_MODELS[model].user_mtu if nic.user else DEFAULT_MTU)
        place = _place(nic, mac, mtu)
        cable = Cable(self.networks(), str(slot), place, nic.pcap, host, host.soon, self.now_ns, self.log)
        return CARD_MODELS[model].find()(mac, mtu, cable)


def _place(nic: Nic, mac: bytes, mtu: int) -> str | UserNetwork | Tap:
    """What the cable leads to: the name of a switch, or a way to the host."""
    if nic.user:
        from xenolith.services.network.passt import UserNetwork

        return UserNetwork(mac, mtu, tuple(map(str, nic.forwards)))
    if nic.tap is not None:
        from xenolith.services.network.tap import Tap

        return Tap(nic.tap)
    assert nic.bridge is not None
    return nic.bridge
