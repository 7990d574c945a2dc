"""Untrusted input is accepted, or refused in one line with an expected exit code, fast and in little memory.

These tests run a part of `scripts/fuzz`: the same inputs on each run, and all earlier finds.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from ocistream.errors import ArchiveError, UsageError
from tests.fuzz.engine import MEMORY, Check, Find, Run, Target
from tests.fuzz.targets import TARGETS

#: Another seed gives other inputs.
SEED: Final = int(os.environ.get("OCISTREAM_FUZZ_SEED", "0"))
_FOUND: Final = Path(__file__).parent / "found"


@pytest.mark.parametrize("part", [8, pytest.param(1, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", TARGETS)
def test_no_input_causes_a_fault(name: str, part: int, tmp_path: Path) -> None:
    # pytest shows the seed if the test fails.
    sys.stderr.write(f"OCISTREAM_FUZZ_SEED={SEED}\n")
    with Run(TARGETS[name], tmp_path, SEED) as run:
        finds = [run.look(data) for data in itertools.islice(run.inputs(), TARGETS[name].share // part)]
    # Shorten the inputs: pytest would show all bytes.
    found = [f"{find.problem}: {find.data[:200]!r}" for find in finds if find is not None]
    assert not found, f"{len(found)} finds, the first: {found[0]}"


@pytest.mark.parametrize("path", sorted(_FOUND.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_earlier_find_stays_fixed(path: Path, tmp_path: Path) -> None:
    with Run(TARGETS[path.parent.name], tmp_path) as run:
        find = run.look(path.read_bytes())
    assert find is None, find.trace or find.problem


def _raise(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def _write_outside() -> None:
    Path("../outside").write_text("x")


def _for_ever() -> None:
    while True:
        pass


def _look(tmp_path: Path, act: Callable[[], object]) -> Find | None:
    @contextlib.contextmanager
    def opened(_: Path) -> Iterator[Check]:
        def check(_: bytes) -> None:
            act()

        yield check

    with Run(Target("itself", opened, lambda: [b""], frozenset({6})), tmp_path) as run:
        return run.look(b"")


@pytest.mark.parametrize(
    ("act", "problem"),
    [
        (_raise(KeyError("x")), "KeyError in test_fuzz.py:act"),
        (_raise(UsageError("x")), "exit code 2"),
        (_raise(ArchiveError("two\nlines")), "a text that is not one short line of print"),
        (_raise(ArchiveError("x" * 10_000)), "a text that is not one short line of print"),
        (_raise(ArchiveError("x", hint="\x1b[2J")), "a text that is not one short line of print"),
        # Far more than the free memory that earlier tests may have left in this process.
        (lambda: len(bytearray(b"x" * (8 * MEMORY))), "it costs more memory"),
        (_write_outside, "it does what none may do: open of "),
        (lambda: subprocess.run([sys.executable, "-c", ""], check=True), "it does what none may do: subprocess.Popen"),
        (lambda: socket.create_connection(("127.0.0.1", 1)), "ConnectionRefusedError"),
        (lambda: socket.getaddrinfo("example.com", 80), "gaierror"),
    ],
)
def test_the_engine_reports_each_kind_of_fault(act: Callable[[], object], problem: str, tmp_path: Path) -> None:
    find = _look(tmp_path, act)
    assert find is not None
    assert find.problem.startswith(problem)


def test_the_engine_reports_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.monitor.PATIENCE", 0.05)
    find = _look(tmp_path, _for_ever)
    assert find is not None
    assert find.problem.startswith("HangError")


def test_the_engine_accepts_a_refusal(tmp_path: Path) -> None:
    assert _look(tmp_path, _raise(ArchiveError("the archive is malformed", hint="make it anew"))) is None


def test_a_find_is_minimized(tmp_path: Path) -> None:
    @contextlib.contextmanager
    def opened(_: Path) -> Iterator[Check]:
        def check(data: bytes) -> None:
            if b"BAD" in data:
                raise ValueError

        yield check

    with Run(Target("itself", opened, lambda: [b""], frozenset()), tmp_path) as run:
        find = run.look(b"good " * 500 + b"BAD" + b" good" * 300)
        assert find is not None
        assert run.smaller(find).data == b"BAD"


def test_an_input_is_the_same_on_every_run(tmp_path: Path) -> None:
    for name, target in TARGETS.items():
        runs = []
        for again in range(2):
            with Run(target, tmp_path / f"{name}-{again}", 3) as run:
                runs.append(list(itertools.islice(run.inputs(), len(target.seeds()) + 5)))
        assert runs[0] == runs[1], name
