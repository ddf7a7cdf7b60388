"""Threads for virtual processors: they do what they are given, say what went wrong, keep nothing, and end."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from xenolith.cpu.kvm_thread import RunThread


def wait_for_end(ident: int) -> bool:
    thread = next((each for each in threading.enumerate() if each.ident == ident), None)
    if thread is not None:
        thread.join(5)
    return thread is None or not thread.is_alive()


def test_work_is_done_there_one_piece_after_the_other() -> None:
    thread, seen = RunThread(), []
    for _ in range(3):
        thread.start(lambda: seen.append(threading.get_ident()))
        thread.wait()
        thread.check()
    assert seen == [thread.ident] * 3
    assert thread.ident != threading.get_ident()
    thread.close()
    assert wait_for_end(thread.ident)


def test_an_error_is_told_once() -> None:
    thread = RunThread()
    thread.start(lambda: [].pop())
    thread.wait()
    with pytest.raises(IndexError):
        thread.check()
    thread.check()
    thread.start(lambda: None)
    thread.wait()
    thread.check()
    thread.close()
    assert wait_for_end(thread.ident)


def test_what_was_done_is_not_kept() -> None:
    class Thing:
        def work(self) -> None:
            pass

    thread, thing = RunThread(), Thing()
    gone = weakref.ref(thing)
    thread.start(thing.work)
    thread.wait()
    del thing
    gc.collect()
    assert gone() is None
    thread.close()
    assert wait_for_end(thread.ident)
