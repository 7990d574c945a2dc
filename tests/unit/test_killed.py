"""Killed at any of its steps in a folder, a command leaves what the next run goes on with, and nothing else.

A step is what Python audits: a file opened, locked, renamed or removed, a folder made or listed. Each run is a process
of its own, which ends itself before the step whose number it is told; so all of them have their turn, and no moment is
left to chance. (`scripts/chaos` leaves it to chance, with real registries.)
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from posix import _exit
from typing import Final

import pytest

from ocistream import limits
from ocistream.cli import main
from ocistream.partials import is_stray_of, lasting
from tests.images import Layout

STEPS: Final = frozenset({"open", "fcntl.flock", "os.rename", "os.remove", "os.mkdir", "os.scandir"})
KINDS: Final = ["oci-archive:{}/x.tar", "oci:{}/x"]


@pytest.fixture(autouse=True)
def everything_but_what_is_tiny_is_worth_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small layers behave as large ones do."""
    monkeypatch.setattr(limits, "WORTH_KEEPING", 8_000)


@pytest.fixture
def source(layout: Layout) -> Path:
    """Return a layout with an image of two layers that are worth keeping and one that is not."""
    layout.image([20_000, 3_500, 9_000], name="v1")
    return layout.path


def copying(source: Path, kind: str, folder: Path) -> list[str]:
    # One blob at a time, so that the steps are the same ones each time.
    return ["copy", "--jobs", "1", "--progress", "none", f"oci:{source}", kind.format(folder)]


def moved(source: Path, kind: str, folder: Path, *, step: int = -1, by: int = signal.SIGKILL) -> int:
    """Copy the image in a process of its own, which sends itself a signal before a step; give how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        # Branches are not counted here: each would write down anew all that the tests before it have reached.
        sys.settrace(None)
        threading.settrace(None)
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
        left = iter(range(step, -1, -1))

        def count(event: str, arguments: tuple[object, ...]) -> None:
            if event not in STEPS:
                return
            # What is open already is given by its number.
            is_there = isinstance(arguments[0], int) or str(arguments[0]).startswith(f"{folder}")
            if is_there and next(left, None) == 0:
                os.kill(os.getpid(), by)

        # Whoever runs the tests in the background may ignore it, and so would this process.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.addaudithook(count)
        code = main(copying(source, kind, folder))
    finally:
        # coverage has a hand in that of `os`.
        _exit(code)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}


def shows(folder: Path) -> bool:
    """Say whether there is a result: an archive, or an index that names an image."""
    index = folder / "x" / "index.json"
    return (folder / "x.tar").exists() or (index.exists() and b"sha256" in index.read_bytes())


def folders(parent: Path) -> Iterator[Path]:
    """Give a new folder for each run."""
    for number in itertools.count():
        (parent / f"{number}").mkdir(parents=True)
        yield parent / f"{number}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_wherever_it_is_ended_the_next_run_makes_what_an_undisturbed_one_does(
    source: Path, tmp_path: Path, kind: str, by: signal.Signals
) -> None:
    undisturbed, *_ = itertools.islice(folders(tmp_path), 1)
    # Here, so that what is imported then is there for all others.
    assert main(copying(source, kind, undisturbed)) == 0
    whole = contents(undisturbed)
    ended = 0
    for step, folder in enumerate(folders(tmp_path / "ended")):
        code = moved(source, kind, folder, step=step, by=by)
        if code == 0:
            break
        assert code == (-by if by == signal.SIGKILL else 128 + by)
        ended += 1
        if shows(folder):
            assert contents(folder) == whole
        if by != signal.SIGKILL:
            names = [Path(name) for name in contents(folder)]
            assert not [name for name in names if is_stray_of(name.name)]
            assert all((folder / name).stat().st_size >= limits.WORTH_KEEPING for name in names if lasting(name.name))
        else:
            # Once more in the same place.
            moved(source, kind, folder, step=step, by=by)
        assert moved(source, kind, folder) == 0
        assert contents(folder) == whole, f"ended before step {step}"
    assert ended > 10
