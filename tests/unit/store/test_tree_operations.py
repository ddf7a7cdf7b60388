"""Reading and changing nodes, and who may, as the wire protocol has it (docs/misc/xenstore.txt)."""

from __future__ import annotations

import pytest

from tests.unit.store.support import Client, guest, refusal
from xenolith.abi.io.xs_wire import XS_DIRECTORY, XS_DIRECTORY_PART, XS_MKDIR, XS_READ, XS_RM, XS_SET_PERMS, XS_WRITE
from xenolith.store.server import Store


def test_a_value_is_read_as_it_was_written(dom0: Client) -> None:
    dom0.write("/a/b/c", b"one\0two\xff")
    assert dom0.read("/a/b/c") == b"one\0two\xff"
    assert dom0.read("/a/b") == b""
    assert dom0.names("/a") == ["b"]
    dom0.write("/a/b/c", b"")
    assert dom0.read("/a/b/c") == b""


def test_a_new_store_has_a_place_for_what_the_store_says_of_itself(dom0: Client) -> None:
    assert dom0.names("/") == ["tool"]
    assert dom0.names("/tool") == ["xenstored"]


def test_names_are_in_the_order_in_which_they_were_made(dom0: Client) -> None:
    for name in "cab":
        dom0.make(f"/{name}")
    dom0.remove("/c")
    dom0.make("/c")
    assert dom0.names("/")[1:] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "path",
    [b"", b"//", b"/a/", b"/a//b", b"/a b", b"/a\xe9", b"/a.b", b"/" + b"x" * 3072, b"a//b", b"@releaseDomain/x"],
)
def test_a_wrong_path_is_refused(dom0: Client, path: bytes) -> None:
    for kind, rest in ((XS_READ, b""), (XS_WRITE, b"value"), (XS_MKDIR, b""), (XS_RM, b"")):
        assert refusal(dom0, kind, path + b"\0" + rest) == "EINVAL"


@pytest.mark.parametrize("payload", [b"", b"/a", b"/a\0b", b"/a\0b\0", b"/a\0\0"])
def test_a_request_for_one_path_has_one_string(dom0: Client, payload: bytes) -> None:
    for kind in (XS_READ, XS_DIRECTORY, XS_MKDIR, XS_RM):
        assert refusal(dom0, kind, payload) == "EINVAL"


def test_a_path_may_be_as_long_as_the_protocol_says(dom0: Client) -> None:
    longest = "/" + "x" * 3071
    dom0.write(longest, "1")
    assert dom0.read(longest) == b"1"


def test_a_path_that_does_not_begin_with_a_slash_is_below_the_domains_home(dom0: Client, domu: Client) -> None:
    domu.write("data/key", "value")
    assert dom0.read("/local/domain/5/data/key") == b"value"
    assert domu.read("/local/domain/5/data/key") == b"value"


def test_what_is_not_there_is_said_only_to_who_may_know(dom0: Client, domu: Client) -> None:
    dom0.make("/secret")
    assert refusal(dom0, XS_READ, b"/nothing/at/all\0") == "ENOENT"
    assert refusal(domu, XS_READ, b"/secret/none\0") == "EACCES"
    assert refusal(domu, XS_READ, b"/secret\0") == "EACCES"
    assert refusal(domu, XS_READ, b"data/none/at/all\0") == "ENOENT"
    assert refusal(domu, XS_DIRECTORY, b"/\0") == "EACCES"


def test_an_empty_directory_is_an_empty_answer(dom0: Client) -> None:
    dom0.make("/empty")
    assert dom0.names("/empty") == []


def test_mkdir_leaves_alone_what_is_there(dom0: Client) -> None:
    dom0.write("/a", "kept")
    dom0.make("/a")
    assert dom0.read("/a") == b"kept"


def test_removing_takes_all_below_with_it(dom0: Client) -> None:
    for path in ("/a/b/c", "/a/d", "/e"):
        dom0.make(path)
    dom0.remove("/a")
    assert refusal(dom0, XS_READ, b"/a/b/c\0") == "ENOENT"
    assert "a" not in dom0.names("/")
    assert "e" in dom0.names("/")


def test_removing_what_is_not_there_is_fine_below_a_node_and_an_error_elsewhere(dom0: Client) -> None:
    dom0.remove("/none")
    assert refusal(dom0, XS_RM, b"/none/at/all\0") == "ENOENT"
    assert refusal(dom0, XS_RM, b"/\0") == "EINVAL"


# -- permissions ------------------------------------------------------------------------------------------------------


