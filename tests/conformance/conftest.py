"""The registries for the conformance cases."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import tests.registry
from ocistream import serve
from tests.conformance.registry_content import Registry, World, archived, pushed
from tests.raw_http import Client

#: The registries that the cases run against.
_REGISTRIES: Final[dict[str, type[Registry]]] = {"serve": serve.Registry, "tests": tests.registry.Registry}


@pytest.fixture(params=[*_REGISTRIES, "archive"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Return a registry with the contents of the suite, pushed or in an archive that `serve` reads."""
    with contextlib.ExitStack() as stack:
        if request.param == "archive":
            yield archived(tmp_path, stack)
        else:
            yield pushed(_REGISTRIES[request.param], tmp_path, stack)


@pytest.fixture(params=_REGISTRIES)
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Return a registry with the pushed contents of the suite."""
    with contextlib.ExitStack() as stack:
        yield pushed(_REGISTRIES[request.param], tmp_path, stack)


@pytest.fixture(params=_REGISTRIES)
def ask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    """Return a connection to an empty registry."""
    registry = _REGISTRIES[request.param](tmp_path / "served")
    with registry, Client(registry.host) as client:
        yield client
