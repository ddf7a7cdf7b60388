"""Compiles the native helper when a wheel or an editable installation is made (a build hook of hatchling).

It is a plain shared library, which needs a C compiler and nothing of Python's. Without a compiler, or on a host that
the helper is not for, nothing is compiled, and Xenolith works without.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sysconfig
import zlib
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = "src/xenolith/hypervisor/exits.so"
COMPILED = ("src/xenolith/hypervisor/exits.c", "src/xenolith/hypervisor/tables.c")
LOOP = "src/xenolith/cpu/kvm_loop.c"
SOURCES = (*COMPILED, "src/xenolith/hypervisor/machine.h", LOOP, "src/xenolith/cpu/processor.h")


def compile_library(root: Path) -> bool:
    """Compile the helper, if this host is one of those that it is for. Returns whether it is there now."""
    library = root / LIBRARY
    library.unlink(missing_ok=True)
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    checksum = zlib.crc32(b"".join((root / source).read_bytes() for source in SOURCES))
    command = [
        *shlex.split(os.environ.get("CC", "cc")),
        *("-std=c11", "-O2", "-fPIC", "-shared", f'-DSOURCES="{checksum}"'),
        *("-o", str(library), *(str(root / source) for source in (*COMPILED, LOOP))),
    ]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


class CustomBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not compile_library(Path(self.root)):
            return
        build_data["artifacts"].append(LIBRARY)
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
