"""A machine whose time is its work: the same machine twice gives the same output and the same events."""

from __future__ import annotations

from pathlib import Path

from tests.boot.command_line import run
from tests.boot.conftest import Kernel

_SCRIPT = """
date; cat /proc/uptime; sleep 600; cat /proc/uptime; date
head -c 16 /dev/urandom | od -An -tx1
seq 1 3000 | sha256sum
cat /proc/interrupts
"""


def test_two_runs_are_the_same(kernel: Kernel, tmp_path: Path) -> None:
    logs = [tmp_path / "first", tmp_path / "second"]
    first, second = (
        run("run", kernel("debian-cloud"), "--vcpus", "2", "--clock", "virtual", "--exec", _SCRIPT, "--log", log)
        for log in logs
    )
    assert first.status == 0, first.log
    assert first.seconds < 300, "idle time is skipped"
    assert "2024" in first.output
    assert first.output == second.output
    assert logs[0].read_bytes() == logs[1].read_bytes()
    assert len(logs[0].read_bytes()) > 1000
