"""Fixtures: an embedded registry over an empty layout, a connection to it, and its limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.serve import AccessLogEntry
from tests.raw_http import Client
from tests.serve.served_layout import Served, SetLimits


@pytest.fixture
def access_log() -> list[AccessLogEntry]:
    """Return the log of `served`, to be read after its requests."""
    return []


@pytest.fixture
def served(tmp_path: Path, access_log: list[AccessLogEntry]) -> Iterator[Served]:
    """Return an embedded registry over an empty layout."""
    with Served(tmp_path / "served", log=access_log.append) as served:
        yield served


@pytest.fixture
def ask(served: Served) -> Iterator[Client]:
    """Return a connection to `served`."""
    with Client(served.host) as client:
        yield client


@pytest.fixture
def set_limits(monkeypatch: pytest.MonkeyPatch) -> SetLimits:
    """Return a function that sets numbers of `ocistream.limits` by name until the end of the test."""

    def change(**values: float) -> None:
        for name, value in values.items():
            monkeypatch.setattr(limits, name, value)

    return change
