"""A server of 9P2000.L for one client: a request in, its answer out, one after another, and nothing else.

What a client may rely on, its fids and that a request is done at most once, outlives the server: it is kept in a
mapping that the next server of the same client is made with.
"""

from __future__ import annotations

import os
import stat
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from errno import EBADF, EBUSY, EINVAL, EIO, ENOENT, ENOTDIR, EOPNOTSUPP, EPROTO
from hashlib import blake2b
from struct import Struct
from typing import Final

from xenolith.backends.ninepfs import protocol
from xenolith.backends.ninepfs.fids import Fid, Fids, Kept
from xenolith.backends.ninepfs.filesystem import UNCHANGED, Changes, Entry, FileSystem, Lock, Owner
from xenolith.backends.ninepfs.protocol import IO_HEADER, MAX_WALK, NOFID, QID, Request, text

MIN_MSIZE: Final = 4096
"""The shortest limit for messages that can be agreed on; before anything is, it holds."""
_MAX_LISTINGS: Final = 4
"""Directories whose content is remembered between two requests for parts of it."""
_SELF_COOKIE: Final = 1
_PARENT_COOKIE: Final = 2
_COOKIES: Final = (1 << 63) - 3
_MAX_OFFSET: Final = (1 << 63) - 1
_NO_ID: Final = 0xFFFF_FFFF
"""As uid or gid: none."""

_U32: Final = Struct("<I")
_U64: Final = Struct("<Q")
_U32_U32: Final = Struct("<II")
_FLAGS_MODE_GID: Final = Struct("<III")
_MODE_GID: Final = Struct("<II")
_MODE_DEVICE_GID: Final = Struct("<IIII")
_WALK: Final = Struct("<IIH")
_RANGE: Final = Struct("<IQI")
"""Fid, offset and count."""
_COUNT: Final = Struct("<I")
_STATFS: Final = Struct("<IIQQQQQQI")
_GETATTR: Final = Struct("<IIIQQQQQqqqqqqQQQQ")
_SETATTR: Final = Struct("<IIIIIQqqqq")
_LOCK: Final = Struct("<IBIQQI")
_GETLOCK: Final = Struct("<IBQQI")
_FOUND_LOCK: Final = Struct("<BQQI")
_ENTRY: Final = Struct("<BIQQB")
"""A qid, a cookie and a type (DT_*), before the name."""

_NANOSECONDS: Final = 1_000_000_000
_Handler = Callable[["Server", Request], bytes]
_HANDLERS: Final[dict[int, _Handler]] = {}


def _answers(kind: int) -> Callable[[_Handler], _Handler]:
    """Have a method answer requests of a type: it returns what follows the answer's header, or raises OSError."""

    def register(handler: _Handler) -> _Handler:
        _HANDLERS[kind] = handler
        return handler

    return register


