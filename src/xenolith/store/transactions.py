"""Transactions: changes made on a copy of the tree, which come true together or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xenolith.abi.errno import EAGAIN, ENOSPC, XenError
from xenolith.store.tree import Path, Tree

ACCESSES_MAX: Final = 1024
"""How many nodes one transaction may look at or change."""
Change = Callable[[Tree], list[Path]]
"""Makes one change in a tree and says which nodes are other than before."""


class Transaction:
    """`tree` is the store as the transaction sees it."""

    def __init__(self, store: Tree) -> None:
        self._begun = store.snapshot()
        self.tree = store.snapshot()
        self._accessed: set[Path] = set()
        self._changes: list[Change] = []

    def access(self, path: Path) -> None:
        """The transaction depends on this node. Raises XenError(ENOSPC) beyond the quota."""
        if len(self._accessed) + len(self._changes) >= ACCESSES_MAX:
            raise XenError(ENOSPC, f"a transaction may touch {ACCESSES_MAX} nodes")
        self._accessed.add(path)

    def change(self, change: Change) -> None:
        """Make a change in the transaction's tree, and again in the store when it comes true."""
        if change(self.tree):
            self._changes.append(change)

    def commit(self, store: Tree) -> list[Path]:
        """Let the changes come true; the paths of the nodes that they changed.

        Raises XenError, and changes nothing: EAGAIN if a node on which the transaction depends is another than when it
        began, or what a change raises for which there is no room or no permission any more.
        """
        if any(store.stamp(path) != self._begun.stamp(path) for path in self._accessed):
            raise XenError(EAGAIN)
        result = store.snapshot()
        changed = [path for change in self._changes for path in change(result)]
        store.become(result)
        return changed
