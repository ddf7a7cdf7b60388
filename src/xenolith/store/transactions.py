"""Transactions: changes made on a copy of the tree, which come true together or not at all."""

from __future__ import annotations

from collections.abc import Callable

from xenolith.abi.errno import EAGAIN, ENOSPC, XenError
from xenolith.store.tree import Actor, Change, Path, Tree, find

Changing = Callable[[Tree], list[Change]]
"""Makes one change in a tree and says which nodes are other than before."""


class Transaction:
    """`tree` is the store as the transaction sees it."""

    def __init__(self, store: Tree) -> None:
        self._begun = store.root
        self.tree = store.snapshot()
        self._accessed: set[Path] = set()
        self._changes: list[Changing] = []
        self.doomed = False
        """Whether it cannot come true any more."""
        self.size = 0
        """How many bytes its changes take."""

    def doom(self, store: Tree) -> None:
        """Forget what was done: it can only end with EAGAIN. From now on it looks at the store as it is now."""
        self.__init__(store)  # type: ignore[misc]
        self.doomed = True

    def access(self, actor: Actor, path: Path) -> None:
        """The transaction depends on this node. Raises XenError(ENOSPC) beyond the quota."""
        count = len(self._accessed) + len(self._changes)
        if not actor.privileged and count >= actor.quotas["transaction-nodes"]:
            raise XenError(ENOSPC, f"a transaction may touch {count} nodes")
        self._accessed.add(path)

    def change(self, change: Changing, size: int) -> None:
        """Make a change in the transaction's tree, and again in the store when it comes true."""
        if change(self.tree):
            self._changes.append(change)
            self.size += size

    def commit(self, store: Tree) -> list[Change]:
        """Let the changes come true; the nodes that are other than before, each of them once.

        Raises XenError, and changes nothing: EAGAIN if a node on which the transaction depends is another than when it
        began, or what a change raises for which there is no room or no permission any more.
        """
        if self.doomed or any(_stamp(store, path) != self._stamp_then(path) for path in self._accessed):
            raise XenError(EAGAIN)
        result = store.snapshot()
        changed = [each for change in self._changes for each in change(result)]
        store.become(result)
        return _merged(changed)

    def _stamp_then(self, path: Path) -> int:
        node = find(self._begun, path)
        return -1 if node is None else node.stamp


def _stamp(tree: Tree, path: Path) -> int:
    """Differs between two trees that have a common past if the node is not the same in both; -1 without one."""
    node = tree.node(path)
    return -1 if node is None else node.stamp


def _merged(changes: list[Change]) -> list[Change]:
    """One change for each node, in the order in which they were first changed; who might know of any may know."""
    merged: dict[Path, Change] = {}
    for change in changes:
        before = merged.get(change.path)
        if before is not None:
            readable = (*before.readable, *change.readable)
            change = Change(change.path, before.exact and change.exact, readable)
        merged[change.path] = change
    return list(merged.values())
