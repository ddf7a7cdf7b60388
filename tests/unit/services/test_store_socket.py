"""Xenstore over a unix socket: plain clients, rude ones, and Debian's own xenstore-utils."""

from __future__ import annotations

import os
import selectors
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from xenolith.abi.io.xs_wire import XS_READ, XS_WATCH, XS_WATCH_EVENT, XS_WRITE
from xenolith.services.store_socket import StoreSocket
from xenolith.store.server import Store
from xenolith.store.wire import Decoder, Message
from xenolith.user_cache import cache_directory

_PACKAGES: Final = ("xenstore-utils", "libxenstore4", "libxentoolcore1")
_CONTROL_PACKAGES: Final = (
    "xen-utils-4.17",
    "libxenmisc4.17",
    "libxencall1",
    "libxendevicemodel1",
    "libxenevtchn1",
    "libxenforeignmemory1",
    "libxengnttab1",
    "libxentoollog1",
)
OWNER: Final = 1


class Loop:
    """The host and the machine's thread in one: whoever waits for files is called from `turn`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch_readable(self, fd: int, action: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, action)

    def watch_writable(self, fd: int, action: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_WRITE, action)

    def unwatch(self, fd: int) -> None:
        self._selector.unregister(fd)

    @property
    def watched(self) -> int:
        return len(self._selector.get_map())

    def turn(self, seconds: float = 0.05) -> None:
        for key, _ in self._selector.select(seconds):
            if key.fd in self._selector.get_map():
                key.data()


class Machine:
    """A store that listens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = Loop()
        self.store = Store(OWNER)
        self.socket = StoreSocket(self.store, path, self.loop, self.deliver)
        self._stopping = False
        self._thread = threading.Thread(target=self._run)

    def deliver(self) -> None:
        while self.store.active:
            number = next(iter(self.store.active))
            del self.store.active[number]
            if number in self.socket.clients:
                self.socket.clients[number].flush()

    def _run(self) -> None:
        while not self._stopping:
            self.loop.turn()

    def start(self) -> None:
        """Run by itself, for clients that wait."""
        self._thread.start()

    def close(self) -> None:
        self._stopping = True
        if self._thread.is_alive():
            self._thread.join()
        self.socket.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "xenstored")
    yield machine
    machine.close()


class Plain:
    """A client that says and hears bytes."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(machine.path))
        self.socket.setblocking(False)
        self.decoder = Decoder()
        machine.loop.turn()

    def ask(self, kind: int, payload: bytes) -> None:
        self.socket.sendall(Message(kind, 1, 0, payload).encode())

    def hear(self) -> Message:
        for _ in range(1000):
            try:
                data = self.socket.recv(self.decoder.missing)
            except BlockingIOError:
                self.machine.loop.turn(0.001)
                continue
            assert data, "the store has hung up"
            message = self.decoder.feed(data)
            if message is not None:
                return message
        raise AssertionError("no answer")


def test_one_client_hears_what_another_writes(machine: Machine) -> None:
    one, other = Plain(machine), Plain(machine)
    one.ask(XS_WATCH, b"/a\0token\0")
    assert [one.hear().type, one.hear().payload] == [XS_WATCH, b"/a\0token\0"]
    other.ask(XS_WRITE, b"/a/b\0value")
    assert other.hear().payload == b"OK\0"
    event = one.hear()
    assert (event.type, event.payload) == (XS_WATCH_EVENT, b"/a/b\0token\0")
    one.ask(XS_READ, b"/a/b\0")
    assert one.hear().payload == b"value"


def test_only_the_user_gets_in(machine: Machine) -> None:
    assert machine.path.stat().st_mode & 0o777 == 0o600


def test_a_client_that_goes_takes_its_watches_with_it(machine: Machine) -> None:
    before = machine.loop.watched
    one = Plain(machine)
    one.ask(XS_WATCH, b"/a\0t\0")
    one.hear()
    assert machine.store.watches.covering(("a",))
    one.socket.close()
    machine.loop.turn()
    assert not machine.store.watches.covering(("a",))
    assert not machine.socket.clients
    assert machine.loop.watched == before


def test_a_client_that_speaks_nonsense_is_hung_up_on(machine: Machine) -> None:
    one = Plain(machine)
    one.socket.sendall(b"\xff" * 16)
    machine.loop.turn()
    assert one.socket.recv(1) == b""
    assert not machine.socket.clients


def test_a_client_that_does_not_read_waits_for_itself_and_for_nobody_else(machine: Machine) -> None:
    machine.store.write(("big",), "x" * 4000)
    rude, other = Plain(machine), Plain(machine)
    request = Message(XS_READ, 1, 0, b"/big\0").encode()
    sent = 0
    for _ in range(3000):
        try:
            sent += rude.socket.send(request)
        except BlockingIOError:
            break
        machine.loop.turn(0)
    for _ in range(100):
        machine.loop.turn(0)
    assert all(each.waiting_bytes < 3 << 20 for each in machine.store.connections.values())
    other.ask(XS_READ, b"/big\0")
    assert len(other.hear().payload) == 4000
    for _ in range(sent // len(request)):
        assert len(rude.hear().payload) == 4000


def test_a_closed_store_leaves_no_socket(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "xenstored")
    one = Plain(machine)
    machine.close()
    assert not machine.path.exists()
    assert one.socket.recv(1) == b""
    again = Machine(machine.path)
    again.close()


# -- Debian's tools ---------------------------------------------------------------------------------------------------


def _fetch(cache: Path, packages: tuple[str, ...]) -> None:
    for package in packages:
        marker = cache / f".{package}"
        if marker.exists():
            continue
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=cache, check=True, capture_output=True, timeout=60)
        for file in cache.glob(f"{package}_*.deb"):
            subprocess.run(["dpkg-deb", "-x", file, cache], check=True, capture_output=True, timeout=60)
            file.unlink()
        marker.touch()


class Tools:
    """xenstore-utils, unpacked."""

    def __init__(self, root: Path, path: Path) -> None:
        self.root = root
        libraries = [str(each.parent) for each in root.glob("usr/lib/*/libxen*.so*")]
        self.environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries), "XENSTORED_PATH": str(path)}

    def program(self, name: str) -> str:
        found = next(iter(self.root.glob(f"usr/**/bin/{name}")), None)
        assert found is not None, name
        return str(found)

    def run(self, name: str, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [self.program(name), *arguments], env=self.environment, capture_output=True, text=True, timeout=20
        )
        assert done.returncode == status, done.stderr
        return done.stdout


@pytest.fixture
def debian(machine: Machine) -> Tools:
    """Debian's tools, with the machine running."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        pytest.skip("no xenstore-utils: this host has no apt-get and dpkg-deb")
    cache = cache_directory() / "xenstore-utils"
    try:
        _fetch(cache, _PACKAGES)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"no xenstore-utils: {error}")
    machine.start()
    return Tools(cache, machine.path)


