"""Fixtures of the fault matrix."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import pytest

from tests.matrix.cell_runner import Undisturbed, undisturbed
from tests.matrix.command_runs import Flow, Stage


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Return what all cells share."""
    with contextlib.ExitStack() as stack:
        yield Stage(tmp_path_factory.mktemp("matrix"), stack)


@pytest.fixture(scope="session")
def peace(stage: Stage) -> Callable[[Flow], Undisturbed]:
    """Return a function that returns the undisturbed run of a flow; each is run once."""
    return functools.cache(functools.partial(undisturbed, stage))
