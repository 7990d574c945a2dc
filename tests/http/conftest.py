"""Fixtures: the command in this process, and registries for it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocistream.cli import main
from tests.http.fixture_types import Run
from tests.http.raw_registry import RawRegistry
from tests.http.tls_identities import Identities
from tests.runner import Result


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Return a function that runs a command line in this process, in an empty directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    hook = sys.unraisablehook

    def command(*argv: object) -> Result:
        capsys.readouterr()
        words = [str(word) for word in argv]
        code = main(words)
        captured = capsys.readouterr()
        return Result(words, code, captured.out.encode(), captured.err)

    yield command
    sys.unraisablehook = hook
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def raw() -> Iterator[RawRegistry]:
    """Return a registry that answers with raw bytes."""
    with RawRegistry() as registry:
        yield registry


@pytest.fixture(scope="session")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    """Return an authority and certificates issued by it."""
    return Identities.make(tmp_path_factory.mktemp("ids"))
