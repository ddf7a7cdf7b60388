"""What the toolstack writes into xenstore for a guest and its devices: paths and values, as xl writes them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from xenolith.abi.io.xenbus import XenbusStateInitialising

GUEST_NODES: Final = (
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
    "device/suspend/event-channel",
)
"""What a guest may write to below its home."""


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """One device: its kind and number, the domid of its backend, and what each end is told of it."""

    kind: str
    devid: str
    backend_domid: int
    frontend: Mapping[str, str | int] = field(default_factory=dict)
    backend: Mapping[str, str | int] = field(default_factory=dict)
    place: str = ""
    """Where the frontend's directory is in the guest's home, if it is not among the devices."""
    told_guest: tuple[str, ...] = ()
    """Nodes of the frontend's directory that the backend writes and the guest only reads."""

    @property
    def has_script(self) -> bool:
        """Whether a script of the backend's domain sets up what stands behind the device, as with Linux's backends."""
        return "script" in self.backend

    def frontend_path(self, domid: int) -> str:
        return f"{home(domid)}/{self.place or f'device/{self.kind}/{self.devid}'}"

    def backend_path(self, domid: int) -> str:
        return f"{home(self.backend_domid)}/backend/{self.kind}/{domid}/{self.devid}"

    def nodes(self, domid: int) -> tuple[dict[str, str | int], dict[str, str | int]]:
        """The values of the frontend's directory, and of the backend's."""
        front: dict[str, str | int] = {
            "backend": self.backend_path(domid),
            "backend-id": self.backend_domid,
            "state": XenbusStateInitialising,
            **self.frontend,
        }
        back: dict[str, str | int] = {
            "frontend": self.frontend_path(domid),
            "frontend-id": domid,
            "online": 1,
            "state": XenbusStateInitialising,
            **self.backend,
        }
        return front, back


def home(domid: int) -> str:
    return f"/local/domain/{domid}"


def guest_nodes(
    domid: int, name: str, handle: uuid.UUID, memory_kib: int, max_memory_kib: int, vcpus: int, max_vcpus: int
) -> Iterator[tuple[str, str | int]]:
    """The nodes of a guest that only the toolstack writes, with full paths."""
    at = home(domid)
    yield f"{at}/vm", f"/vm/{handle}"
    yield f"{at}/name", name
    yield f"{at}/domid", domid
    yield f"{at}/memory/static-max", max_memory_kib
    yield f"{at}/memory/target", memory_kib
    yield f"{at}/memory/videoram", 0
    yield f"{at}/control/platform-feature-multiprocessor-suspend", 1
    yield f"{at}/control/platform-feature-xs_reset_watches", 1
    for number in range(max_vcpus):
        yield f"{at}/cpu/{number}/availability", "online" if number < vcpus else "offline"
    yield f"/vm/{handle}/name", name
    yield f"/vm/{handle}/uuid", str(handle)
