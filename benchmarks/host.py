"""What a measurement was made on: processor, memory, kernel, and the versions of everything that took part."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import peer
from xenolith.cpu.choose import choose


def describe() -> dict[str, str | int | None]:
    """The host and the versions; what is not there is None."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _field(Path("/proc/cpuinfo").read_text(), "model name"),
        "processors": os.cpu_count(),
        "memory": _field(Path("/proc/meminfo").read_text(), "MemTotal"),
        "load": Path("/proc/loadavg").read_text().split()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "xenolith": _distribution("xenolith"),
        "commit": _first_line("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"),
        "engine": choose(),
        "xen": peer.XEN_PACKAGE,
        "unicorn": _distribution("unicorn"),
        "qemu": _first_line("qemu-system-x86_64", "--version"),
        "compiler": _first_line("cc", "--version"),
    }


def _field(text: str, name: str) -> str | None:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _distribution(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.partition("\n")[0] or None
