"""Fixtures of the fault matrix, and its table at the end of a run."""

from __future__ import annotations

import contextlib
import functools
import string
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from tests.matrix.cell_runner import Undisturbed, undisturbed
from tests.matrix.command_runs import FLOWS, Flow, Stage
from tests.matrix.request_faults import TROUBLES, Trouble
from tests.matrix.request_rows import Step

#: The key of the cells in a test's report.
_PROPERTY: Final = "cell"
_LETTERS: Final = dict(zip([trouble.name for trouble in TROUBLES], string.ascii_uppercase, strict=False))
_LEGEND: Final = (
    "+ absorbed: exit 0, with the same result as without the fault; a number: that exit code, with no image visible, "
    "and the same command succeeds afterwards; the second of two: the fault lasts; -: the fault cannot happen there; "
    ".: only the nightly run tests this cell, because another fault of the same sort is tested there"
)


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Return what all cells share."""
    with contextlib.ExitStack() as stack:
        yield Stage(tmp_path_factory.mktemp("matrix"), stack)


@pytest.fixture(scope="session")
def peace(stage: Stage) -> Callable[[Flow], Undisturbed]:
    """Return a function that returns the undisturbed run of a flow; each is run once."""
    return functools.cache(functools.partial(undisturbed, stage))


@pytest.fixture
def show(request: pytest.FixtureRequest) -> Callable[[Flow, Step, Trouble, str], None]:
    """Return a function that adds a cell to the table."""

    def enter(flow: Flow, step: Step, trouble: Trouble, text: str) -> None:
        cell = (flow.name, f"{step.registry} {step.kind}", trouble.name, text)
        request.node.user_properties.append((_PROPERTY, cell))

    return enter


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of each command: its requests, the faults, and the outcomes."""
    tables: dict[str, dict[str, dict[str, str]]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in getattr(report, "user_properties", []):
                if name == _PROPERTY:
                    flow, row, trouble, text = value
                    tables.setdefault(flow, {}).setdefault(row, {})[trouble] = text
    if not tables:
        return
    terminalreporter.section("the fault matrix")
    for line in _lines(tables):
        terminalreporter.line(line)


def _lines(tables: dict[str, dict[str, dict[str, str]]]) -> Iterator[str]:
    yield from (f"{letter} {name}" for name, letter in _LETTERS.items())
    yield _LEGEND
    for flow in (flow.name for flow in FLOWS if flow.name in tables):
        columns = [name for name in _LETTERS if any(name in cells for cells in tables[flow].values())]
        yield ""
        yield f"{flow:51} " + " ".join(f"{_LETTERS[name]:3}" for name in columns)
        for row, cells in tables[flow].items():
            # A sentence says what is wrong; the failure above prints it.
            texts = [text if len(text := cells.get(name, ".")) <= 3 else "!" for name in columns]
            yield f"{row:51} " + " ".join(f"{text:3}" for text in texts)
