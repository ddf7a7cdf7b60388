"""What a domain may do beyond its own affairs, as users write it: a list of capabilities, or a table with limits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from xenolith.errors import UserError
from xenolith.hypervisor.domain import Capability
from xenolith.toolstack.values import parse_number

_LIST_HINT: Final = 'a list of names such as ["control", "hardware"]'
_RANGE: Final = re.compile(r"(\w{1,18})(?:-(\w{1,18}))?")
_DEVICE: Final = re.compile(r"(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])")
_LAST_PORT: Final = 0xFFFF
_LAST_ADDRESS: Final = (1 << 52) - 1


@dataclass(frozen=True, slots=True)
class HardwareAccess:
    """The part of the machine that HARDWARE is limited to: I/O ports, machine addresses, PCI devices (0000:00:02.0)."""

    ports: tuple[range, ...] = ()
    memory: tuple[range, ...] = ()
    devices: tuple[str, ...] = ()

    @property
    def functions(self) -> frozenset[int]:
        """The devices by their bus, device and function number; the machine has one segment."""
        return frozenset(pci_number(device) for device in self.devices)


@dataclass(frozen=True, slots=True)
class Rights:
    """Capabilities; the names of the domains that CONTROL is over, None for all; what HARDWARE is of, None for all."""

    capabilities: Capability = Capability.NONE
    targets: tuple[str, ...] | None = None
    hardware: HardwareAccess | None = None


def rights(value: Any) -> Rights:
    """Rights from a list of names of capabilities, or a table of such names with true, or with their limits."""
    if isinstance(value, list):
        if not all(isinstance(name, str) for name in value):
            raise TypeError(_LIST_HINT)
        return Rights(_union(value))
    if not isinstance(value, Mapping):
        raise TypeError(_LIST_HINT)
    for name, limit in value.items():
        if not isinstance(limit, bool) and name.lower() not in ("control", "hardware"):
            raise UserError(f"the capability '{name}' has no limits", f"write {name} = true")
    given = {name.lower(): limit for name, limit in value.items() if limit is not False}
    return Rights(
        _union(given),
        _targets(given["control"]) if given.get("control", True) is not True else None,
        _hardware(given["hardware"]) if given.get("hardware", True) is not True else None,
    )


def _union(names: Iterable[str]) -> Capability:
    result = Capability.NONE
    for name in names:
        if name.upper() not in Capability.__members__:
            known = ", ".join(member.lower() for member in Capability.__members__ if member != "NONE")
            raise UserError(f"there is no capability '{name}'", f"there are {known}")
        result |= Capability[name.upper()]
    return result


def _targets(limit: Any) -> tuple[str, ...]:
    return _texts(limit, "control", 'control = ["guest1"]')


def _hardware(limit: Any) -> HardwareAccess:
    if not isinstance(limit, Mapping):
        raise UserError("hardware is true or a table", 'write hardware = { ports = ["0x3f8-0x3ff"] }')
    known = ("ports", "memory", "devices")
    for name in limit:
        if name not in known:
            raise UserError(f"hardware has no '{name}'", f"there are {', '.join(known)}")
    return HardwareAccess(
        tuple(_range(item, _LAST_PORT) for item in _texts(limit.get("ports", []), "ports", 'ports = ["0x3f8-0x3ff"]')),
        tuple(
            _range(item, _LAST_ADDRESS)
            for item in _texts(limit.get("memory", []), "memory", 'memory = ["0xfed00000-0xfed003ff"]')
        ),
        tuple(pci_name(item) for item in _texts(limit.get("devices", []), "devices", 'devices = ["00:02.0"]')),
    )


def _texts(value: Any, what: str, example: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{what} is a list of texts", f"write {example}")
    return tuple(value)


def _range(text: str, last: int) -> range:
    """The numbers from "first-last", both inclusive, or a single one."""
    match = _RANGE.fullmatch(text)
    first = parse_number(match[1]) if match else None
    end = parse_number(match[2] or match[1]) if match else None
    if first is None or end is None or not 0 <= first <= end <= last:
        raise UserError(f"'{text}' is no range", f"write first-last, as in 0x3f8-0x3ff, up to {last:#x}")
    return range(first, end + 1)


def pci_number(device: str) -> int:
    """Bus, device and function number of a PCI device that is written as `pci_name` gives it."""
    _, bus, rest = device.split(":")
    slot, function = rest.split(".")
    return int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)


def pci_name(text: str) -> str:
    """A PCI device with its segment, 0000:00:02.0, from the same or 00:02.0. UserError if it is none."""
    match = _DEVICE.fullmatch(text.lower())
    if match is None:
        raise UserError(f"'{text}' is no PCI device", "write bus, slot and function as in 00:02.0")
    return f"{match[1] or '0000'}:{match[2]}:{match[3]}.{match[4]}"
