"""Fixtures for the tests of the command line: registries in the process of the tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faulty_registry import FaultyRegistry


@pytest.fixture(autouse=True)
def buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffer stdout as for a user: containers of Python often set PYTHONUNBUFFERED."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., FaultyRegistry]]:
    """Return a function that starts a registry; its arguments are those of `FaultyRegistry`."""
    with contextlib.ExitStack() as stack:
        started: list[FaultyRegistry] = []

        def start_one(*faults: Any, **options: Any) -> FaultyRegistry:
            started.append(FaultyRegistry(tmp_path / f"served-{len(started)}", *faults, **options))
            return stack.enter_context(started[-1])

        yield start_one


@pytest.fixture
def served(start: Callable[..., FaultyRegistry]) -> FaultyRegistry:
    """Return an empty registry without authentication."""
    return start()


@pytest.fixture
def dev_stdout(tmp_path: Path) -> Path:
    """Return a link to the process's own stdout, like /dev/stdout.

    It replaces the real /dev/stdout: tests may run as root, and wrong code could delete a device of the machine.
    """
    link = tmp_path / "stdout"
    link.symlink_to("/proc/self/fd/1")
    return link


@pytest.fixture(scope="session")
def low_expansion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a `machine` of `runner.ocistream` that applies `--max-ratio` from 1 MiB on, not from 1 GiB on."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / "sitecustomize.py").write_text("from ocistream import limits\nlimits.UNCHECKED_EXPANSION = 1 << 20\n")
    return folder
