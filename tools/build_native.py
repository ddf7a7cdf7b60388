"""Compiles the native code when a wheel or an editable installation is made (a build hook of hatchling).

That are plain shared libraries, which need a C compiler and nothing of Python's. Without a compiler, or on a host that
they are not for, nothing is compiled, and Xenolith works without.
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

LIBRARIES = {
    "src/xenolith/hypervisor/exits.so": (
        "src/xenolith/hypervisor/exits.c",
        "src/xenolith/hypervisor/tables.c",
        "src/xenolith/hypervisor/machine.h",
        "src/xenolith/cpu/kvm_loop.c",
        "src/xenolith/cpu/processor.h",
    ),
    "src/xenolith/cpu/replaced.so": ("src/xenolith/cpu/replaced.c", "src/xenolith/cpu/processor.h"),
}
"""Each library with its sources, in the order in which the modules that load them name them."""


def compile_libraries(root: Path) -> bool:
    """Compile all, if this host is one of those that they are for. Returns whether they are there now."""
    for library in LIBRARIES:
        (root / library).unlink(missing_ok=True)
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    compiled = [_compile(root, library, sources) for library, sources in LIBRARIES.items()]
    return all(compiled)


def _compile(root: Path, library: str, sources: tuple[str, ...]) -> bool:
    checksum = zlib.crc32(b"".join((root / source).read_bytes() for source in sources))
    command = [
        *shlex.split(os.environ.get("CC", "cc")),
        *("-std=c11", "-O2", "-fPIC", "-shared", f'-DSOURCES="{checksum}"', "-o", str(root / library)),
        *(str(root / source) for source in sources if source.endswith(".c")),
        "-ldl",
    ]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


class CustomBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not compile_libraries(Path(self.root)):
            return
        build_data["artifacts"].extend(LIBRARIES)
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
