"""The 9P server over a real directory: each request, what is refused, limits, hostile messages, servers that follow."""

from __future__ import annotations

import os
import stat
import struct
import tempfile
from collections.abc import Iterator
from errno import (
    EBADF,
    EBUSY,
    EEXIST,
    EINVAL,
    EIO,
    ELOOP,
    EMFILE,
    ENAMETOOLONG,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EPROTO,
)
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.backends.ninepfs.client import ROOT, UID, Client, Refused, message, payload
from xenolith.backends.ninepfs import fids, protocol
from xenolith.backends.ninepfs.server import Server
from xenolith.services.shares.directory import Allowance, SharedDirectory

LARGEST = 1 << 17
NOW_NS = 1_700_000_000_123_456_789


class World:
    """A shared directory beside a secret, and what a server keeps."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "share"
        self.directory.mkdir()
        self.secret = directory / "secret"
        self.secret.write_bytes(b"secret")
        self.kept: dict[str, bytearray] = {}
        self.allowance = Allowance(100)

    def server(self) -> Server:
        """One more server of the same client, in code that was started again."""
        self.allowance = Allowance(100)
        files = SharedDirectory(self.directory, 20, self.allowance)
        return Server(files, self.kept, "9pfs 3/0", LARGEST, lambda: NOW_NS)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    client = Client(world.server())
    yield client
    client.server.close()
    assert world.kept == {}
    assert world.allowance.left == 100


def refused(errno: int) -> pytest.RaisesExc[Refused]:
    return pytest.RaisesExc(Refused, check=lambda error: error.errno == errno)


def test_versions_and_sizes(world: World) -> None:
    client = Client(world.server(), msize=0)
    with refused(EPROTO):
        client.ask(protocol.Tattach, "IIssI", ROOT, protocol.NOFID, b"", b"", UID)
    assert client.server.longest == 4096
    with refused(EINVAL):
        client.ask(protocol.Tversion, "Is", 4095, protocol.VERSION)
    assert client.ask(protocol.Tversion, "Is", 1 << 30, b"9P2000.u") == struct.pack("<IH", LARGEST, 7) + b"unknown"
    assert client.ask(protocol.Tversion, "Is", 8192, protocol.VERSION) == struct.pack("<IH", 8192, 8) + b"9P2000.L"
    assert client.server.longest == 8192


def test_files_are_made_written_and_read(client: Client, world: World) -> None:
    client.create(2, b"new", mode=0o751)
    assert client.write(2, b"0123456789") == 10
    assert client.write(2, b"ab", offset=20) == 2
    assert client.read(2, 8, 100) == b"89" + bytes(10) + b"ab"
    client.ask(protocol.Tfsync, "II", 2, 0)
    client.clunk(2)
    made = world.directory / "new"
    assert made.read_bytes() == b"0123456789" + bytes(10) + b"ab"
    assert stat.S_IMODE(made.stat().st_mode) == 0o751
    client.open(3, b"new")
    assert client.read(3, 0, 4) == b"0123"
    assert client.read(3, 1000) == b""
    with refused(EBADF):
        client.write(3, b"x")
    with refused(EBADF):
        client.read(2)
    with refused(EEXIST):
        client.create(4, b"new", flags=os.O_WRONLY | os.O_EXCL)
    client.create(5, b"new", flags=os.O_WRONLY | os.O_TRUNC)
    assert made.read_bytes() == b""


def test_one_message_holds_what_both_ends_have_agreed_on(client: Client, world: World) -> None:
    (world.directory / "long").write_bytes(bytes(100_000))
    client.open(2, b"long")
    assert len(client.read(2, 0, 1 << 31)) == 65536 - 24


def test_walks(client: Client, world: World) -> None:
    (world.directory / "a" / "b").mkdir(parents=True)
    (world.directory / "a" / "file").touch()
    assert client.walk(2, b"a", b"b") == 2
    assert client.walk(3, b"a", b"none", b"more") == 1
    with refused(EBADF):
        client.clunk(3)
    with refused(ENOENT):
        client.walk(3, b"none")
    assert client.walk(3, b"a", b"file", b"..") == 3
    assert client.walk(4, b"..", b"..", b"a", fid=2) == 3
    assert client.attributes(4)["path"] == (world.directory / "a").stat().st_ino
    assert client.walk(5, b"..", b"..", b"..", b"..", fid=2) == 4
    assert client.attributes(5)["path"] == world.directory.stat().st_ino
    with refused(ENOTDIR):
        client.walk(6, b"x", fid=6) if client.walk(6, b"a", b"file") == 2 else None
    with refused(EINVAL):
        client.walk(2)
    with refused(EINVAL):
        client.walk(7, *[b"a"] * 17)
    assert client.walk(2, b"..", fid=2) == 1


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/etc", b"../secret", b"a\0b"])
def test_names_that_are_none(name: bytes, client: Client, world: World) -> None:
    (world.directory / "a").mkdir()
    with refused(EINVAL):
        client.ask(protocol.Tlcreate, "IsIII", ROOT, name, 2, 0o644, UID)
    with refused(EINVAL):
        client.ask(protocol.Tmkdir, "IsII", ROOT, name, 0o755, UID)
    with refused(EINVAL):
        client.ask(protocol.Tunlinkat, "IsI", ROOT, name, 0)
    with refused(EINVAL):
        client.ask(protocol.Trenameat, "IsIs", ROOT, b"a", ROOT, name)
    with refused(EINVAL):
        client.ask(protocol.Trenameat, "IsIs", ROOT, name, ROOT, b"b")
    if name != b"..":
        with refused(ENOENT):
            client.walk(2, name)
    assert world.secret.read_bytes() == b"secret"
    assert os.listdir(world.directory) == ["a"]


def test_links_do_not_lead_out(client: Client, world: World) -> None:
    (world.directory / "out").symlink_to(world.secret)
    (world.directory / "up").symlink_to("..")
    client.ask(protocol.Tsymlink, "IssI", ROOT, b"own", b"../secret", UID)
    for name in (b"out", b"own"):
        assert client.walk(2, name) == 1
        assert stat.S_ISLNK(client.attributes(2)["mode"])
        with refused(ELOOP):
            client.ask(protocol.Tlopen, "II", 2, 0)
        with refused(ELOOP):
            client.create(3, name)
        client.clunk(3)
        with refused(EOPNOTSUPP):
            client.ask(protocol.Tsetattr, "IIIIIQQQQQ", 2, 1, 0o777, 0, 0, 0, 0, 0, 0, 0)
        with refused(EINVAL):
            client.ask(protocol.Tsetattr, "IIIIIQQQQQ", 2, 8, 0, 0, 0, 0, 0, 0, 0, 0)
        client.ask(protocol.Tsetattr, "IIIIIQQQQQ", 2, 0x120, 0, 0, 0, 0, 0, 0, 5, 0)
        client.clunk(2)
    before = world.secret.stat()
    assert client.walk(2, b"up", b"secret") == 1
    with refused(EBADF):
        client.clunk(2)
    client.walk(4, b"up")
    with refused(ENOTDIR):
        client.ask(protocol.Tlcreate, "IsIII", 4, b"new", 2, 0o644, UID)
    client.walk(5, b"out")
    client.ask(protocol.Tlink, "IIs", ROOT, 5, b"hard")
    assert (world.directory / "hard").is_symlink()
    assert client.ask(protocol.Treadlink, "I", 5)[2:] == os.fsencode(world.secret)
    assert world.secret.read_bytes() == b"secret"
    assert world.secret.stat() == before
    assert sorted(os.listdir(world.directory.parent)) == ["secret", "share"]


def test_a_directory_that_becomes_a_link_does_not_lead_out(client: Client, world: World) -> None:
    (world.directory / "d").mkdir()
    client.walk(2, b"d")
    (world.directory / "d").rmdir()
    (world.directory / "d").symlink_to("..")
    with refused(ENOTDIR):
        client.walk(3, b"secret", fid=2)
    with refused(ENOTDIR):
        client.ask(protocol.Tunlinkat, "IsI", 2, b"secret", 0)
    with refused(ENOTDIR):
        client.ask(protocol.Tlink, "IIs", ROOT, 2, b"x") if client.walk(2, b"secret", fid=2) else None
    assert world.secret.exists()


def test_what_belongs_to_the_host_is_not_opened(client: Client, world: World) -> None:
    os.mkfifo(world.directory / "pipe")
    with refused(ENXIO):
        client.open(2, b"pipe")
    assert client.walk(3, b"pipe") == 1
    with refused(EPERM):
        client.ask(protocol.Tmknod, "IsIIII", ROOT, b"disk", stat.S_IFBLK | 0o600, 8, 0, UID)
    client.ask(protocol.Tmknod, "IsIIII", ROOT, b"socket", stat.S_IFSOCK | 0o640, 0, 0, UID)
    assert stat.S_ISSOCK((world.directory / "socket").stat().st_mode)
    with refused(ENXIO):
        client.open(4, b"socket")


def test_names_change(client: Client, world: World) -> None:
    client.ask(protocol.Tmkdir, "IsII", ROOT, b"d", 0o750, UID)
    client.create(2, b"d", b"f")
    client.write(2, b"text")
    client.walk(3, b"d", b"f")
    client.walk(4, b"d")
    client.ask(protocol.Trenameat, "IsIs", ROOT, b"d", ROOT, b"e")
    assert client.attributes(3)["size"] == 4
    client.ask(protocol.Trename, "IIs", 3, ROOT, b"g")
    assert (world.directory / "g").read_bytes() == b"text"
    assert client.read(2) == b"text"
    client.ask(protocol.Tlink, "IIs", ROOT, 3, b"h")
    assert client.attributes(3)["nlink"] == 2
    with refused(EBUSY):
        client.ask(protocol.Trename, "IIs", ROOT, 4, b"x")
    with refused(EBUSY):
        client.ask(protocol.Tlink, "IIs", ROOT, ROOT, b"x")
    client.ask(protocol.Tunlinkat, "IsI", ROOT, b"h", 0)
    client.ask(protocol.Tremove, "I", 3)
    with refused(EBADF):
        client.clunk(3)
    assert client.read(2) == b"text"
    assert client.attributes(2)["nlink"] == 0
    client.create(5, b"e", b"inside")
    with refused(ENOTEMPTY):
        client.ask(protocol.Tunlinkat, "IsI", ROOT, b"e", protocol.AT_REMOVEDIR)
    with refused(ENOTEMPTY):
        client.ask(protocol.Tremove, "I", 4)
    with refused(EBADF):
        client.clunk(4)
    with refused(EBUSY):
        client.ask(protocol.Tremove, "I", ROOT)


def test_attributes(client: Client, world: World) -> None:
    file = world.directory / "f"
    file.write_bytes(b"0123456789")
    client.walk(2, b"f")
    client.ask(protocol.Tsetattr, "IIIIIQqQqQ", 2, 0x1 | 0x8 | 0x20 | 0x100, 0o4640, 0, 0, 3, 0, 0, -5, 7)
    found = file.stat()
    assert (found.st_size, stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (3, 0o4640, -5 * 10**9 + 7)
    client.ask(protocol.Tsetattr, "IIIIIQQQQQ", 2, 0x10, 0, 0, 0, 0, 0, 0, 0, 0)
    assert file.stat().st_atime_ns == NOW_NS
    assert file.stat().st_mtime_ns == found.st_mtime_ns
    client.ask(protocol.Tsetattr, "IIIIIQQQQQ", 2, 0x40, 0, 0, 0, 0, 0, 0, 0, 0)
    for fields in ((8, 0, 0, 0, 1 << 63, 0, 0, 0, 0), (0x120, 0, 0, 0, 0, 0, 0, 0, 10**9)):
        with refused(EINVAL):
            client.ask(protocol.Tsetattr, "IIIIIQQQQQ", 2, *fields)
    told = client.attributes(2)
    assert told["mode"] == found.st_mode
    assert told["size"] == 3
    assert told["path"] == found.st_ino
    usage = struct.unpack("<IIQQQQQQI", client.ask(protocol.Tstatfs, "I", 2))
    assert usage[0] == protocol.STATFS_MAGIC
    assert usage[2] == os.statvfs(world.directory).f_blocks


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to others")
def test_new_files_belong_to_whom_the_guest_says(world: World) -> None:
    client = Client(world.server())
    client.ask(protocol.Tattach, "IIssI", 50, protocol.NOFID, b"", b"/", 1234)
    client.ask(protocol.Tmkdir, "IsII", 50, b"d", 0o2775, 4321)
    client.ask(protocol.Tsymlink, "IssI", 50, b"l", b"d", 4321)
    client.walk(51, fid=50)
    client.ask(protocol.Tlcreate, "IsIII", 51, b"f", 1, 0o600, 4321)
    for name in ("d", "l", "f"):
        found = (world.directory / name).lstat()
        assert (found.st_uid, found.st_gid) == (1234, 4321)
    assert stat.S_IMODE((world.directory / "d").stat().st_mode) == 0o2775
    client.ask(protocol.Tsetattr, "IIIIIQQQQQ", 51, 6, 0, 77, 78, 0, 0, 0, 0, 0)
    assert (world.directory / "f").stat().st_uid == 77
    client.server.close()


def test_directories_are_read_in_parts(client: Client, world: World) -> None:
    names = {f"file number {number}".encode() for number in range(300)}
    for name in names:
        (world.directory / os.fsdecode(name)).touch()
    client.open(2)
    found = client.entries(2, count=200)
    assert {name for _, name in found} == names | {b".", b".."}
    assert len(found) == 302
    with refused(EINVAL):
        client.entries(2, count=10)
    with refused(ENOTDIR):
        client.entries(client.open(3, b"file number 7"))


def test_reading_a_directory_goes_on_after_changes_and_with_another_server(client: Client, world: World) -> None:
    names = [f"{number:03}".encode() for number in range(100)]
    for name in names:
        (world.directory / os.fsdecode(name)).touch()
    client.open(2)
    first = client.entries(2, count=1000, limit=1)
    gone = {b"050", b"051", b"052"} - {name for _, name in first}
    for name in gone:
        (world.directory / os.fsdecode(name)).unlink()
    follower = Client(world.server(), msize=0)
    rest = follower.entries(2, offset=first[-1][0])
    found = [name for _, name in (*first, *rest)]
    assert sorted(found) == sorted({*names, b".", b".."} - gone)
    client.server = follower.server


def test_locks_hold_between_clients(client: Client, world: World) -> None:
    def lock(who: Client, fid: int, kind: int, start: int, length: int) -> int:
        return who.ask(protocol.Tlock, "IBIQQIs", fid, kind, 0, start, length, 99, b"guest")[0]

    def conflict(who: Client, start: int) -> tuple[int, ...]:
        answer = who.ask(protocol.Tgetlock, "IBQQIs", 2, 1, start, 5, 99, b"guest")
        return struct.unpack_from("<BQQ", answer)

    other = Client(Server(SharedDirectory(world.directory, 20, Allowance(20)), {}, "9pfs 4/0", LARGEST))
    client.create(2, b"f")
    other.open(2, b"f", flags=os.O_RDWR)
    assert lock(client, 2, 1, 10, 10) == protocol.LOCK_SUCCESS
    assert lock(other, 2, 1, 15, 0) == protocol.LOCK_BLOCKED
    assert lock(other, 2, 0, 20, 0) == protocol.LOCK_SUCCESS
    assert conflict(other, 0) == (2, 0, 5)
    assert conflict(other, 12) == (1, 10, 10)
    assert conflict(client, 25) == (0, 20, 0)
    assert lock(client, 2, 2, 10, 10) == protocol.LOCK_SUCCESS
    assert lock(other, 2, 1, 15, 0) == protocol.LOCK_SUCCESS
    for kind, start, length in ((3, 0, 0), (1, 1 << 63, 0), (1, 1, (1 << 63) - 1)):
        with refused(EINVAL):
            lock(client, 2, kind, start, length)
    other.server.close()


def test_what_is_not_there(client: Client) -> None:
    for kind in (protocol.Rlerror, 30, 32, 102, 112, 124, 255):
        with refused(EOPNOTSUPP):
            client.ask(kind, "I", 1)
    assert client.ask(protocol.Tflush, "H", 5) == b""
    with refused(EINVAL):
        client.ask(protocol.Tattach, "IIssI", ROOT, protocol.NOFID, b"", b"", UID)
    with refused(ENOENT):
        client.ask(protocol.Tattach, "IIssI", 9, protocol.NOFID, b"", b"/elsewhere", UID)


# -- limits -----------------------------------------------------------------------------------------------------------


def test_files_that_may_be_open(client: Client, world: World) -> None:
    (world.directory / "f").touch()
    for fid in range(2, 22):
        client.open(fid, b"f")
    with refused(EMFILE):
        client.open(30, b"f")
    with refused(EMFILE):
        client.create(31, b"new")
    assert not (world.directory / "new").exists()
    client.clunk(5)
    client.create(32, b"new")
    client.clunk(6)
    world.allowance.left = 0
    with refused(EMFILE):
        client.open(33, b"f")
    world.allowance.left = 100 - 19


def test_fids_that_there_may_be(client: Client, monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.setattr(fids, "MAX_FIDS", 3)
    client.walk(2)
    client.walk(3)
    with refused(EMFILE):
        client.walk(4)
    client.walk(3, fid=3)
    monkeypatch.setattr(fids, "MAX_FIDS", 100)
    monkeypatch.setattr(fids, "MAX_PATHS", 20)
    client.ask(protocol.Tmkdir, "IsII", ROOT, b"0123456789", 0o755, UID)
    client.walk(4, b"0123456789")
    assert client.ask(protocol.Twalk, "IIHs", ROOT, 5, 1, b"0123456789")[0] == 1
    with pytest.raises(Refused):
        client.walk(6, b"0123456789")


def test_paths_have_an_end(client: Client, world: World) -> None:
    name = b"n" * 250
    client.walk(2)
    for _ in range(16):
        client.ask(protocol.Tmkdir, "IsII", 2, name, 0o755, UID)
        assert client.walk(2, name, fid=2) == 1
    client.ask(protocol.Tmkdir, "IsII", 2, name, 0o755, UID)
    with refused(ENAMETOOLONG):
        client.walk(2, name, fid=2)
    client.ask(protocol.Tmkdir, "IsII", ROOT, b"m" * 250, 0o755, UID)
    with refused(ENAMETOOLONG):
        client.ask(protocol.Trenameat, "IsIs", ROOT, name, ROOT, b"m" * 250 + b"m" * 6)
    client.walk(3, b"m" * 250)
    with refused(ENAMETOOLONG):
        client.ask(protocol.Trenameat, "IsIs", ROOT, name, 3, name)


# -- servers that follow ----------------------------------------------------------------------------------------------


def test_the_next_server_has_the_files(client: Client, world: World) -> None:
    client.create(2, b"f")
    client.write(2, b"before")
    (world.directory / "f").unlink()
    client.walk(3)
    client.server = world.server()
    assert client.server.longest == 65536
    assert client.read(2) == b"before"
    client.write(2, b"after", 6)
    assert client.read(2) == b"beforeafter"
    assert client.attributes(3)["path"] == world.directory.stat().st_ino
    with refused(EBADF):
        client.clunk(4)


@pytest.mark.parametrize("dropped", [True, False])
def test_what_was_done_is_not_done_again(dropped: bool, client: Client, world: World) -> None:
    """Whether the server was dropped before its answer was delivered, or not."""
    make = message(protocol.Tmkdir, "IsII", ROOT, b"d", 0o755, UID)
    answer = client.server.answer(b"place 99", make)
    if dropped:
        client.server = world.server()
    assert client.server.answer(b"place 99", make) == answer
    payload(answer, protocol.Tmkdir)
    client.server.delivered()
    with refused(EEXIST):
        payload(client.server.answer(b"place 99", make), protocol.Tmkdir)
    client.server.delivered()


def test_what_a_server_did_not_survive_is_not_tried_again(
    client: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SharedDirectory, "make_directory", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            client.server.answer(b"place 99", message(protocol.Tmkdir, "IsII", ROOT, b"d", 0o755, UID))
    client.server = world.server()
    with refused(EIO):
        answer = client.server.answer(b"place 99", message(protocol.Tmkdir, "IsII", ROOT, b"d", 0o755, UID))
        payload(answer, protocol.Tmkdir)
    client.server.delivered()
    client.ask(protocol.Tmkdir, "IsII", ROOT, b"d", 0o755, UID)


# -- hostile messages -------------------------------------------------------------------------------------------------

_FIDS = st.integers(0, 6)
_NAMES = st.sampled_from([b"a", b"b", b"c", b"..", b".", b"", b"a/b", b"../secret", b"\xff\0"])
_WORDS = st.one_of(st.integers(0, 9), st.sampled_from([1 << 31, (1 << 32) - 1]))
_LONG = st.one_of(st.integers(0, 9), st.sampled_from([1 << 62, 1 << 63, (1 << 64) - 1]))
_FIELD = {"F": _FIDS, "s": _NAMES, "I": _WORDS, "Q": _LONG, "B": st.integers(0, 255), "H": st.integers(0, 20)}
_LAYOUTS = {
    protocol.Tversion: "Is",
    protocol.Tattach: "FIssI",
    protocol.Tstatfs: "F",
    protocol.Tlopen: "FI",
    protocol.Tlcreate: "FsIII",
    protocol.Tsymlink: "FssI",
    protocol.Tmknod: "FsIIII",
    protocol.Trename: "FFs",
    protocol.Treadlink: "F",
    protocol.Tgetattr: "FQ",
    protocol.Tsetattr: "FIIIIQQQQQ",
    protocol.Treaddir: "FQI",
    protocol.Tfsync: "FI",
    protocol.Tlock: "FBIQQIs",
    protocol.Tgetlock: "FBQQIs",
    protocol.Tlink: "FFs",
    protocol.Tmkdir: "FsII",
    protocol.Trenameat: "FsFs",
    protocol.Tunlinkat: "FsI",
    protocol.Tflush: "H",
    protocol.Twalk: "FFHss",
    protocol.Tread: "FQI",
    protocol.Twrite: "FQIs",
    protocol.Tclunk: "F",
    protocol.Tremove: "F",
}


@st.composite
def _messages(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(sorted(_LAYOUTS)))
    layout = _LAYOUTS[kind]
    made = message(kind, layout.replace("F", "I"), *(draw(_FIELD[letter]) for letter in layout))
    cut = draw(st.integers(7, len(made))) if draw(st.booleans()) else len(made)
    return struct.pack("<I", cut) + made[4:cut]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(_messages(), max_size=30))
def test_any_messages(messages: list[bytes], tmp_path: Path) -> None:
    """Each is answered, nothing outside is touched, nothing stays open, and the next server knows the same."""
    directory = Path(tempfile.mkdtemp(dir=tmp_path))
    world = World(directory)
    before = world.secret.stat()
    open_before = len(os.listdir("/proc/self/fd"))
    client = Client(world.server())
    client.ask(protocol.Tmkdir, "IsII", ROOT, b"a", 0o755, UID)
    for number, made in enumerate(messages):
        answer = client.server.answer(number.to_bytes(8, "little"), made)
        assert struct.unpack_from("<I", answer)[0] == len(answer) <= client.server.longest
        assert answer[4] in (made[4] + 1, protocol.Rlerror)
        client.server.delivered()
    follower = world.server()
    assert [(fid.path, fid.handle) for fid in follower.fids] == [(fid.path, fid.handle) for fid in client.server.fids]
    follower.close()
    assert world.kept == {}
    assert sorted(os.listdir(directory)) == ["secret", "share"]
    assert world.secret.stat() == before
    assert len(os.listdir("/proc/self/fd")) == open_before + 2  # the servers' directories


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60), kind=st.integers(0, 255))
def test_any_bytes(data: bytes, kind: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    client = _client_for_any_bytes(tmp_path_factory)
    answer = client.server.answer(b"place", struct.pack("<IBH", 7 + len(data), kind, 3) + data)
    client.server.delivered()
    assert struct.unpack_from("<I", answer)[0] == len(answer)


_any: list[Client] = []


def _client_for_any_bytes(factory: pytest.TempPathFactory) -> Client:
    if not _any:
        _any.append(Client(World(factory.mktemp("any")).server()))
    return _any[0]
