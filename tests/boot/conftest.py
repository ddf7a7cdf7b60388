"""Real kernels for the tests, and the record of how far they came."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pytest

from tests.boot.guests import Row, page
from xenolith.loader import registry

_PAGE_VARIABLE: Final = "XENOLITH_GUESTS_PAGE"
"""The environment variable that names the file to which the record is written when all guests have run."""
_rows: dict[tuple[str, str], Row] = {}

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
