"""The smallest guests: an ELF file with notes, and one as kernels were before there were notes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.boot.command_line import run
from tests.boot.conftest import Record
from tests.boot.guests import GUEST, Row

_CHECKED = {
    "hello": "its notes, its command line, its console, system calls as hypercalls",
    "legacy": "addresses from 0, its command line, its console, the hypercall page",
}


@pytest.mark.parametrize("name", ["hello", "legacy"])
def test_a_small_guest(name: str, record: Record, request: pytest.FixtureRequest) -> None:
    """It says what it was told, and powers off."""
    guest: Path = request.getfixturevalue(name)
    ended = run("run", guest, "--cmdline", "moon", "--memory", "8MiB")
    record(Row(name, GUEST, "–", "poweroff" if ended.status == 0 else "nothing", _CHECKED[name]))
    assert (ended.status, ended.output, ended.errors) == (0, "Hello, moon\n", ""), ended.log
    assert ended.left == []


def test_what_is_said_of_the_legacy_guest(legacy: Path) -> None:
    ended = run("inspect", legacy, "--json")
    told = json.loads(ended.output)
    assert told["boots"]
    assert told["xen_guest_section"].startswith("GUEST_OS=hello,XEN_VER=xen-3.0,VIRT_BASE=0x0,")
    assert {note["name"]: note["value"] for note in told["notes"]}["HYPERCALL_PAGE"] == 0x2000
    assert told["entry"] == 0x1000
