"""A person at a terminal: typing in the guest, leaving it, and what it costs to sit at the prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.boot.conftest import Kernel
from tests.boot.terminal import terminal

_PROMPT = ":~# "


def test_a_session_in_the_control_domain(kernel: Kernel) -> None:
    """Type, interrupt, wait without using the processor, and power off."""
    with terminal("boot", "--kernel", kernel("debian"), "--cmdline", "quiet") as screen:
        before = screen.settings
        screen.expect(f"dom0{_PROMPT}")
        assert screen.settings != before
        screen.type("echo $((6 * 7)) $(cat /proc/xen/capabilities)\r")
        screen.expect("42 control_d")
        screen.expect(_PROMPT)
        screen.type("sleep 1000\r")
        screen.settle(1)
        screen.press("C")
        screen.expect(_PROMPT, 30)
        screen.settle(2)
        used = screen.processor_seconds()
        screen.settle(5)
        assert screen.processor_seconds() - used < 0.02 * 5
        screen.type("poweroff\r")
        assert screen.wait() == 0
        assert screen.settings == before
        assert screen.left() == []


def test_leaving_a_guest(kernel: Kernel) -> None:
    """A guest at its prompt uses no processor either; Ctrl-] leaves it."""
    with terminal("run", kernel("debian-cloud"), "--cmdline", "quiet") as screen:
        before = screen.settings
        screen.expect(f"guest{_PROMPT}")
        screen.settle(2)
        used = screen.processor_seconds()
        screen.settle(5)
        assert screen.processor_seconds() - used < 0.02 * 5
        screen.type("echo " + "0123456789" * 60 + " | wc -c\r")
        screen.expect("601")
        screen.press("]")
        assert screen.wait(30) == 0
        screen.expect("the console was left")
        assert screen.settings == before
        assert screen.left() == []


def test_leaving_while_the_guest_starts(kernel: Kernel) -> None:
    with terminal("run", kernel("debian-cloud")) as screen:
        before = screen.settings
        screen.expect("Linux version")
        screen.press("]")
        assert screen.wait(30) == 0
        assert screen.settings == before
        assert screen.left() == []


@pytest.mark.parametrize("what", ["spin", "wait"])
def test_a_terminal_that_goes_away(what: str, hello: Path) -> None:
    """What nobody can see or stop any more ends, whatever the guest does."""
    with terminal("run", hello, "--cmdline", what) as screen:
        screen.expect(what)
        screen.hang_up()
        screen.process.wait(30)
        assert screen.left() == []
