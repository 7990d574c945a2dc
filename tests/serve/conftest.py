"""Fixtures: an embedded registry over an empty layout, and a connection to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ocistream.serve import AccessEntry, Registry
from tests.talking import Client


@pytest.fixture
def access_log() -> list[AccessEntry]:
    """Return the log of `served`, to be read after its requests."""
    return []


@pytest.fixture
def served(tmp_path: Path, access_log: list[AccessEntry]) -> Iterator[Registry]:
    """Return an embedded registry over an empty layout."""
    with Registry(tmp_path / "served", log=access_log.append) as registry:
        yield registry


@pytest.fixture
def ask(served: Registry) -> Iterator[Client]:
    """Return a connection to `served`."""
    with Client(served.host) as client:
        yield client
