"""A pytest plugin for two kinds of runs in an environment of `Workshop`.

With TESTS_LINES in the environment, coverage records the lines that each test executes. Its context is the test's
number in this run; TESTS_CONTEXT has the number for the processes that the test starts. With `--chosen`, pytest runs
only the tests that a file lists, in its order, and a test that takes far too long fails.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of both kinds of runs."""
    parser.addoption("--times", help="a file to write the tests' IDs and seconds to")
    parser.addoption("--chosen", help="a file with the tests to run and the seconds that each may take")
    parser.addoption("--failed", help="a file to write the ID of each failed test to, as soon as it fails")


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugins that the options select."""
    # A background process of a shell ignores SIGINT, which `Workshop` sends to end a run.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.times:
        config.pluginmanager.register(_Recorder(Path(config.option.times)))
    if config.option.chosen:
        config.pluginmanager.register(_Chosen(Path(config.option.chosen), Path(config.option.failed)))


class _Recorder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        from coverage import Coverage  # noqa: PLC0415 - only a run that records needs it

        os.environ["TESTS_CONTEXT"] = number = str(len(self._seconds))
        self._seconds[item.nodeid] = 0.0
        counting = Coverage.current()
        assert counting is not None
        counting.switch_context(number)
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        self._path.write_text(json.dumps(list(self._seconds.items())))


class _Chosen:
    def __init__(self, path: Path, failed: Path) -> None:
        self._limits: dict[str, float] = json.loads(path.read_text())
        self._failed = failed

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item], config: pytest.Config) -> None:
        order = {name: number for number, name in enumerate(self._limits)}
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in order])
        items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        limit = self._limits[item.nodeid]

        def fail(*_: Any) -> None:
            pytest.fail(f"still running after {limit:.0f} seconds")

        signal.signal(signal.SIGALRM, fail)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            with self._failed.open("a") as file:
                file.write(f"{report.nodeid}\n")
