"""What a guest may have of the store, and what it is told when it wants more; privileged domains may have all."""

from __future__ import annotations

import pytest

from tests.unit.store.support import Client, guest, refusal
from xenolith.abi.io.xs_wire import (
    XS_CONTROL,
    XS_GET_DOMAIN_PATH,
    XS_INTRODUCE,
    XS_IS_DOMAIN_INTRODUCED,
    XS_MKDIR,
    XS_READ,
    XS_RELEASE,
    XS_RESUME,
    XS_SET_PERMS,
    XS_SET_TARGET,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WRITE,
)
from xenolith.store.server import FEATURES, Store
from xenolith.store.wire import XS_GET_FEATURE, XS_GET_QUOTA, XS_SET_FEATURE, XS_SET_QUOTA


def limit(dom0: Client, name: str, value: int) -> None:
    dom0.strings(XS_SET_QUOTA, name, str(value))


def test_nodes(dom0: Client, domu: Client) -> None:
    limit(dom0, "nodes", 4)
    domu.make("data/a/b")
    assert refusal(domu, XS_MKDIR, b"data/c/d\0") == "ENOSPC"
    domu.make("data/c")
    assert refusal(domu, XS_WRITE, b"data/e\0x") == "ENOSPC"
    domu.remove("data/a/b")
    domu.write("data/e", "x")
    dom0.write("/local/domain/5/data/by-tools", "x")


def test_nodes_in_a_transaction_are_counted_when_it_comes_true(dom0: Client, domu: Client) -> None:
    limit(dom0, "nodes", 4)
    one, other = domu.start(), domu.start()
    for number, name in ((one, "one"), (other, "other")):
        domu.make(f"data/{name}/x", number)
        assert refusal(domu, XS_MKDIR, b"data/y/z\0", number) == "ENOSPC"
    domu.end(one)
    assert refusal(domu, XS_TRANSACTION_END, b"T\0", other) == "ENOSPC"


def test_the_size_of_a_node_and_of_a_directory(dom0: Client, domu: Client) -> None:
    assert refusal(domu, XS_WRITE, b"data/a\0" + b"x" * 2048) == "ENOSPC"
    domu.write("data/a", b"x" * 2000)
    names = [f"{'n' * 90}{number:02}" for number in range(22)]
    for name in names[:21]:
        domu.make(f"data/{name}")
    assert refusal(domu, XS_MKDIR, f"data/{names[21]}\0".encode()) == "ENOSPC"


def test_permissions_of_a_node(domu: Client) -> None:
    domu.set_permissions("data", ["n5", "r1", "r2", "r3", "r4"])
    assert refusal(domu, XS_SET_PERMS, b"data\0n5\0r1\0r2\0r3\0r4\0r6\0") == "ENOSPC"


def test_watches(dom0: Client, domu: Client) -> None:
    limit(dom0, "watches", 2)
    for token in "ab":
        domu.watch("data", token)
    assert refusal(domu, XS_WATCH, b"data\0c\0") == "E2BIG"
    domu.unwatch("data", "a")
    domu.watch("data", "c")
    for number in range(5):
        dom0.watch("/", str(number))


def test_transactions_and_what_they_touch(dom0: Client, domu: Client) -> None:
    limit(dom0, "transactions", 2)
    limit(dom0, "transaction-nodes", 3)
    numbers = [domu.start() for _ in range(2)]
    assert refusal(domu, XS_TRANSACTION_START, b"\0") == "ENOSPC"
    for name in ("data/a", "data/b", "data/c"):
        assert refusal(domu, XS_READ, name.encode() + b"\0", numbers[0]) == "ENOENT"
    assert refusal(domu, XS_READ, b"data/d\0", numbers[0]) == "ENOSPC"
    domu.end(numbers[0], commit=False)
    domu.start()


def test_memory(dom0: Client, domu: Client) -> None:
    limit(dom0, "memory", 5000)
    for name in "abc":
        domu.write(f"data/{name}", b"x" * 1400)
    assert refusal(domu, XS_WRITE, b"data/d\0" + b"x" * 1400) == "ENOMEM"
    number = domu.start()
    domu.write("data/a", b"y" * 1400, number)
    domu.write("data/a", b"y" * 1400, number)
    domu.write("data/a", b"y" * 1400, number)
    assert refusal(domu, XS_WRITE, b"data/a\0" + b"y" * 1400, number) == "ENOMEM"
    domu.remove("data/a")
    domu.write("data/d", b"x" * 1400)


