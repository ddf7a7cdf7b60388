"""A shared directory under an unmodified Linux: both ends see the same files, also while the service is killed."""

from __future__ import annotations

import filecmp
import os
import random
import re
import stat
import time
from pathlib import Path
from typing import Final

from tests.boot.background import Background, background
from tests.boot.conftest import Kernel
from tests.boot.linux import COMPLAINTS

_BYTES: Final = 20 << 20
_LISTED: Final = 1000
"""Files in one directory that the guest lists."""
_COPIED: Final = int(os.environ.get("XENOLITH_SHARE_FILES", "50"))
"""Files that the guest copies: 35 requests each, which take 0.1 s under emulation."""
_KILLS: Final = 8
_LIMIT_S: Final = 120.0 + _COPIED
_SCRIPT: Final = r"""
say() { echo "@@ $*"; }
check() { "$@" || say failed "$*"; }
mkdir -p /mnt
check mount -t 9p -o trans=xen,version=9p2000.L home /mnt
cd /mnt
say mounted $(cat greeting)
check dd if=big of=copy bs=128k 2> /dev/null
say copied
check cp -r tree same
say tree $(find same -type f | wc -l) $(ls many | wc -l)
mkdir made; echo text > made/a; check mv made/a made/b; check ln -s b made/link; check ln made/b made/hard
check chmod 640 made/b; check touch -d '2001-02-03 04:05:06' made/b; check mv made moved
echo more >> moved/link; check rm moved/hard greeting
say sees $(cat moved/link) $(stat -c '%a %h %F' moved/b) $(readlink moved/link)
check mkdir gone; check rmdir gone; rm moved 2> /dev/null && say failed rm
say asks; while [ ! -e answer ]; do sleep 0.2; done
say heard $(cat answer)
cd /; check umount /mnt
say end
"""


def _fill(directory: Path) -> None:
    """What the guest finds: a greeting, a long file, a tree of short ones, and a directory of many that are empty."""
    (directory / "greeting").write_text("hello")
    (directory / "big").write_bytes(os.urandom(_BYTES))
    (directory / "many").mkdir()
    for number in range(_LISTED):
        (directory / "many" / f"this is number {number}").touch()
    for number in range(_COPIED):
        file = directory / "tree" / str(number % 7) / f"file {number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(number))


def _said(machine: Background, mark: str) -> str | None:
    """What the guest printed after a mark."""
    found = re.search(rf"@@ {mark}\b ?([^\r\n]*)\r?\n", machine.console("guest"))
    return found and found[1]


def _expect(machine: Background, mark: str) -> str:
    machine.wait(lambda: _said(machine, mark) is not None, f"'{mark}'", _LIMIT_S)
    return _said(machine, mark) or ""


def _kill_until(machine: Background, mark: str) -> int:
    """Kill the service now and then until the guest prints a mark; how often."""
    chance, kills = random.Random(9), 0
    while _said(machine, mark) is None and kills < _KILLS:
        machine.do("service", "kill", "9p")
        kills += 1
        time.sleep(chance.uniform(0.1, 0.5))
    _expect(machine, mark)
    return kills


def test_a_guest_and_the_host_share_a_directory(kernel: Kernel, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    _fill(share)
    with background(tmp_path, "--preset", "split", "--machine-memory", "320MiB") as machine:
        machine.do(
            "create", "--name", "guest", "--kernel", kernel("debian"), "--memory", "256MiB",
            "--p9", f"tag=home,path={share}", "--exec", _SCRIPT,
        )  # fmt: skip
        assert _expect(machine, "mounted") == "hello"
        kills = _kill_until(machine, "copied")
        kills += _kill_until(machine, "tree")
        assert kills >= 4, "the service was killed while files were copied"
        assert _said(machine, "tree") == f"{_COPIED} {_LISTED}"
        assert _expect(machine, "sees") == "text more 640 1 regular file b"
        _expect(machine, "asks")
        (share / "answer").write_text("from the host")
        assert _expect(machine, "heard") == "from the host"
        _expect(machine, "end")
        said = machine.console("guest")
        assert "@@ failed" not in said, said
        assert not COMPLAINTS.search(said), said
        starts = {service["name"]: service["starts"] for service in machine.json("service", "list")}
        assert 4 < starts["9p"] <= 1 + kills  # who is killed before it has started is started once
        assert "failed" not in machine.log
    assert filecmp.cmp(share / "big", share / "copy", shallow=False)
    for file in (share / "tree").rglob("file *"):
        assert file.read_bytes() == (share / "same" / file.relative_to(share / "tree")).read_bytes()
    assert sorted(os.listdir(share)) == ["answer", "big", "copy", "many", "moved", "same", "tree"]
    assert sorted(os.listdir(share / "moved")) == ["b", "link"]
    status = (share / "moved" / "b").stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert (share / "moved" / "b").read_text() == "text\nmore\n"
    assert os.readlink(share / "moved" / "link") == "b"
