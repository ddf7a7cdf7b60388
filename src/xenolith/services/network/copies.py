"""Copies between guests' granted pages and this domain's own memory, many in one hypercall (GNTTABOP_copy)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from xenolith.abi.errno import XenError
from xenolith.abi.grant_table import (
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTST_okay,
    GnttabCopy,
    GNTTABOP_copy,
)
from xenolith.abi.hypercalls import HYPERVISOR_grant_table_op
from xenolith.abi.types import DOMID_SELF
from xenolith.backends.net.tx import Piece
from xenolith.hypervisor.native import NativeKernel, Page

_COPY: Final = struct.Struct("<QHH4xQHH4xHHh2x")
_STATUS: Final[int] = GnttabCopy.status.offset  # type: ignore[attr-defined]
_MOST_PAGES: Final = 256
T = TypeVar("T")


class GrantCopies:
    """Copies by way of pages of this domain's own: as many as are free, which others then do without."""

    def __init__(self, kernel: NativeKernel) -> None:
        self._kernel = kernel
        self._pages = _allocate(kernel)

    def gather(self, domid: int, pieces: Sequence[Piece]) -> list[bytes | None]:
        """What is in pieces of pages that a guest grants; None for each that it does not grant."""
        found: list[bytes | None] = []
        for part in _parts(pieces, len(self._pages)):
            pairs = list(zip(part, self._pages, strict=False))
            statuses = self._copy(
                [
                    _COPY.pack(gref, domid, offset, page.mfn, DOMID_SELF, 0, size, GNTCOPY_source_gref, 0)
                    for (gref, offset, size), page in pairs
                ]
            )
            found += [
                bytes(page.view[: piece.size]) if status == GNTST_okay else None
                for (piece, page), status in zip(pairs, statuses, strict=True)
            ]
        return found

    def scatter(self, domid: int, pages: Sequence[tuple[int, bytes]]) -> list[bool]:
        """Write to the start of each of a guest's pages, by their grants; whether each was granted."""
        granted: list[bool] = []
        for part in _parts(pages, len(self._pages)):
            copies = []
            for (gref, data), page in zip(part, self._pages, strict=False):
                size = len(data)
                page.view[:size] = data
                copies.append(_COPY.pack(page.mfn, DOMID_SELF, 0, gref, domid, 0, size, GNTCOPY_dest_gref, 0))
            granted += [status == GNTST_okay for status in self._copy(copies)]
        return granted

    def _copy(self, copies: Sequence[bytes]) -> list[int]:
        """The GNTST_* of each."""
        with self._kernel.scratch(_COPY.size * len(copies)) as place:
            place.view[:] = b"".join(copies)
            self._kernel.hypercall(HYPERVISOR_grant_table_op, GNTTABOP_copy, place.vaddr, len(copies))
            return [
                int.from_bytes(place.view[at : at + 2], "little", signed=True)
                for at in range(_STATUS, len(place.view), _COPY.size)
            ]


def _allocate(kernel: NativeKernel) -> list[Page]:
    pages: list[Page] = []
    try:
        while len(pages) < _MOST_PAGES:
            pages.append(kernel.allocate_page())
    except XenError:
        if not pages:
            raise
    return pages


def _parts(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]
