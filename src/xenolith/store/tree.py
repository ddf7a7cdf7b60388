"""The store's tree: nodes with a value, permissions and children, who may do what with them, and who may have how many.

The rules are those of docs/misc/xenstore.txt and of C xenstored (xenstored_core.c, xenstored_domain.c). Nodes are never
changed, only replaced together with those above them: a snapshot is a reference to a root.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple, Protocol

from xenolith.abi.errno import EACCES, EINVAL, ENOENT, ENOMEM, ENOSPC, EPERM, XenError
from xenolith.abi.io.xs_wire import XENSTORE_ABS_PATH_MAX
from xenolith.store.quotas import Quotas

_PATH: Final = re.compile(rb"(?:/[A-Za-z0-9_@-]+)+|/")
_OWN_PATH: Final = re.compile(rb"/local/domain/[0-9]{1,5}/")
_PERMISSION: Final = re.compile(rb"([nrwb])([0-9]{1,5})")
_RIGHTS: Final = {"n": "", "r": "r", "w": "w", "b": "rw"}
_HEADER_SIZE: Final = 24
_PERMISSION_SIZE: Final = 8
"""Bytes that a node's header, and each of its permissions, count for (struct xs_tdb_record_hdr)."""

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
        found = _PERMISSION.fullmatch(text)
        if found is None:
            raise XenError(EINVAL, f"permission {text[:16]!r}")
        return cls(found[1].decode(), int(found[2]))

    def __bytes__(self) -> bytes:
        return f"{self.letter}{self.domid}".encode()


Permissions = tuple[Permission, ...]


class Actor(Protocol):
    """Who acts on the tree: a domain, and the one on behalf of which it may act."""

    @property
    def domid(self) -> int: ...

    @property
    def target(self) -> int | None: ...

    @property
    def privileged(self) -> bool:
        """Whether it may do everything, and no quota binds it."""

    @property
    def quotas(self) -> Quotas: ...


class Node(NamedTuple):
    """`stamp` is another number whenever value, permissions or the set of names below have changed. `names_size` is how
    many bytes those names take in a directory."""

    value: bytes
    permissions: Permissions
    children: dict[str, Node]
    names_size: int
    stamp: int

    @property
    def owner(self) -> int:
        return self.permissions[0].domid

    @property
    def size(self) -> int:
        """How many bytes the node counts for."""
        return _HEADER_SIZE + _PERMISSION_SIZE * len(self.permissions) + len(self.value) + self.names_size


class Change(NamedTuple):
    """A node is other than before. With `exact` it went together with one above it: only who watches it, and not who
    watches what is above, is told. Who could read by any of `readable` may know."""

    path: Path
    exact: bool
    readable: tuple[Permissions, ...]


class Stamps:
    """Gives each change a number of its own. Trees with a common past share one."""

    def __init__(self, last: int = 0) -> None:
        self.last = last

    def next(self) -> int:
        self.last += 1
        return self.last


def parse_path(text: bytes, home: Path, own_max: int | None = None) -> Path:
    """The path that a domain means; one that does not begin with "/" is below `home`.

    `own_max` is how long it may be, not counting "/local/domain/N/". Raises XenError(EINVAL).
    """
    full = text if text.startswith(b"/") else path_bytes(home) + b"/" + text
    if text.startswith(b"@") or len(full) > XENSTORE_ABS_PATH_MAX or not _PATH.fullmatch(full):
        raise XenError(EINVAL, f"path {text[:64]!r}")
    if own_max is not None:
        prefix = _OWN_PATH.match(full)
        if len(full) - (prefix.end() if prefix else 0) > own_max:
            raise XenError(EINVAL, f"a path of {len(full)} bytes")
    return tuple(full.decode("ascii").split("/"))[1:] if len(full) > 1 else ()


def path_bytes(path: Path) -> bytes:
    return b"/" + "/".join(path).encode("latin-1")


