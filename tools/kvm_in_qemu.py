"""Tries the KVM engine on an ordinary KVM (kvm_amd) where the host has none: in QEMU, whose emulator offers nested SVM.

`python -m tools.kvm_in_qemu [COMMAND …]` boots Debian's kernel in QEMU without any acceleration, with this host's files
below / (read-only, over 9p), and runs a command there from this directory: the engine's own tests, unless another is
given. It takes minutes, because everything, KVM included, is emulated; so it is no part of `make test`.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from xenolith.loader import registry
from xenolith.loader.exit_marker import EXIT_MARKER
from xenolith.loader.initramfs import Initramfs
from xenolith.loader.modules import ModuleTree

_MODULES: Final = ("virtio_pci", "9pnet_virtio", "9p", "kvm-amd")
_CMDLINE: Final = "console=ttyS0 quiet panic=-1 tsc=reliable"
"""On a busy host the kernel would else distrust its counter, and KVM then gives guests another one."""
_TESTS: Final = (
    *("-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", "--color=no"),
    *("tests/unit/cpu/test_kvm.py", "tests/unit/cpu/test_kvm_together.py"),
    # QEMU 7.2 raises #GP for INT n with n * 16 + 2 instead of n * 8 + 2 in 64-bit mode.
    *("--deselect", "tests/unit/cpu/test_kvm.py::test_exceptions[cd0e-exit_6-2]"),
    # It wants thousands of answers in a fifth of a second from processors that are emulated.
    *("--deselect", "tests/unit/cpu/test_kvm_together.py::test_they_see_each_other_run"),
)
_SCRIPT: Final = """\
mkdir -p /host
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose host /host || exit 1
for place in proc sys dev; do mount --bind /$place /host/$place; done
for place in tmp run; do mount -t tmpfs $place /host/$place; done
chroot /host /bin/sh -c {command}
"""


def main(command: list[str]) -> int:
    """Returns the command's exit status, 1 if it did not get that far."""
    command = command or [str(Path(sys.prefix) / "bin/python"), *_TESTS]
    settings = "export PYTHONDONTWRITEBYTECODE=1 XENOLITH_ENGINE=kvm HOME=/root XDG_STATE_HOME=/tmp TMPDIR=/tmp"
    inside = f"{settings}; cd {shlex.quote(str(Path.cwd()))} && {shlex.join(command)}"
    with tempfile.NamedTemporaryFile() as ramdisk:
        pulled = registry.pulled("debian")
        busybox = registry.busybox()
        if pulled is None or pulled.modules is None or busybox is None:
            print("no kernel is here yet: xenolith pull debian brings one", file=sys.stderr)
            return 1
        tree = ModuleTree(pulled.modules)
        script = _SCRIPT.format(command=shlex.quote(inside))
        ramdisk.write(Initramfs(busybox, script, _MODULES, tree).build())
        ramdisk.flush()
        qemu = [
            *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max,+svm", "-m", "3072", "-smp", "2", "-nodefaults"),
            *("-display", "none", "-serial", "stdio", "-no-reboot", "-machine", "q35"),
            *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
            *("-kernel", str(pulled.file), "-initrd", ramdisk.name, "-append", _CMDLINE),
        ]
        with subprocess.Popen(qemu, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as machine:
            assert machine.stdout is not None
            status = 1
            for line in machine.stdout:
                text = line.decode("utf-8", "replace").rstrip()
                if EXIT_MARKER in text:
                    status = int(text.rpartition(EXIT_MARKER)[2] or 1)
                    continue
                print(text, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
