"""The host's end of the machine's serial port: a file, a FIFO or a terminal."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from xenolith.errors import UserError

if TYPE_CHECKING:
    from xenolith.toolstack.host import HostLoop


class SerialLine:
    """An open `path`. A regular file is appended to; from anything else input is taken as well.

    UserError if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK, 0o666)
        except OSError as error:
            problem = f"the serial port cannot be connected to {path}: {error.strerror}"
            raise UserError(problem, "name a file, a FIFO or a terminal that can be written") from None
        self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)

    def listen(self, host: HostLoop, receive: Callable[[bytes], None]) -> None:
        """Give what comes in to `receive`, in the machine's own thread."""
        if not self._is_file:
            host.watch(self._fd, receive)

    def write(self, data: bytes) -> None:
        """Send `data` out; a line that nobody takes anything from loses it, as a real one does."""
        try:
            os.write(self._fd, data)
        except OSError:
            return

    def close(self) -> None:
        os.close(self._fd)