def permits(actor: Actor, permissions: Permissions, right: str) -> bool:
    """Whether `actor` may "r"ead, "w"rite or "o"wn what has these permissions (perm_for_conn)."""
    if actor.privileged:
        return True
    domid, target = actor.domid, actor.target
    owner = permissions[0].domid
    if owner in (domid, target):
        return True
    for letter, named in permissions[1:]:
        if named in (domid, target):
            return right in _RIGHTS[letter]
    return right in _RIGHTS[permissions[0].letter]


def find(root: Node, path: Path) -> Node | None:
    """The node at `path` below `root`."""
    node: Node | None = root
    for name in path:
        node = node.children.get(name) if node is not None else None
    return node


class Tree:
    """One state of the store.

    Every method that takes an actor and a path raises XenError: ENOENT if there is no such node (EACCES if the actor
    may not know), EACCES if it may not do it, ENOSPC or ENOMEM beyond a quota; then nothing has changed.
    """

    def __init__(self, owner: int, stamps: Stamps | None = None) -> None:
        self.stamps = stamps or Stamps()
        self.root = Node(b"", (Permission("n", owner),), {}, 0, 0)
        self.nodes: Counter[int] = Counter()
        """How many nodes each domain owns."""
        self.memory: Counter[int] = Counter()
        """How many bytes the nodes of each domain count for."""
        self.named: Counter[int] = Counter()
        """How many permissions name each domain otherwise than as the owner."""

    @property
    def counters(self) -> tuple[Counter[int], Counter[int], Counter[int]]:
        return self.nodes, self.memory, self.named

    def snapshot(self) -> Tree:
        """A tree that is as this one is now, and stays so when this one changes."""
        other = Tree.__new__(Tree)
        other.stamps = self.stamps
        other.become(self)
        return other

    def become(self, other: Tree) -> None:
        """Be as `other` is now."""
        self.root = other.root
        self.nodes, self.memory, self.named = other.nodes.copy(), other.memory.copy(), other.named.copy()

    # -- looking ------------------------------------------------------------------------------------------------------

    def node(self, path: Path) -> Node | None:
        return find(self.root, path)

    def get(self, actor: Actor, path: Path, right: str) -> Node:
        """The node, if the actor has that right to it."""
        node = self.root
        for name in path:
            child = node.children.get(name)
            if child is None:
                raise XenError(ENOENT if permits(actor, node.permissions, "w" if right == "o" else right) else EACCES)
            node = child
        if not permits(actor, node.permissions, right):
            raise XenError(EACCES, f"domain {actor.domid} and {path_bytes(path)!r}")
        return node

    # -- changing -----------------------------------------------------------------------------------------------------

    def write(self, actor: Actor, path: Path, value: bytes) -> list[Change]:
        """Give a node a value; it and its ancestors are made where they are missing."""
        node = self._existing(actor, path)
        if node is None:
            return [self._grow(actor, path, value)]
        new = Node(value, node.permissions, node.children, node.names_size, self.stamps.next())
        self._check_size(actor, new, len(value) - len(node.value))
        self._put(path, new)
        return [self._changed(path)]

    def make(self, actor: Actor, path: Path) -> list[Change]:
        """Make a node without a value, and its ancestors where they are missing. No change if it is there already."""
        return [] if self._existing(actor, path) is not None else [self._grow(actor, path, b"")]

    def remove(self, actor: Actor, path: Path) -> list[Change]:
        """Remove a node and all below it. No change if its parent is there but it is not.

        Also raises XenError(EINVAL) for the root.
        """
        node = self._existing(actor, path)
        if node is None:
            if self.node(path[:-1]) is None:
                raise XenError(ENOENT)
            return []
        if not path:
            raise XenError(EINVAL, "the root cannot be removed")
        return self._cut(path, node)

    def set_permissions(self, actor: Actor, path: Path, permissions: Permissions) -> list[Change]:
        """Only the owner may, and only a privileged domain may give a node away: otherwise XenError(EPERM)."""
        node = self.get(actor, path, "o")
        if not actor.privileged:
            if len(permissions) > actor.quotas["permissions"]:
                raise XenError(ENOSPC, f"{len(permissions)} permissions")
            if permissions[0].domid != node.owner:
                raise XenError(EPERM, "an owner stays the owner")
        new = Node(node.value, permissions, node.children, node.names_size, self.stamps.next())
        self._check_size(actor, new, new.size - node.size)
        self._put(path, new)
        change = self._changed(path)
        return [change._replace(readable=(*change.readable, node.permissions))]

    def forget(self, domid: int) -> list[Change]:
        """A domain is gone: what it owns goes with it, with all below, and no permission names it any more.

        Otherwise a new domain of that number would inherit both (domain_tree_remove, domain_adjust_node_perms).
        """
        changes: list[Change] = []
        for path, node in self._likely(domid):
            if not self.nodes[domid]:
                break
            if path and node.owner == domid and (found := self.node(path)) is not None:
                changes += self._cut(path, found)
        for path, node in self._likely(domid):
            if not self.named[domid]:
                break
            if any(named == domid for _, named in node.permissions[1:]) and (found := self.node(path)) is not None:
                kept = (found.permissions[0], *(each for each in found.permissions[1:] if each.domid != domid))
                self._put(path, found._replace(permissions=kept))
        for counter in self.counters:
            if not counter[domid]:
                del counter[domid]
        return changes

    def _likely(self, domid: int) -> Iterator[tuple[Path, Node]]:
        """Every node: those of a domain's home first, and once more."""
        home = ("local", "domain", str(domid))
        node = self.node(home)
        if node is not None:
            yield from self.walk(home, node)
        yield from self.walk()

    def _current(self, path: Path) -> Node:
        node = self.node(path)
        assert node is not None
        return node

    def _existing(self, actor: Actor, path: Path) -> Node | None:
        """The node, if there is one; the actor may write it, or make it."""
        try:
            return self.get(actor, path, "w")
        except XenError as error:
            if error.errno == ENOENT:
                return None
            raise

    def _changed(self, path: Path) -> Change:
        """The change of a node that is there: who may read it or its parent may know."""
        parent = self.root
        for name in path[:-1]:
            parent = parent.children[name]
        node = parent.children[path[-1]] if path else parent
        return Change(path, False, (node.permissions, parent.permissions))

    def _grow(self, actor: Actor, path: Path, value: bytes) -> Change:
        """Make the node at `path` and those ancestors that are missing; each inherits its parent's permissions."""
        depth, above = 0, self.root
        while (child := above.children.get(path[depth])) is not None:
            depth, above = depth + 1, child
        owner = above.owner if actor.privileged else actor.domid
        permissions = (Permission(above.permissions[0].letter, owner), *above.permissions[1:])
        node = Node(value, permissions, {}, 0, self.stamps.next())
        made = [node]
        for name in reversed(path[depth + 1 :]):
            node = Node(b"", permissions, {name: node}, len(name) + 1, self.stamps.next())
            made.append(node)
        if not actor.privileged:
            self._check_growth(actor, above, path[depth], made)
        self._put(path[: depth + 1], node)
        # The topmost of the new nodes is counted by then.
        for each in made[:-1]:
            self._count(each, 1)
        return Change(path, False, (permissions, made[1].permissions if len(made) > 1 else above.permissions))

    def _check_growth(self, actor: Actor, above: Node, name: str, made: list[Node]) -> None:
        if self.nodes[actor.domid] + len(made) > actor.quotas["nodes"]:
            raise XenError(ENOSPC, f"domain {actor.domid} may have {actor.quotas['nodes']} nodes")
        if above.size + len(name) + 1 >= actor.quotas["node-size"]:
            raise XenError(ENOSPC, "no room for another name")
        growth = sum(node.size for node in made)
        for node in made:
            self._check_size(actor, node, growth)

    def _check_size(self, actor: Actor, node: Node, growth: int) -> None:
        """Raises XenError if the node is too large, or if its owner has too much with `growth` more bytes."""
        if actor.privileged:
            return
        if node.size >= actor.quotas["node-size"]:
            raise XenError(ENOSPC, f"a node of {node.size} bytes")
        if node.owner == actor.domid and growth > 0 < self.memory[actor.domid] + growth - actor.quotas["memory"]:
            raise XenError(ENOMEM, f"domain {actor.domid} may have {actor.quotas['memory']} bytes")

    def _cut(self, path: Path, node: Node) -> list[Change]:
        """Take a node out, with all below it; what is below goes first."""
        parent = self._current(path[:-1])
        changes = [
            Change(each, True, (found.permissions, above.permissions)) for each, found, above in _below(path, node)
        ]
        changes.append(Change(path, False, (node.permissions, parent.permissions)))
        for _, found, _ in _below(path, node):
            self._count(found, -1)
        self._put(path, None)
        return changes

    def _count(self, node: Node, sign: int) -> None:
        self.nodes[node.owner] += sign
        self.memory[node.owner] += sign * node.size
        for _, domid in node.permissions[1:]:
            self.named[domid] += sign

    def _put(self, path: Path, node: Node | None) -> None:
        """Replace the node at `path`, whose parent is there, and so all above it; count the old and the new one."""
        spine = [self.root]
        for name in path[:-1]:
            spine.append(spine[-1].children[name])
        if not path:
            assert node is not None
            self.root = node
            return
        parent, name = spine.pop(), path[-1]
        old, children = parent.children.get(name), dict(parent.children)
        growth = (old is None) * (len(name) + 1)
        if old is not None:
            self._count(old, -1)
        if node is not None:
            self._count(node, 1)
            children[name] = node
        else:
            del children[name]
            growth = -len(name) - 1
        stamp = self.stamps.next() if growth else parent.stamp
        if spine:
            self.memory[parent.owner] += growth
        upper = Node(parent.value, parent.permissions, children, parent.names_size + growth, stamp)
        while spine:
            parent, name = spine.pop(), path[len(spine)]
            upper = Node(
                parent.value, parent.permissions, {**parent.children, name: upper}, parent.names_size, parent.stamp
            )
        self.root = upper

    # -- all of it ----------------------------------------------------------------------------------------------------

    def walk(self, start: Path = (), node: Node | None = None) -> Iterator[tuple[Path, Node]]:
        """Every node from one on as the tree is now, each after its parent; brothers in the order of their making."""
        waiting: list[tuple[Path, Node]] = [(start, node or self.root)]
        while waiting:
            path, node = waiting.pop()
            yield path, node
            waiting += [((*path, name), child) for name, child in reversed(node.children.items())]

    def dump(self) -> list[tuple[Any, ...]]:
        """The tree as plain data: level, name and fields of each node, in the order of `walk`."""
        plain: dict[Permissions, tuple[tuple[str, int], ...]] = {}
        dumped = []
        waiting = [(0, "", self.root)]
        while waiting:
            level, name, (value, permissions, children, names_size, stamp) = waiting.pop()
            if permissions not in plain:
                plain[permissions] = tuple((letter, domid) for letter, domid in permissions)
            dumped.append((level, name, value, plain[permissions], names_size, stamp))
            if children:
                waiting += [(level + 1, name, child) for name, child in reversed(children.items())]
        return dumped

    @classmethod
    def load(cls, nodes: Iterable[tuple[Any, ...]], stamps: Stamps) -> Tree:
        """The tree of which `dump` made that data."""
        tree = cls(0, stamps)
        spine: list[Node] = []
        known: dict[tuple[tuple[str, int], ...], Permissions] = {}
        for level, name, value, plain, names_size, stamp in nodes:
            if plain not in known:
                known[plain] = tuple(Permission(*each) for each in plain)
            node = Node(value, known[plain], {}, names_size, stamp)
            del spine[level:]
            spine.append(node)
            if level:
                spine[level - 1].children[name] = node
                tree._count(node, 1)
            else:
                tree.root = node
        return tree


def _below(path: Path, node: Node) -> Iterator[tuple[Path, Node, Node]]:
    """All nodes below one, with their parents: each after those that are below it (delnode_sub)."""
    waiting: list[tuple[Path, Node, Node, bool]] = [
        ((*path, name), child, node, False) for name, child in reversed(node.children.items())
    ]
    while waiting:
        at, each, above, done = waiting.pop()
        if done or not each.children:
            yield at, each, above
            continue
        waiting.append((at, each, above, True))
        waiting += [((*at, name), child, each, False) for name, child in reversed(each.children.items())]
