"""Fixtures of the tests of rules, and the table of rules at the end of a run."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from ocistream.cli import main
from tests.faulty_registry import Fault, FaultyRegistry, redirect
from tests.hostile.archive_parts import image, tar
from tests.limits.rules import LIMITS

#: The key of a test report that has the numbers of its rules.
_PROPERTY: Final = "limit"


@pytest.fixture
def ocistream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Sequence[object]], int]]:
    """Return a function that runs a command line in this process, in an empty folder, and returns its exit code."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    hook = sys.unraisablehook
    yield lambda argv: main([str(word) for word in argv])
    sys.unraisablehook = hook
    for number, handler in handlers.items():
        signal.signal(number, handler)


@dataclasses.dataclass(frozen=True)
class Attack:
    """A hostile registry, a second registry, and the command, which runs in this process and in an empty folder."""

    registry: FaultyRegistry
    elsewhere: FaultyRegistry
    ocistream: Callable[[Sequence[object]], int]
    capsys: pytest.CaptureFixture[str]

    def lead(self, url: str, status: int = 307, path: str = "/manifests/") -> None:
        """Have the registry answer GET and HEAD requests with a redirect."""
        self.registry.faults = [Fault(redirect(url, status), "GET|HEAD", path, times=None)]

    def run(self, *argv: object) -> tuple[int, str]:
        """Run a command line; return the exit code and stderr."""
        code = self.ocistream(argv)
        return code, self.capsys.readouterr().err


@pytest.fixture
def attack(
    served: FaultyRegistry,
    other: FaultyRegistry,
    ocistream: Callable[[Sequence[object]], int],
    capsys: pytest.CaptureFixture[str],
) -> Attack:
    return Attack(served, other, ocistream, capsys)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return a valid archive."""
    path = tmp_path / "sound.tar"
    path.write_bytes(tar(*image()))
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the rules of each test to its report."""
    for item in items:
        numbers = {int(mark.args[0]) for mark in item.iter_markers(_PROPERTY)}
        item.user_properties += [(_PROPERTY, number) for number in sorted(numbers)]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the modules and the tests of each rule."""
    passed: dict[int, int] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, number in getattr(report, "user_properties", []):
                if name == _PROPERTY:
                    passed[number] = passed.get(number, 0) + (outcome == "passed")
    if not passed:
        return
    from tests.limits.test_rules import archives_of  # noqa: PLC0415 - the import builds the corpus

    terminalreporter.section("rules for untrusted input, and the modules that implement them")
    for number, rule in LIMITS.items():
        shown = (
            f"{len(archives_of(rule)):3} archives {passed.get(number, 0):3} tests here {len(rule.tests):2} elsewhere"
        )
        terminalreporter.line(f"{number:3} {shown}  {', '.join(rule.homes)}")
