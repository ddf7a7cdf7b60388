"""The host's end of the serial port."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xenolith.errors import UserError
from xenolith.toolstack.serial_line import SerialLine


def test_output_is_appended_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "com1"
    path.write_bytes(b"before ")
    line = SerialLine(path)
    line.write(b"after")
    line.close()
    assert path.read_bytes() == b"before after"


def test_a_fifo_that_nobody_reads_loses_output_without_an_error(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    line = SerialLine(path)
    for _ in range(100):
        line.write(bytes(4096))
    line.close()


def test_a_place_that_cannot_be_opened_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be connected"):
        SerialLine(tmp_path / "no" / "such")
