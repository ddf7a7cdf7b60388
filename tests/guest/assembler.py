"""Assembles the tests' own guests with GNU as and ld, and finds the symbols in them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xenolith.loader.image import KernelImage

_SOURCES: Final = Path(__file__).parent / "image"
SHARED: Final = Path(__file__).parents[2] / "benchmarks/guest"
"""What the benchmarks' guests have in common with them."""
TOOLS: Final = ("as", "ld", "nm")


def missing_tools() -> list[str]:
    """The programs of binutils that are not installed."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


@dataclass(frozen=True)
class TestImage:
    """A guest: its image, and the virtual addresses of its symbols."""

    __test__ = False

    kernel: KernelImage
    symbols: dict[str, int]


def assemble(directory: Path) -> TestImage:
    """The guest made of all sources in `image`, built in `directory`."""
    source = directory / "guest.S"
    source.write_text("\n".join(path.read_text() for path in (_SOURCES / "runtime.S", _SOURCES / "routines.S")))
    _run("as", "--64", "-I", str(SHARED), "-o", str(directory / "guest.o"), str(source))
    _run("ld", "-T", str(_SOURCES / "guest.lds"), "-o", str(directory / "guest"), str(directory / "guest.o"))
    lines = _run("nm", str(directory / "guest")).splitlines()
    symbols = {name: int(address, 16) for address, _kind, name in (line.split() for line in lines)}
    return TestImage(KernelImage.read(directory / "guest"), symbols)


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)} failed: {result.stderr}"
    return result.stdout
