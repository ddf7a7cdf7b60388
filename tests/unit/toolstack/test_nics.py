"""Network devices and shares: the mini-languages of xl-network-configuration(5) and xl.cfg(5), and what is ours."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.errors import UserError
from xenolith.toolstack.nics import DEFAULT_BRIDGE, Forward, Nic, Rate, mac_of, nic, parse_nic, parse_rate
from xenolith.toolstack.shares import Share, parse_share, share


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("", Nic()),
        ("mac=00:16:3E:74:3d:76,model=rtl8139,bridge=lan", Nic(mac="00:16:3e:74:3d:76", bridge="lan")),
        (" bridge=lan , type=vif", Nic(bridge="lan")),
        ("mac=0:16:3e:1:2:3", Nic(mac="00:16:3e:01:02:03")),
        ("user", Nic(bridge=None, user=True)),
        (
            "user,forward=8080:80,forward=udp:53:5353",
            Nic(bridge=None, user=True, forwards=(Forward("tcp", 8080, 80), Forward("udp", 53, 5353))),
        ),
        ("tap=tap0,pcap=out.pcap", Nic(bridge=None, tap="tap0", pcap=Path("out.pcap"))),
        ("ip=10.0.0.2 fd00::2/64,mtu=9000,devid=0x3", Nic(ip=("10.0.0.2", "fd00::2/64"), mtu=9000, devid=3)),
        ("vifname=web0,backend=drivers,untrusted", Nic(vifname="web0", backend="drivers", trusted=False)),
        ("rate=1MB/s@20ms", Nic(rate=Rate(1000000, 20000))),
    ],
)
def test_a_nic(spec: str, wanted: Nic) -> None:
    assert parse_nic(spec.replace(" ,", ",")) == wanted


def test_what_has_no_effect_is_told() -> None:
    assert parse_nic("script=vif-bridge,gatewaydev=eth0,bridge=lan").ignored == ("script", "gatewaydev")
    assert parse_nic("bridge=lan").ignored == ()


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("foo", "a vif has no 'foo'"),
        ("mac=00:16:3e:74:3d", "no MAC address"),
        ("mac=00:16:3e:74:3d:zz", "no MAC address"),
        ("mac=01:16:3e:74:3d:76", "no device can have"),
        ("mac=0:0:0:0:0:0", "no device can have"),
        ("type=ioemu", "no vif of type 'ioemu'"),
        ("forward=8080:80", "forward is for user-mode networking"),
        ("user,forward=80", "'80' forwards no port"),
        ("user,forward=0:80", "forwards no port"),
        ("user,forward=80:65536", "forwards no port"),
        ("user,bridge=lan", "one of bridge, tap and user"),
        ("tap=tap0,user", "one of bridge, tap and user"),
        ("tap=a/b", "'a/b' cannot be the name of a tap"),
        ("bridge=a-very-long-name-for-it", "cannot be the name of a bridge"),
        ("ip=10.0.0.300", "no list of IP addresses"),
        ("mtu=10", "the mtu of a vif cannot be '10'"),
        ("devid=x", "the devid of a vif cannot be 'x'"),
        ("user=perhaps", "user of a vif cannot be 'perhaps'"),
        ("mac=00:16:3e:00:00:01,mac=00:16:3e:00:00:02", "'mac' of a vif is given twice"),
        ("pcap=", "the pcap of a vif cannot be ''"),
        ("trusted,untrusted", "trusted or untrusted"),
    ],
)
def test_what_is_no_nic(spec: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_nic(spec)


@pytest.mark.parametrize(
    ("text", "each", "interval"),
    [
        ("16000000b/s", 100000, 50000),
        ("2000000B/s@50ms", 100000, 50000),
        ("16Kb/s", 100, 50000),
        ("2MB/s@50ms", 100000, 50000),
        ("8Gb/s", 50000000, 50000),
        ("80Mb/s@1s", 10000000, 1000000),
        ("10MB/s@1", 10000000, 1000000),
        ("1MB/s@20ms", 20000, 20000),
        ("10Mb/s@20ms", 25000, 20000),
    ],
)
def test_a_rate(text: str, each: int, interval: int) -> None:
    rate = parse_rate(text)
    assert (rate.bytes_per_interval, rate.interval_us) == (each, interval)
    assert parse_rate(str(rate)) == rate


@pytest.mark.parametrize(
    "text",
    [
        "",
        "foo",
        "10MB",
        "10MB/m",
        "10ZB/s",
        "4294967296b/s",
        "4294967296Gb/s",
        "0B/s",
        "1b/s",
        "10Mb/s@foo",
        "10Mb/s@10h",
        "1B/s@4294967296us",
        "1B/s@4295s",
        "1B/s@0us",
        "4294967295GB/s@5us",
        "4296MB/s@4294s",
        "@",
        "1" * 5000 + "B/s",
    ],
)
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(UserError, match="rate"):
        parse_rate(text)


def test_a_mac_that_is_not_given_is_always_the_same() -> None:
    guest = uuid.UUID(int=1)
    assert mac_of(guest, 0) == mac_of(guest, 0)
    assert len({mac_of(guest, devid) for devid in range(8)} | {mac_of(uuid.UUID(int=2), 0)}) == 9
    assert parse_nic(f"mac={mac_of(guest, 0)}").mac == mac_of(guest, 0)
    assert mac_of(guest, 0).startswith("00:16:3e:")


def test_a_table_says_the_same() -> None:
    table = {"user": True, "forward": ["8080:80", "udp:1:2"], "mtu": 1400, "trusted": False}
    assert nic(table) == parse_nic("user,forward=8080:80,forward=udp:1:2,mtu=1400,untrusted")
    with pytest.raises(TypeError, match="a text such as"):
        nic(5)


WORDS = st.sampled_from(
    ["user", "tap=a", "forward=1:2", "rate=", "rate=1B/s", "ip=::1", "mac=2:0:0:0:0:1", "devid=1", "=", ""]
)


@given(st.text(max_size=40) | st.lists(WORDS, max_size=6).map(",".join))
def test_any_text_is_a_nic_or_the_users_mistake(text: str) -> None:
    try:
        found = parse_nic(text)
    except UserError:
        return
    assert parse_nic(str(found)) == found
    assert (found.bridge is None) == (found.user or found.tap is not None)
    assert found.bridge in (None, DEFAULT_BRIDGE) or "bridge" in text


# -- shares -----------------------------------------------------------------------------------------------------------


def test_a_share() -> None:
    wanted = Share("home", "/srv/home", "files")
    assert parse_share("tag=home, path=/srv/home,security_model=none,backend=files") == wanted
    assert share({"tag": "home", "path": "/srv/home", "backend": "files"}) == wanted
    assert parse_share("tag=home,path=data").located(Path("/d")).path == "/d/data"


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("", "no tag"),
        ("tag=a", "no path"),
        ("tag=,path=/a", "no tag"),
        ("tag=a,path=/a,security_model=mapped", "no security_model 'mapped'"),
        ("tag=a,path=/a,type=x", "a p9 share has no 'type'"),
        ("tag=a,path=/a,backend=", "the backend of a p9 share cannot be ''"),
    ],
)
def test_what_is_no_share(spec: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_share(spec)


@given(st.text(max_size=40) | st.text(max_size=10).map(lambda text: f"tag={text},path=/{text}"))
def test_any_text_is_a_share_or_the_users_mistake(text: str) -> None:
    try:
        found = parse_share(text)
    except UserError:
        return
    assert parse_share(str(found)) == found
