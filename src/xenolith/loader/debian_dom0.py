"""Debian's control domain: which files of which packages it is made of, and how its daemons are started."""

from __future__ import annotations

from typing import Final, NamedTuple


class Part(NamedTuple):
    """What is wanted of a package: paths without a leading slash, with shell wildcards that also match slashes."""

    package: str
    files: tuple[str, ...]


class Tree(NamedTuple):
    """A file system out of several packages, with the shared libraries that its programs need.

    `file` is the path that says that it is complete. `libraries` are those that programs load by name only.
    """

    alias: str
    description: str
    suites: tuple[str, ...]
    parts: tuple[Part, ...]
    file: str
    libraries: tuple[str, ...] = ()


BIN: Final = "usr/lib/xen-4.17/bin"
_PROGRAMS: Final = (
    "init-xenstore-domain",
    "libxl-save-helper",
    "lsevtchn",
    "oxenstored",
    "readnotes",
    "xen-cpuid",
    "xen-diag",
    "xen-hptool",
    "xen-init-dom0",
    "xen-lowmemd",
    "xen-mfndump",
    "xenconsole",
    "xenconsoled",
    "xenctx",
    "xenpm",
    "xenstore-control",
    "xenstored",
    "xentop",
    "xentrace",
    "xenwatchdogd",
    "xl",
)
DEBIAN_DOM0: Final = Tree(
    "debian-dom0",
    "Debian 12's xl 4.17, its daemons and hotplug scripts",
    ("bookworm", "bookworm-security"),
    (
        Part("xen-utils-4.17", tuple(f"{BIN}/{program}" for program in _PROGRAMS)),
        Part("xen-utils-common", ("etc/xen/*", "usr/lib/xen-common/*", *(f"usr/*bin/{name}" for name in _PROGRAMS))),
        Part("xenstore-utils", ("usr/bin/*",)),
        Part("bash", ("bin/bash",)),
        Part("bridge-utils", ("sbin/brctl",)),
        Part("mount", ("sbin/losetup",)),
        Part("util-linux", ("usr/bin/flock", "usr/bin/logger")),
    ),
    f"{BIN}/xl",
    # For pthread_cancel, by which libxenstore ends the thread that waits for watches.
    ("libgcc_s.so.1",),
)
"""Without Python and QEMU, which PV guests do not need. The hotplug scripts are written for bash, and busybox has no
flock."""

MODULES: Final = (
    "xen-privcmd",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-blkback",
    "xen-netback",
    "xen-pciback",
    "bridge",
    "loop",
    "tun",
)
"""What the tools and the backends need of the kernel, as far as it has them as modules."""

START: Final = f"""\
# Debian's own tools come before busybox's, and xl before the script that looks for it.
export PATH=/{BIN}:/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /run/lock /run/xen /run/xenstored /var/lib/xen /var/lib/xenstored /var/log/xen
ln -s ../run /var/run
ln -s ../run/lock /var/lock
for stream in stdin:0 stdout:1 stderr:2; do ln -s "/proc/self/fd/${{stream#*:}}" "/dev/${{stream%:*}}"; done 2>/dev/null
if grep -q control_d /proc/xen/capabilities 2>/dev/null; then
    "${{XENSTORED:-xenstored}}" --pid-file /run/xenstore.pid && xen-init-dom0 > /dev/null &&
        xenconsoled --pid-file /run/xenconsoled.pid
fi
"""
"""What Debian's /etc/init.d/xen does at the start, for busybox's shell. Words of its command line that Linux does not
know, such as XENSTORED=oxenstored, are in the environment."""
