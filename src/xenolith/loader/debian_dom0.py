"""Debian's control domain: which files of which packages it is made of, and how its daemons are started."""

from __future__ import annotations

from typing import Final, NamedTuple

from xenolith.abi.types import DOMID_SELF


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

_INTRODUCE: Final = r"""
# Domains that were there before the store, as init-dom0less finds them: each has a port that waits for this domain.
domid=1
while ports=$(lsevtchn $domid 2>/dev/null); do
    port=$(echo "$ports" | sed -n 's/^ *\([0-9]*\):.*(Waiting connection) - Remote Domain 0$/\1/p;T;q')
    if [ -n "$port" ]; then
        home=/local/domain/$domid
        xenstore-write $home/domid $domid $home/name "" $home/backend ""
        xenstore-chmod $home n0 r$domid
        # It says its name itself, and tidies up where it serves devices.
        xenstore-chmod $home/name n$domid
        xenstore-chmod $home/backend n$domid
        # A message of the store's protocol: XS_INTRODUCE of this domain and port. The frame is not looked at.
        size=$(printf %03o $((${#domid} + ${#port} + 4)))
        rest='\000\000\000'
        printf "\010$rest\000$rest\000$rest\\$size$rest%s\0000\000%s\000" $domid $port > /dev/xen/xenbus
    fi
    domid=$((domid + 1))
done
"""

START: Final = f"""\
# Debian's own tools come before busybox's, and xl before the script that looks for it.
export PATH=/{BIN}:/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /run/lock /run/xen /run/xenstored /var/lib/xen /var/lib/xenstored /var/log/xen
ln -s ../run /var/run
ln -s ../run/lock /var/lock
for stream in stdin:0 stdout:1 stderr:2; do ln -s "/proc/self/fd/${{stream#*:}}" "/dev/${{stream%:*}}"; done 2>/dev/null
# Where another domain keeps the store, it has bound the port that this one got for it.
if grep -q control_d /proc/xen/capabilities 2>/dev/null && ! lsevtchn {DOMID_SELF} | grep -q '(Connected)'; then
    "${{XENSTORED:-xenstored}}" --pid-file /run/xenstore.pid && xen-init-dom0 > /dev/null &&
        xenconsoled --pid-file /run/xenconsoled.pid
{_INTRODUCE.strip()}
elif [ ! -e /etc/xenolith/command ]; then
    # A command makes first what is to be served.
    xl devd 2> /var/log/xen/devd.log
fi
"""
"""What Debian's /etc/init.d/xen and /etc/init.d/xendriverdomain do at the start, for busybox's shell. Words of its
command line that Linux does not know, such as XENSTORED=oxenstored, are in the environment."""
