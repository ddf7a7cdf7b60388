"""Quotas: what an unprivileged domain may have of the store, by the names that xenstore-control knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from xenolith.abi.errno import EINVAL, XenError

UNLIMITED: Final = 1 << 62
"""More than there can be of anything: what a quota of 0 means."""
VALUE_MAX: Final = 0xFFFF_FFFF


class Quota(NamedTuple):
    """One of the limits, as C xenstored (xenstored_core.c, xenstored_control.c) has it."""

    name: str
    default: int
    meaning: str


QUOTAS: Final = (
    Quota("nodes", 1000, "Nodes per domain"),
    Quota("watches", 128, "Watches per domain"),
    Quota("transactions", 10, "Transactions per domain"),
    Quota("outstanding", 20, "Outstanding requests per domain"),
    Quota("transaction-nodes", 1024, "Max. number of accessed nodes per transaction"),
    Quota("memory", 2560 << 10, "Total Xenstore memory per domain (error level)"),
    Quota("node-size", 2048, "Max. size of a node"),
    Quota("path-max", 2048, "Max. length of a node path"),
    Quota("permissions", 5, "Max. number of permissions per node"),
)


def defaults() -> dict[str, int]:
    return {quota.name: quota.default for quota in QUOTAS}


class Quotas:
    """A domain's limits: its `own`, and where it has none, the `general` ones, which all domains share."""

    __slots__ = ("_general", "own")

    def __init__(self, general: dict[str, int], own: dict[str, int] | None = None) -> None:
        self._general = general
        self.own = own or {}

    def __getitem__(self, name: str) -> int:
        return (self.own.get(name) if name in self.own else self._general[name]) or UNLIMITED


def parse_value(name: bytes, text: bytes) -> tuple[str, int]:
    """A quota's name and a limit for it. Raises XenError(EINVAL)."""
    value = int(text) if text.isdigit() and len(text) <= len(str(VALUE_MAX)) else -1
    if not 0 <= value <= VALUE_MAX:
        raise XenError(EINVAL, "no number")
    return known(name), value


def known(name: bytes) -> str:
    """The name of a quota. Raises XenError(EINVAL) if there is none of that name."""
    text = name.decode("latin-1")
    if all(quota.name != text for quota in QUOTAS):
        raise XenError(EINVAL, f"no quota {text!r}")
    return text


def lines(limits: dict[str, int]) -> Iterator[str]:
    """The limits as xenstore-control prints them."""
    for quota in QUOTAS:
        yield f"{quota.name:<17}: {limits[quota.name]:8} {quota.meaning}\n"
