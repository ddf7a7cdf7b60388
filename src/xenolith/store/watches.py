"""Watches: who wants to be told of changes where, found by the path that has changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from xenolith.store.tree import Path, path_bytes


class Named(Protocol):
    """Whoever watches."""

    @property
    def serial(self) -> int:
        """Those who came first are told first."""


W = TypeVar("W", bound=Named)


@dataclass(frozen=True, slots=True)
class Watch(Generic[W]):
    """A wish to be told of changes of the node at `path`, and of all down to `depth` levels below (None: all).

    `text` is the path as its owner wrote it; `home` is the part of `path` that it left out. `special` is for names such
    as "@releaseDomain", which no node has. `serial` grows from watch to watch.
    """

    owner: W
    path: Path
    special: bool
    depth: int | None
    text: bytes
    token: bytes
    home: Path
    serial: int

    @property
    def key(self) -> tuple[bool, Path, bytes]:
        """What no two watches of an owner have in common."""
        return self.special, self.path, self.token

    def event(self, changed: Path) -> bytes:
        """The payload of the event for a change that the watch covers."""
        return self._shown(changed) + b"\0" + self.token + b"\0"

    def first_event(self) -> bytes:
        """The payload of the event that every watch begins with."""
        return self.text + b"\0" + self.token + b"\0"

    def _shown(self, changed: Path) -> bytes:
        if self.special:
            return path_bytes(changed if self.depth else self.path)[1:]
        return path_bytes(changed[len(self.home) :])[1 if self.home else 0 :]


@dataclass(slots=True)
class _Branch(Generic[W]):
    """The watches of one path, and the branches below."""

    below: dict[str, _Branch[W]] = field(default_factory=dict)
    watches: dict[int, Watch[W]] = field(default_factory=dict)


class Watches(Generic[W]):
    """All watches of the store. What a change costs depends on its path and on who watches it, not on who else does."""

    def __init__(self) -> None:
        self._roots: dict[bool, _Branch[W]] = {False: _Branch(), True: _Branch()}

    def add(self, watch: Watch[W]) -> None:
        branch = self._roots[watch.special]
        for name in watch.path:
            branch = branch.below.setdefault(name, _Branch())
        branch.watches[watch.serial] = watch

    def remove(self, watch: Watch[W]) -> None:
        branches = [self._roots[watch.special]]
        for name in watch.path:
            branches.append(branches[-1].below[name])
        del branches[-1].watches[watch.serial]
        for name in reversed(watch.path):
            branch = branches.pop()
            if branch.watches or branch.below:
                break
            del branches[-1].below[name]

    def covering(self, changed: Path, exact: bool = False, special: bool = False) -> list[Watch[W]]:
        """The watches that a change concerns, in the order in which they are told: by owner, then by age. With `exact`
        those of that very path alone."""
        found: list[Watch[W]] = []
        for distance, branch in self._along(changed, special):
            if not branch.watches or (exact and distance):
                continue
            found += [watch for watch in branch.watches.values() if watch.depth is None or watch.depth >= distance]
        if len(found) > 1:
            found.sort(key=lambda watch: (watch.owner.serial, watch.serial))
        return found

    def _along(self, path: Path, special: bool) -> Iterator[tuple[int, _Branch[W]]]:
        """The branches from the root down to `path`, as far as there are any, with their distance from it."""
        branch: _Branch[W] | None = self._roots[special]
        for distance, name in zip(range(len(path), 0, -1), path, strict=True):
            assert branch is not None
            yield distance, branch
            branch = branch.below.get(name)
            if branch is None:
                return
        assert branch is not None
        yield 0, branch
