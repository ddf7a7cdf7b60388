"""Four-level page tables, as a processor walks them."""

from __future__ import annotations

from typing import Final

ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_PRESENT: Final = 1


def translate(words: memoryview, root: int, vaddr: int) -> int | None:
    """The machine address of `vaddr` under the L4 table at `root`, whatever the mapping permits; None if it has none.

    `words` is RAM in 64-bit words. Tables outside it, and large pages, are not followed.
    """
    table = root
    for shift in (39, 30, 21, 12):
        at = (table >> 3) + (vaddr >> shift & 511)
        if at >= len(words) or not words[at] & _PRESENT:
            return None
        table = words[at] & ADDRESS
    return table | vaddr & 0xFFF
