"""Transactions: all or nothing, and nothing if somebody else was there."""

from __future__ import annotations

import pytest

from tests.unit.store.support import Client, guest, refusal, tools
from xenolith.abi.io.xs_wire import (
    XS_READ,
    XS_RESET_WATCHES,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WRITE,
)
from xenolith.store.server import Store


@pytest.fixture
def one(store: Store) -> Client:
    return tools(store)


@pytest.fixture
def other(store: Store) -> Client:
    return tools(store)


def test_changes_are_seen_by_others_only_when_the_transaction_has_ended(one: Client, other: Client) -> None:
    number = one.start()
    one.write("/a/b", "new", number)
    assert one.read("/a/b", number) == b"new"
    assert refusal(other, XS_READ, b"/a/b\0", 0) == "ENOENT"
    assert refusal(one, XS_READ, b"/a/b\0", 0) == "ENOENT"
    one.end(number)
    assert other.read("/a/b") == b"new"
    assert refusal(one, XS_TRANSACTION_END, b"T\0", number) == "ENOENT"


def test_a_transaction_sees_the_store_as_it_was_when_it_began(one: Client, other: Client) -> None:
    one.write("/a", "before")
    number = one.start()
    other.write("/a", "after")
    assert one.read("/a", number) == b"before"
    assert refusal(one, XS_TRANSACTION_END, b"T\0", number) == "EAGAIN"


def test_a_dropped_transaction_leaves_nothing(one: Client) -> None:
    number = one.start()
    one.write("/a", "x", number)
    one.end(number, commit=False)
    assert refusal(one, XS_READ, b"/a\0", 0) == "ENOENT"


@pytest.mark.parametrize("mine", ["read", "write", "remove", "names", "missing"])
@pytest.mark.parametrize("theirs", ["write", "remove", "make", "permissions"])
def test_conflicts(store: Store, one: Client, other: Client, mine: str, theirs: str) -> None:
    one.make("/dir/node")
    number = one.start()
    match mine:
        case "read":
            one.read("/dir/node", number)
        case "write":
            one.write("/dir/node", "mine", number)
        case "remove":
            one.remove("/dir/node", number)
        case "names":
            one.names("/dir", number)
        case "missing":
            assert refusal(one, XS_READ, b"/dir/new\0", number) == "ENOENT"
    match theirs:
        case "write":
            other.write("/dir/node", "theirs")
        case "remove":
            other.remove("/dir/node")
        case "make":
            other.make("/dir/new")
        case "permissions":
            other.set_permissions("/dir/node", ["r1"])
    conflicts = {
        "names": ("remove", "make"),
        "missing": ("make",),
    }.get(mine, ("write", "remove", "permissions"))
    if theirs in conflicts:
        assert refusal(one, XS_TRANSACTION_END, b"T\0", number) == "EAGAIN"
    else:
        one.end(number)


def test_transactions_on_different_nodes_of_one_directory_do_not_disturb_each_other(one: Client, other: Client) -> None:
    first, second = one.start(), other.start()
    one.write("/dir/one", "1", first)
    other.write("/dir/other", "2", second)
    one.end(first)
    other.end(second)
    assert one.names("/dir") == ["one", "other"]


def test_each_changed_node_is_told_once_and_at_the_end(one: Client, other: Client) -> None:
    other.make("/gone/below")
    other.watch("/", "t")
    other.watch("/gone/below", "below")
    other.events()
    number = one.start()
    one.write("/b", "1", number)
    one.write("/a", "1", number)
    one.write("/b", "2", number)
    one.remove("/gone", number)
    assert other.events() == []
    one.end(number)
    assert other.events() == [("/b", "t"), ("/a", "t"), ("/gone/below", "below"), ("/gone", "t")]


def test_nothing_is_told_of_a_transaction_that_did_not_come_true(one: Client, other: Client) -> None:
    other.watch("/", "t")
    other.events()
    number = one.start()
    one.write("/a", "1", number)
    one.end(number, commit=False)
    assert other.events() == []


def test_numbers_belong_to_their_connection_and_must_be_known(one: Client, other: Client) -> None:
    number = one.start()
    assert refusal(other, XS_READ, b"/\0", number) == "ENOENT"
    assert refusal(one, XS_READ, b"/\0", number + 1) == "ENOENT"
    assert refusal(one, XS_TRANSACTION_START, b"\0", number) == "EBUSY"
    assert refusal(one, XS_TRANSACTION_END, b"X\0", number) == "EINVAL"
    assert refusal(one, XS_TRANSACTION_END, b"T\0", 0) == "ENOENT"
    one.end(number)


def test_watches_ignore_the_transactions_number(one: Client) -> None:
    assert one.request(XS_WATCH, b"/a\0t\0", 4711) == b"OK\0"


def test_a_guest_ends_all_of_its_transactions_at_once(store: Store) -> None:
    domu = guest(store, 5)
    number = domu.start()
    domu.request(XS_RESET_WATCHES, b"\0")
    assert refusal(domu, XS_WRITE, b"data\0x", number) == "ENOENT"


def test_permissions_that_were_lost_meanwhile_are_found_at_the_end(store: Store, one: Client) -> None:
    domu = guest(store, 5)
    number = domu.start()
    domu.write("data/deep/node", "x", number)
    one.set_permissions("/local/domain/5/data", ["n1"])
    assert refusal(domu, XS_TRANSACTION_END, b"T\0", number) == "EACCES"
