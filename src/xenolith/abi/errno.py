"""Xen's error numbers, and the exception that carries one out of a handler (public header errno.h)."""

from __future__ import annotations

from typing import Final

EPERM: Final = 1
ENOENT: Final = 2
ESRCH: Final = 3
EIO: Final = 5
ENXIO: Final = 6
E2BIG: Final = 7
ENOEXEC: Final = 8
EBADF: Final = 9
ECHILD: Final = 10
EAGAIN: Final = 11
EWOULDBLOCK: Final = EAGAIN
ENOMEM: Final = 12
EACCES: Final = 13
EFAULT: Final = 14
EBUSY: Final = 16
EEXIST: Final = 17
EXDEV: Final = 18
ENODEV: Final = 19
ENOTDIR: Final = 20
EISDIR: Final = 21
EINVAL: Final = 22
ENFILE: Final = 23
EMFILE: Final = 24
ENOSPC: Final = 28
EROFS: Final = 30
EMLINK: Final = 31
EDOM: Final = 33
ERANGE: Final = 34
EDEADLK: Final = 35
EDEADLOCK: Final = EDEADLK
ENAMETOOLONG: Final = 36
ENOLCK: Final = 37
ENOSYS: Final = 38
ENOTEMPTY: Final = 39
ENODATA: Final = 61
ETIME: Final = 62
EBADMSG: Final = 74
EOVERFLOW: Final = 75
EILSEQ: Final = 84
ENOTSOCK: Final = 88
EMSGSIZE: Final = 90
EOPNOTSUPP: Final = 95
EADDRINUSE: Final = 98
EADDRNOTAVAIL: Final = 99
ENOBUFS: Final = 105
EISCONN: Final = 106
ENOTCONN: Final = 107
ETIMEDOUT: Final = 110
ECONNREFUSED: Final = 111

_NAMES: Final[dict[int, str]] = {
    value: name for name, value in reversed(tuple(globals().items())) if name.startswith("E") and isinstance(value, int)
}


def name(errno: int) -> str:
    """The name of an error number of either sign ("EINVAL" for 22 and for -22), or the number where Xen has none."""
    return _NAMES.get(abs(errno), str(errno))


class XenError(Exception):
    """A guest's mistake, raised inside a handler; it becomes -`errno` at the edge.

    `errno` is positive. `reason` says in a few words which rule was broken; traces and crash reports show it, guests
    never see it.
    """

    def __init__(self, errno: int, reason: str | None = None) -> None:
        super().__init__(errno, reason)
        self.errno = errno
        self.reason = reason

    def __str__(self) -> str:
        return name(self.errno) if self.reason is None else f"{name(self.errno)}: {self.reason}"
