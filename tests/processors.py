"""The host's processors, of which tests want one for each vCPU's thread as far as that goes."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

HAS_TWO = len(os.sched_getaffinity(0)) > 1


@contextlib.contextmanager
def one_each(*cpus: Any) -> Iterator[None]:
    """Give each of these processors of the KVM engine, which have run together, one of the host's.

    On a busy host their threads would all wake on the same one.
    """
    ours = sorted(os.sched_getaffinity(0))
    threads = {thread.ident: thread for thread in threading.enumerate()}
    numbers = [threads[cpu.thread.ident if cpu.thread else threading.get_ident()].native_id or 0 for cpu in cpus]
    for place, number in enumerate(numbers):
        os.sched_setaffinity(number, {ours[place % len(ours)]})
    try:
        yield
    finally:
        for number in numbers:
            os.sched_setaffinity(number, ours)
