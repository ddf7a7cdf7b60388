"""The files that a 9P client has names for (fids), kept so that the next server of the same connection knows them."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from errno import EBADF, EMFILE, ENAMETOOLONG, ENOMEM
from struct import Struct
from typing import Final

from xenolith.backends.ninepfs.filesystem import Entry

MAX_FIDS: Final = 32768
MAX_PATH: Final = 4095
"""Bytes of a path, as in Linux (PATH_MAX)."""
MAX_PATHS: Final = 16 << 20
"""Bytes of all paths of one client."""
_KEPT: Final = Struct("<Ii")
_NO_HANDLE: Final = -1
Kept = MutableMapping[str, bytearray]


@dataclass(slots=True, eq=False)
class Fid:
    """A file that a client has a number for: by its path, and by a handle once it was opened.

    `uid` is the user's who attached. `listing` is what was read of a directory, in the order of its cookies.
    """

    path: bytes
    uid: int
    handle: int | None = None
    listing: list[tuple[int, Entry]] | None = None

    def below(self, name: bytes) -> bytes:
        """The path of what is called `name` in this directory."""
        return self.path + b"/" + name if self.path else name

    @property
    def parent(self) -> bytes:
        """The path of the directory above; the shared directory is above itself."""
        return self.path.rpartition(b"/")[0]


class Fids:
    """All fids of a connection, by number. Every change is in `kept` at once, under names that begin with `name`."""

    def __init__(self, kept: Kept, name: str) -> None:
        self._kept = kept
        self._prefix = f"{name} fid "
        self._paths = 0
        self._fids: dict[int, Fid] = {}
        for key in list(kept):  # a copy: other clients' servers keep theirs in the same mapping, in other threads
            if not key.startswith(self._prefix):
                continue
            uid, handle = _KEPT.unpack_from(kept[key])
            fid = Fid(bytes(kept[key][_KEPT.size :]), uid, None if handle == _NO_HANDLE else handle)
            self._fids[int(key[len(self._prefix) :])] = fid
            self._paths += len(fid.path)

    def __getitem__(self, number: int) -> Fid:
        """Raises OSError(EBADF) if there is none."""
        fid = self._fids.get(number)
        if fid is None:
            raise OSError(EBADF, f"there is no fid {number}")
        return fid

    def __contains__(self, number: int) -> bool:
        return number in self._fids

    def __iter__(self) -> Iterator[Fid]:
        return iter(self._fids.values())

    def numbers(self) -> list[int]:
        return list(self._fids)

    def check(self, number: int, path: bytes) -> None:
        """Raises OSError if a fid cannot get this path."""
        fid = self._fids.get(number)
        if fid is None and len(self._fids) >= MAX_FIDS:
            raise OSError(EMFILE, "the client has too many fids")
        if len(path) > MAX_PATH:
            raise OSError(ENAMETOOLONG, "the path is too long")
        if self._paths + len(path) - (len(fid.path) if fid else 0) > MAX_PATHS:
            raise OSError(ENOMEM, "the client's fids have too long paths")

    def put(self, number: int, fid: Fid) -> None:
        """Have a number stand for a file. Raises OSError as `check` does."""
        self.check(number, fid.path)
        self.drop(number)
        self._fids[number] = fid
        self._paths += len(fid.path)
        self._keep(number, fid)

    def drop(self, number: int) -> Fid | None:
        fid = self._fids.pop(number, None)
        if fid is not None:
            self._paths -= len(fid.path)
            del self._kept[f"{self._prefix}{number}"]
        return fid

    def check_move(self, old: bytes, new: bytes) -> None:
        """Raises OSError if some fid would get a path that is too long."""
        lengths = [len(fid.path) + len(new) - len(old) for _, fid in self._at_or_below(old)]
        if lengths and max(lengths) > MAX_PATH:
            raise OSError(ENAMETOOLONG, "the path of a file that is in use would become too long")
        if self._paths + len(lengths) * (len(new) - len(old)) > MAX_PATHS:
            raise OSError(ENOMEM, "the client's fids would have too long paths")

    def moved(self, old: bytes, new: bytes) -> None:
        """A file or a directory has another path now, and so has all that is below it."""
        for number, fid in self._at_or_below(old):
            fid.path = new + fid.path[len(old) :]
            self._paths += len(new) - len(old)
            self._keep(number, fid)

    def _at_or_below(self, path: bytes) -> list[tuple[int, Fid]]:
        inside = path + b"/"
        return [item for item in self._fids.items() if item[1].path == path or item[1].path.startswith(inside)]

    def _keep(self, number: int, fid: Fid) -> None:
        handle = _NO_HANDLE if fid.handle is None else fid.handle
        self._kept[f"{self._prefix}{number}"] = bytearray(_KEPT.pack(fid.uid, handle) + fid.path)