class Server:
    """`largest` is the longest message (bytes) that the transport can carry. What is in `kept` has names that begin
    with `name`. `now_ns` is the host's calendar time, in nanoseconds since 1970.
    """

    def __init__(
        self, files: FileSystem, kept: Kept, name: str, largest: int, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._files = files
        self._kept = kept
        self._name = name
        self._largest = largest
        self._now_ns = now_ns
        self._last = _last(name)
        self._listed: list[Fid] = []
        self.fids = Fids(kept, name)
        for fid in self.fids:
            if fid.handle is not None:
                files.adopt(fid.handle)
        self._msize = int.from_bytes(kept.get(name, b""), "little")

    @property
    def longest(self) -> int:
        """The longest message that the client may send now (bytes)."""
        return self._msize or MIN_MSIZE

    def answer(self, place: bytes, message: bytes) -> bytes:
        """Do what a request asks, and return its answer.

        `place` tells it from all others that are not `delivered` yet. What was done before is not done again, even if
        the server that did it is gone; what a server did not survive is not tried again, and fails with EIO.
        """
        request = Request(message)
        done = self._kept.get(self._last)
        if done is not None and done.startswith(place):
            return bytes(done[len(place) :]) or protocol.refusal(request, EIO)
        self._kept[self._last] = bytearray(place)
        answer = self._do(request)
        self._kept[self._last] += answer
        return answer

    def delivered(self) -> None:
        """The client has the last answer."""
        self._kept.pop(self._last, None)

    def close(self) -> None:
        """The client is gone; nothing is kept of it."""
        for handle in forget(self._kept, self._name):
            self._files.close(handle)

    def _do(self, request: Request) -> bytes:
        handler = _HANDLERS.get(request.type)
        try:
            if handler is None:
                raise OSError(EOPNOTSUPP, f"requests of type {request.type} are not known")
            if not self._msize and request.type != protocol.Tversion:
                raise OSError(EPROTO, "no version has been agreed on")
            return protocol.answer(request, handler(self, request))
        except OSError as error:
            return protocol.refusal(request, error.errno or EIO)

    # -- fids ---------------------------------------------------------------------------------------------------------

    def _fid(self, request: Request) -> Fid:
        return self.fids[request.take(_U32)[0]]

    def _opened(self, number: int) -> tuple[Fid, int]:
        fid = self.fids[number]
        if fid.handle is None:
            raise OSError(EBADF, "the fid is not open")
        return fid, fid.handle

    def _drop(self, number: int) -> None:
        fid = self.fids.drop(number)
        if fid is not None and fid.handle is not None:
            self._files.close(fid.handle)
        if fid in self._listed:
            self._listed.remove(fid)

    def _forget_fids(self) -> None:
        for number in self.fids.numbers():
            self._drop(number)

    def _qid(self, status: os.stat_result) -> bytes:
        version = (status.st_mtime_ns ^ status.st_size << 8) & 0xFFFF_FFFF
        return QID.pack(_qid_type(status.st_mode), version, self._files.number(status))

    # -- sessions -----------------------------------------------------------------------------------------------------

    @_answers(protocol.Tversion)
    def _version(self, request: Request) -> bytes:
        (msize,) = request.take(_U32)
        version = request.text()
        if msize < MIN_MSIZE:
            raise OSError(EINVAL, f"messages of at most {msize} bytes are too short")
        self._forget_fids()
        self._msize = min(msize, self._largest)
        self._kept[self._name] = bytearray(_U32.pack(self._msize))
        agreed = version if version == protocol.VERSION else protocol.UNKNOWN_VERSION
        return _U32.pack(self._msize) + text(agreed)

    @_answers(protocol.Tattach)
    def _attach(self, request: Request) -> bytes:
        number, authenticated = request.take(_U32_U32)
        request.text()
        tree = request.text()
        (uid,) = request.take(_U32)
        if authenticated != NOFID or number in self.fids or number == NOFID:
            raise OSError(EINVAL, "the fid cannot be attached")
        if tree not in (b"", b"/"):
            raise OSError(ENOENT, "there is one tree, which has no name")
        status = self._files.status(b"")
        self.fids.put(number, Fid(b"", uid))
        return self._qid(status)

    @_answers(protocol.Tflush)
    def _flush(self, request: Request) -> bytes:
        """Requests are done one after another, so what is to be flushed is done, and answered, already."""
        return b""

    @_answers(protocol.Twalk)
    def _walk(self, request: Request) -> bytes:
        number, new_number, count = request.take(_WALK)
        fid = self.fids[number]
        if count > MAX_WALK or new_number == NOFID or (new_number != number and new_number in self.fids):
            raise OSError(EINVAL, "there is no such walk")
        if new_number == number and fid.handle is not None:
            raise OSError(EINVAL, "the fid is open")
        found = Fid(fid.path, fid.uid)
        qids: list[bytes] = []
        try:
            for _ in range(count):
                found.path = self._step(found, request)
                qids.append(self._qid(self._files.status(found.path)))
        except OSError:
            if not qids:
                raise
        if len(qids) == count:
            self.fids.put(new_number, found)
        return len(qids).to_bytes(2, "little") + b"".join(qids)

    def _step(self, fid: Fid, request: Request) -> bytes:
        """The path of the next name of a walk."""
        name = request.text()
        if name == b"..":
            return fid.parent
        if name in (b"", b".") or b"/" in name or b"\0" in name:
            raise OSError(ENOENT, "nothing has such a name")
        path = fid.below(name)
        self.fids.check(NOFID, path)
        return path

    @_answers(protocol.Tclunk)
    def _clunk(self, request: Request) -> bytes:
        (number,) = request.take(_U32)
        self.fids[number]
        self._drop(number)
        return b""

    # -- open files ---------------------------------------------------------------------------------------------------

    @_answers(protocol.Tlopen)
    def _lopen(self, request: Request) -> bytes:
        number, flags = request.take(_U32_U32)
        fid = self.fids[number]
        if fid.handle is not None:
            raise OSError(EINVAL, "the fid is open already")
        handle = self._files.open(fid.path, flags & ~(os.O_CREAT | os.O_EXCL))
        return self._now_open(number, fid.path, fid.uid, handle)

    @_answers(protocol.Tlcreate)
    def _lcreate(self, request: Request) -> bytes:
        (number,) = request.take(_U32)
        fid = self.fids[number]
        path = fid.below(request.name())
        flags, mode, gid = request.take(_FLAGS_MODE_GID)
        if fid.handle is not None:
            raise OSError(EINVAL, "the fid is open already")
        self.fids.check(number, path)
        handle = self._files.create(path, flags, stat.S_IMODE(mode), _owner(fid.uid, gid))
        return self._now_open(number, path, fid.uid, handle)

    def _now_open(self, number: int, path: bytes, uid: int, handle: int) -> bytes:
        self.fids.put(number, Fid(path, uid, handle))
        return self._qid(self._files.status(path, handle)) + _U32.pack(0)  # no unit of reading and writing

    @_answers(protocol.Tread)
    def _read(self, request: Request) -> bytes:
        number, offset, count = request.take(_RANGE)
        _, handle = self._opened(number)
        data = self._files.read(handle, _offset(offset), min(count, self._msize - IO_HEADER))
        return _COUNT.pack(len(data)) + data

    @_answers(protocol.Twrite)
    def _write(self, request: Request) -> bytes:
        number, offset, count = request.take(_RANGE)
        _, handle = self._opened(number)
        return _COUNT.pack(self._files.write(handle, _offset(offset), request.data(count)))

    @_answers(protocol.Tfsync)
    def _fsync(self, request: Request) -> bytes:
        number, data_only = request.take(_U32_U32)
        self._files.sync(self._opened(number)[1], bool(data_only))
        return b""

    @_answers(protocol.Treaddir)
    def _readdir(self, request: Request) -> bytes:
        number, offset, count = request.take(_RANGE)
        fid, handle = self._opened(number)
        listing = self._listing(fid, handle, offset)
        room = min(count, self._msize - IO_HEADER)
        parts: list[bytes] = []
        for cookie, entry in listing[bisect_right(listing, offset, key=lambda item: item[0]) :]:
            kind = stat.S_IFMT(entry.type) >> 12
            part = _ENTRY.pack(_qid_type(entry.type), 0, entry.number, cookie, kind) + text(entry.name)
            room -= len(part)
            if room < 0:
                break
            parts.append(part)
        if room < 0 and not parts:
            raise OSError(EINVAL, "no entry of the directory fits")
        data = b"".join(parts)
        return _COUNT.pack(len(data)) + data

    def _listing(self, fid: Fid, handle: int, offset: int) -> list[tuple[int, Entry]]:
        """A directory's content in the order of its cookies, read anew for who begins.

        A cookie depends on nothing but a name, so it says where to go on even if the directory has changed, or the
        server.
        """
        if offset and fid.listing is not None:
            return fid.listing
        status = self._files.status(fid.path, handle)
        if not stat.S_ISDIR(status.st_mode):
            raise OSError(ENOTDIR, "only directories can be listed")
        above = self._files.status(fid.parent)
        fid.listing = sorted((_cookie(entry.name), entry) for entry in self._files.entries(handle))
        fid.listing[:0] = [
            (_SELF_COOKIE, Entry(b".", self._files.number(status), stat.S_IFDIR)),
            (_PARENT_COOKIE, Entry(b"..", self._files.number(above), stat.S_IFDIR)),
        ]
        self._listed = [other for other in self._listed if other is not fid]
        self._listed.append(fid)
        if len(self._listed) > _MAX_LISTINGS:
            self._listed.pop(0).listing = None
        return fid.listing

    @_answers(protocol.Tlock)
    def _lock(self, request: Request) -> bytes:
        number, kind, _flags, start, length, _process = request.take(_LOCK)
        done = self._files.lock(self._opened(number)[1], _range(kind, start, length))
        return bytes([protocol.LOCK_SUCCESS if done else protocol.LOCK_BLOCKED])

    @_answers(protocol.Tgetlock)
    def _getlock(self, request: Request) -> bytes:
        number, kind, start, length, process = request.take(_GETLOCK)
        client = request.text()
        found = self._files.locked(self._opened(number)[1], _range(kind, start, length))
        if found is None:
            return _FOUND_LOCK.pack(protocol.LOCK_TYPE_UNLCK, start, length, process) + text(client)
        return _FOUND_LOCK.pack(*found, 0) + text(b"")

    # -- attributes ---------------------------------------------------------------------------------------------------

    @_answers(protocol.Tgetattr)
    def _getattr(self, request: Request) -> bytes:
        fid = self._fid(request)
        status = self._files.status(fid.path, fid.handle)
        times = (part for at in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns) for part in _seconds(at))
        return (
            _U64.pack(protocol.GETATTR_BASIC)
            + self._qid(status)
            + _GETATTR.pack(
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_nlink,
                status.st_rdev,
                status.st_size,
                status.st_blksize,
                status.st_blocks,
                *times,
                *(0, 0, 0, 0),  # time of birth, generation, version of the data
            )
        )

    @_answers(protocol.Tsetattr)
    def _setattr(self, request: Request) -> bytes:
        """The time of change is not set by itself: every other change sets it."""
        number, valid, mode, uid, gid, size, *times = request.take(_SETATTR)
        fid = self.fids[number]
        changes = Changes(
            stat.S_IMODE(mode) if valid & protocol.SETATTR_MODE else None,
            _new_owner(valid, uid, gid),
            _offset(size) if valid & protocol.SETATTR_SIZE else None,
            self._time(valid, protocol.SETATTR_ATIME, protocol.SETATTR_ATIME_SET, *times[:2]),
            self._time(valid, protocol.SETATTR_MTIME, protocol.SETATTR_MTIME_SET, *times[2:]),
        )
        self._files.change(fid.path, fid.handle, changes)
        return b""

    def _time(self, valid: int, wanted: int, given: int, seconds: int, nanoseconds: int) -> int | None:
        if not valid & wanted:
            return None
        if not valid & given:
            return self._now_ns()
        if not 0 <= nanoseconds < _NANOSECONDS:
            raise OSError(EINVAL, "there is no such time")
        return seconds * _NANOSECONDS + nanoseconds

    @_answers(protocol.Tstatfs)
    def _statfs(self, request: Request) -> bytes:
        usage = self._files.usage(self._fid(request).path)
        return _STATFS.pack(
            protocol.STATFS_MAGIC,
            usage.f_frsize,
            usage.f_blocks,
            usage.f_bfree,
            usage.f_bavail,
            usage.f_files,
            usage.f_ffree,
            usage.f_fsid & (1 << 64) - 1,
            usage.f_namemax,
        )

    @_answers(protocol.Treadlink)
    def _readlink(self, request: Request) -> bytes:
        return text(self._files.read_link(self._fid(request).path))

    # -- names --------------------------------------------------------------------------------------------------------

    @_answers(protocol.Tmkdir)
    def _mkdir(self, request: Request) -> bytes:
        fid = self._fid(request)
        path = fid.below(request.name())
        mode, gid = request.take(_MODE_GID)
        self._files.make_directory(path, stat.S_IMODE(mode), _owner(fid.uid, gid))
        return self._qid(self._files.status(path))

    @_answers(protocol.Tsymlink)
    def _symlink(self, request: Request) -> bytes:
        fid = self._fid(request)
        path = fid.below(request.name())
        target = request.text()
        (gid,) = request.take(_U32)
        if not target or b"\0" in target:
            raise OSError(ENOENT, "a symbolic link cannot point there")
        self._files.make_symlink(path, target, _owner(fid.uid, gid))
        return self._qid(self._files.status(path))

    @_answers(protocol.Tmknod)
    def _mknod(self, request: Request) -> bytes:
        fid = self._fid(request)
        path = fid.below(request.name())
        mode, _major, _minor, gid = request.take(_MODE_DEVICE_GID)
        self._files.make_node(path, stat.S_IFMT(mode) | stat.S_IMODE(mode), _owner(fid.uid, gid))
        return self._qid(self._files.status(path))

    @_answers(protocol.Tlink)
    def _link(self, request: Request) -> bytes:
        directory = self._fid(request)
        fid = self._fid(request)
        self._files.link(_named(fid.path), directory.below(request.name()))
        return b""

    @_answers(protocol.Trename)
    def _rename(self, request: Request) -> bytes:
        fid = self._fid(request)
        directory = self._fid(request)
        self._move(fid.path, directory.below(request.name()))
        return b""

    @_answers(protocol.Trenameat)
    def _renameat(self, request: Request) -> bytes:
        directory = self._fid(request)
        path = directory.below(request.name())
        new_directory = self._fid(request)
        self._move(path, new_directory.below(request.name()))
        return b""

    def _move(self, path: bytes, new_path: bytes) -> None:
        self.fids.check_move(_named(path), new_path)
        self._files.rename(path, new_path)
        self.fids.moved(path, new_path)

    @_answers(protocol.Tunlinkat)
    def _unlinkat(self, request: Request) -> bytes:
        fid = self._fid(request)
        path = fid.below(request.name())
        (flags,) = request.take(_U32)
        self._files.remove(path, bool(flags & protocol.AT_REMOVEDIR))
        return b""

    @_answers(protocol.Tremove)
    def _remove(self, request: Request) -> bytes:
        """The fid is gone in any case."""
        (number,) = request.take(_U32)
        path = self.fids[number].path
        self._drop(number)
        status = self._files.status(_named(path))
        self._files.remove(path, stat.S_ISDIR(status.st_mode))
        return b""


