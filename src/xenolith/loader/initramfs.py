"""The first file system of a Linux guest: busybox, modules, the user's files, and an init that runs a command."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xenolith.errors import UserError
from xenolith.loader import cpio
from xenolith.loader.debian_dom0 import MODULES as CONTROL_MODULES
from xenolith.loader.debian_dom0 import START
from xenolith.loader.exit_marker import EXIT_MARKER
from xenolith.loader.modules import Module, ModuleTree

_COMMAND: Final = "etc/xenolith/command"
_MODULES: Final = "etc/xenolith/modules"
_TOOLS: Final = "etc/xenolith/tools"

_KERNEL_RUNS: Final = ("poweroff", "reboot", "modprobe")
"""What Linux itself starts, by its full path below /sbin: when it is asked to end, and when it lacks a module."""
PCI_DRIVERS: Final = {
    "nvme": ("nvme",),
    "ahci": ("ahci", "sd_mod"),
    "virtio-blk": ("virtio_pci", "virtio_blk"),
    "virtio-net": ("virtio_pci", "virtio_net"),
    "e1000e": ("e1000e",),
}
"""Drivers of the devices that a machine can have behind PCI, by their models."""
PCI_DISKS: Final = ("nvme", "ahci", "virtio-blk")
# ext4 asks for crc32c by a name that only an installed system's modules.alias resolves.
_EXT4: Final = ("crc32c_generic", "ext4")
_DRIVERS: Final = {
    "vbd": ("xen-blkfront", *_EXT4),
    "vif": ("xen-netfront",),
    "9pfs": ("9pnet_xen", "9p"),
    "pci": ("xen-pcifront", *(name for drivers in PCI_DRIVERS.values() for name in drivers)),
    "root": _EXT4,
}
_DEVICES: Final = {"vbd": "disks", "vif": "networks", "9pfs": "shared directories", "pci": "PCI devices"}

_INIT: Final = """\
#!/bin/busybox sh
export PATH=/sbin:/bin:/usr/sbin:/usr/bin HOME=/root
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /root /usr/bin /usr/sbin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null || { mount -t tmpfs dev /dev && mdev -s; }
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts 2>/dev/null
mount -t tmpfs run /run
while read -r module; do insmod "/lib/modules/$(uname -r)/$module"; done < /etc/xenolith/modules
[ -d /proc/xen ] && mount -t xenfs xenfs /proc/xen 2>/dev/null
name=guest
grep -q control_d /proc/xen/capabilities 2>/dev/null && name=dom0
hostname "$name"
[ -e /etc/xenolith/command ] || . /etc/xenolith/switch
[ -e /sys/class/net/eth0 ] && sh /etc/xenolith/network
[ -e /etc/xenolith/tools ] && . /etc/xenolith/tools
# busybox's poweroff, halt and reboot send these signals to process 1, which hears them because it only waits.
trap 'poweroff -f' USR2
trap 'halt -f' USR1
trap 'reboot -f' TERM
if [ -e /etc/xenolith/command ]; then
    sh /etc/xenolith/command < /dev/console &
    wait $!
    status=$?
    sync
    echo "@MARKER@$status"
    poweroff -f
fi
# Not started with "&", which would turn off the interrupt key for all that runs in the shell.
PS1="$name:\\\\w# " start-stop-daemon -S -b -x /bin/sh -- /etc/xenolith/shell
while true; do
    sleep 1000000000 &
    wait $!
done
""".replace("@MARKER@", EXIT_MARKER)

_SWITCH: Final = """\
root= type= flags= mode=rw init=/sbin/init
[ -e /etc/xenolith/root ] && root=$(cat /etc/xenolith/root)
for word in $(cat /proc/cmdline); do
    case $word in
    root=*) root=${word#root=} ;;
    rootfstype=*) type="-t ${word#*=}" ;;
    rootflags=*) flags=",${word#*=}" ;;
    init=*) init=${word#init=} ;;
    ro | rw) mode=$word ;;
    esac
done
if [ -n "$root" ]; then
    # Drivers find their disks some time after they were loaded.
    tenths=0
    until case $root in /*) device=$root; [ -b "$device" ] ;; *) device=$(findfs "$root" 2>/dev/null) ;; esac; do
        [ $((tenths += 1)) -le 300 ] || break
        sleep 0.1
    done
    if mount $type -o "$mode$flags" "$device" /mnt && [ -x "/mnt$init" -o -h "/mnt$init" ]; then
        for directory in dev proc sys run; do mount --move /$directory /mnt/$directory; done
        exec switch_root -c /dev/console /mnt "$init"
    fi
    echo "There is no system on the disk $root with a program $init. This is the ramdisk's shell."
fi
"""
"""Goes on with the system on a disk, if one is named by the kernel's command line or in the ramdisk."""

_NETWORK: Final = """\
ip link set lo up
# Otherwise TCP sends short packets as long as the network is slow, which it is because of short packets.
echo 44 > /proc/sys/net/ipv4/tcp_min_tso_segs
for word in $(cat /proc/cmdline); do
    case $word in ip=*)
        # As the kernel's own, which looks before there is a driver: ip=CLIENT:SERVER:GATEWAY:NETMASK:…
        IFS=:
        set -- ${word#ip=}
        interface=eth0 ip=$1 router=$3 mask=$4 exec sh /etc/udhcpc/default.script bound
    esac
done
for interface in /sys/class/net/eth*; do
    udhcpc -i "${interface##*/}" -b -t 2 -T 1 -O mtu > /dev/null 2>&1
