"""Who is told of what, when, and with which words."""

from __future__ import annotations

import pytest

from tests.unit.store.support import Client, guest, refusal, tools
from xenolith.abi.io.xs_wire import (
    XS_RESET_WATCHES,
    XS_SET_PERMS,
    XS_UNWATCH,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenolith.store.server import Store
from xenolith.store.wire import XS_SET_FEATURE, Message


def test_a_watch_begins_with_an_event_whether_there_is_a_node_or_not(dom0: Client) -> None:
    dom0.watch("/nothing/here", "token")
    assert dom0.events() == [("/nothing/here", "token")]


def test_every_kind_of_change_is_told(store: Store, dom0: Client) -> None:
    dom0.watch("/a", "t")
    dom0.events()
    other = tools(store)
    other.make("/a/b")
    assert dom0.events() == [("/a/b", "t")]
    other.make("/a/b")
    assert dom0.events() == []
    other.write("/a/b", "same")
    other.write("/a/c/d", "deep")
    assert dom0.events() == [("/a/b", "t"), ("/a/c/d", "t")]
    other.set_permissions("/a/b", ["r1"])
    assert dom0.events() == [("/a/b", "t")]
    other.remove("/a/b")
    assert dom0.events() == [("/a/b", "t")]
    other.remove("/a/b")
    assert dom0.events() == []


def test_a_change_beside_a_watched_node_is_not_told(dom0: Client) -> None:
    dom0.watch("/a/b", "t")
    dom0.events()
    for path in ("/a", "/a/bb", "/b", "/a/c"):
        dom0.write(path, "x")
    assert dom0.events() == []


def test_a_watch_on_the_root_sees_everything(dom0: Client) -> None:
    dom0.watch("/", "t")
    dom0.events()
    dom0.write("/x/y", "1")
    assert dom0.events() == [("/x/y", "t")]


def test_who_watches_below_a_removed_node_is_told_of_its_own_path(dom0: Client) -> None:
    for path in ("/a/b/c", "/a/b/d", "/a/e"):
        dom0.make(path)
    for path in ("/a", "/a/b/c", "/a/b", "/a/b/none"):
        dom0.watch(path, "t" + path)
    dom0.events()
    dom0.remove("/a")
    assert dom0.events() == [("/a/b/c", "t/a/b/c"), ("/a/b", "t/a/b"), ("/a", "t/a")]


def test_a_relative_watch_speaks_of_relative_paths(store: Store, dom0: Client, domu: Client) -> None:
    domu.watch("data", "t")
    domu.watch("/local/domain/5/data", "absolute")
    assert domu.events() == [("data", "t"), ("/local/domain/5/data", "absolute")]
    dom0.write("/local/domain/5/data/x/y", "1")
    assert domu.events() == [("data/x/y", "t"), ("/local/domain/5/data/x/y", "absolute")]


def test_ones_own_event_comes_before_the_answer(store: Store, dom0: Client) -> None:
    dom0.watch("/a", "t")
    dom0.events()
    dom0.send(Message(XS_WRITE, 0, 0, b"/a\0x"))
    connection, kinds = dom0.connection, []
    while data := connection.peek(4096):
        kinds.append(data[0])
        store.sent(connection, len(data))
    assert kinds == [XS_WATCH_EVENT, XS_WRITE]


def test_those_who_came_first_are_told_first(store: Store) -> None:
    first, second = tools(store), tools(store)
    second.watch("/a", "1")
    first.watch("/a", "2")
    second.watch("/", "3")
    for client in (first, second):
        client.events()
    order = [(each.owner.number, each.token) for each in store.watches.covering(("a",))]
    assert order == [
        (first.connection.number, b"2"),
        (second.connection.number, b"1"),
        (second.connection.number, b"3"),
    ]


def test_the_same_watch_twice_is_refused_another_token_is_another_watch(domu: Client) -> None:
    domu.watch("data", "t")
    assert refusal(domu, XS_WATCH, b"data\0t\0") == "EEXIST"
    assert refusal(domu, XS_WATCH, b"/local/domain/5/data\0t\0") == "EEXIST"
    domu.watch("data", "u")
    domu.events()
    domu.write("data", "x")
    assert domu.events() == [("data", "t"), ("data", "u")]


def test_an_ended_watch_is_silent(dom0: Client) -> None:
    dom0.watch("/a", "t")
    dom0.watch("/a/b", "t")
    dom0.events()
    dom0.unwatch("/a", "t")
    dom0.write("/a/b", "x")
    assert dom0.events() == [("/a/b", "t")]
    assert refusal(dom0, XS_UNWATCH, b"/a\0t\0") == "ENOENT"
    assert refusal(dom0, XS_UNWATCH, b"/a/b\0other\0") == "ENOENT"
    dom0.request(XS_RESET_WATCHES, b"\0")
    dom0.write("/a/b", "y")
    assert dom0.events() == []


@pytest.mark.parametrize("payload", [b"/a", b"/a\0", b"/a\0t", b"/a\0t\0d\0", b"/a\0t\0001\0x\0", b"a b\0t\0"])
def test_a_wrong_watch_is_refused(dom0: Client, payload: bytes) -> None:
    assert refusal(dom0, XS_WATCH, payload) == "EINVAL"


def test_no_events_to_those_who_may_not_read(dom0: Client, domu: Client) -> None:
    dom0.make("/hidden/below")
    domu.watch("/hidden", "t")
    assert domu.events() == [("/hidden", "t")]
    dom0.write("/hidden/below", "x")
    dom0.make("/hidden/other")
    assert domu.events() == []
    dom0.set_permissions("/hidden/below", ["n1", "r5"])
    dom0.write("/hidden/below", "y")
    assert domu.events() == [("/hidden/below", "t")]


def test_who_loses_the_right_to_read_is_told_and_so_is_who_could_read_what_went(dom0: Client, domu: Client) -> None:
    dom0.make("/shown/below")
    dom0.set_permissions("/shown/below", ["n1", "r5"])
    domu.watch("/shown", "t")
    domu.events()
    dom0.set_permissions("/shown/below", ["n1"])
    assert domu.events() == [("/shown/below", "t")]
    dom0.set_permissions("/shown/below", ["n1", "r5"])
    domu.events()
    dom0.remove("/shown/below")
    assert domu.events() == [("/shown/below", "t")]


def test_what_waits_already_is_not_told_twice(store: Store, dom0: Client) -> None:
    watcher = tools(store)
    watcher.watch("/a", "t")
    watcher.events()
    for _ in range(100):
        dom0.write("/a", "x")
    dom0.write("/a/b", "x")
    assert watcher.events() == [("/a", "t"), ("/a/b", "t")]
    dom0.write("/a", "x")
    assert watcher.events() == [("/a", "t")]


def test_depth_limits_how_far_below_a_watch_sees(dom0: Client) -> None:
    for depth in ("0", "1", "2"):
        dom0.watch("/a", depth, depth)
    dom0.events()
    dom0.make("/a")
    assert [token for _, token in dom0.events()] == ["0", "1", "2"]
    dom0.make("/a/b")
    assert dom0.events() == [("/a/b", "1"), ("/a/b", "2")]
    dom0.make("/a/b/c")
    assert dom0.events() == [("/a/b/c", "2")]
    dom0.make("/a/b/c/d")
    assert dom0.events() == []
    dom0.remove("/a")
    assert dom0.events() == [("/a", "0"), ("/a", "1"), ("/a", "2")]


def test_depth_is_refused_to_a_domain_that_does_not_have_the_feature(store: Store, dom0: Client) -> None:
    dom0.strings(XS_SET_FEATURE, "6", "3")
    old = guest(store, 6)
    assert refusal(old, XS_WATCH, b"data\0t\x001\0") == "EINVAL"
    old.watch("data", "t")


# -- special names ----------------------------------------------------------------------------------------------------


def test_domains_that_come_and_go_are_told_to_those_who_may_know(store: Store, dom0: Client, domu: Client) -> None:
    for client in (dom0, domu):
        client.watch("@introduceDomain", "i")
        client.watch("@releaseDomain", "r")
        assert client.events() == [("@introduceDomain", "i"), ("@releaseDomain", "r")]
    store.introduce(8)
    assert dom0.events() == [("@introduceDomain", "i")]
    store.shut_down(8)
    store.shut_down(8)
    assert dom0.events() == [("@releaseDomain", "r")]
    store.gone(8)
    assert dom0.events() == [("@releaseDomain", "r")]
    assert domu.events() == []

    dom0.set_permissions("@releaseDomain", ["n1", "r5"])
    assert dom0.permissions("@releaseDomain") == ["n1", "r5"]
    store.introduce(9)
    store.gone(9)
    assert domu.events() == [("@releaseDomain", "r")]


def test_special_events_are_told_each_time(store: Store, dom0: Client) -> None:
    dom0.watch("@introduceDomain", "i")
    dom0.events()
    for domid in (6, 7, 8):
        store.introduce(domid)
    assert dom0.events() == [("@introduceDomain", "i")] * 3


def test_special_watches_with_a_depth_or_a_domid_tell_which_domain(store: Store, dom0: Client) -> None:
    dom0.watch("@releaseDomain", "all", "1")
    dom0.watch("@releaseDomain/8", "eight")
    dom0.watch("/", "root")
    dom0.events()
    store.introduce(7)
    store.introduce(8)
    store.gone(7)
    assert dom0.events() == [("@releaseDomain/7", "all")]
    store.shut_down(8)
    assert dom0.events() == [("@releaseDomain/8", "all"), ("@releaseDomain/8", "eight")]


def test_only_the_owner_of_a_special_node_sets_its_permissions(dom0: Client, domu: Client) -> None:
    assert refusal(domu, XS_SET_PERMS, b"@releaseDomain\0r5\0") == "EACCES"
    assert refusal(dom0, XS_SET_PERMS, b"@otherEvent\0r5\0") == "EINVAL"
    dom0.set_permissions("@introduceDomain", ["n5"])
    domu.set_permissions("@introduceDomain", ["n5", "r6"])


def test_a_special_node_that_a_domain_owned_is_given_back_when_it_is_gone(store: Store, dom0: Client) -> None:
    store.introduce(6)
    dom0.set_permissions("@introduceDomain", ["n6", "r7"])
    dom0.set_permissions("@releaseDomain", ["n1", "r6", "r7"])
    store.gone(6)
    assert dom0.permissions("@introduceDomain") == ["n1"]
    assert dom0.permissions("@releaseDomain") == ["n1", "r7"]
