"""Which release of Xen the hypervisor says it is, and the versions of the interfaces that control domains use.

domctl and sysctl change between releases; a toolstack names the version that it speaks, and is refused with another.
A release is here only if the structures of all that is served are those of 4.17: for 4.18 the version of domctl went up
with a field of ARM domains, and that of sysctl did not. Before 4.17 and from 4.19 on structures that are served differ
(struct xen_domctl_createdomain of 4.19 has more fields).

Source: XEN_DOMCTL_INTERFACE_VERSION and XEN_SYSCTL_INTERFACE_VERSION in public/domctl.h and public/sysctl.h.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from xenolith import __version__
from xenolith.abi.domctl import XEN_DOMCTL_INTERFACE_VERSION
from xenolith.abi.sysctl import XEN_SYSCTL_INTERFACE_VERSION


class Release(NamedTuple):
    """A release of Xen: its number, and the interface versions of its domctl and sysctl."""

    major: int
    minor: int
    domctl: int
    sysctl: int

    @property
    def text(self) -> str:
        """All of the version, as `xl info` shows it."""
        return f"{self.major}.{self.minor}{EXTRAVERSION}"


EXTRAVERSION: Final = ".0-xenolith"
CHANGESET: Final = f"xenolith {__version__}"
DEFAULT_RELEASE: Final = "4.17"
RELEASES: Final = {
    "4.17": Release(4, 17, domctl=XEN_DOMCTL_INTERFACE_VERSION, sysctl=XEN_SYSCTL_INTERFACE_VERSION),
    "4.18": Release(4, 18, domctl=0x16, sysctl=XEN_SYSCTL_INTERFACE_VERSION),
}
