"""How the init of a ramdisk tells its command's exit status on the console, and how that line is read."""

from __future__ import annotations

import re
from typing import Final

EXIT_MARKER: Final = "xenolith: exit status "
"""What init prints before the number, when the command has ended and before it powers off."""

_EXIT_LINE: Final = re.compile(re.escape(EXIT_MARKER) + r"(\d{1,3})\s*$")


def exit_status(line: str) -> int | None:
    """The exit status of the command if this console line reports it (0–255), else None."""
    found = _EXIT_LINE.search(line)
    return int(found[1]) if found and int(found[1]) < 256 else None
