"""The scripts behind `make`: what they say where they cannot do their work."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory that is the whole PATH, with the few programs that the scripts use."""
    for name in ("sh", "awk", "grep", "cat", "date"):
        found = next(path for path in (Path("/usr/bin") / name, Path("/bin") / name) if path.exists())
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to(found)
    return tmp_path / "bin"


def run(programs: Path, tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": str(programs), "XDG_CACHE_HOME": str(programs.parent / "cache")}
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, env=environment, timeout=30)


def test_a_python_that_is_too_old(programs: Path, tmp_path: Path) -> None:
    script(programs / "python3", '[ "$1" = --version ] && echo Python 3.9.2; exit 1')
    done = run(programs, "install", "python3", str(tmp_path / "venv"), ".")
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed, and 'python3' is Python 3.9.2" in done.stderr
    assert "make PYTHON=" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_newer_python_is_found_and_lacks_venv(programs: Path, tmp_path: Path) -> None:
    script(programs / "python3", "exit 1")
    script(programs / "python3.12", 'case "$2" in *ensurepip*) exit 1;; esac')
    done = run(programs, "install", "python3", str(tmp_path / "venv"), ".")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "xenolith: 'python3.12' cannot make virtual environments",
        "          apt-get install python3-venv",
    ]


def test_packages_that_cannot_be_had(programs: Path, tmp_path: Path) -> None:
    script(tmp_path / "venv/bin/python", 'case "$*" in *pip*) echo no network; exit 1;; esac')
    done = run(programs, "install", "python3", str(tmp_path / "venv"), ".")
    assert done.returncode == 1
    assert "no network" in done.stderr
    assert "pip could not install Xenolith's dependencies" in done.stderr


def test_only_kernels_that_are_not_there_are_pulled(programs: Path) -> None:
    script(programs / "xenolith", '[ "$1" = pull ] && echo pulled $2 && [ $2 != mach ]')
    shelf = programs.parent / "cache/xenolith/kernels"
    for name in ("debian", "grub"):
        (shelf / name).mkdir(parents=True)
    (shelf / "debian/manifest.json").touch()
    done = run(programs, "pull_test_kernels", "xenolith", "debian", "grub", "mach")
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["pulled grub", "pulled mach"]
    assert done.stderr.splitlines() == ["going on without 'mach'"]


def test_every_check_runs_and_one_failure_is_enough(programs: Path, tmp_path: Path) -> None:
    script(tmp_path / "venv/ruff", 'echo "ruff $1"; [ "$1" = format ]')
    script(tmp_path / "venv/mypy", "echo mypy")
    done = run(programs, "check", str(tmp_path / "venv"), "ruff", "format", "mypy")
    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()[-3:]] == [
        ["ruff", "FAILED"],
        ["format", "passed"],
        ["mypy", "passed"],
    ]
    assert run(programs, "check", str(tmp_path / "venv"), "mypy").returncode == 0