def test_the_length_of_a_path_is_counted_from_a_domains_home(dom0: Client, domu: Client) -> None:
    limit(dom0, "path-max", 20)
    domu.write("data/" + "x" * 15, "1")
    domu.write("/local/domain/5/data/" + "y" * 15, "1")
    assert refusal(domu, XS_WRITE, b"data/" + b"x" * 16 + b"\0001") == "EINVAL"
    dom0.write("/" + "x" * 100, "1")


def test_a_domain_may_have_limits_of_its_own(store: Store, dom0: Client, domu: Client) -> None:
    other = guest(store, 6)
    dom0.strings(XS_SET_QUOTA, "5", "watches", "1")
    domu.watch("data", "a")
    assert refusal(domu, XS_WATCH, b"data\0b\0") == "E2BIG"
    other.watch("data", "a")
    other.watch("data", "b")
    assert dom0.strings(XS_GET_QUOTA, "5", "watches") == b"1\0"
    assert dom0.strings(XS_GET_QUOTA, "6", "watches") == dom0.strings(XS_GET_QUOTA, "watches") == b"128\0"
    assert b"transaction-nodes" in dom0.request(XS_GET_QUOTA, b"").split(b"\0")[0].split(b" ")
    dom0.strings(XS_SET_QUOTA, "5", "watches", "0")
    domu.watch("data", "b")
    assert refusal(dom0, XS_GET_QUOTA, b"77\0watches\0") == "ENOENT"
    assert refusal(dom0, XS_SET_QUOTA, b"nonsense\0005\0") == "EINVAL"
    assert refusal(dom0, XS_SET_QUOTA, b"watches\0-1\0") == "EINVAL"


def test_features(store: Store, dom0: Client, domu: Client) -> None:
    assert dom0.request(XS_GET_FEATURE, b"") == b"%d\0" % FEATURES
    dom0.strings(XS_SET_FEATURE, "7", "2")
    assert dom0.strings(XS_GET_FEATURE, "7") == b"2\0"
    assert refusal(dom0, XS_SET_FEATURE, b"7\0%d\0" % (FEATURES + 1 << 1)) == "EINVAL"
    assert refusal(dom0, XS_SET_FEATURE, b"5\0002\0") == "EBUSY"
    assert refusal(dom0, XS_GET_FEATURE, b"99\0") == "ENOENT"


# -- who may ask for what ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (XS_INTRODUCE, b"6\0001\0002\0"),
        (XS_RELEASE, b"5\0"),
        (XS_RESUME, b"5\0"),
        (XS_SET_TARGET, b"5\0006\0"),
        (XS_IS_DOMAIN_INTRODUCED, b"5\0"),
        (XS_CONTROL, b"help\0"),
        (XS_GET_QUOTA, b""),
        (XS_SET_QUOTA, b"nodes\0000\0"),
        (XS_GET_FEATURE, b""),
        (XS_SET_FEATURE, b"6\0000\0"),
    ],
)
def test_what_no_guest_may_ask_for(store: Store, domu: Client, kind: int, payload: bytes) -> None:
    assert refusal(domu, kind, payload) == "EACCES"
    assert not store.is_introduced(6)


@pytest.mark.parametrize("kind", [15, 16, 20, 27, 0xFFFF, 0xFFFF_FFFF])
def test_unknown_requests(dom0: Client, kind: int) -> None:
    assert refusal(dom0, kind, b"") == "ENOSYS"


def test_several_domains_may_be_privileged_and_need_not_stay_so(store: Store) -> None:
    builder = guest(store, 3)
    store.set_privileged(3, True)
    builder.write("/anything", "x")
    assert builder.strings(XS_IS_DOMAIN_INTRODUCED, "3") == b"T\0"
    store.set_privileged(3, False)
    assert refusal(builder, XS_WRITE, b"/anything\0y") == "EACCES"


