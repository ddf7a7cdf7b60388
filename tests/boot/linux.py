"""Reading what a Linux guest printed: the sections of a test's script, and what a healthy kernel does not say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tests.boot.command_line import Ended

COMPLAINTS: Final = re.compile(
    r"BUG:|Oops|WARNING:|Call Trace|multicall\(s\) failed|general protection|soft lockup|rcu.*stall|Kernel panic"
    r"|segfault|Spurious|nobody cared|hung_task|unchecked MSR|invalid opcode"
)
_PRINTK: Final = re.compile(r"\[ *\d+\.\d{6}\] ")
_MARK: Final = "@@ "


@dataclass(slots=True)
class Sections:
    """What a script printed after each line "@@ name", without the kernel's messages, and when its first line came."""

    found: dict[str, list[tuple[float, str]]]
    complaints: list[str]

    def lines(self, name: str) -> list[str]:
        return [line for _, line in self.found.get(name, [])]

    def text(self, name: str) -> str:
        return "\n".join(self.lines(name))

    def arrival(self, name: str) -> float:
        """The host's monotonic time (seconds) of a section's first line."""
        return self.found[name][0][0]


def sections(ended: Ended) -> Sections:
    found: dict[str, list[tuple[float, str]]] = {}
    current: list[tuple[float, str]] = []
    for at, line in ended.lines:
        if line.startswith(_MARK):
            current = found.setdefault(line.removeprefix(_MARK), [])
        elif not _PRINTK.match(line):
            current.append((at, line))
    return Sections(found, [line for _, line in ended.lines if COMPLAINTS.search(line)])
