"""Real kernels for the tests, and the record of how far they came."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pytest

from tests.boot.guests import Row, page
from tests.guest.assembler import SHARED, missing_tools
from xenolith.loader import registry

_PAGE_VARIABLE: Final = "XENOLITH_GUESTS_PAGE"
"""The environment variable that names the file to which the record is written when all guests have run."""
_rows: dict[tuple[str, str], Row] = {}

_IMAGE: Final = Path(__file__).parent / "image"

Record = Callable[[Row], None]
Kernel = Callable[[str], str]


@pytest.fixture
def kernel() -> Kernel:
    """Names a kernel of the cache; the test is skipped if it cannot be had."""

    def name(alias: str) -> str:
        if registry.pulled(alias) is None:
            pytest.skip(f"the kernel {alias} is not in the cache: 'xenolith pull {alias}' brings it")
        return alias

    return name


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Tells how far a guest came; the last word counts."""
    return lambda row: request.node.user_properties.append(("guest", asdict(row)))


@pytest.fixture(scope="session")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest of image/hello.S, with notes."""
    return _assemble(tmp_path_factory.mktemp("hello") / "hello", SHARED / "hello.lds")


@pytest.fixture(scope="session")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a __xen_guest section only."""
    return _assemble(tmp_path_factory.mktemp("legacy") / "legacy", _IMAGE / "legacy.lds", "--defsym", "legacy=1")


def _assemble(guest: Path, script: Path, *options: str) -> Path:
    if missing := missing_tools():
        pytest.skip(f"{', '.join(missing)} not installed: binutils assembles the guests")
    code = guest.with_suffix(".o")
    subprocess.run(["as", "--64", "-I", SHARED, *options, "-o", code, _IMAGE / "hello.S"], check=True)
    subprocess.run(["ld", "-T", script, "-o", guest, code], check=True, stderr=subprocess.DEVNULL)
    return guest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties:
        if name == "guest":
            values: dict[str, Any] = value  # type: ignore[assignment]
            row = Row(**values)
            _rows[row.guest, row.role] = row


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = os.environ.get(_PAGE_VARIABLE)
    if path is None or hasattr(session.config, "workerinput"):
        return
    try:
        Path(path).write_text(page(_rows))
    except KeyError as error:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\n{path} is not written: no test told of {error}")
