"""From what a guest's description says of devices to what xenstore says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from xenolith.errors import UserError
from xenolith.toolstack.disks import Disk
from xenolith.toolstack.guest_config import GuestConfig
from xenolith.toolstack.nics import DEFAULT_MTU, USER_MTU, Nic
from xenolith.toolstack.records import DeviceRecord
from xenolith.toolstack.shares import Share

_SERVICES: Final = {"vbd": "block", "vif": "net", "9pfs": "9p", "pci": "hardware"}
"""Which service a kind of device is of."""
_SCRIPTS: Final = {"vbd": "/etc/xen/scripts/block", "vif": "/etc/xen/scripts/vif-bridge"}
"""By which of its own scripts a Linux domain sets up what stands behind a device; libxl names the same ones."""


class Devices(NamedTuple):
    """`service(name)` is the domid of the domain that has a service, or None if no domain has it; `domid_of(name)`
    that of a domain which a description names as its backend, and `is_native(domid)` whether that is one of ours. What
    is none is taken for a Linux driver domain with Xen's scripts, and `xl devd` to run them."""

    service: Callable[[str], int | None]
    domid_of: Callable[[str], int | None]
    is_native: Callable[[int], bool]

    @property
    def store_domid(self) -> int:
        return self.required("store")

    @property
    def console_domid(self) -> int:
        return self.required("console")

    def of(self, config: GuestConfig) -> list[DeviceRecord]:
        """All devices of a guest. UserError where there is nobody to serve one."""
        return [
            *(self.disk(disk) for disk in config.disks),
            *(self.nic(nic) for nic in config.nics),
            *(self.share(share, number) for number, share in enumerate(config.shares)),
            *([self.pci(config.pci)] if config.pci else []),
        ]

    def console(self, name: str, mfn: int, port: int) -> DeviceRecord:
        """The console that every guest has."""
        front: dict[str, str | int] = {"ring-ref": mfn, "port": port, "limit": 1 << 20, "type": "xenconsoled"}
        return DeviceRecord("console", "0", self.console_domid, front, {"name": name, "protocol": "vt100"}, "console")

    def disk(self, disk: Disk) -> DeviceRecord:
        backend = self._backend("vbd", disk.backend)
        kind = "cdrom" if disk.cdrom else "disk"
        front: dict[str, str | int] = {"virtual-device": disk.number, "device-type": kind}
        back: dict[str, str | int] = {
            "params": disk.target,
            "type": disk.format,
            "mode": "r" if disk.readonly or disk.cdrom else "w",
            "device-type": kind,
            "dev": disk.vdev,
            "removable": int(disk.cdrom),
            "bootable": 1,
            "discard-enable": int(disk.discard),
        }
        if disk.overlay:
            back["xenolith/overlay"] = disk.overlay if isinstance(disk.overlay, str) else 1
        if not self.is_native(backend):
            if disk.format != "raw" or disk.overlay:
                raise _only_here(f"the disk {disk.vdev}", "overlays, and no images that are not raw")
            back |= {"type": "phy", "script": _SCRIPTS["vbd"]}
        return DeviceRecord("vbd", str(disk.number), backend, front, back)

    def nic(self, nic: Nic) -> DeviceRecord:
        assert nic.devid is not None
        backend = self._backend("vif", nic.backend)
        mtu = nic.mtu or (USER_MTU if nic.user else DEFAULT_MTU)
        front: dict[str, str | int] = {"handle": nic.devid, "mac": nic.mac or "", "mtu": mtu}
        back: dict[str, str | int] = {"handle": nic.devid, "mac": nic.mac or "", "mtu": mtu, "type": "vif"}
        optional = {
            "bridge": nic.bridge,
            "vifname": nic.vifname,
            "ip": " ".join(nic.ip) or None,
            "rate": f"{nic.rate.bytes_per_interval},{nic.rate.interval_us}" if nic.rate else None,
            "xenolith/user": "1" if nic.user else None,
            "xenolith/forwards": " ".join(map(str, nic.forwards)) or None,
            "xenolith/tap": nic.tap,
            "xenolith/pcap": str(nic.pcap) if nic.pcap else None,
        }
        back |= {name: value for name, value in optional.items() if value is not None}
        if not self.is_native(backend):
            if nic.bridge is None or nic.pcap:
                raise _only_here(f"the vif {nic.devid}", "user, tap and pcap")
            back["script"] = _SCRIPTS["vif"]
        return DeviceRecord("vif", str(nic.devid), backend, front, back, told_guest=("mtu",))

    def share(self, share: Share, number: int) -> DeviceRecord:
        backend = self._backend("9pfs", share.backend)
        if not self.is_native(backend):
            raise _only_here(f"the share {share.tag}", "shared directories")
        back = {"path": share.path, "security_model": "none"}
        return DeviceRecord("9pfs", str(number), backend, {"tag": share.tag}, back)

    def pci(self, names: Sequence[str]) -> DeviceRecord:
        """The bus on which a guest sees PCI functions that work for it."""
        back: dict[str, str | int] = {f"dev-{number}": name for number, name in enumerate(names)}
        return DeviceRecord("pci", "0", self._backend("pci", None), {}, {"num_devs": len(names), **back})

    def _backend(self, kind: str, named: str | None) -> int:
        if named is not None:
            domid = int(named) if named.isdecimal() else self.domid_of(named)
            if domid is None:
                raise UserError(f"there is no domain '{named}' to be a backend", "'xenolith list' shows the domains")
            return domid
        return self.required(_SERVICES[kind])

    def required(self, service: str) -> int:
        """The domid of the domain that has a service. UserError if there is none."""
        domid = self.service(service)
        if domid is None:
            raise UserError(f"no domain of this machine has the service '{service}'", "start it with --preset split")
        return domid


def _only_here(device: str, what: str) -> UserError:
    return UserError(f"{device} is of a Linux domain, which has no {what}", "take a native domain for its backend")
