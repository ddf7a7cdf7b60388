"""Where running machines are found: a directory for each, with its sockets, its logs and a lock while it lives."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xenolith.errors import UserError

DEFAULT_NAME: Final = "default"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LOCK: Final = "lock"
_CONTROL: Final = "control"


def root() -> Path:
    """The directory of all machines of this user, which only the user can enter."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(runtime) / "xenolith" if runtime else Path(f"/tmp/xenolith-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = path.stat()
    except OSError as error:
        raise UserError(
            f"the directory {path} cannot be made: {error.strerror}", "set XDG_RUNTIME_DIR to a directory of yours"
        ) from None
    if owner.st_uid != os.getuid() or owner.st_mode & 0o077:
        raise UserError(f"{path} can be entered by others", "make it yours alone, or set XDG_RUNTIME_DIR elsewhere")
    return path


@dataclass(slots=True)
class Place:
    """The directory of one machine."""

    name: str
    path: Path
    _lock: int = -1

    @property
    def control(self) -> Path:
        """The socket at which the machine takes commands."""
        return self.path / _CONTROL

    @property
    def log(self) -> Path:
        return self.path / "log"

    def is_alive(self) -> bool:
        """Whether a machine has this place now."""
        try:
            fd = os.open(self.path / _LOCK, os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(fd)
        return False

    def take(self) -> None:
        """Have the place for a machine of this process; what a dead one left is removed. UserError if one lives."""
        self.path.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise UserError(
                f"a machine '{self.name}' runs already", "give this one another --name, or end that one: xenolith halt"
            ) from None
        self._lock = fd
        for left in self.path.iterdir():
            if left.is_socket():
                left.unlink()

    def leave(self) -> None:
        """The machine is gone; its logs stay only as long as they are of use to somebody who looks now."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    def connect(self) -> socket.socket:
        """A connection to the machine. UserError if there is none."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(self.control))
        except OSError:
            connection.close()
            raise UserError(
                f"no machine '{self.name}' runs", f"start one: xenolith boot --detach{_option(self.name)}"
            ) from None
        return connection


def _option(name: str) -> str:
    return "" if name == DEFAULT_NAME else f" --name {name}"


def place(name: str) -> Place:
    """The place of a machine by its name. UserError for a name that cannot be one."""
    if not _NAME.fullmatch(name):
        raise UserError(f"'{name}' cannot be the name of a machine", "use letters, digits, '-', '_' and '.'")
    return Place(name, root() / name)


def living() -> Iterator[Place]:
    """All machines of this user that run, by name."""
    for path in sorted(root().iterdir()):
        found = Place(path.name, path)
        if found.is_alive():
            yield found