def test_who_makes_a_node_owns_it_and_inherits_the_rest(dom0: Client, domu: Client) -> None:
    dom0.make("/shared")
    dom0.set_permissions("/shared", ["r1", "b5", "n6"])
    domu.write("/shared/own/deep", "x")
    assert domu.permissions("/shared/own/deep") == domu.permissions("/shared/own") == ["r5", "b5", "n6"]
    dom0.write("/shared/other", "x")
    assert dom0.permissions("/shared/other") == ["r1", "b5", "n6"]
    dom0.write("/shared/own/tools", "x")
    assert dom0.permissions("/shared/own/tools") == ["r5", "b5", "n6"]


@pytest.mark.parametrize(("letter", "may_read", "may_write"), [("n", 0, 0), ("r", 1, 0), ("w", 0, 1), ("b", 1, 1)])
@pytest.mark.parametrize("named", [True, False])
def test_letters_say_who_may_what(
    dom0: Client, domu: Client, letter: str, may_read: int, may_write: int, named: bool
) -> None:
    dom0.write("/node", "value")
    dom0.set_permissions("/node", ["n1", f"{letter}5"] if named else [f"{letter}1", "n6"])
    if may_read:
        assert domu.read("/node") == b"value"
    else:
        assert refusal(domu, XS_READ, b"/node\0") == "EACCES"
    if may_write:
        domu.write("/node", "other")
    else:
        assert refusal(domu, XS_WRITE, b"/node\0other") == "EACCES"


def test_only_an_owner_sets_permissions_and_only_a_privileged_domain_gives_a_node_away(
    dom0: Client, domu: Client
) -> None:
    dom0.make("/node")
    dom0.set_permissions("/node", ["n1", "b5"])
    assert refusal(domu, XS_SET_PERMS, b"/node\0b5\0") == "EACCES"
    domu.set_permissions("data", ["b5", "r1"])
    assert refusal(domu, XS_SET_PERMS, b"data\0n6\0") == "EPERM"
    assert domu.permissions("data") == ["b5", "r1"]
    dom0.set_permissions("/local/domain/5/data", ["n6", "r5"])
    assert refusal(domu, XS_SET_PERMS, b"data\0n5\0") == "EACCES"


@pytest.mark.parametrize("payload", [b"", b"/a\0", b"/a\0x1\0", b"/a\0r\0", b"/a\0r-1\0", b"/a\0r123456\0", b"/a\0r1"])
def test_wrong_permissions_are_refused(dom0: Client, payload: bytes) -> None:
    dom0.make("/a")
    assert refusal(dom0, XS_SET_PERMS, payload) == "EINVAL"
    assert dom0.permissions("/a") == ["n1"]


def test_a_domain_acts_as_its_target_does(store: Store, dom0: Client, domu: Client) -> None:
    stub = guest(store, 9)
    domu.write("data/key", "value")
    assert refusal(stub, XS_READ, b"/local/domain/5/data/key\0") == "EACCES"
    store.connections[9].target = 5
    assert stub.read("/local/domain/5/data/key") == b"value"
    stub.write("/local/domain/5/data/made", "by the stub")
    assert stub.permissions("/local/domain/5/data/made") == ["n9"]
    store.gone(5)
    assert store.connections[9].target is None


# -- long directories -------------------------------------------------------------------------------------------------


def test_a_directory_too_long_for_an_answer_is_read_in_parts(dom0: Client) -> None:
    names = [f"a-name-of-some-length-{number}" for number in range(400)]
    for name in names:
        dom0.make(f"/long/{name}")
    assert refusal(dom0, XS_DIRECTORY, b"/long\0") == "E2BIG"

    found, offset, generations = b"", 0, set()
    while not found.endswith(b"\0\0"):
        answer = dom0.strings(XS_DIRECTORY_PART, "/long", str(offset))
        assert len(answer) <= 4096
        generation, _, part = answer.partition(b"\0")
        generations.add(generation)
        found += part
        offset = len(found)
    assert found.decode().split("\0")[:-2] == names
    assert len(generations) == 1
    dom0.make("/long/another")
    assert dom0.strings(XS_DIRECTORY_PART, "/long", "0").partition(b"\0")[0] not in generations
    assert dom0.strings(XS_DIRECTORY_PART, "/long", "99999").partition(b"\0")[2] == b"\0"
    assert refusal(dom0, XS_DIRECTORY_PART, b"/long\0") == "EINVAL"
    assert refusal(dom0, XS_DIRECTORY_PART, b"/long\0-1\0") == "EINVAL"


def test_a_value_may_be_as_long_as_a_message(dom0: Client) -> None:
    dom0.write("/a", b"x" * 4093)
    assert len(dom0.read("/a")) == 4093
