"""What a machine shall be: read from TOML, checked, with the key and the line of every mistake."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from xenolith.errors import UserError
from xenolith.hypervisor.domain import Capability

_SIZE: Final = re.compile(r"(\d{1,18})\s*(|B|KiB|MiB|GiB|K|M|G|kB|KB|MB|GB)", re.IGNORECASE)
_UNITS: Final = {
    "": 20,
    "b": 0,
    "kib": 10,
    "k": 10,
    "kb": 10,
    "mib": 20,
    "m": 20,
    "mb": 20,
    "gib": 30,
    "g": 30,
    "gb": 30,
}
MIN_MEMORY: Final = 1 << 20
MAX_MEMORY: Final = 1 << 40
MAX_VCPUS: Final = 8
DEFAULT_CONTROL_MEMORY: Final = 512 << 20
DEFAULT_GUEST_MEMORY: Final = 256 << 20
CLOCKS: Final = ("host", "virtual")
Names = tuple[str, ...]
"""Where a key stands: the names of the tables around it, and its own."""
_HEADER: Final = re.compile(r"\s*\[+([^]#]*)\]")
_ASSIGNMENT: Final = re.compile(r"""\s*((?:[\w\s.-]|"[^"]*"|'[^']*')+?)\s*=""")
_NAME: Final = re.compile(r"""["']([^"']*)["']|([\w-]+)""")


def parse_size(text: str | int, what: str = "memory") -> int:
    """Bytes of "512MiB", "1G" or a plain number of MiB. UserError for anything else, or what no machine can have."""
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise UserError(f"'{text}' is no amount of memory ({what})", "write a number with MiB or GiB, as in 512MiB")
    size = int(match[1]) << _UNITS[match[2].lower()]
    if not MIN_MEMORY <= size <= MAX_MEMORY:
        raise UserError(f"{text} of memory is impossible ({what})", "a domain has between 1 MiB and 1 TiB")
    return size & ~0xFFF


def check_vcpus(count: int) -> int:
    if not 1 <= count <= MAX_VCPUS:
        raise UserError(f"a domain cannot have {count} vCPUs", f"give it between 1 and {MAX_VCPUS}")
    return count


@dataclass(slots=True)
class DomainConfig:
    """One domain: `memory` in bytes. Without a kernel the best one that can be found is taken."""

    name: str
    kernel: str | None = None
    ramdisk: Path | None = None
    cmdline: str = ""
    memory: int = DEFAULT_GUEST_MEMORY
    vcpus: int = 1
    weight: int = 256
    command: str | None = None
    capabilities: Capability = Capability.NONE


@dataclass(slots=True)
class MachineConfig:
    """A machine: what it is, and the domains that exist at power-on, in the order in which they are started."""

    clock: str = "host"
    spare_memory: int = 0
    serial: Path | None = None
    """What the first serial port is connected to: a file to write to, or a FIFO or terminal for both ways."""
    domains: list[DomainConfig] = field(default_factory=list)


def control_domain() -> DomainConfig:
    """The control domain of a machine that is not described otherwise."""
    return DomainConfig("dom0", memory=DEFAULT_CONTROL_MEMORY, capabilities=Capability.ALL)


