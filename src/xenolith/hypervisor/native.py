"""What a native domain does where a guest's kernel would: find out which of its event channels are pending."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.shared_info import SharedInfo
from xenolith.hypervisor.vcpu import PENDING_SEL, UPCALL_PENDING

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor

_PENDING_WORD: Final[int] = SharedInfo.evtchn_pending.offset >> 3  # type: ignore[attr-defined]


def take_pending(hv: Hypervisor, domain: Domain) -> list[int]:
    """The pending ports of a native domain with two-level events; they are pending no more."""
    info = domain.vcpus[0].info_maddr
    words = hv.ram.words
    hv.ram.bytes[info + UPCALL_PENDING] = 0
    selected = words[(info + PENDING_SEL) >> 3]
    words[(info + PENDING_SEL) >> 3] = 0
    ports = []
    for index in _bits(selected):
        at = (domain.shared_info_mfn << 9) + _PENDING_WORD + index
        ports += [index * 64 + bit for bit in _bits(words[at])]
        words[at] = 0
    return ports


def _bits(word: int) -> list[int]:
    return [bit for bit in range(64) if word >> bit & 1] if word else []
