"""PCI devices of a machine: as users describe them, and the models that stand for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xenolith.errors import UserError
from xenolith.toolstack.cards import CARD_MODELS, Cards
from xenolith.toolstack.disks import Disk, disk_of
from xenolith.toolstack.nics import Nic, nic_of
from xenolith.toolstack.parameters import Parameters, table_to_parameters, words_to_parameters
from xenolith.toolstack.values import parse_number

if TYPE_CHECKING:
    from xenolith.machine.devices.disk_work import Submit
    from xenolith.machine.disk import Image
    from xenolith.machine.pci_device import PciDevice
    from xenolith.toolstack.device_host import DeviceHost

_SLOTS: Final = range(1, 31)
"""Slots of the bus that are free; 0 is the host bridge, 31 the bridge to ISA."""
_EXAMPLE: Final = "as in nvme,target=disk.img"
DiskModel = Callable[["Image", "Submit"], "PciDevice"]


def _nvme() -> DiskModel:
    from xenolith.machine.devices.nvme import Nvme

    return Nvme


def _virtio_blk() -> DiskModel:
    from xenolith.machine.devices.virtio_blk import VirtioBlk

    return VirtioBlk


def _ahci() -> DiskModel:
    from xenolith.machine.devices.ahci import Ahci

    return Ahci


DISK_MODELS: Final[dict[str, Callable[[], DiskModel]]] = {"nvme": _nvme, "ahci": _ahci, "virtio-blk": _virtio_blk}
"""Models of disks by name; each is imported when a machine has one."""
MODELS: Final = (*DISK_MODELS, *CARD_MODELS)


@dataclass(frozen=True, slots=True)
class MachineDevice:
    """A PCI device: its model, what is behind it, and its slot, None for the first that is free."""

    model: str
    disk: Disk | None = None
    nic: Nic | None = None
    slot: int | None = None

    def located(self, directory: Path) -> MachineDevice:
        """The same with names of files made absolute."""
        return replace(
            self, disk=self.disk and self.disk.located(directory), nic=self.nic and self.nic.located(directory)
        )


def machine_device(value: Any) -> MachineDevice:
    """A device from a text, "model,key=value,...", or a table of a machine description. UserError, TypeError."""
    if isinstance(value, Mapping):
        parameters = table_to_parameters(value, "a device")
        return _device(parameters.pop("model", [""])[0], parameters)
    if not isinstance(value, str):
        raise TypeError(f"a text {_EXAMPLE}, or a table")
    model, _, rest = value.partition(",")
    return _device(model.strip(), words_to_parameters(rest, "a device"))


def _device(model: str, parameters: Parameters) -> MachineDevice:
    if model not in MODELS:
        problem = f"there is no model '{model}' of devices" if model else "the device has no model"
        raise UserError(problem, f"there are {', '.join(MODELS)}")
    slot = _slot(parameters.pop("slot")[0]) if "slot" in parameters else None
    what = f"the {model}"
    if model in CARD_MODELS:
        return MachineDevice(model, nic=nic_of(parameters, what), slot=slot)
    return MachineDevice(model, disk_of(parameters, what), slot=slot)


def _slot(text: str) -> int:
    slot = parse_number(text)
    if slot is None or slot not in _SLOTS:
        raise UserError(f"a device cannot be in slot {text}", f"slots are {_SLOTS.start} to {_SLOTS.stop - 1}")
    return slot


class MachineDevices:
    """The devices of one machine, made as described. Close it when the machine is off and does no more work.

    `functions` has them by slot; `make_host` gives each its way to the host. UserError for what cannot be had, or for
    two devices in one slot.
    """

    def __init__(self, devices: Iterable[MachineDevice], make_host: Callable[[int], DeviceHost], cards: Cards) -> None:
        self._make_host = make_host
        self._cards = cards
        self._images: list[Image] = []
        self.functions: dict[int, PciDevice] = {}
        try:
            for device in sorted(devices, key=lambda device: device.slot is None):
                slot = self._place(device)
                self.functions[slot] = self._make(device, slot)
        except BaseException:
            self.close()
            raise

    def _place(self, device: MachineDevice) -> int:
        free = [slot for slot in _SLOTS if slot not in self.functions]
        if device.slot is not None and device.slot not in free:
            raise UserError(f"two devices are in slot {device.slot}", "leave 'slot' out of one of them")
        if not free:
            raise UserError("the machine has more devices than slots", f"it has {len(_SLOTS)}")
        return free[0] if device.slot is None else device.slot

    def _make(self, device: MachineDevice, slot: int) -> PciDevice:
        if device.nic is not None:
            return self._cards.make(device.model, slot, device.nic, self._make_host(slot))
        from xenolith.services.disks.open import DiskSource

        assert device.disk is not None
        overlay = Path(device.disk.overlay) if isinstance(device.disk.overlay, str) else device.disk.overlay
        image, _ = DiskSource(device.disk.target, device.disk.format, device.disk.readonly, overlay).open()
        self._images.append(image)
        return DISK_MODELS[device.model]()(image, self._make_host(slot).submit)

    def close(self) -> None:
        for image in self._images:
            image.close()
