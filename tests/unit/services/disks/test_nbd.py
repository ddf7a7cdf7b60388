"""The NBD client against a server of the tests, which is no better than its script, and against QEMU's where there is
one."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from xenolith.errors import UserError
from xenolith.services.disks import nbd
from xenolith.services.disks.nbd import NbdImage
from xenolith.services.disks.open import DiskSource

SIZE = 1 << 20
HELLO = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
FLUSH, TRIM, READ_ONLY = 1 << 2, 1 << 5, 1 << 1


def option_reply(kind: int, content: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, 7, kind, len(content)) + content


def export(size: int = SIZE, flags: int = 1 | FLUSH | TRIM) -> bytes:
    return option_reply(3, struct.pack(">HQH", 0, size, flags))


def block_sizes(minimum: int = 1, preferred: int = 4096) -> bytes:
    return option_reply(3, struct.pack(">HIII", 3, minimum, preferred, 1 << 25))


class Server:
    """Serves `content` in memory to one client, after `greeting`. `mangle` changes each answer."""

    def __init__(
        self, greeting: bytes = export() + block_sizes() + option_reply(1), mangle: Callable[[bytes], bytes] = bytes
    ) -> None:
        self.content = bytearray(os.urandom(SIZE))
        self.commands: list[tuple[int, int, int]] = []
        self._greeting = greeting
        self._mangle = mangle
        self.client, self._socket = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self._socket.recv(length - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def _serve(self) -> None:
        try:
            self._socket.sendall(HELLO)
            self._take(4)
            _, _, length = struct.unpack(">8sII", self._take(16))
            self._take(length)
            self._socket.sendall(self._greeting)
            while True:
                self._answer(*struct.unpack(">IHHQQI", self._take(28)))
        except (EOFError, OSError):
            self._socket.close()

    def _answer(self, magic: int, flags: int, kind: int, cookie: int, offset: int, length: int) -> None:
        assert magic == 0x25609513
        self.commands.append((kind, offset, length))
        data = b""
        error = 0
        if offset + length > SIZE:
            error = 28
        if kind == 1:
            written = self._take(length)
            if not error:
                self.content[offset : offset + length] = written
        elif kind == 0 and not error:
            data = bytes(self.content[offset : offset + length])
        self._socket.sendall(self._mangle(struct.pack(">IIQ", 0x67446698, error, cookie) + data))


def test_reads_writes_flushes_and_discards() -> None:
    server = Server()
    image = NbdImage(server.client, "", readonly=False)
    assert (image.size, image.readonly, image.physical_sector_size, image.discard_granularity) == (
        SIZE,
        False,
        4096,
        4096,
    )
    parts = [memoryview(bytearray(512)) for _ in range(2000)]
    image.readv(1024, parts)
    assert b"".join(parts) == server.content[1024 : 1024 + 2000 * 512]
    content = os.urandom(2000 * 512)
    image.writev(512, [memoryview(content)[at : at + 512] for at in range(0, len(content), 512)])
    assert server.content[512 : 512 + len(content)] == content
    image.flush()
    image.discard(4096, 8192)
    assert server.commands[-2:] == [(3, 0, 0), (4, 4096, 8192)]
    with pytest.raises(OSError, match="space"):
        image.readv(SIZE, [memoryview(bytearray(512))])
    image.readv(0, [memoryview(bytearray(512))])
    image.close()


def test_from_several_threads() -> None:
    server = Server()
    image = NbdImage(server.client, "", readonly=False)
    wrong: list[int] = []

    def read(number: int) -> None:
        for at in range(number * 512, SIZE, 4096):
            buffer = bytearray(512)
            image.readv(at, [memoryview(buffer)])
            if buffer != server.content[at : at + 512]:
                wrong.append(at)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    image.close()


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        (option_reply(1 << 31 | 6, b"no such export"), "no such export"),
        (option_reply(1 << 31 | 1), "NBD error 1"),
        (block_sizes(4096) + option_reply(1), "blocks of 4096"),
        (struct.pack(">QIII", 1, 7, 1, 0), "something else"),
        (struct.pack(">QIII", 0x3E889045565A9, 7, 1, 1 << 31), "something else"),
    ],
)
def test_a_server_that_refuses(greeting: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        NbdImage(Server(greeting).client, "disk", readonly=True)


def test_a_server_that_lets_nobody_write() -> None:
    greeting = export(flags=1 | READ_ONLY | TRIM) + option_reply(1)
    with pytest.raises(UserError, match="lets nobody write"):
        NbdImage(Server(greeting).client, "disk", readonly=False)
    image = NbdImage(Server(greeting).client, "disk", readonly=True)
    assert (image.readonly, image.discard_granularity) == (True, 0)
    image.close()


@pytest.mark.parametrize(
    "mangle", [lambda data: data[:-1] + b"x" if len(data) == 16 else b"\0" + data, lambda data: b""]
)
def test_after_a_wrong_answer_nothing_is_believed(
    mangle: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd, "_TIMEOUT_S", 0.2)
    image = NbdImage(Server(mangle=mangle).client, "", readonly=False)
    for _ in range(2):
        with pytest.raises(OSError):  # noqa: PT011 - whichever it is, the guest is told of an error
            image.readv(0, [memoryview(bytearray(512))])
    image.close()


def test_a_url_without_a_server(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no NBD server"):
        DiskSource(f"nbd+unix:///disk?socket={tmp_path}/none").open()


def test_a_server_at_a_url(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    server = Server()

    def forward() -> None:
        connection, _ = listener.accept()
        server._socket, old = connection, server._socket
        old.close()
        server._serve()

    threading.Thread(target=forward, daemon=True).start()
    image, _ = DiskSource(f"nbd+unix:///disk?socket={tmp_path}/socket").open()
    buffer = bytearray(512)
    image.readv(512, [memoryview(buffer)])
    assert buffer == server.content[512:1024]
    image.close()


def test_a_format_without_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs qemu-nbd, which is not installed") as refused:
        DiskSource(str(tmp_path / "disk"), "qcow2").open()
    assert "qemu-utils" in refused.value.hint
    with pytest.raises(UserError, match="needs nbdkit"):
        DiskSource("https://example.org/disk", readonly=True).open()


@pytest.mark.skipif(not shutil.which("qemu-nbd"), reason="qemu-nbd (qemu-utils) is not on this host")
def test_qcow2_by_qemu(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "8M"], check=True)
    content = os.urandom(1 << 16)
    image, _ = DiskSource(str(path), "qcow2").open()
    assert image.size == 8 << 20
    image.writev(4096, [memoryview(content)])
    image.flush()
    with pytest.raises(UserError, match="cannot be served"):
        DiskSource(str(path), "qcow2").open()
    image.close()
    image, _ = DiskSource(str(path), "qcow2").open()  # waits for the server before it
    buffer = bytearray(len(content))
    image.readv(4096, [memoryview(buffer)])
    assert buffer == content
    image.discard(0, 1 << 20)
    image.close()
    (tmp_path / "raw").write_bytes(bytes(4096))
    with pytest.raises(UserError, match="Image is not in qcow2 format"):
        DiskSource(str(tmp_path / "raw"), "qcow2").open()
