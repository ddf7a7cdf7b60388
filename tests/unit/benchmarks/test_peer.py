"""Finding the peer's packages, and the peer's command lines."""

import pytest

from benchmarks.common import Unavailable
from benchmarks.peer import parse_dependency


def test_the_kernel_package_is_read_from_the_metapackages_dependencies() -> None:
    listing = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n  Conflicts: other\n"
    assert parse_dependency(listing) == "linux-image-6.1.0-56-amd64"


def test_no_known_kernel_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="apt-get update"):
        parse_dependency("")
