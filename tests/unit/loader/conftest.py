"""Fixtures for the loader: a cache of its own for every test, and kernels written to files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xenolith.loader.image import KernelImage


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory."""
    home = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], KernelImage]:
    """Writes bytes to a file and reads them as a kernel."""

    def read(data: bytes) -> KernelImage:
        path = tmp_path / "kernel"
        path.write_bytes(data)
        return KernelImage.read(path)

    return read
