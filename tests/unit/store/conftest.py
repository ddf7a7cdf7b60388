"""A store, and who talks to it."""

from __future__ import annotations

import pytest

from tests.unit.store.support import OWNER, Client, guest, tools
from xenolith.store.server import Store


@pytest.fixture
def store() -> Store:
    return Store(OWNER)


@pytest.fixture
def dom0(store: Store) -> Client:
    return tools(store)


@pytest.fixture
def domu(store: Store) -> Client:
    return guest(store, 5)
