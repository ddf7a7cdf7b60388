"""Functions of the Unicorn library that are replaced by better ones (replaced.c), where its build is the one known."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from xenolith.cpu.compiled import Compiled

_HERE: Final = Path(__file__).parent
COMPILED: Final = Compiled(_HERE / "replaced.so", (_HERE / "replaced.c", _HERE / "processor.h"))
_BUILD_ID: Final = bytes.fromhex("44285d3e80527122e9e361928189385906ec813e")
"""Of unicorn 2.1.4 from PyPI for x86-64 Linux (readelf -n); another build lays its structures out as it likes."""
_BUILD_ID_WITHIN: Final = 4096
_MODE_CHANGE = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_bool)


class Library(NamedTuple):
    """The Unicorn library, and the functions that it finds before its own, if they fit."""

    unicorn: ctypes.CDLL
    replacements: ctypes.CDLL | None

    def take_engine(self, uc: ctypes.c_void_p) -> bool:
        """Use the functions here for an engine. Returns whether they are used."""
        if self.replacements is None or COMPILED.missing() is not None:
            return False
        take = self.replacements.xenolith_take_engine
        take.restype = ctypes.c_bool
        return bool(take(uc))

    def change_mode(self) -> Any:
        """The function that changes between a guest's two modes: (state, root, kernel mode) to whether it did."""
        if self.replacements is None:
            return _MODE_CHANGE(lambda _state, _root, _kernel_mode: False)
        return _MODE_CHANGE(("xenolith_change_mode", self.replacements))


@cache
def load_library(path: Path) -> Library:
    """The Unicorn library at `path`."""
    with path.open("rb") as file:
        fits = _BUILD_ID in file.read(_BUILD_ID_WITHIN)
    if not fits or COMPILED.missing() is not None:
        return Library(ctypes.CDLL(str(path)), None)
    replacements = ctypes.CDLL(str(COMPILED.library), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(path))
    replacements.xenolith_find_functions(ctypes.c_void_p(library._handle))
    return Library(library, replacements)
