from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.unit.loader.module_maker import make_tree, module
from xenolith.errors import UserError
from xenolith.loader import cpio
from xenolith.loader.exit_marker import EXIT_MARKER, exit_status
from xenolith.loader.initramfs import PCI_DRIVERS, ExtraFile, Initramfs, lacking, standard_modules
from xenolith.toolstack.machine_devices import MODELS


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    path = tmp_path / "busybox"
    path.write_bytes(b"a program")
    return path


def contents(ramdisk: Initramfs) -> dict[str, cpio.Entry]:
    return {entry.name: entry for entry in cpio.read(ramdisk.build())}


def test_the_least(busybox: Path) -> None:
    files = contents(Initramfs(busybox))
    assert files["bin/busybox"].data == b"a program"
    assert stat.S_IMODE(files["bin/busybox"].mode) == 0o755
    assert stat.S_IMODE(files["init"].mode) == 0o755
    assert (stat.S_ISCHR(files["dev/console"].mode), files["dev/console"].rdev) == (True, (5, 1))
    assert files["bin/sh"].data == b"busybox"
    assert "etc/xenolith/command" not in files
    assert files["etc/xenolith/modules"].data == b""


def test_directories_come_before_what_is_in_them(busybox: Path) -> None:
    seen: set[str] = set()
    for entry in cpio.read(Initramfs(busybox, command="true").build()):
        assert os.path.dirname(entry.name) in seen | {""}
        seen.add(entry.name)


def test_the_command(busybox: Path) -> None:
    assert contents(Initramfs(busybox, command="echo 'é'"))["etc/xenolith/command"].data == "echo 'é'\n".encode()


def test_the_disk_to_go_on_with(busybox: Path) -> None:
    assert contents(Initramfs(busybox, root="LABEL=é"))["etc/xenolith/root"].data == "LABEL=é".encode()
    assert "etc/xenolith/root" not in contents(Initramfs(busybox))


def test_modules_in_the_order_of_loading(busybox: Path, tmp_path: Path) -> None:
    tree = make_tree(tmp_path, {"a.ko": module("b"), "x/b.ko": module()})
    files = contents(Initramfs(busybox, modules=("a",), module_tree=tree))
    assert files["etc/xenolith/modules"].data == b"kernel/x/b.ko\nkernel/a.ko\n"
    assert files["lib/modules/6.6.6/kernel/a.ko"].data == module("b")
    assert files["lib/modules/6.6.6/modules.dep"].data == b"kernel/x/b.ko: \nkernel/a.ko: kernel/x/b.ko\n"


def test_what_a_kernel_lacks_for_devices(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, {"xen-blkfront.ko": module()}, builtin="kernel/drivers/net/xen-netfront.ko")
    (sentence,) = lacking(tree, ("vbd", "vif", "9pfs"))
    assert sentence == "the kernel 6.6.6 has no 9pnet_xen, so that the guest cannot use its shared directories"
    assert not list(lacking(None, ("9pfs",)))


def test_modules_need_a_tree(busybox: Path) -> None:
    with pytest.raises(UserError, match="no modules to take 'a' from"):
        Initramfs(busybox, modules=("a",)).build()


def test_standard_modules(tmp_path: Path) -> None:
    tree = make_tree(
        tmp_path, {"xenfs.ko": module(), "xen-blkfront.ko": module(), "9p.ko": module(), "ext4.ko": module()}
    )
    assert standard_modules(tree, ["root"]) == ("xenfs", "ext4")
    assert standard_modules(tree) == ("xenfs",)
    assert standard_modules(tree, ["vbd", "vif", "9pfs"]) == ("xenfs", "xen-blkfront", "ext4", "9p")
    assert standard_modules(make_tree(tmp_path / "other", {})) == ()
    assert standard_modules(None) == ()


