"""The store's tree: nodes with a value, permissions and children, who may do what with them, and who may have how many.

The rules are those of docs/misc/xenstore.txt and of Xen's xenstored. Nodes are never changed, only replaced together
with those above them: a snapshot is a reference to a root.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from xenolith.abi.errno import EACCES, EINVAL, ENOENT, ENOSPC, XenError
from xenolith.abi.io.xs_wire import XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX

NODES_MAX: Final = 1000
"""How many nodes an unprivileged domain may own."""
VALUE_MAX: Final = 2048
"""How many bytes an unprivileged domain may write into a node."""
PERMISSIONS_MAX: Final = 5
"""How many permissions an unprivileged domain may set on a node."""

_NAME_CHARACTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_@")
_LETTERS: Final = {"n": "", "r": "r", "w": "w", "b": "rw"}
_DOMID_DIGITS: Final = 5

Path = tuple[str, ...]
"""The names from the root down; the root is ()."""


class Permission(NamedTuple):
    """What `domid` may do: `letter` n(othing), r(ead), w(rite) or b(oth). A node's first one names its owner, who may
    do everything, and what all domains may do that are not named."""

    letter: str
    domid: int

    @classmethod
    def parse(cls, text: bytes) -> Permission:
        """Raises XenError(EINVAL)."""
        letter, number = text[:1].decode("latin-1"), text[1:]
        if letter not in _LETTERS or not number.isdigit() or len(number) > _DOMID_DIGITS:
            raise XenError(EINVAL, f"permission {text!r}")
        return cls(letter, int(number))

    def __bytes__(self) -> bytes:
        return f"{self.letter}{self.domid}".encode()


@dataclass(frozen=True, slots=True)
class Node:
    """`stamp` is another number whenever value, permissions or the set of names below have changed."""

    value: bytes
    permissions: tuple[Permission, ...]
    children: dict[str, Node]
    stamp: int

    @property
    def owner(self) -> int:
        return self.permissions[0].domid

    def allows(self, domid: int, right: str) -> bool:
        """Whether a domain may "r"ead or "w"rite."""
        if domid == self.owner:
            return True
        letter = next((found for found, named in self.permissions[1:] if named == domid), self.permissions[0].letter)
        return right in _LETTERS[letter]


def parse_path(text: bytes, home: Path) -> Path:
    """The path that a domain means; one that does not begin with "/" is below `home`. Raises XenError(EINVAL)."""
    absolute = text.startswith(b"/")
    if text == b"/":
        return ()
    if not text or len(text) > (XENSTORE_ABS_PATH_MAX if absolute else XENSTORE_REL_PATH_MAX):
        raise XenError(EINVAL, f"a path of {len(text)} bytes")
    names = tuple(text.decode("latin-1").split("/"))[1 if absolute else 0 :]
    if not all(name and _NAME_CHARACTERS.issuperset(name) for name in names):
        raise XenError(EINVAL, f"path {text[:64]!r}")
    return names if absolute else home + names


def path_bytes(path: Path) -> bytes:
    return b"/" + "/".join(path).encode("latin-1")


class Tree:
    """One state of the store. `privileged` is the domain that may do everything and that no quota binds.

    Every method that takes a domain and a path raises XenError: ENOENT if there is no such node (EACCES if the domain
    may not know), EACCES if it may not do it, ENOSPC beyond a quota.
    """

    _stamps = itertools.count(1)

    def __init__(self, privileged: int) -> None:
        self.privileged = privileged
        self._root = Node(b"", (Permission("n", privileged),), {}, 0)
        self._owned: Counter[int] = Counter()

    def snapshot(self) -> Tree:
        """A tree that is as this one is now, and stays so when this one changes."""
        other = Tree(self.privileged)
        other.become(self)
        return other

    def become(self, other: Tree) -> None:
        """Be as `other` is now."""
        self._root, self._owned = other._root, Counter(other._owned)

    # -- looking ------------------------------------------------------------------------------------------------------

    def node(self, path: Path) -> Node | None:
        node: Node | None = self._root
        for name in path:
            node = node.children.get(name) if node is not None else None
        return node

    def stamp(self, path: Path) -> int:
        """Differs between two trees that have a common past if the node is not the same in both; -1 without one."""
        node = self.node(path)
        return -1 if node is None else node.stamp

    def may(self, domid: int, path: Path, right: str) -> bool:
        """Whether a domain may "r"ead or "w"rite a node; where there is none, its nearest ancestor decides."""
        return domid == self.privileged or self._nearest(path).allows(domid, right)

    def _nearest(self, path: Path) -> Node:
        node = self._root
        for name in path:
            child = node.children.get(name)
            if child is None:
                break
            node = child
        return node

    def _get(self, domid: int, path: Path, right: str) -> Node:
        if not self.may(domid, path, right):
            raise XenError(EACCES, f"domain {domid} and {path_bytes(path)!r}")
        node = self.node(path)
        if node is None:
            raise XenError(ENOENT)
        return node

    def read(self, domid: int, path: Path) -> bytes:
        return self._get(domid, path, "r").value

    def names(self, domid: int, path: Path) -> list[str]:
        """The names of the nodes below, sorted."""
        return sorted(self._get(domid, path, "r").children)

    def permissions(self, domid: int, path: Path) -> tuple[Permission, ...]:
        return self._get(domid, path, "r").permissions

    # -- changing -----------------------------------------------------------------------------------------------------

    def write(self, domid: int, path: Path, value: bytes) -> None:
        """Set a node's value; it and its ancestors are made where they are missing."""
        self._require_write(domid, path)
        if domid != self.privileged and len(value) > VALUE_MAX:
            raise XenError(ENOSPC, f"a value of {len(value)} bytes")
        node = self.node(path) or self._grow(domid, path)
        self._put(path, replace(node, value=value, stamp=next(self._stamps)))

    def make(self, domid: int, path: Path) -> bool:
        """Make a node without a value, and its ancestors where they are missing; False if it is there already."""
        self._require_write(domid, path)
        if self.node(path) is not None:
            return False
        self._grow(domid, path)
        return True

    def remove(self, domid: int, path: Path) -> list[Path]:
        """Remove a node and all below it; the paths of all that went. None, if its parent is there but it is not.

        Also raises XenError(EINVAL) for the root.
        """
        if not path:
            raise XenError(EINVAL, "the root cannot be removed")
        self._require_write(domid, path)
        node = self.node(path)
        if node is None:
            if self.node(path[:-1]) is None:
                raise XenError(ENOENT)
            return []
        gone = [(path, node), *_descendants(path, node)]
        for _, each in gone:
            self._owned[each.owner] -= 1
        self._put(path, None)
        return [each for each, _ in gone]

    def set_permissions(self, domid: int, path: Path, permissions: tuple[Permission, ...]) -> None:
        """Only the owner may, and only the privileged domain may give a node away. Also raises XenError(EINVAL)."""
        node = self._get(domid, path, "w")
        if not permissions:
            raise XenError(EINVAL, "no permissions")
        if domid != self.privileged:
            if len(permissions) > PERMISSIONS_MAX:
                raise XenError(ENOSPC, f"{len(permissions)} permissions")
            if domid != node.owner or domid != permissions[0].domid:
                raise XenError(EACCES, "only an owner sets permissions, and stays the owner")
        self._owned[node.owner] -= 1
        self._owned[permissions[0].domid] += 1
        self._put(path, replace(node, permissions=permissions, stamp=next(self._stamps)))

    def _require_write(self, domid: int, path: Path) -> None:
        if not self.may(domid, path, "w"):
            raise XenError(EACCES, f"domain {domid} and {path_bytes(path)!r}")

    def _grow(self, domid: int, path: Path) -> Node:
        """Make the node at `path` and those ancestors that are missing; each inherits its parent's permissions."""
        depth = len(path)
        while self.node(path[: depth - 1]) is None:
            depth -= 1
        parent = self.node(path[: depth - 1])
        assert parent is not None
        owner = parent.owner if domid == self.privileged else domid
        missing = len(path) - depth + 1
        if domid != self.privileged and self._owned[owner] + missing > NODES_MAX:
            raise XenError(ENOSPC, f"domain {owner} may have {NODES_MAX} nodes")
        self._owned[owner] += missing
        first = Permission(parent.permissions[0].letter, owner)
        leaf = Node(b"", (first, *parent.permissions[1:]), {}, next(self._stamps))
        branch = leaf
        for name in reversed(path[depth:]):
            branch = replace(leaf, children={name: branch}, stamp=next(self._stamps))
        self._put(path[:depth], branch)
        return leaf

    def _put(self, path: Path, node: Node | None) -> None:
        """Replace the node at `path`, whose parent is there, and so all above it."""
        above = [self._root]
        for name in path[:-1]:
            above.append(above[-1].children[name])
        for parent, name in zip(reversed(above), reversed(path), strict=True):
            children = dict(parent.children)
            if node is None:
                children.pop(name, None)
            else:
                children[name] = node
            same_names = children.keys() == parent.children.keys()
            node = replace(parent, children=children, stamp=parent.stamp if same_names else next(self._stamps))
        assert node is not None
        self._root = node


def _descendants(path: Path, node: Node) -> Iterator[tuple[Path, Node]]:
    waiting = [(path, node)]
    while waiting:
        above, each = waiting.pop()
        children = [((*above, name), child) for name, child in each.children.items()]
        yield from children
        waiting += children
