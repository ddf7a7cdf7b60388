"""Which engines tests run on: Unicorn and, for tests that take little time, KVM as well; or one that was asked for."""

from __future__ import annotations

import os

import pytest

from xenolith.cpu import choose

_ENGINES = "XENOLITH_TEST_ENGINES"


def pytest_configure(config: pytest.Config) -> None:
    """XENOLITH_ENGINE (`make test ENGINE=kvm`) asks for one engine; processes that tests start follow it as well."""
    asked = os.environ.get("XENOLITH_ENGINE")
    usable = ["unicorn", "kvm"] if os.access(choose.DEVICE, os.R_OK | os.W_OK) else ["unicorn"]
    os.environ.setdefault(_ENGINES, asked or " ".join(usable))
    os.environ.setdefault("XENOLITH_ENGINE", "unicorn")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test or fixture that asks for `engine` runs once on each."""
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", os.environ[_ENGINES].split(), scope="module")
