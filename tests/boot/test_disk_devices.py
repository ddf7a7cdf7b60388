"""Disks behind PCI in a control domain, driven by the drivers that Linux has for them; systems that boot from such."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.boot.command_line import run
from tests.boot.conftest import Kernel
from tests.boot.linux import sections
from xenolith.loader import registry

_KIB: Final = 1024
_DISK: Final = b"".join(hashlib.sha256(str(number).encode()).digest() for number in range(2048 * _KIB // 32))
_WRITTEN_AT: Final = 1024 * _KIB
_WRITTEN: Final = 256 * _KIB

_SCRIPT: Final = r"""
section() { echo "@@ $1"; }
digest() { sha256sum | cut -c 1-64; }
while [ ! -b /dev/@NAME@ ]; do sleep 0.1; done
section size; cat /sys/block/@NAME@/size /sys/block/@NAME@/ro
section read; digest < /dev/@NAME@
head -c 262144 /dev/urandom > /tmp/data
dd if=/tmp/data of=/dev/@NAME@ bs=64k seek=16 conv=fsync 2> /dev/null
dd if=/tmp/data of=/dev/@NAME@ bs=4k seek=384 count=4 oflag=direct 2> /dev/null
echo 3 > /proc/sys/vm/drop_caches
section written; digest < /tmp/data; dd if=/dev/@NAME@ bs=64k skip=16 count=4 2> /dev/null | digest
section small; head -c 16384 /tmp/data | digest
section interrupts; grep @INTERRUPT@ /proc/interrupts
section end
"""


class Model(NamedTuple):
    """How Linux knows a model: its driver, the disk's name, what its interrupts are called."""

    modules: tuple[str, ...]
    name: str
    interrupt: str


_MODELS: Final = {
    "nvme": Model(("nvme",), "nvme0n1", "nvme0q1"),
    "ahci": Model(("ahci", "sd_mod"), "sda", "ahci"),
    "virtio-blk": Model(("virtio_pci", "virtio_blk"), "vda", "virtio0-req"),
}


