"""How a run can end, and what its exit status, its JSON and its log say of it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Final

import pytest

from tests.boot.command_line import Ended, Started, run
from tests.boot.conftest import Kernel

_KERNEL: Final = "debian-cloud"
_QUIET: Final = ("--cmdline", "quiet")
_SLOW_S: Final = 20
"""How much later than asked for something may end on a machine that is busy with other things."""


def test_the_status_of_a_command(kernel: Kernel, tmp_path: Path) -> None:
    """A command that fails gives 3; the JSON says how it ended, and the log what happened."""
    log = tmp_path / "log"
    ended = run("run", kernel(_KERNEL), *_QUIET, "--exec", "echo told; exit 7", "--json", "--log", log)
    assert ended.status == 3, ended.log
    told = json.loads(ended.output)
    assert (told["status"], told["shutdowns"], told["crashes"]) == (3, {"guest": "poweroff"}, [])
    assert 0 < told["seconds"] <= ended.seconds
    assert "told" in ended.errors
    assert "xenolith: exit status 7" in ended.errors
    events = [json.loads(line) for line in log.read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.index("create") < kinds.index("start") < kinds.index("shutdown")
    assert kinds.count("start") == kinds.count("shutdown") == 1
    times = [event["ns"] for event in events]
    assert times == sorted(times)
    assert ended.left == []


# -- crashes and reboots -----------------------------------------------------------------------------------------------


def test_a_guest_that_panics(kernel: Kernel) -> None:
    """A kernel that says by itself that it has crashed: status 4, and nothing of the command's after that."""
    command = "echo before; echo c > /proc/sysrq-trigger; echo after"
    ended = run("run", kernel(_KERNEL), "--exec", command, "--cmdline", "panic=1")
    assert ended.status == 4, ended.log
    assert "sysrq triggered crash" in ended.output
    assert "Kernel panic - not syncing" in ended.output
    assert "after" not in ended.output.splitlines()
    assert ended.errors == "xenolith: guest shut itself down and gave as its reason: crash\n"
    assert ended.left == []


def test_a_control_domain_that_panics(kernel: Kernel) -> None:
    ended = run("boot", "--kernel", kernel("debian"), "--exec", "echo c > /proc/sysrq-trigger", "--json")
    assert ended.status == 4, ended.log
    assert json.loads(ended.output)["shutdowns"] == {"dom0": "crash"}


def test_a_guest_that_does_what_it_may_not(hello: Path) -> None:
    """A report with the symbols that were given, or the same as JSON."""
    ended = run("run", hello, "--cmdline", "crash", "--symbols", hello)
    assert ended.status == 4, ended.log
    first, place, *more = ended.errors.splitlines()
    assert first.startswith("xenolith: ")
    assert "unhandled #UD" in first
    assert place.endswith(" crash+0x0")
    assert any("code: 0f 0b " in line for line in more)
    told = json.loads(run("run", hello, "--cmdline", "crash", "--json").output)
    assert told["status"] == 4
    assert [report["domain"] for report in told["crashes"]] == ["guest"]


def test_a_reboot_ends_the_run(hello: Path) -> None:
    ended = run("run", hello, "--cmdline", "reboot", "--json")
    assert ended.status == 0, ended.log
    assert json.loads(ended.output)["shutdowns"] == {"guest": "reboot"}


def test_a_reboot_of_the_control_domain_ends_the_run(kernel: Kernel) -> None:
    command = "echo 'xenolith: exit status 0'; reboot -f"
    ended = run("boot", "--kernel", kernel("debian"), *_QUIET, "--exec", command, "--json")
    assert ended.status == 0, ended.log
    assert json.loads(ended.output)["shutdowns"] == {"dom0": "reboot"}


# -- time limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", ["host", "virtual"])
@pytest.mark.parametrize("what", ["spin", "wait"])
def test_the_time_limit(what: str, clock: str, hello: Path) -> None:
    """With virtual time a guest that waits for nothing is found out at once."""
    ended = run("run", hello, "--cmdline", what, "--timeout", "1.5", "--clock", clock)
    if (what, clock) == ("wait", "virtual"):
        assert ended.status == 4, ended.log
        assert "nothing can come from outside" in ended.errors
    else:
        assert ended.status == 6, ended.log
        assert "the time limit of 1.5 s is over" in ended.errors
        assert 1.5 < ended.seconds < 1.5 + _SLOW_S
    assert ended.left == []


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("what", ["spin", "wait"])
def test_a_signal_leaves_nothing(what: str, number: signal.Signals, hello: Path) -> None:
    def interrupt(started: Started) -> None:
        started.wait_for(what)
        started.process.send_signal(number)
        started.process.send_signal(number)

    _check_interrupted(run("run", hello, "--cmdline", what, meanwhile=interrupt), number)


def test_a_signal_while_linux_computes(kernel: Kernel) -> None:
    def interrupt(started: Started) -> None:
        started.wait_for("computing")
        os.killpg(started.process.pid, signal.SIGINT)

    command = "echo computing; while true; do true; done"
    _check_interrupted(run("run", kernel(_KERNEL), *_QUIET, "--exec", command, meanwhile=interrupt), signal.SIGINT)


def _check_interrupted(ended: Ended, number: signal.Signals) -> None:
    # A second signal may find a process that has nothing left to do but to end, and ends it.
    assert ended.status in (128 + number, -number), ended.log
    assert "Traceback" not in ended.errors
    assert len(ended.errors.splitlines()) == 1, ended.errors
    assert ended.left == []


@pytest.mark.parametrize("delay_ms", [0, 30, 60, 90, 130, 180, 240, 320, 450])
def test_an_interruption_at_any_moment(delay_ms: int, hello: Path) -> None:
    """Ctrl-C from the first moment that is ours (before, it is Python that answers), while modules are imported, while
    the machine is built, and while the guest runs."""

    def interrupt(started: Started) -> None:
        while not _catches(started.process.pid, signal.SIGTERM):
            time.sleep(0.001)
        time.sleep(delay_ms / 1000)
        os.killpg(started.process.pid, signal.SIGINT)

    _check_interrupted(run("run", hello, "--cmdline", "spin", meanwhile=interrupt), signal.SIGINT)


def test_an_interruption_at_the_end(hello: Path) -> None:
    """Ctrl-C while a run that is over cleans up: it may come too late to change the status, but nothing is left."""
    for delay_ms in (0, 10, 30, 60):

        def interrupt(started: Started, seconds: float = delay_ms / 1000) -> None:
            started.wait_for("moon")
            time.sleep(seconds)
            started.process.send_signal(signal.SIGINT)

        ended = run("run", hello, "--cmdline", "moon", meanwhile=interrupt)
        assert ended.status in (0, 128 + signal.SIGINT, -signal.SIGINT), ended.log
        assert "Traceback" not in ended.errors, ended.log
        assert ended.left == []


def _catches(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
