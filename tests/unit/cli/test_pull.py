from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from xenolith.cli import pull
from xenolith.errors import UserError
from xenolith.loader import registry


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the registry was asked for; it has all but "gone"."""
    names: list[str] = []

    def fetch(alias: str, progress: registry.Progress) -> registry.Pulled:
        if alias == "gone":
            raise UserError("there is nothing called 'gone' to pull")
        names.append(alias)
        progress("fetching", 0.5)
        return registry.Pulled(alias, f"linux-{alias}", "6.1", Path("/cache") / alias, None)

    monkeypatch.setattr(registry, "pull", fetch)
    return names


def test_the_default(asked: list[str]) -> None:
    result = CliRunner().invoke(pull.command)
    assert result.output == "debian: linux-debian 6.1, /cache/debian\n"
    assert asked == ["debian"]


def test_several(asked: list[str]) -> None:
    result = CliRunner().invoke(pull.command, ["grub", "mach"])
    assert result.exit_code == 0
    assert asked == ["grub", "mach"]


def test_the_first_failure_ends_it(asked: list[str]) -> None:
    result = CliRunner().invoke(pull.command, ["grub", "gone", "mach"])
    assert isinstance(result.exception, UserError)
    assert asked == ["grub"]
