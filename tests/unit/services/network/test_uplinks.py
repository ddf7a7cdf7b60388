"""Ways to the host: passt as it is, and a tap device where there is the right to one."""

from __future__ import annotations

import os
import select
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from tests.unit.backends.net.frames import A, is_right, tcp, udp
from xenolith.errors import UserError
from xenolith.loader import registry
from xenolith.machine.offload import Offers, adapt
from xenolith.machine.packet import GSO_TCPV4, Packet
from xenolith.services.network import passt
from xenolith.services.network.passt import ADDRESS, GATEWAY, PasstUplink, UserNetwork
from xenolith.services.network.tap import Tap, TapUplink
from xenolith.services.network.uplink import Uplink, UplinkGone

NAME = f"xltest{os.getpid() % 10000}"


def _no_progress(what: str, share: float) -> None: ...


@pytest.fixture
def open_passt() -> Iterator[Callable[..., PasstUplink]]:
    if shutil.which("passt") is None and registry.tool("passt") is None:
        pytest.skip("passt is not on this host: install it, or run 'xenolith pull passt'")
    opened: list[PasstUplink] = []

    def start(*forwards: str) -> PasstUplink:
        try:
            opened.append(UserNetwork(A, 1500, forwards).open(_no_progress))
        except UserError as error:
            if "interface" in error.message:
                pytest.skip(f"this host has no network: {error.message}")
            raise
        return opened[-1]

    yield start
    for uplink in opened:
        uplink.close()


def _await(uplink: Uplink, wanted: Callable[[Packet], bool]) -> Packet:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        select.select([uplink.reading], [], [], 0.5)
        for packet in uplink.receive():
            if wanted(packet):
                return packet
    raise AssertionError("nothing came")


def _is_udp(packet: Packet) -> bool:
    return packet.data[12:14] == b"\x08\x00" and packet.data[23] == 17


def test_a_guest_is_given_an_address(open_passt: Callable[..., PasstUplink]) -> None:
    uplink = open_passt()
    bootp = struct.pack(">BBBBIHH16x16s192xI", 1, 1, 6, 0, 7, 0, 0x8000, A, 0x63825363) + b"\x35\x01\x01\xff"
    frame = bytearray(udp(bootp))
    frame[:6], frame[26:34] = b"\xff" * 6, bytes(4) + b"\xff" * 4
    frame[34:38] = struct.pack(">HH", 68, 67)
    uplink.send(adapt(Packet(bytes(frame), blank=True), uplink.offers)[0])
    assert not uplink.flush()
    offer = _await(uplink, _is_udp).data
    assert offer[14 + 28 + 16 :][:4] == socket.inet_aton(ADDRESS)
    assert b"\x03\x04" + socket.inet_aton(GATEWAY) in offer, "its router"


def test_a_port_of_the_host_leads_to_the_guest(open_passt: Callable[..., PasstUplink]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uplink = open_passt(f"tcp:{port}:80")
    with socket.create_connection(("127.0.0.1", port)):
        syn = _await(uplink, lambda packet: packet.data[23] == 6 and packet.data[12:14] == b"\x08\x00").data
        assert int.from_bytes(syn[36:38], "big") == 80
        assert syn[30:34] == socket.inet_aton(ADDRESS)
    with pytest.raises(UserError, match=str(port)):
        open_passt(f"tcp:{port}:81")


def test_the_end_of_passt_is_noticed(open_passt: Callable[..., PasstUplink]) -> None:
    uplink = open_passt()
    uplink._process.kill()
    uplink._process.wait()
    select.select([uplink.reading], [], [], 5)
    with pytest.raises(UplinkGone):
        uplink.receive()


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(alias: str, progress: object) -> None:
        raise UserError("the distribution's registry cannot be reached")

    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(registry, "tool", lambda alias: None)
    monkeypatch.setattr(registry, "pull", pull)
    with pytest.raises(UserError, match=r"passt.*registry cannot be reached") as told:
        passt._program(_no_progress)
    assert "xenolith pull passt" in told.value.hint


@pytest.fixture
def tap() -> Iterator[TapUplink]:
    try:
        uplink = Tap(NAME).open()
    except UserError as error:
        pytest.skip(error.message)
    yield uplink
    uplink.close()


def test_a_tap_carries_packets_with_their_offloads(tap: TapUplink) -> None:
    ip = shutil.which("ip") or pytest.skip("ip (iproute2) is not on this host")
    os.system(f"{ip} addr add 192.0.2.129/30 dev {NAME} && {ip} link set {NAME} up")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.sendto(b"x" * 100, ("192.0.2.131", 9))
    packet = _await(tap, _is_udp)
    assert packet.data.endswith(b"x" * 100)
    (completed,) = adapt(packet, Offers())
    assert is_right(completed.data)
    tap.send(Packet(tcp(bytes(5000)), True, True, GSO_TCPV4, 1448))
    assert _read(f"/sys/class/net/{NAME}/statistics/rx_packets") == 1
    with pytest.raises(UserError, match="in use"):
        Tap(NAME).open()


def _read(path: str) -> int:
    with open(path) as file:
        return int(file.read())
