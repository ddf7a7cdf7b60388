"""Which engines tests run on: Unicorn and, for tests that take little time, KVM as well; or one that was asked for."""

from __future__ import annotations

import os

import pytest

from tests.patience import PATIENCE
from xenolith.cpu.kvm import KvmEngine
from xenolith.errors import UserError
from xenolith.hypervisor.native_exits import COMPILED
from xenolith.machine.ram import Ram

_ENGINES = "XENOLITH_TEST_ENGINES"
WITHOUT_HELPER = "-without-helper"
IN_RING0 = "kvm-in-ring0"


def pytest_configure(config: pytest.Config) -> None:
    """XENOLITH_ENGINE (`make test ENGINE=kvm`) asks for one engine; processes that tests start follow it as well."""
    asked = os.environ.get("XENOLITH_ENGINE")
    if _ENGINES not in os.environ:
        os.environ[_ENGINES] = asked or ("unicorn" if why_not_kvm() else "unicorn kvm")
    if not asked:
        os.environ["XENOLITH_ENGINE"] = "unicorn"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    limit_s = float(config.getini("timeout")) * PATIENCE
    for item in items:
        item.add_marker(pytest.mark.timeout(limit_s))


def pytest_report_header(config: pytest.Config) -> str:
    why_not = "" if "kvm" in os.environ[_ENGINES] else why_not_kvm()
    return f"engines: {os.environ[_ENGINES]}{f' (no kvm: {why_not})' if why_not else ''}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test or fixture that asks for `engine` runs once on each; a module may want to run without the native helper,
    or with KVM's work in ring 0, as well."""
    if "engine" in metafunc.fixturenames:
        engines = os.environ[_ENGINES].split()
        more = []
        if getattr(metafunc.module, "WITHOUT_HELPER_TOO", False) and COMPILED.missing() is None:
            more += [engine + WITHOUT_HELPER for engine in engines]
        if getattr(metafunc.module, "IN_RING0_TOO", False) and "kvm" in engines:
            more.append(IN_RING0)
        engines += more
        metafunc.parametrize("engine", engines, scope="module")


def why_not_kvm() -> str:
    """Why the KVM engine cannot be used here, or nothing."""
    try:
        KvmEngine(Ram(1 << 20))
    except UserError as error:
        return error.message
    return ""
