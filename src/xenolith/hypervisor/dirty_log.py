"""Which frames of a domain have changed since somebody last asked: by their content, for who copies a domain that runs.

Xen learns that from shadow page tables. Here guests run on their own, whose dirty bits are theirs; and devices and
backends write to frames as well. So each frame's content is summed up when it is looked at, and a frame is dirty if its
sum, or what it is used as, is another than the last time. What was written and is as before needs no copy.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import numpy as np

from xenolith.hypervisor.frames import TYPE_L1, TYPE_L4

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor

_DIGEST_BYTES: Final = 16
"""Enough that a guest cannot make two contents that look the same."""
_FRAMES_IN_A_PART: Final = 2048
"""How many frames are looked at before others may run: about 15 ms."""


class DirtyLog:
    """The sums of one domain's frames by its own numbers for them (gfn). At first everything is as it is: clean."""

    def __init__(self, hv: Hypervisor, domain: Domain) -> None:
        self._hv = hv
        self._domain = domain
        self._sums: dict[int, bytes] = {}
        self._left: list[int] | None = None
        self._seen: set[int] = set()
        self.dirty: set[int] = set()
        """The gfns that have changed, as far as was looked, until `clean`."""
        self.has_begun = False
        """Whether everything was looked at once."""

    def look(self) -> bool:
        """Look at a part of the frames. Returns whether that was the last part; the next call begins anew then."""
        if self._left is None:
            self._left = self._hv.frames.owned_by(self._domain.domid)[::-1]
            self._seen = set()
        for _ in range(min(_FRAMES_IN_A_PART, len(self._left))):
            self._look_at(self._left.pop())
        if self._left:
            return False
        self.dirty.update(self._sums.keys() - self._seen)
        self._sums = {gfn: summed for gfn, summed in self._sums.items() if gfn in self._seen}
        if not self.has_begun:
            self.dirty.clear()
        self._left, self.has_begun = None, True
        return True

    def _look_at(self, mfn: int) -> None:
        frames, gfn = self._hv.frames, self._hv.m2p[mfn]
        if frames.owner[mfn] != self._domain.domid or gfn >= frames.total + self._domain.max_frames:
            return
        kind = frames.type[mfn] if TYPE_L1 <= frames.type[mfn] <= TYPE_L4 else 0
        summed = bytes((kind,)) + blake2b(frames.ram.frame(mfn), digest_size=_DIGEST_BYTES).digest()
        self._seen.add(gfn)
        if self._sums.get(gfn) != summed:
            self._sums[gfn] = summed
            self.dirty.add(gfn)

    def clean(self) -> None:
        """What was dirty is known now."""
        self.dirty.clear()

    def bits(self, first: int, count: int) -> bytes:
        """One bit for each gfn from `first` on, the lowest bit first, set for those that are dirty."""
        marks = np.zeros(count, dtype=np.uint8)
        marks[[gfn - first for gfn in self.dirty if first <= gfn < first + count]] = 1
        return np.packbits(marks, bitorder="little").tobytes()
