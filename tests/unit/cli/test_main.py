"""The command line: every error is one sentence and an exit status, and no verb is imported that is not used."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from xenolith import __version__
from xenolith.cli import main as command_line
from xenolith.errors import UserError


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command with arguments: its exit status and what it printed."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["xenolith", *arguments])
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        captured = capfd.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, captured.out, captured.err

    return call


Run = Callable[..., tuple[int, str, str]]


def verb(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Have `xenolith doctor` do something else."""
    monkeypatch.setattr("xenolith.cli.doctor.command", click.Command("doctor", callback=action))


def test_the_version(run: Run) -> None:
    assert run("--version") == (0, f"xenolith, version {__version__}\n", "")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_every_verb_with_its_sentence(run: Run, option: str) -> None:
    status, output, _ = run(option)
    assert status == 0
    for name, sentence in command_line.VERBS.items():
        assert name in output
        assert sentence.split()[0] in output


@pytest.mark.parametrize("name", command_line.VERBS)
def test_every_verb_has_help(run: Run, name: str) -> None:
    status, output, _ = run(name, "--help")
    assert status == 0
    assert f"xenolith {name}" in output or "Usage" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bot"], "there is no verb 'bot'; did you mean 'boot'?"),
        (["xyzzy"], "there is no verb 'xyzzy'"),
        (["--wrong"], "No such option"),
        (["run"], "Missing argument 'KERNEL'"),
        (["boot", "--vcpus", "many"], "not a valid integer"),
        (["run", "k", "--clock", "sun"], "'sun' is not one of"),
        (["boot", "a", "b"], "unexpected extra argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_status_2(run: Run, arguments: list[str], words: str) -> None:
    status, output, errors = run(*arguments)
    assert (status, output) == (2, "")
    assert words in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "/missing/kernel"], "/missing/kernel"),
        (["boot", "/missing/machine.toml"], "cannot read /missing/machine.toml: No such file or directory"),
        (["run", "k", "--memory", "lots"], "'lots' is no amount of memory (--memory)"),
        (["run", "k", "--vcpus", "0"], "cannot have 0 vCPUs"),
        (["run", "k", "--timeout", "0"], "a time limit of 0 s is impossible"),
        (["run", "k", "--timeout", "-1"], "a time limit of -1 s is impossible"),
        (["run", "k", "--timeout", "nan"], "a time limit of nan s is impossible"),
        (["run", "k", "--timeout", "inf"], "a time limit of inf s is impossible"),
        (["run", "k", "--symbols", "/missing/map"], "/missing/map cannot be read"),
        (["inspect", "/missing/kernel"], "/missing/kernel"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_sentence_and_status_1(run: Run, arguments: list[str], words: str) -> None:
    status, output, errors = run(*arguments)
    assert (status, output) == (1, "")
    lines = errors.splitlines()
    assert lines[0].startswith("xenolith: ")
    assert words in lines[0]
    assert len(lines) <= 2


def test_the_hint_stands_below(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UserError("it is wrong", "do it right")

    verb(monkeypatch, fail)
    assert run("doctor") == (1, "", "xenolith: it is wrong\n          do it right\n")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, click.Abort])
def test_an_interruption_is_status_130(
    run: Run, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    def stop() -> None:
        raise interruption

    verb(monkeypatch, stop)
    status, output, errors = run("doctor")
    assert (status, output, errors.strip()) == (130, "", "xenolith: interrupted")


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3), (6, 6)])
def test_a_verbs_status_is_the_commands(
    run: Run, monkeypatch: pytest.MonkeyPatch, returned: object, status: int
) -> None:
    verb(monkeypatch, lambda: returned)
    assert run("doctor")[0] == status
    verb(monkeypatch, lambda: sys.exit(status))
    assert run("doctor")[0] == status


# -- as a process ------------------------------------------------------------------------------------------------------


def test_nobody_reads_the_output_any_more() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "xenolith", "--help"], stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def imported(candidates: set[str], *arguments: str) -> list[str]:
    """Those of the modules that the command with these arguments has imported when it ends."""
    code = f"import sys; sys.argv = ['xenolith', *{arguments!r}]\n"
    code += "from xenolith.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += f"print(*sorted({candidates!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=Path.cwd())
    return done.stderr.splitlines()[-1].split()


def test_help_imports_neither_engine_nor_numpy() -> None:
    assert imported({"numpy", "unicorn", "iced_x86", "rich"}, "--help") == []


def test_run_imports_nothing_that_only_other_verbs_and_guests_need() -> None:
    slow = {"asyncio", "concurrent.futures", "iced_x86", "logging", "rich", "ssl", "tempfile", "tomllib", "unicorn"}
    assert imported({*slow, "urllib.request", "numpy"}, "run", "/missing/kernel") == ["numpy"]
