"""How long tests wait for guests: longer on KVM, as a software KVM takes 40 µs for an exit, and xl makes a million."""

from __future__ import annotations

import os
from typing import Final

PATIENCE: Final = 8 if os.environ.get("XENOLITH_ENGINE") == "kvm" else 1
"""What time limits of tests with real kernels are multiplied by. (tests/conftest.py says which engine that is.)"""
