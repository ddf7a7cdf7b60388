"""Native code that is compiled of C sources when Xenolith is installed, if there is a C compiler."""

from __future__ import annotations

import ctypes
import os
import zlib
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

SWITCH: Final = "XENOLITH_NATIVE"
"""The environment variable that switches all native code off if it is "0"."""


class Compiled(NamedTuple):
    """A shared library and the sources that lie beside it."""

    library: Path
    sources: tuple[Path, ...]

    def missing(self) -> str | None:
        """Why it cannot be used; None if it can."""
        if os.environ.get(SWITCH) == "0":
            return f"{SWITCH}=0 switches it off"
        if not self.library.exists():
            return "there was no C compiler when Xenolith was installed"
        return None if load(self) is not None else "it was compiled from other sources: install Xenolith again"


@cache
def load(compiled: Compiled) -> ctypes.CDLL | None:
    """The library, if it was compiled from the sources that lie beside it."""
    try:
        library = ctypes.CDLL(str(compiled.library))
        library.xenolith_sources.restype = ctypes.c_char_p
        return library if library.xenolith_sources() == b"%d" % checksum(compiled.sources) else None
    except (OSError, AttributeError):
        return None


def checksum(sources: tuple[Path, ...]) -> int:
    """Tells whether sources have changed."""
    return zlib.crc32(b"".join(source.read_bytes() for source in sources))
