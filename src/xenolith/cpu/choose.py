"""Which engine a machine runs on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from xenolith.cpu.engine import Engine
    from xenolith.machine.ram import Ram

ENGINES: Final = ("auto", "unicorn", "kvm")
_CHOICE: Final = "XENOLITH_ENGINE"
"""The environment variable that says what "auto" means."""


def create_engine(name: str, ram: Ram, ram_ranges: list[range] | None = None, counts_work: bool = False) -> Engine:
    """The engine called `name`, or one that can count work if it must. Raises UserError where it is unusable."""
    if name == "auto":
        name = os.environ.get(_CHOICE, "unicorn") if not counts_work else "unicorn"
    if name == "kvm":
        from xenolith.cpu.kvm import KvmEngine

        return KvmEngine(ram, ram_ranges)
    from xenolith.cpu.unicorn import UnicornEngine

    return UnicornEngine(ram, ram_ranges)
