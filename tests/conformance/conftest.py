"""What the conformance cases run against, and the table of what became of each at the end of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ocistream.serve import Registry
from tests.conformance.statements import CASES, DATA
from tests.conformance.world import World, archived, pushed
from tests.talking import Client

_PROPERTY: Final = "conformance"
_WORST_FIRST: Final = ("failed", "error", "skipped", "passed")


@pytest.fixture(params=["directory", "archive"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Return a registry with what the suite puts into one: pushed into a directory, or lying in an archive."""
    with contextlib.ExitStack() as stack:
        yield (archived if request.param == "archive" else pushed)(tmp_path, stack)


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[World]:
    """Return a registry over a directory with what the suite puts into one."""
    with contextlib.ExitStack() as stack:
        yield pushed(tmp_path, stack)


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Client]:
    """Return a connection to an empty registry."""
    with Registry(tmp_path / "served") as registry, Client(registry.host) as client:
        yield client


# The table ----------------------------------------------------------------------------------------------------


def cases_of(marks: Any) -> list[str]:
    """Return the cases that marks name."""
    return [str(mark.args[0]) for mark in marks if mark.name == _PROPERTY]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Write into each test's report which case it is."""
    for item in items:
        item.user_properties += [(_PROPERTY, name) for name in cases_of(item.iter_markers(_PROPERTY))]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print, for each case, what became of its tests."""
    outcomes: dict[str, dict[str, int]] = {}
    for outcome in _WORST_FIRST:
        for report in terminalreporter.stats.get(outcome, []):
            for key, name in getattr(report, "user_properties", []):
                if key == _PROPERTY:
                    counts = outcomes.setdefault(name, {})
                    counts[outcome] = counts.get(outcome, 0) + 1
    if not outcomes:
        return
    terminalreporter.section("the conformance suite's cases")
    for name in (*CASES, *(f"Data / {kind}" for kind in DATA)):
        if name in outcomes:
            said = ", ".join(f"{count} {outcome}" for outcome, count in outcomes[name].items())
            terminalreporter.line(f"{said:<10} {name}")