def forget(kept: Kept, name: str) -> list[int]:
    """Keep nothing of a client that is gone. The handles that it had are returned, for closing."""
    fids = Fids(kept, name)
    handles = [fid.handle for fid in fids if fid.handle is not None]
    for number in fids.numbers():
        fids.drop(number)
    for key in (name, _last(name)):
        kept.pop(key, None)
    return handles


def _last(name: str) -> str:
    """What the last request that is not delivered is kept as."""
    return f"{name} last"


def _named(path: bytes) -> bytes:
    """A path of something in the shared directory. OSError(EBUSY) if it is that directory itself."""
    if not path:
        raise OSError(EBUSY, "the shared directory itself stays where it is")
    return path


def _qid_type(mode: int) -> int:
    if stat.S_ISDIR(mode):
        return protocol.QTDIR
    return protocol.QTSYMLINK if stat.S_ISLNK(mode) else 0


def _cookie(name: bytes) -> int:
    """Where a name stands in its directory: after 2, and at no other's place but by an accident of one in 2^63."""
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little") % _COOKIES + 3


def _offset(value: int) -> int:
    """An offset, or a length, that a file can have."""
    if value > _MAX_OFFSET:
        raise OSError(EINVAL, "no file is so long")
    return value


def _range(kind: int, start: int, length: int) -> Lock:
    if kind > protocol.LOCK_TYPE_UNLCK or start + length > _MAX_OFFSET:
        raise OSError(EINVAL, "there is no such lock")
    return Lock(kind, start, length)


def _id(value: int) -> int:
    return UNCHANGED if value == _NO_ID else value


def _owner(uid: int, gid: int) -> Owner:
    """Of a new file: the user who attached, and the group that the request names."""
    return Owner(_id(uid), _id(gid))


def _new_owner(valid: int, uid: int, gid: int) -> Owner | None:
    if not valid & (protocol.SETATTR_UID | protocol.SETATTR_GID):
        return None
    return Owner(
        _id(uid) if valid & protocol.SETATTR_UID else UNCHANGED,
        _id(gid) if valid & protocol.SETATTR_GID else UNCHANGED,
    )


def _seconds(nanoseconds: int) -> Iterator[int]:
    yield from divmod(nanoseconds, _NANOSECONDS)