def test_domains(store: Store, dom0: Client, domu: Client) -> None:
    assert domu.strings(XS_GET_DOMAIN_PATH, "17") == b"/local/domain/17\0"
    assert dom0.strings(XS_IS_DOMAIN_INTRODUCED, "5") == b"T\0"
    assert dom0.strings(XS_IS_DOMAIN_INTRODUCED, "6") == b"F\0"
    assert dom0.strings(XS_INTRODUCE, "6", "1", "2") == b"OK\0"
    assert dom0.strings(XS_IS_DOMAIN_INTRODUCED, "6") == b"T\0"
    assert dom0.strings(XS_SET_TARGET, "6", "5") == b"OK\0"
    assert dom0.strings(XS_RELEASE, "6") == b"OK\0"
    assert refusal(dom0, XS_RELEASE, b"6\0") == "ENOENT"
    assert refusal(dom0, XS_SET_TARGET, b"5\0006\0") == "ENOENT"
    for payload in (b"", b"6\0", b"6\0001\0", b"x\0001\0002\0", b"6\0001\0000\0", b"32752\0001\0002\0"):
        assert refusal(dom0, XS_INTRODUCE, payload) == "EINVAL"


def test_a_domain_that_was_resumed_is_reported_again_when_it_shuts_down(store: Store, dom0: Client) -> None:
    store.introduce(6)
    dom0.watch("@releaseDomain", "r")
    dom0.events()
    store.shut_down(6)
    store.shut_down(6)
    assert len(dom0.events()) == 1
    dom0.strings(XS_RESUME, "6")
    store.shut_down(6)
    assert len(dom0.events()) == 1


def test_nothing_is_left_of_a_domain_that_is_gone(store: Store, dom0: Client, domu: Client) -> None:
    dom0.make("/backend/of-five")
    dom0.set_permissions("/backend/of-five", ["n1", "b5", "r6"])
    domu.write("data/a/b", "x")
    domu.watch("data", "t")
    domu.start()
    dom0.watch("/local", "t")
    dom0.events()
    store.gone(5)
    assert dom0.events() == [("/local/domain/5/data", "t")]
    assert not store.is_introduced(5)
    assert dom0.names("/local/domain/5") == []
    assert dom0.permissions("/backend/of-five") == ["n1", "r6"]
    assert 5 not in store.known
    assert not store.watches.covering(("local", "domain", "5", "data"))[1:]
    store.check()
    heir = Client(store, store.introduce(5))
    assert refusal(heir, XS_READ, b"/backend/of-five\0") == "EACCES"


def test_control_commands(store: Store, dom0: Client, domu: Client) -> None:
    lines: list[str] = []
    store.log = lines.append
    text = dom0.strings(XS_CONTROL, "help").decode()
    assert [line.split("\t")[0] for line in text.rstrip("\0\n").split("\n")] == [
        "check",
        "log",
        "quota",
        "print",
        "help",
    ]
    assert dom0.strings(XS_CONTROL, "check") == b"OK\0"
    assert dom0.strings(XS_CONTROL, "print", "hello") == b"OK\0"
    dom0.strings(XS_CONTROL, "log", "on")
    domu.read("data")
    dom0.strings(XS_CONTROL, "log", "off")
    domu.read("data")
    assert lines == ["control: hello", "5 READ b'data\\x00'", "1 CONTROL b'log\\x00off\\x00'"]
    assert b"nodes            :     1000 Nodes per domain" in dom0.strings(XS_CONTROL, "quota")
    dom0.strings(XS_CONTROL, "quota", "set", "nodes", "77")
    assert b"nodes            :       77" in dom0.strings(XS_CONTROL, "quota")
    domu.watch("data", "t")
    assert b"watches         :        1\n" in dom0.strings(XS_CONTROL, "quota", "5")
    assert refusal(dom0, XS_CONTROL, b"quota\00099\0") == "ENOENT"
    for payload in (b"", b"nonsense\0", b"print\0", b"log\0maybe\0", b"quota\0set\0nodes\0", b"help\0me\0"):
        assert refusal(dom0, XS_CONTROL, payload) == "EINVAL"
