"""The registries for the conformance cases, and the table of their results at the end of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import tests.registry
from ocistream import serve
from tests.conformance.cases import CASES, DATA
from tests.conformance.registry_content import Registry, World, archived, pushed
from tests.raw_http import Client

_PROPERTY: Final = "conformance"
_WORST_FIRST: Final = ("failed", "error", "skipped", "passed")


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


# The table ----------------------------------------------------------------------------------------------------


def cases_of(marks: Any) -> list[str]:
    """Return the cases that marks name."""
    return [str(mark.args[0]) for mark in marks if mark.name == _PROPERTY]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the names of a test's cases to its report."""
    for item in items:
        item.user_properties += [(_PROPERTY, name) for name in cases_of(item.iter_markers(_PROPERTY))]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the results of each case's tests."""
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
