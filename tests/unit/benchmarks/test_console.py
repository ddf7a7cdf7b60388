"""Watching a command's console from outside."""

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.console import Line, LineSplitter, RunFailed, Session, run


def test_lines_are_cut_across_chunks_and_lose_their_carriage_returns() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"one\r\ntw") == ["one"]
    assert splitter.feed(b"o\n\n") == ["two", ""]
    assert splitter.close() == []


def test_an_unfinished_last_line_is_kept() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"half") == []
    assert splitter.close() == ["half"]


def test_bytes_that_are_no_text_do_not_stop_the_reader() -> None:
    assert LineSplitter().feed(b"\xff\xfe ok\n") == ["\ufffd\ufffd ok"]


def test_when_takes_the_first_line_with_the_marker() -> None:
    session = Session([Line(0.5, "boot"), Line(1.0, "x MARK"), Line(2.0, "MARK")])
    assert session.when("MARK") == 1.0


def test_a_missing_marker_is_reported_with_the_end_and_the_last_lines() -> None:
    session = Session([Line(0.5, "panic: no root")], seconds=1.0, status=4)
    with pytest.raises(RunFailed, match=r"no line with 'MARK' after 1\.0 s \(exit status 4\)\npanic: no root"):
        session.find("MARK")


def test_a_run_has_times_output_and_status() -> None:
    session = run(["sh", "-c", "echo first; sleep 0.2; echo second >&2; exit 3"], timeout=5)
    assert [line.text for line in session.lines] == ["first", "second"]
    assert session.status == 3
    assert session.when("second") - session.when("first") > 0.15


def test_a_run_that_exceeds_its_time_is_ended_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "child"
    started = time.monotonic()
    session = run(["sh", "-c", f"sleep 60 & echo $! > {note}; wait"], timeout=0.3)
    assert time.monotonic() - started < 5
    assert session.status is None
    child = int(note.read_text())
    assert _is_gone(child)


def test_watch_is_called_with_the_process_while_it_runs() -> None:
    seen: list[int] = []
    run([sys.executable, "-c", "import time; time.sleep(0.3)"], timeout=5, watch=seen.append)
    assert len(seen) >= 2
    assert len(set(seen)) == 1


def _is_gone(process: int) -> bool:
    """Dead, or a zombie that waits for init."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False
