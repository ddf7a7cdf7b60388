"""Where what need not be fetched, unpacked or measured again is kept for this user."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/xenolith, or ~/.cache/xenolith (a relative XDG_CACHE_HOME is ignored, as XDG says)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "xenolith"
