"""GRUB as a PV guest: to its prompt, and an answer to what is typed there."""

from __future__ import annotations

from tests.boot.conftest import Kernel, Record
from tests.boot.guests import GUEST, Row
from tests.boot.terminal import terminal


def test_grub_answers_at_its_prompt(kernel: Kernel, record: Record) -> None:
    with terminal("run", kernel("grub"), "--memory", "64MiB") as screen:
        screen.expect("GNU GRUB  version ")
        version = screen.expect("\n").strip()
        screen.expect("grub> ")
        record(Row("grub", GUEST, version, "its prompt", "nothing was typed"))
        screen.type("ls\r")
        assert "(memdisk)" in screen.expect("grub> ")
        screen.type("echo $grub_cpu-$grub_platform\r")
        assert "x86_64-xen" in screen.expect("grub> ")
        screen.type("cat (memdisk)/grub.cfg\r")
        assert "pvboot" in screen.expect("grub> ")
        record(Row("grub", GUEST, version, "its prompt", "`ls`, `echo` and `cat` answer; `halt` ends it"))
        screen.type("halt\r")
        assert screen.wait() == 0
        assert screen.left() == []