class _Source:
    """A TOML text, to find the line of a key in."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._lines = text.splitlines()

    def error(self, table: Names, key: str, problem: str, hint: str) -> UserError:
        return UserError(f"{self._path}:{self._line((*table, key))}: {problem}", hint)

    def _line(self, wanted: Names) -> int:
        here: Names = ()
        inline = 0
        for number, line in enumerate(self._lines, 1):
            if header := _HEADER.match(line):
                here = named = _names(header[1])
            elif assignment := _ASSIGNMENT.match(line):
                named = here + _names(assignment[1])
            else:
                continue
            if named[: len(wanted)] == wanted:
                return number
            if not inline and re.search(rf"\b{re.escape(wanted[-1])}\b[\"']?\s*=", line):
                inline = number
        return inline or 1


def _names(dotted: str) -> Names:
    return tuple(quoted or plain for quoted, plain in _NAME.findall(dotted))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text in quotes")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("a whole number")
    return value


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError('an amount of memory such as "512MiB"')
    return parse_size(value)


def _capabilities(value: Any) -> Capability:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError('a list of names such as ["control", "hardware"]')
    result = Capability.NONE
    for name in value:
        if name.upper() not in Capability.__members__:
            known = ", ".join(member.lower() for member in Capability.__members__ if member != "NONE")
            raise UserError(f"there is no capability '{name}'", f"there are {known}")
        result |= Capability[name.upper()]
    return result


def _path(directory: Path, value: Any) -> Path:
    text = _text(value)
    try:
        return (directory / Path(text).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError):
        raise UserError(f"{text!r} is no name of a file", "name a file, relative to the machine description") from None


def _file(directory: Path) -> Callable[[Any], Path]:
    def convert(value: Any) -> Path:
        path = _path(directory, value)
        if not os.path.exists(path):  # which, unlike Path, takes any name
            raise UserError(f"there is no file {path}", "name a file that exists, relative to the machine description")
        return path

    return convert


def _kernel(directory: Path) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        name = _text(value)
        return str(_file(directory)(name)) if "/" in name or os.path.isfile(_path(directory, name)) else name

    return convert


def load(path: Path) -> MachineConfig:
    """Read a machine description. UserError with file, line and key for everything that is wrong in it."""
    try:
        text = path.read_text("utf-8")
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"cannot read {path}: {reason}", "name a machine description in TOML") from None
    except (ValueError, RecursionError) as error:  # tomllib has its own error for syntax only
        raise UserError(f"{path}: {error}", "correct the TOML syntax there") from None
    source = _Source(path, text)
    config = MachineConfig()
    machine_keys: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "clock": ("clock", _clock),
        "spare_memory": ("spare_memory", _size),
        "serial": ("serial", lambda value: _path(path.parent, value)),
    }
    _require_keys(source, (), data, ("machine", "domain"))
    _fill(source, ("machine",), _table(source, ("machine",), data.get("machine", {})), config, machine_keys)
    for name, table in _table(source, ("domain",), data.get("domain", {})).items():
        config.domains.append(_domain(source, path.parent, name, _table(source, ("domain", name), table)))
    if not config.domains:
        raise UserError(f"{path}: no domain is described", "add a table such as [domain.dom0]")
    return config


def _domain(source: _Source, directory: Path, name: str, table: dict[str, Any]) -> DomainConfig:
    keys: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "kernel": ("kernel", _kernel(directory)),
        "ramdisk": ("ramdisk", _file(directory)),
        "cmdline": ("cmdline", _text),
        "memory": ("memory", _size),
        "vcpus": ("vcpus", lambda value: check_vcpus(_whole(value))),
        "weight": ("weight", _weight),
        "exec": ("command", _text),
        "capabilities": ("capabilities", _capabilities),
    }
    domain = DomainConfig(name)
    _fill(source, ("domain", name), table, domain, keys)
    return domain


def _clock(value: Any) -> str:
    if value not in CLOCKS:
        raise TypeError('"host" or "virtual"')
    return _text(value)


def _weight(value: Any) -> int:
    weight = _whole(value)
    if not 1 <= weight <= 65535:
        raise UserError(f"a weight of {weight} is impossible", "weights are 1 to 65535; 256 is usual")
    return weight


def _table(source: _Source, names: Names, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        dotted = ".".join(names)
        raise source.error(names[:-1], names[-1], f"'{dotted}' is not a table", f"write [{dotted}]")
    return value


def _require_keys(source: _Source, table: Names, data: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in data:
        if key not in known:
            raise source.error(table, key, f"unknown key '{key}'", f"known keys here are {', '.join(known)}")


def _fill(
    source: _Source,
    names: Names,
    table: dict[str, Any],
    target: object,
    keys: Mapping[str, tuple[str, Callable[[Any], Any]]],
) -> None:
    _require_keys(source, names, table, tuple(keys))
    for key, value in table.items():
        attribute, convert = keys[key]
        try:
            setattr(target, attribute, convert(value))
        except TypeError as error:
            raise source.error(names, key, f"'{key}' must be {error}", f"it is {value!r}") from None
        except UserError as error:
            raise source.error(names, key, f"'{key}': {error.message}", error.hint) from None
