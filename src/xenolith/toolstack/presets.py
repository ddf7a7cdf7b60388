"""The machines that need no description, as data: their domains, services and capabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from xenolith.hypervisor.domain import Capability
from xenolith.loader.debian_dom0 import DEBIAN_DOM0
from xenolith.toolstack.config import DEFAULT_SERVICE_MEMORY, SERVICES, DomainConfig, control_domain

_SPLIT: Final = {
    "store": Capability.STORE,
    "builder": Capability.CREATE,
    "console": Capability.CONSOLE,
    "hardware": Capability.HARDWARE,
    "block": Capability.NONE,
    "net": Capability.NONE,
    "9p": Capability.NONE,
}
"""Each service's domain, called like it, and the least that it needs: backends live on what guests grant to them."""


def _classic() -> list[DomainConfig]:
    return [_native("control", SERVICES, Capability.ALL)]


def _split() -> list[DomainConfig]:
    return [_native(service, (service,), capabilities) for service, capabilities in _SPLIT.items()]


def _dom0() -> list[DomainConfig]:
    return [replace(control_domain(), ramdisk=Path(DEBIAN_DOM0.alias))]


def _native(name: str, services: tuple[str, ...], capabilities: Capability) -> DomainConfig:
    return DomainConfig(name, memory=DEFAULT_SERVICE_MEMORY, capabilities=capabilities, services=services)


PRESETS: Final[dict[str, Callable[[], list[DomainConfig]]]] = {"classic": _classic, "split": _split, "dom0": _dom0}


def preset(name: str) -> list[DomainConfig]:
    """The domains of a preset, which is one of PRESETS."""
    return PRESETS[name]()
