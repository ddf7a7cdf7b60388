"""Watches: who wants to be told of changes where."""

from __future__ import annotations

from dataclasses import dataclass

from xenolith.store.tree import Path, path_bytes


@dataclass(frozen=True, slots=True)
class Watch:
    """A wish to be told of changes of the node at `path` and of all below. `home` is the part of `path` that its domain
    left out; None for a name such as "@releaseDomain", which no node has."""

    path: Path | None
    home: Path
    text: bytes
    token: bytes

    def covers(self, changed: Path) -> bool:
        return self.path is not None and changed[: len(self.path)] == self.path

    def event(self, changed: Path | None = None) -> bytes:
        """The payload of the event for a change at a path that the watch covers; without one, of the first event."""
        shown = self.text if changed is None else self._shown(changed)
        return shown + b"\0" + self.token + b"\0"

    def _shown(self, changed: Path) -> bytes:
        return path_bytes(changed[len(self.home) :])[1:] if self.home else path_bytes(changed)
