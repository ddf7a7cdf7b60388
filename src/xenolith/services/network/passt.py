"""User-mode networking: passt(1), a program that turns a guest's packets into sockets of an ordinary user of the host.

It speaks QEMU's stream protocol: frames, each after its length in four bytes, big-endian, over a UNIX socket.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Final

from xenolith.errors import UserError
from xenolith.loader import registry
from xenolith.machine.offload import Offers
from xenolith.machine.packet import MAX_PACKET, Packet
from xenolith.services.network.uplink import UplinkGone

ADDRESS: Final = "10.0.2.15"
GATEWAY: Final = "10.0.2.2"
NAME_SERVER: Final = "10.0.2.3"
"""The addresses of QEMU's user-mode networking: the guest's own, the host's, and that of its name server, of which
passt may also tell guests the real address."""
_PREFIX: Final = 24
_WAITING_BYTES: Final = 4 << 20
"""What may wait for passt to take it."""
_READ_BYTES: Final = 512 << 10
_SOCKET_BYTES: Final = 1 << 20
_START_SECONDS: Final = 10.0
_LENGTH: Final = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class UserNetwork:
    """What is asked for: the guest's address and MTU, and its forwarded ports, each "tcp:HOST:GUEST"."""

    mac: bytes
    mtu: int
    forwards: tuple[str, ...] = ()

    def open(self, log: registry.Progress) -> PasstUplink:
        """Start passt, which is fetched if this host does not have it. UserError if that cannot be. Blocks."""
        return PasstUplink(_program(log), self)

    def arguments(self) -> list[str]:
        words = ["--address", ADDRESS, "--netmask", str(_PREFIX), "--gateway", GATEWAY, "--mtu", str(self.mtu)]
        words += ["--dns-forward", NAME_SERVER]
        for option, protocol in (("--tcp-ports", "tcp:"), ("--udp-ports", "udp:")):
            for forward in self.forwards:
                if forward.startswith(protocol):
                    # Only this host's own programs reach the guest: what is open to all should not be so by accident.
                    words += [option, "127.0.0.1/" + forward.removeprefix(protocol)]
        return words


class PasstUplink:
    """A passt of its own for one device (an Uplink)."""

    offers: Final = Offers(gso_v4=True, gso_v6=True)
    """passt reads the payload of TCP as a stream, in packets of any length."""

    def __init__(self, program: str, network: UserNetwork) -> None:
        self._socket, other = socket.socketpair()
        with other, tempfile.TemporaryFile("w+") as words:
            for end in (self._socket, other):
                for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)
            command = [program, "--foreground", "--quiet", "--fd", str(other.fileno()), *network.arguments()]
            self._process = _start(command, other, words)
            other.close()
            try:
                self._greet(network.mac)
            except (OSError, UplinkGone):
                self.close()
                words.seek(0)
                raise UserError(
                    f"user-mode networking does not start: {_complaint(words.read())}",
                    "it needs a free port for each forward, and a host with a network",
                ) from None
        self._socket.setblocking(False)
        self._writing = os.dup(self.reading)
        self._received = bytearray()
        self._waiting = bytearray()

    @property
    def reading(self) -> int:
        return self._socket.fileno()

    @property
    def writing(self) -> int:
        return self._writing

    def send(self, packet: Packet) -> None:
        if len(self._waiting) < _WAITING_BYTES:
            self._waiting += _LENGTH.pack(len(packet.data)) + packet.data

    def flush(self) -> bool:
        try:
            while self._waiting:
                del self._waiting[: os.write(self._writing, self._waiting)]
        except BlockingIOError:
            return True
        except OSError:
            raise UplinkGone from None
        return False

    def receive(self) -> Sequence[Packet]:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return ()
        except OSError:
            raise UplinkGone from None
        if not data:
            raise UplinkGone
        self._received += data
        return [Packet(frame, validated=True) for frame in self._frames()]

    def _frames(self) -> list[bytes]:
        frames, at, received = [], 0, self._received
        while len(received) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(received, at)
            if length > MAX_PACKET:
                raise UplinkGone
            if len(received) - at - _LENGTH.size < length:
                break
            frames.append(bytes(received[at + _LENGTH.size : at + _LENGTH.size + length]))
            at += _LENGTH.size + length
        del received[:at]
        return frames

    def close(self) -> None:
        self._socket.close()
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._writing)
        self._process.terminate()
        self._process.wait()

    def _greet(self, mac: bytes) -> None:
        """Ask for the gateway's address, as the guest would, and wait for the answer: then all ports are open."""
        self._socket.settimeout(_START_SECONDS)
        head = b"\xff" * 6 + mac + b"\x08\x06" + struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1)
        addresses = mac + socket.inet_aton(ADDRESS) + bytes(6) + socket.inet_aton(GATEWAY)
        frame = head + addresses
        self._socket.sendall(_LENGTH.pack(len(frame)) + frame)
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        self._exactly(min(length, MAX_PACKET))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise UplinkGone
            data += more
        return data


def _program(progress: registry.Progress) -> str:
    found = shutil.which("passt") or registry.tool("passt")
    if found is not None:
        return str(found)
    try:
        return str(registry.pull("passt", progress).file)
    except UserError as error:
        raise UserError(
            f"user-mode networking needs passt, which is not here and cannot be fetched: {error.message}",
            "install the package passt, or run 'xenolith pull passt' where there is a network",
        ) from None


def _start(command: list[str], other: socket.socket, words: IO[str]) -> subprocess.Popen[bytes]:
    """In a session of its own, so that the interrupt key reaches the machine alone; it ends with its socket."""
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=words,
            pass_fds=(other.fileno(),),
            start_new_session=True,
        )
    except OSError as error:
        raise UserError(f"{command[0]} cannot be started: {error.strerror}") from None


def _complaint(text: str) -> str:
    """The last line of what passt said that is about the matter."""
    lines = [line for line in text.splitlines() if line and not line.startswith("Failed to send")]
    return lines[-1] if lines else "passt gave no reason"