def test_debians_tools_read_and_write(debian: Tools) -> None:
    debian.run("xenstore-write", "/a/b", "one", "/a/c", "two words")
    assert debian.run("xenstore-read", "/a/b", "/a/c") == "one\ntwo words\n"
    assert debian.run("xenstore-list", "/a") == "b\nc\n"
    assert debian.run("xenstore-ls", "/a") == 'b = "one"\nc = "two words"\n'
    assert debian.run("xenstore-ls", "-f", "/a") == '/a/b = "one"\n/a/c = "two words"\n'
    assert debian.run("xenstore-ls", "-p", "/a").startswith('b = "one"')
    assert "(n1)" in debian.run("xenstore-ls", "-p", "/a")
    debian.run("xenstore-exists", "/a/b")
    debian.run("xenstore-exists", "/a/none", status=1)
    debian.run("xenstore-chmod", "-r", "/a", "n1", "r5")
    assert debian.run("xenstore-ls", "-f", "-p", "/a").count("(n1,r5)") == 2
    debian.run("xenstore-rm", "/a/b")
    assert debian.run("xenstore-list", "/a") == "c\n"
    debian.run("xenstore-read", "/a/b", status=1)


def test_debians_ls_reads_a_directory_of_more_than_one_answer(debian: Tools, machine: Machine) -> None:
    for number in range(400):
        machine.store.write(("many", f"a-rather-long-name-{number}"), str(number))
    lines = debian.run("xenstore-ls", "/many").splitlines()
    assert len(lines) == 400
    assert lines[-1] == 'a-rather-long-name-399 = "399"'


def test_debians_watch_sees_events(debian: Tools) -> None:
    watching = subprocess.Popen(
        [debian.program("xenstore-watch"), "-n", "3", "/w"], env=debian.environment, stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    assert watching.stdout.readline() == "/w\n"
    debian.run("xenstore-write", "/w/x", "1")
    debian.run("xenstore-rm", "/w")
    rest, _ = watching.communicate(timeout=20)
    assert rest == "/w/x\n/w\n"
    assert watching.returncode == 0


def test_debians_control_asks_and_sets(debian: Tools) -> None:
    try:
        _fetch(debian.root, _CONTROL_PACKAGES)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"no xenstore-control: {error}")
    assert "quota" in debian.run("xenstore-control", "help")
    debian.run("xenstore-control", "quota", "set", "nodes", "55")
    assert "      55 Nodes per domain" in debian.run("xenstore-control", "quota")
    debian.run("xenstore-control", "check")
