"""Many guests: what each costs of our own memory, and that none leaves anything. `make bench` has more of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import many
from benchmarks.common import Unavailable
from tests.boot.conftest import Kernel
from tests.guest.census import census, resident, settle
from tests.guest.pvguest import TestMachine
from xenolith.toolstack import guest_file
from xenolith.toolstack.config import MachineConfig
from xenolith.toolstack.presets import preset

_MIB = 1 << 20
_LINUX_AT_ONCE = int(os.environ.get("XENOLITH_LINUX_GUESTS", "2"))
_LINUX_IN_A_ROW = int(os.environ.get("XENOLITH_LINUX_GUESTS", "2"))
_BOOT_S = 120.0


def test_two_hundred_tiny_guests_at_once() -> None:
    """The last ones take no longer than the first, with room for a busy host."""
    try:
        found = many.tiny_guests(200)
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert found[many.MEMORY.name] < 5
    assert found[many.LAST.name] < 4 * found[many.FIRST.name] + 0.05


def test_linux_guests_at_once() -> None:
    """All with a console, a disk and a network. The engine's own tables are shared, so that few have more each."""
    try:
        found = many.linux_guests(_LINUX_AT_ONCE)
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert found[many.MEMORY.name] * _LINUX_AT_ONCE < 5 * _LINUX_AT_ONCE + 100


def test_linux_guests_in_a_row_leave_nothing(tmp_path: Path, kernel: Kernel) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(_MIB))
    options = {
        "name": "linux",
        "kernel": str(kernel("debian")),
        "memory": "128MiB",
        "disk": (f"{disk},raw,xvda,rw",),
        "vif": ("bridge=lan",),
        "exec": "cat /dev/xvda > /dev/null; ip address add 10.0.0.2/24 dev eth0; ip link set eth0 up",
    }
    machine = TestMachine(None, config=MachineConfig(memory=200 * _MIB, domains=preset("split")), place=tmp_path)
    try:
        counts, sizes = [], []
        for _ in range(1 + _LINUX_IN_A_ROW):
            machine.do(machine.toolstack.create(guest_file.load(None, options)))
            machine.run(lambda: not machine.toolstack.guests, _BOOT_S)
            settle(machine)
            counts.append(census(machine))
            sizes.append(resident())
        assert counts[1:] == counts[:-1]
        # Apart from what the engine has translated, which has a limit of its own.
        assert sizes[-1] - sizes[0] < 96 * _MIB + 2 * _MIB * _LINUX_IN_A_ROW
        machine.check()
    finally:
        machine.close()
