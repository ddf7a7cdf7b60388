"""Which engine a machine runs on: the one that was asked for, or the one that is faster on this host."""

from __future__ import annotations

import json
import os
import platform
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from xenolith.errors import UserError
from xenolith.user_cache import cache_directory

if TYPE_CHECKING:
    from pathlib import Path

    from xenolith.cpu.engine import Engine
    from xenolith.machine.ram import Ram

ENGINES: Final = ("auto", "unicorn", "kvm")
_ASKED: Final = "XENOLITH_ENGINE"
"""The environment variable that says what "auto" means."""
DEVICE: Final = "/dev/kvm"
_BOOT_EXITS: Final = 95_000
_BOOT_INSTRUCTIONS: Final = 2_200_000_000
"""What the boot of a distribution's kernel takes of an engine: the measure of which is faster."""
_EMULATION_FACTOR: Final = 2.0
"""How much longer than in a tight loop emulated instructions take in a kernel, where code is met for the first time."""


def create_engine(name: str, ram: Ram, ram_ranges: list[range] | None = None, counts_work: bool = False) -> Engine:
    """The engine called `name`, or one that can count work if it must. Raises UserError where it is unusable."""
    if name == "auto":
        name = "unicorn" if counts_work else choose()
    if name == "kvm":
        from xenolith.cpu.kvm import KvmEngine

        return KvmEngine(ram, ram_ranges)
    from xenolith.cpu.unicorn import UnicornEngine

    return UnicornEngine(ram, ram_ranges)


def choose() -> str:
    """The name of the engine that boots a kernel faster on this host: measured once for each host and kernel."""
    asked = os.environ.get(_ASKED, "auto")
    if asked not in ENGINES:
        raise UserError(f"{_ASKED} names no engine: '{asked}'", f"there are {', '.join(ENGINES)}")
    if asked != "auto":
        return asked
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return "unicorn"
    host = f"{platform.node()} {platform.release()} {platform.version()}"
    known = _remembered()
    if host not in known:
        known = {host: min(("unicorn", "kvm"), key=_boot_seconds)}
        _remember(known)
    return known[host]


def _boot_seconds(name: str) -> float:
    """What a boot would take by an engine's measured speed; for ever, if it is not usable."""
    from xenolith.cpu.measure import measure

    try:
        _, speed = measure(partial(create_engine, name))
    except UserError:
        return float("inf")
    factor = _EMULATION_FACTOR if name == "unicorn" else 1
    work = factor * _BOOT_INSTRUCTIONS / speed.million_instructions_per_second / 1e6
    return work + _BOOT_EXITS * speed.exit_us / 1e6


def _place() -> Path:
    return cache_directory() / "engine.json"


def _remembered() -> dict[str, str]:
    try:
        known = json.loads(_place().read_text())
    except (OSError, ValueError):
        return {}
    return {host: name for host, name in known.items() if name in ENGINES} if isinstance(known, dict) else {}


def _remember(known: dict[str, str]) -> None:
    with suppress(OSError):  # then it is measured again next time
        _place().parent.mkdir(parents=True, exist_ok=True)
        _place().write_text(json.dumps(known) + "\n")
