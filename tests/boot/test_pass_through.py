"""PCI devices that work for guests: lent by the native hardware domain, and by Linux's xen-pciback with Debian's xl."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.background import Background
from tests.boot.command_line import XENOLITH
from tests.boot.dom0 import GUEST, Dom0, dom0, require_dom0
from xenolith.loader import registry

_MIB = 8
_DEVICE = "00:01.0"
_USER = """\
name = "user"
kernel = "/root/vmlinuz"
ramdisk = "/root/user.img"
extra = "console=hvc0 quiet noreplace-smp"
memory = 96
pci = ["00:01.0"]
"""
_DESCRIBED = """\
[machine]
preset = "split"
[[machine.device]]
model = "nvme"
target = "{image}"
[domain.user]
kernel = "debian-cloud"
memory = "128MiB"
pci = ["{device}"]
exec = "sha256sum /dev/nvme0n1"
"""
_MISPROGRAM = """\
echo 0000:00:01.0 > /sys/bus/pci/drivers/nvme/unbind
printf '\\006' | dd of=/sys/bus/pci/devices/0000:00:01.0/config bs=1 seek=4 conv=notrunc 2> /dev/null
bar=$(head -1 /sys/bus/pci/devices/0000:00:01.0/resource | cut -d' ' -f1)
set_register() { devmem $((bar + $1)) 32 $2; }
set_register 0x14 0; set_register 0x24 0x000f000f
set_register 0x28 0x38fff000; set_register 0x2c 0; set_register 0x30 0x38ffe000; set_register 0x34 0
set_register 0x14 0x00460001; sleep 1; set_register 0x1000 1; sleep 1
devmem $((bar + 0x1c)) 32
"""
"""Have the controller fetch its commands, as dom0 can tell it to, from memory that is not dom0's."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(hashlib.shake_128(b"disk").digest(_MIB << 20))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def native(tmp_path: Path, image: Path) -> Iterator[Background]:
    if registry.pulled("debian-cloud") is None:
        pytest.skip("the kernel debian-cloud is not in the cache: 'xenolith pull debian-cloud' brings it")
    machine = Background(tmp_path)
    try:
        machine.do("boot", "--preset", "split", "--device", f"nvme,target={image}", "--detach")
        yield machine
    finally:
        machine.close()


def test_the_native_hardware_domain_lends_a_device(native: Background, image: Path) -> None:
    """To one guest at a time, with messages; again after that has ended, and while its own code is started again."""
    ways = ("--kernel", "debian-cloud", "--memory", "128MiB", "--pci", _DEVICE)
    native.do("create", "--name", "one", *ways)
    native.wait_console("one", "guest:~# ")
    assert "works for another guest" in native.refused("create", "--name", "two", *ways)
    assert "there is no PCI function" in native.refused("create", "--name", "two", "--pci", "00:1f.0", *ways[:-2])
    assert digest(image) in native.run("one", "sha256sum /dev/nvme0n1")
    assert "xen-pirq    -pcifront-msi-x  nvme0q1" in native.run("one", "cat /proc/interrupts")
    native.do("service", "kill", "hardware")
    native.run("one", "head -c 65536 /dev/urandom > /dev/nvme0n1; sync")
    said = native.run("one", "echo 3 > /proc/sys/vm/drop_caches; sha256sum /dev/nvme0n1")
    assert digest(image) in said
    native.do("destroy", "one")
    native.do("create", "--name", "two", "--exec", "sha256sum /dev/nvme0n1", *ways)
    native.wait_console("two", digest(image))


def test_a_guest_that_is_described_has_its_device_from_the_start(tmp_path: Path, image: Path) -> None:
    if registry.pulled("debian-cloud") is None:
        pytest.skip("the kernel debian-cloud is not in the cache: 'xenolith pull debian-cloud' brings it")
    description, machine = tmp_path / "machine.toml", Background(tmp_path)
    description.write_text(_DESCRIBED.format(image=image, device="00:07.0"))
    assert "user cannot have the PCI device 0000:00:07.0" in machine.refused("boot", description)
    description.write_text(_DESCRIBED.format(image=image, device=_DEVICE))
    try:
        machine.do("boot", description, "--detach")
        machine.wait_console("user", digest(image))
    finally:
        machine.close()


@pytest.fixture
def linux(tmp_path: Path, image: Path) -> Iterator[Dom0]:
    require_dom0()
    found = registry.pulled("debian-cloud")
    assert found is not None
    (tmp_path / "user.cfg").write_text(_USER)
    (tmp_path / "guest.sh").write_text(GUEST)
    (tmp_path / "misprogram.sh").write_text(_MISPROGRAM)
    _ramdisk("debian-cloud", tmp_path / "user.img", "--module", "xen-pcifront")
    files = [(tmp_path / name, name) for name in ("user.cfg", "guest.sh", "misprogram.sh", "user.img")] + [
        (found.file, "vmlinuz")
    ]
    given = [word for path, name in files for word in ("--file", f"{path}:/root/{name}")]
    _ramdisk("debian", tmp_path / "dom0.img", "--tools", "--module", "nvme", *given)
    options = ("--preset", "dom0", "--kernel", "debian", "--ramdisk", tmp_path / "dom0.img", "--cmdline", "quiet")
    with dom0(tmp_path, *options, "--device", f"nvme,target={image}", "--machine-memory", "1GiB") as machine:
        yield machine


def _ramdisk(kernel: str, path: Path, *options: str | Path) -> None:
    subprocess.run([XENOLITH, "ramdisk", "--kernel", kernel, *options, "-o", path], check=True, capture_output=True)


def test_xl_passes_a_device_on_and_a_misprogrammed_one_reaches_nothing(linux: Dom0, image: Path) -> None:
    linux.sh("modprobe xen-pciback; xl pci-assignable-add 00:01.0")
    assert linux.sh("xl pci-assignable-list").split() == ["0000:00:01.0"]
    for _ in range(2):
        assert linux.sh("xl create -q /root/user.cfg") == ""
        assert digest(image) in linux.sh("guest user 'sha256sum /dev/nvme0n1'")
        assert linux.sh("xl pci-list user").split()[-1] == "0000:00:01.0"
        # While the guest's driver has its interrupt bound.
        assert linux.sh("xl pci-detach user 00:01.0") == ""
        assert linux.sh("xl pci-list user; xl pci-assignable-list").split() == ["0000:00:01.0"]
        assert linux.sh("xl pci-attach user 00:01.0") == ""
        there = "until [ -b /dev/nvme0n1 ]; do sleep 0.1; done"
        assert digest(image) in linux.sh(f"guest user '{there}; sha256sum /dev/nvme0n1'")
        linux.sh("xl destroy user")
        assert linux.sh("xl pci-assignable-list").split() == ["0000:00:01.0"]
    linux.sh("xl pci-assignable-remove -r 00:01.0; soon '[ -b /dev/nvme0n1 ]'")
    assert digest(image) in linux.sh("sha256sum /dev/nvme0n1")

    status = int(linux.sh("sh /root/misprogram.sh").split()[-1], 16)
    assert status & 2, "the controller says that it has failed"
    assert "(XEN) IOMMU: PCI function 0000:00:01.0 of d0 reads 64 bytes at 0x38fff000, where it may not" in linux.sh(
        "xl dmesg"
    )
