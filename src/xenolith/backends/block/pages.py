"""The frontend's pages while they are in use: mapped for one request, or kept mapped where both ends agreed on that."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


class GrantRefused(Exception):
    """The frontend does not, or no longer, grant a page that it named."""


class NoRoom(Exception):
    """No more pages can be mapped before others are unmapped."""


class Mapping(Protocol):
    """Granted pages, in the order in which they were asked for."""

    @property
    def views(self) -> Sequence[memoryview]: ...

    def unmap(self) -> None: ...


MapGrants = Callable[[Sequence[int], bool], Mapping]
"""Map grant references, read-only or not: all of them, or none and GrantRefused or NoRoom."""


@dataclass(slots=True)
class Held:
    """Pages in use, until `release`."""

    views: Sequence[memoryview]
    release: Callable[[], None]


@dataclass(slots=True, eq=False)
class _Page:
    mapping: Mapping
    users: int = 0
    kept: bool = False


class GuestPages:
    """Maps pages by `map_grants`. At most `keep` of them stay mapped when they are not in use (feature-persistent): the
    frontend then names the same pages again and again. Those that were not used for longest make room for others.
    """

    def __init__(self, map_grants: MapGrants, keep: int = 0) -> None:
        self._map = map_grants
        self._keep = keep
        self._kept: OrderedDict[int, _Page] = OrderedDict()

    def take(self, grefs: Sequence[int], readonly: bool) -> Held:
        """Pages to read (`readonly`) or to write. Raises GrantRefused or NoRoom."""
        if not self._keep:
            mapping = self._map(grefs, readonly)
            return Held(mapping.views, mapping.unmap)
        taken: list[_Page] = []
        try:
            for gref in grefs:
                page = self._page(gref)
                page.users += 1
                taken.append(page)
        except (GrantRefused, NoRoom):
            self._release(taken)
            raise
        return Held([page.mapping.views[0] for page in taken], lambda: self._release(taken))

    def forget(self) -> None:
        """Unmap what is kept and not in use."""
        for gref in [gref for gref, page in self._kept.items() if not page.users]:
            self._kept.pop(gref).mapping.unmap()

    def _page(self, gref: int) -> _Page:
        page = self._kept.get(gref)
        if page is None:
            # Writable in any case: the frontend may name the page for the other direction next time.
            page = _Page(self._map([gref], False))
            if len(self._kept) < self._keep or self._make_room():
                page.kept = True
                self._kept[gref] = page
        else:
            self._kept.move_to_end(gref)
        return page

    def _make_room(self) -> bool:
        oldest = next((gref for gref, page in self._kept.items() if not page.users), None)
        if oldest is not None:
            self._kept.pop(oldest).mapping.unmap()
        return oldest is not None

    @staticmethod
    def _release(pages: list[_Page]) -> None:
        for page in pages:
            page.users -= 1
            if not page.kept and not page.users:
                page.mapping.unmap()