@pytest.mark.parametrize("model", _MODELS)
def test_linux_reads_and_writes_a_disk(model: str, kernel: Kernel, tmp_path: Path) -> None:
    """What it reads is what the host has, and the host has what it wrote, by the messages of the device."""
    disk, ramdisk = tmp_path / "disk.img", tmp_path / "ramdisk"
    disk.write_bytes(_DISK)
    modules, name, interrupt = _MODELS[model]
    made = run(
        "ramdisk", "-o", ramdisk, "--kernel", kernel("debian"), *(f"--module={module}" for module in modules),
        "--exec", _SCRIPT.replace("@NAME@", name).replace("@INTERRUPT@", interrupt),
    )  # fmt: skip
    assert made.status == 0, made.log
    ended = run("boot", "--kernel", "debian", "--ramdisk", ramdisk, "--device", f"{model},target={disk}")
    assert ended.status == 0, ended.log
    found = sections(ended)
    assert found.complaints == [], ended.log
    assert found.lines("size") == [str(len(_DISK) // 512), "0"]
    assert found.lines("read") == [hashlib.sha256(_DISK).hexdigest()]
    content = disk.read_bytes()
    written = content[_WRITTEN_AT : _WRITTEN_AT + _WRITTEN]
    assert found.lines("written") == [hashlib.sha256(written).hexdigest()] * 2
    assert found.lines("small") == [hashlib.sha256(content[1536 * _KIB : 1552 * _KIB]).hexdigest()]
    assert content[:_WRITTEN_AT] == _DISK[:_WRITTEN_AT]
    assert re.search(r": +[1-9]\d* +xen-pirq +-msi(-x)? ", found.text("interrupts")), found.text("interrupts")


_PINS: Final = r"""
section() { echo "@@ $1"; }
head -c 262144 /dev/urandom > /tmp/data
for name in @NAMES@; do
    while [ ! -b /dev/$name ]; do sleep 0.1; done
    dd if=/tmp/data of=/dev/$name bs=64k conv=fsync 2> /dev/null
done
echo 3 > /proc/sys/vm/drop_caches
section data; sha256sum < /tmp/data | cut -c 1-64
for name in @NAMES@; do
    section $name; head -c 262144 /dev/$name | sha256sum | cut -c 1-64
done
section interrupts; grep -E "nvme|ahci|virtio" /proc/interrupts
"""


def test_disks_interrupt_by_their_pins_where_linux_wants_no_messages(kernel: Kernel, tmp_path: Path) -> None:
    """One of each model in one machine."""
    options = list[str]()
    for model in _MODELS:
        disk = tmp_path / model
        disk.write_bytes(bytes(_WRITTEN))
        options += ["--device", f"{model},target={disk}"]
    script = _PINS.replace("@NAMES@", " ".join(model.name for model in _MODELS.values()))
    ended = run("boot", "--kernel", kernel("debian"), *options, "--cmdline", "pci=nomsi", "--exec", script)
    assert ended.status == 0, ended.log
    found = sections(ended)
    assert found.complaints == [], ended.log
    for name, model in _MODELS.items():
        assert found.lines(model.name) == found.lines("data") != [], name
        assert [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()] == found.lines("data"), name
    assert len(re.findall(r": +[1-9]\d* +xen-pirq +-ioapic-level ", found.text("interrupts"))) == len(_MODELS)


_LABEL: Final = "system"
_INIT: Final = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
echo "@@ root"; awk '$2 == "/" {print $1, $3}' /proc/mounts; cat /etc/name
echo "@@ capabilities"; cat /proc/xen/capabilities
echo "@@ interrupts"; grep nvme0q1 /proc/interrupts
head -c 100000 /dev/urandom > /data
echo "@@ data"; sha256sum < /data | cut -c 1-64
mount -o remount,ro /
poweroff -f
"""


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A disk with an ext4 file system, and in it a small system that says what it is and powers off."""
    maker = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
    if maker is None:
        pytest.skip("mkfs.ext4 (e2fsprogs) is not on this host")
    busybox = registry.busybox()
    if busybox is None:
        pytest.skip("busybox is not in the cache")
    tree, image = tmp_path / "tree", tmp_path / "system.img"
    for directory in ("bin", "sbin", "etc", "dev", "proc", "sys", "run"):
        (tree / directory).mkdir(parents=True)
    shutil.copy(busybox, tree / "bin" / "busybox")
    (tree / "sbin" / "init").write_text(_INIT)
    (tree / "sbin" / "init").chmod(0o755)
    (tree / "etc" / "name").write_text("a system on a disk\n")
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run([maker, "-q", "-L", _LABEL, "-d", tree, image], check=True)
    return image


def test_a_control_domain_boots_from_a_disk(kernel: Kernel, system: Path) -> None:
    """The ramdisk that is made has the drivers, and goes on with the system on the disk."""
    ended = run(
        "boot", "--kernel", kernel("debian"), "--device", f"nvme,target={system}", "--cmdline", "root=/dev/nvme0n1"
    )
    assert ended.status == 0, ended.log
    found = sections(ended)
    assert found.complaints == [], ended.log
    assert found.lines("root") == ["/dev/nvme0n1 ext4", "a system on a disk"]
    assert found.lines("capabilities") == ["control_d"]
    assert "xen-pirq" in found.text("interrupts")
    dumped = subprocess.run(["debugfs", "-R", "cat /data", system], capture_output=True, check=True).stdout
    assert found.lines("data") == [hashlib.sha256(dumped).hexdigest()]
    assert len(dumped) == 100000


def test_a_ramdisk_goes_on_with_the_disk_that_it_was_made_for(kernel: Kernel, system: Path, tmp_path: Path) -> None:
    ramdisk = tmp_path / "ramdisk"
    made = run("ramdisk", "-o", ramdisk, "--kernel", kernel("debian"), "--root", f"LABEL={_LABEL}")
    assert made.status == 0, made.log
    ended = run("boot", "--kernel", "debian", "--ramdisk", ramdisk, "--device", f"virtio-blk,target={system}")
    assert ended.status == 0, ended.log
    assert sections(ended).lines("root") == ["/dev/vda ext4", "a system on a disk"]
