"""Every module imports only from its own layer and those below it (the contract is in pyproject.toml)."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_layers_are_kept() -> None:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_every_package_has_its_layer() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    packages = {path.parent.name for path in (ROOT / "src/xenolith").glob("*/__init__.py")}
    assert {f"xenolith.{name}" for name in packages | {"errors", "user_cache"}} == set(contract["layers"])


def test_the_architecture_page_lists_the_layers_in_their_order() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    table = (ROOT / "docs/architecture.md").read_text().split("## Layers")[1].split("\n## ")[0]
    listed = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert [f"xenolith.{name}" for name in listed] == contract["layers"]
