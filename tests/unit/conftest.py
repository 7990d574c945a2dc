"""Fixtures of the tests that need only Python: registries with faults, and clients that do not sleep."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ocistream.notices import set_listener
from tests.http_doubles import CountingRegistry, QuickTransport

# Examples may take any time on a busy machine: no test asserts a time.
settings.register_profile(
    "untimed", settings.default, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _no_listener() -> Iterator[None]:
    """Remove the listener of a test: it would get the notices of later tests."""
    yield
    set_listener(lambda *_, **__: None)


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Callable[..., CountingRegistry]]:
    """Return a function that starts a registry with faults; its arguments are those of `FaultyRegistry`."""
    with contextlib.ExitStack() as stack:
        started: list[CountingRegistry] = []

        def start(*faults: object, **options: object) -> CountingRegistry:
            path = tmp_path / f"faulty-{len(started)}"
            started.append(CountingRegistry(path, *faults, **options))  # type: ignore[arg-type]
            return stack.enter_context(started[-1])

        yield start


@pytest.fixture
def quick() -> Iterator[Callable[..., QuickTransport]]:
    """Return a function that creates a client that does not sleep; its arguments are those of `QuickTransport`."""
    with contextlib.ExitStack() as stack:

        def make(**options: object) -> QuickTransport:
            return stack.enter_context(QuickTransport(**options))  # type: ignore[arg-type]

        yield make
