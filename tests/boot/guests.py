"""The guests that the boot tests start, how far each came, and the page docs/guests.md that says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LINUX: Final = ("debian", "debian-cloud", "debian-rt", "debian-backports", "debian-bullseye-cloud")
CONTROL: Final = "control domain"
GUEST: Final = "guest"

EXPECTED: Final = (
    *((alias, role) for alias in LINUX for role in (CONTROL, GUEST)),
    ("grub", GUEST),
    ("mach", GUEST),
    ("legacy", GUEST),
    ("hello", GUEST),
)
"""Every guest and role, in the order of the page."""

_HEAD: Final = """\
# Guests

This page is written by the boot tests (`make guests`): each row is what a test started, and how far it came then.
`xenolith pull NAME` brings those that have a name of the registry.

debian-rt now and then warns of `xen_mc_flush` in multicalls.c, as it may be preempted between giving a task its page
table and pinning it; the hypervisor refuses what is not pinned, as Xen's rules say.

| Guest | Version | Started as | It came to | What was checked there |
|---|---|---|---|---|
"""
_NAMES: Final = {
    "debian": "Debian 12, generic (`debian`)",
    "debian-cloud": "Debian 12, cloud (`debian-cloud`)",
    "debian-rt": "Debian 12, real-time (`debian-rt`)",
    "debian-backports": "Debian 12, backports (`debian-backports`)",
    "debian-bullseye-cloud": "Debian 11, cloud (`debian-bullseye-cloud`)",
    "grub": "GRUB for PV guests (`grub`)",
    "mach": "GNU Mach for Xen (`mach`)",
    "legacy": "An ELF file with only a `__xen_guest` section, from the tests",
    "hello": "An ELF file with Xen notes, from the tests",
}


@dataclass(frozen=True, slots=True)
class Row:
    """How far a guest came: `reached` and `checked` are what the page says."""

    guest: str
    role: str
    version: str
    reached: str
    checked: str

    def render(self) -> str:
        return f"| {_NAMES[self.guest]} | {self.version} | {self.role} | {self.reached} | {self.checked} |"


def page(rows: dict[tuple[str, str], Row]) -> str:
    """The page. KeyError for a guest that no test has told of."""
    return _HEAD + "".join(rows[key].render() + "\n" for key in EXPECTED)
