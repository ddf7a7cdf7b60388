"""Disks of unmodified guests: nothing that was synced is lost by reboots and kills, disks come and go under load, and
GRUB boots from one."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.boot.background import Background, background
from tests.boot.conftest import Kernel
from tests.boot.linux import COMPLAINTS
from tests.boot.terminal import terminal
from xenolith.loader import registry
from xenolith.loader.image import KernelImage

_MIB: Final = int(os.environ.get("XENOLITH_DISK_MIB", "16"))
"""How much is written. Checksums under emulation are what takes the time of this test: with 256, minutes."""
_LIMIT_S: Final = 120.0 + 5 * _MIB
_MAKER: Final = "mke2fs"
_SCRIPT: Final = r"""
say() { echo "@@ $*"; }
digest() { sha256sum < $1 | cut -c 1-64; }
mkdir -p /mnt
if mount -t ext4 /dev/xvda /mnt 2> /dev/null; then
    say rebooted $(digest /mnt/data)
    umount /mnt
    poweroff -f
fi
/root/mke2fs -q -t ext4 /dev/xvda
mount -t ext4 /dev/xvda /mnt
dd if=/dev/urandom of=/tmp/block bs=1M count=1 2> /dev/null
n=0; while [ $n -lt @MIB@ ]; do echo $n; cat /tmp/block; n=$((n + 1)); done | tee /mnt/data | sha256sum > /tmp/sum
sync
say written $(cut -c 1-64 /tmp/sum)
while [ ! -e /tmp/stop ]; do dd if=/tmp/block of=/mnt/load bs=64k conv=fsync 2> /dev/null || say failed; done &
for disk in 1 2; do
    while [ ! -b /dev/xvdb ]; do sleep 0.2; done
    say plugged $(cat /sys/block/xvdb/size) $(digest /dev/xvdb)
    while [ -b /dev/xvdb ]; do sleep 0.2; done
    say unplugged
done
touch /tmp/stop; wait
umount /mnt
mount -t ext4 /dev/xvda /mnt
cmp /tmp/block /mnt/load && say again $(digest /mnt/data)
umount /mnt
reboot -f
""".replace("@MIB@", str(_MIB))


@pytest.fixture
def ramdisk(kernel: Kernel, tmp_path: Path) -> Path:
    """The script above, the drivers that it needs, and the host's mke2fs: busybox has one for ext2 only."""
    path = shutil.which(_MAKER, path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
    if path is None:
        pytest.skip(f"{_MAKER} (e2fsprogs) is not on this host")
    needs = re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout)
    files = [word for need in needs for word in ("--file", f"{os.path.realpath(need)}:{need}")]
    modules = [word for name in ("xen-blkfront", "crc32c_generic", "ext4") for word in ("--module", name)]
    made = tmp_path / "ramdisk"
    machine = Background(tmp_path)
    machine.do(
        "ramdisk", "-o", made, "--kernel", kernel("debian-cloud"), *modules, *files, "--file", f"{path}:/root/{_MAKER}",
        "--exec", _SCRIPT,
    )  # fmt: skip
    return made


def marks(machine: Background, mark: str) -> list[str]:
    """What follows on each line "@@ MARK" that the guest has printed."""
    return re.findall(rf"@@ {mark} ?([^\r\n]*)\r?\n", machine.console("guest"))


def expect(machine: Background, mark: str, times: int = 1) -> str:
    """Wait for a mark's line to come for the so many'th time; what follows on it."""
    machine.wait(lambda: len(marks(machine, mark)) >= times, f"'{mark}' ({times})", _LIMIT_S)
    return marks(machine, mark)[times - 1]


def test_nothing_that_was_synced_is_lost(ramdisk: Path, tmp_path: Path) -> None:
    disk, other = tmp_path / "disk", tmp_path / "other"
    disk.touch()
    os.truncate(disk, (_MIB + 64) << 20)
    other.write_bytes(os.urandom(1 << 20))
    with background(tmp_path, "--preset", "split", "--machine-memory", "320MiB") as machine:
        machine.do(
            "create", "--name", "guest", "--kernel", "debian-cloud", "--ramdisk", ramdisk, "--memory", "256MiB",
            "--disk", f"{disk},raw,xvda,w",
        )  # fmt: skip
        written = expect(machine, "written")
        for times in (1, 2):
            machine.do("service", "kill", "block")
            machine.do("block-attach", "guest", f"{other},raw,xvdb,r")
            machine.do("service", "kill", "block")
            expected = f"{(1 << 20) // 512} {hashlib.sha256(other.read_bytes()).hexdigest()}"
            assert expect(machine, "plugged", times) == expected
            machine.do("block-detach", "guest", "xvdb")
            expect(machine, "unplugged", times)
        assert expect(machine, "again") == written
        assert expect(machine, "rebooted") == written
        said = machine.console("guest")
        assert "@@ failed" not in said
        assert not COMPLAINTS.search(said), said
        starts = {service["name"]: service["starts"] for service in machine.json("service", "list")}
        assert starts["block"] == 5, "only those who were killed were started again"
    subprocess.run(["fsck.ext4", "-fn", disk], check=True, capture_output=True)


def test_grub_boots_from_a_disk(kernel: Kernel, tmp_path: Path) -> None:
    if shutil.which(_MAKER) is None:
        pytest.skip(f"{_MAKER} (e2fsprogs) is not on this host")
    machine, tree, disk = Background(tmp_path), tmp_path / "tree", tmp_path / "disk"
    pulled = registry.pulled(kernel("debian-cloud"))
    assert pulled is not None
    (tree / "boot").mkdir(parents=True)
    (tree / "boot/vmlinux").write_bytes(KernelImage.read(pulled.file).elf.data)  # this GRUB has no xz
    machine.do("ramdisk", "-o", tree / "boot/initrd", "--kernel", "debian-cloud", "--exec", "echo from the disk")
    subprocess.run([_MAKER, "-q", "-t", "ext2", "-d", tree, disk, "128M"], check=True, capture_output=True)
    with background(tmp_path, "--preset", "split", "--machine-memory", "300MiB") as machine:
        machine.do(
            "create", "--name", "guest", "--kernel", kernel("grub"), "--memory", "256MiB",
            "--disk", f"{disk},raw,xvda,r",
        )  # fmt: skip
        with terminal("console", "guest", XDG_RUNTIME_DIR=str(tmp_path)) as screen:
            screen.type("\r")
            screen.expect("grub> ")
            screen.type("ls\r")
            assert "(xen/xvda)" in screen.expect("grub> ")
            screen.type("ls (xen/xvda)/boot/\r")
            assert "vmlinux" in screen.expect("grub> ")
            screen.type("linux (xen/xvda)/boot/vmlinux console=hvc0 noreplace-smp\r")
            screen.expect("grub> ")
            screen.type("initrd (xen/xvda)/boot/initrd\r")
            screen.expect("grub> ")
            screen.type("boot\r")
            screen.expect("from the disk")