def test_extra_files(busybox: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/script").write_text("#!/bin/sh\n")
    (source / "sub/script").chmod(0o750)
    (source / "link").symlink_to("sub/script")
    files = contents(
        Initramfs(busybox, files=(ExtraFile(source, "/opt/x/"), ExtraFile(source / "sub/script", "/init.d/../run.sh")))
    )
    assert files["opt/x/sub/script"].data == b"#!/bin/sh\n"
    assert stat.S_IMODE(files["opt/x/sub/script"].mode) == 0o750
    assert files["opt/x/link"].data == b"sub/script"
    assert files["run.sh"].data == b"#!/bin/sh\n"


def test_a_directory_into_the_root(busybox: Path, tmp_path: Path) -> None:
    (tmp_path / "tree/etc").mkdir(parents=True)
    (tmp_path / "tree/etc/motd").write_text("mine\n")
    assert contents(Initramfs(busybox, files=(ExtraFile(tmp_path / "tree", "/"),)))["etc/motd"].data == b"mine\n"


def test_a_name_that_climbs_out_stays_inside(busybox: Path) -> None:
    names = contents(Initramfs(busybox, files=(ExtraFile(busybox, "/../../x"),)))
    assert "x" in names
    assert not any(name.startswith(("/", "..")) for name in names)


def test_a_file_cannot_be_a_directory(busybox: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/init is not a directory"):
        Initramfs(busybox, files=(ExtraFile(busybox, "/init/x"),)).build()
    with pytest.raises(UserError, match="/etc cannot be both"):
        Initramfs(busybox, files=(ExtraFile(busybox, "/etc"),)).build()


def test_what_cannot_be_put_in(busybox: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing cannot be put into the ramdisk: No such file"):
        Initramfs(busybox, files=(ExtraFile(tmp_path / "missing", "/x"),)).build()
    with pytest.raises(UserError, match="No such file"):
        Initramfs(tmp_path / "no-busybox").build()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="a device, socket or pipe"):
        Initramfs(busybox, files=(ExtraFile(tmp_path / "pipe", "/x"),)).build()


def test_extra_file_notation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ExtraFile.parse("a:/b") == ExtraFile(Path("a"), "/b")
    assert ExtraFile.parse("a") == ExtraFile(Path("a"), str(tmp_path / "a"))
    for bad in ("a:b", ":/b", ""):
        with pytest.raises(UserError, match="does not name a file"):
            ExtraFile.parse(bad)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (f"{EXIT_MARKER}0", 0),
        (f"{EXIT_MARKER}255\r\n", 255),
        (f"no newline before {EXIT_MARKER}3", 3),
        (f"{EXIT_MARKER}256", None),
        (f"{EXIT_MARKER}3 or so", None),
        (f"{EXIT_MARKER}", None),
        ("", None),
    ],
)
def test_exit_status(line: str, status: int | None) -> None:
    assert exit_status(line) == status


@pytest.mark.skipif(shutil.which("sh") is None, reason="no shell on this host")
@pytest.mark.parametrize(
    ("name", "word"), [("init", b"poweroff"), ("etc/xenolith/shell", b"poweroff"), ("etc/xenolith/switch", b"root=")]
)
def test_the_scripts_can_be_read_by_a_shell(busybox: Path, name: str, word: bytes) -> None:
    script = contents(Initramfs(busybox))[name].data
    assert word in script
    subprocess.run(["sh", "-n"], input=script, check=True, capture_output=True)


def test_drivers_of_the_machine_s_devices(tmp_path: Path) -> None:
    """As far as the kernel has them as modules, each once; there are some for every model."""
    tree = make_tree(tmp_path, {f"{name}.ko": module() for name in ("xenfs", "virtio_pci", "virtio_net", "nvme")})
    assert standard_modules(tree, models=["ahci", "nvme"]) == ("xenfs", "nvme")
    assert standard_modules(tree, models=["virtio-blk", "virtio-net"]) == ("xenfs", "virtio_pci", "virtio_net")
    assert set(MODELS) <= PCI_DRIVERS.keys()


def test_init_reports_with_the_marker(busybox: Path) -> None:
    script = contents(Initramfs(busybox))["init"].data.decode()
    assert f'echo "{EXIT_MARKER}$status"' in script
    assert "@" not in script


def test_a_control_domain_s_tools(busybox: Path, tmp_path: Path) -> None:
    """Their tree goes to the root as it is, and init starts the daemons."""
    (tmp_path / "tree/usr/bin").mkdir(parents=True)
    (tmp_path / "tree/usr/bin/xl").write_bytes(b"xl")
    (tmp_path / "tree/usr/bin/xen").symlink_to("xl")
    tree = make_tree(tmp_path, {"xenfs.ko": module(), "loop.ko": module(), "tun.ko": module()})
    assert standard_modules(tree) == ("xenfs",)
    files = contents(
        Initramfs(busybox, modules=standard_modules(tree, tools=True), module_tree=tree, tools=tmp_path / "tree")
    )
    assert (files["usr/bin/xl"].data, files["usr/bin/xen"].data) == (b"xl", b"xl")
    assert files["etc/xenolith/modules"].data == b"kernel/xenfs.ko\nkernel/loop.ko\nkernel/tun.ko\n"
    assert b"/etc/xenolith/tools" in files["init"].data
    assert b"xenstored " in files["etc/xenolith/tools"].data