done
"""
"""Gives network devices their addresses, when there are any: what the command line says, or what DHCP says."""

_DHCP: Final = """\
#!/bin/sh
# What busybox's udhcpc does with a lease.
case $1 in
deconfig)
    ip addr flush dev "$interface"
    ip link set "$interface" up
    ;;
bound | renew)
    [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
    ip addr flush dev "$interface"
    ip addr add "$ip/${mask:-24}" dev "$interface"
    ip link set "$interface" up
    for gateway in $router; do ip route replace default via "$gateway" dev "$interface"; done
    [ -z "$dns" ] || for server in $dns; do echo "nameserver $server"; done > /etc/resolv.conf
    ;;
esac
"""

_SHELL: Final = """\
cd /root
setsid cttyhack sh -c 'cat /etc/motd; exec sh'
poweroff
"""
"""The session on the console, which is its controlling terminal so that it has job control."""

_MOTD: Final = """
This is a Linux kernel on Xenolith, with busybox around it. 'exit' or 'poweroff' ends it.

"""


@dataclass(frozen=True, slots=True)
class ExtraFile:
    """A file or directory of the host and the absolute path that it gets in the guest."""

    source: Path
    destination: str

    @classmethod
    def parse(cls, text: str) -> ExtraFile:
        """Read "SRC:DST" or "SRC" (then DST is the same path). UserError if DST is not absolute."""
        source, _, destination = text.partition(":")
        destination = destination or os.path.abspath(source)
        if not source or not destination.startswith("/"):
            raise UserError(
                f"'{text}' does not name a file and its place in the guest", "write SRC:DST, with DST beginning with /"
            )
        return cls(Path(source), destination)


@dataclass(frozen=True, slots=True)
class Initramfs:
    """What goes into a ramdisk.

    `busybox` is a statically linked busybox for x86-64. `modules` are loaded at boot, in this order, each after
    what it needs; they come from `module_tree`. `command` is a shell command whose exit status is reported on the
    console (`exit_marker`) before the guest powers off; without one there is a shell on the console.
    """

    busybox: Path
    command: str | None = None
    modules: tuple[str, ...] = ()
    module_tree: ModuleTree | None = None
    files: tuple[ExtraFile, ...] = ()
    tools: Path | None = None
    """The tree of a control domain's tools (`debian_dom0`), whose daemons are started before all else."""
    root: str | None = None
    """The disk with the system that is to be started where the command line names none, as `root=` does."""

    def build(self) -> bytes:
        """The ramdisk: an uncompressed cpio archive, which a kernel under emulation unpacks quickest.

        UserError if something that belongs into it cannot be had.
        """
        entries: dict[str, cpio.Entry] = {}
        for entry in self._entries():
            _insert(entries, entry)
        return cpio.write(entries.values())

    def _entries(self) -> Iterator[cpio.Entry]:
        yield cpio.device("dev/console", 5, 1)
        yield cpio.device("dev/null", 1, 3, 0o666)
        yield cpio.file("bin/busybox", _read(self.busybox), 0o755)
        yield cpio.symlink("bin/sh", "busybox")
        for name in _KERNEL_RUNS:
            yield cpio.symlink(f"sbin/{name}", "../bin/busybox")
        yield cpio.file("init", _INIT.encode(), 0o755)
        yield cpio.file("etc/xenolith/shell", _SHELL.encode())
        yield cpio.file("etc/xenolith/network", _NETWORK.encode())
        yield cpio.file("etc/xenolith/switch", _SWITCH.encode())
        if self.root is not None:
            yield cpio.file("etc/xenolith/root", self.root.encode("utf-8", "surrogateescape"))
        yield cpio.file("etc/udhcpc/default.script", _DHCP.encode(), 0o755)
        yield cpio.file("etc/motd", _MOTD.encode())
        yield cpio.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        yield cpio.file("etc/group", b"root:x:0:\n")
        yield cpio.directory("root", 0o700)
        yield cpio.directory("tmp", 0o1777)
        yield cpio.directory("mnt")
        if self.command is not None:
            yield cpio.file(_COMMAND, self.command.encode("utf-8", "surrogateescape") + b"\n")
        yield from self._module_entries()
        if self.tools is not None:
            yield cpio.file(_TOOLS, START.encode())
            yield from _extra_entries(ExtraFile(self.tools, "/"))
        for extra in self.files:
            yield from _extra_entries(extra)

    def _module_entries(self) -> Iterator[cpio.Entry]:
        modules = self._closure()
        if self.module_tree is not None:
            base = f"lib/modules/{self.module_tree.version}"
            paths = {module.name: module.path for module in modules}
            for module in modules:
                yield cpio.file(f"{base}/{module.path}", module.data)
            yield cpio.file(f"{base}/modules.dep", "".join(_dep_line(module, paths) for module in modules).encode())
        yield cpio.file(_MODULES, "".join(f"{module.path}\n" for module in modules).encode())

    def _closure(self) -> list[Module]:
        if not self.modules:
            return []
        if self.module_tree is None:
            raise UserError(
                f"there are no modules to take '{self.modules[0]}' from",
                "name a kernel that was brought by 'xenolith pull', which brings its modules too",
            )
        return self.module_tree.closure(self.modules)


def standard_modules(
    tree: ModuleTree | None, kinds: Iterable[str] = (), models: Iterable[str] = (), *, tools: bool = False
) -> tuple[str, ...]:
    """The modules that every guest should have, as far as the kernel has them as modules: xenfs, for /proc/xen, the
    drivers for devices of these `kinds` ("vbd", "vif", "9pfs", "pci"; "root" is for a disk's file system) and for
    devices of the machine of these `models`, and what a control domain's `tools` need."""
    needed = CONTROL_MODULES if tools else ()
    drivers = [*(_DRIVERS[kind] for kind in kinds), *(PCI_DRIVERS[model] for model in models)]
    wanted = ("xenfs", *(name for names in drivers for name in names), *needed)
    return tuple(dict.fromkeys(name for name in wanted if tree is not None and name in tree))


def lacking(tree: ModuleTree | None, kinds: Iterable[str]) -> Iterator[str]:
    """A sentence for each kind of device that a kernel with these modules has no driver for. Nothing is known of a
    kernel whose modules are not there."""
    for kind in kinds:
        driver = _DRIVERS[kind][0]
        if tree is not None and not tree.provides(driver):
            yield f"the kernel {tree.version} has no {driver}, so that the guest cannot use its {_DEVICES[kind]}"


def _dep_line(module: Module, paths: dict[str, str]) -> str:
    """A line of modules.dep, so that modprobe works in the guest."""
    return f"{module.path}: {' '.join(paths[name] for name in module.depends if name in paths)}\n"


def _insert(entries: dict[str, cpio.Entry], entry: cpio.Entry) -> None:
    """Add an entry and the directories above it; a later file replaces an earlier one of the same name."""
    for parent in reversed(_parents(entry.name)):
        if not stat.S_ISDIR(entries.setdefault(parent, cpio.directory(parent)).mode):
            raise UserError(f"/{entry.name} cannot be put into the ramdisk: /{parent} is not a directory")
    present = entries.get(entry.name)
    if present is not None and stat.S_ISDIR(present.mode) != stat.S_ISDIR(entry.mode):
        raise UserError(f"/{entry.name} cannot be both a file and a directory in the ramdisk")
    entries[entry.name] = entry


def _parents(name: str) -> list[str]:
    """The directories above `name`, nearest first."""
    parents = []
    while name := posixpath.dirname(name):
        parents.append(name)
    return parents


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be put into the ramdisk: {error.strerror}") from None


def _extra_entries(extra: ExtraFile) -> Iterator[cpio.Entry]:
    """The user's file, or the directory with all that is in it. Symbolic links stay links."""
    destination = posixpath.normpath(extra.destination).strip("/")
    if not extra.source.is_dir():
        yield _entry(extra.source.resolve(), destination)
        return
    if destination:
        yield _entry(extra.source.resolve(), destination)
    for path in _walk(extra.source):
        yield _entry(path, posixpath.join(destination, path.relative_to(extra.source).as_posix()))


def _walk(directory: Path) -> Iterable[Path]:
    return sorted(directory.rglob("*"))


def _entry(path: Path, name: str) -> cpio.Entry:
    """One file of the host under its name in the guest, with its permissions, owned by root."""
    try:
        status = path.lstat()
    except OSError as error:
        raise UserError(f"{path} cannot be put into the ramdisk: {error.strerror}") from None
    permissions = stat.S_IMODE(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        return cpio.directory(name, permissions)
    if stat.S_ISLNK(status.st_mode):
        return cpio.symlink(name, os.readlink(path))
    if stat.S_ISREG(status.st_mode):
        return cpio.file(name, _read(path), permissions)
    raise UserError(f"{path} is a device, socket or pipe and cannot be put into the ramdisk")
