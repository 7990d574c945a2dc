"""If a command is killed at any step, the next run resumes the partial content, and nothing else remains.

A step is an event that Python audits: a file is opened, locked, renamed or removed, a folder is created or listed. Each
run is a process of its own that sends itself a signal before the step with a given number, so the moment is exact.
(`scripts/chaos` kills at random moments, with real registries.)
"""

from __future__ import annotations

import itertools
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ocistream import limits
from tests.contract import traced_run
from tests.images import Layout

#: Destinations, and N if the test ends the command at every N-th step. The nightly run tests all steps.
KINDS: Final = [
    ("oci-archive:{}/x.tar", 1),
    ("oci:{}/x", 3),
    pytest.param("oci:{}/x", 1, marks=pytest.mark.nightly),
]
KINDS_OF_END: Final = [signal.SIGKILL, signal.SIGINT]
#: Unfinished files: those of one run only, and those that the next run resumes.
STRAY: Final = re.compile(r"\..+\.[0-9a-f]{12}\.partial")
RESUMABLE: Final = re.compile(r"\..+\.partial")


@pytest.fixture(autouse=True)
def small_layers_are_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat small layers as large ones."""
    monkeypatch.setattr(limits, "MIN_PARTIAL_SIZE", 8_000)


@pytest.fixture
def source(layout: Layout) -> Path:
    """Return a layout with an image of two layers that are resumed and one that is not."""
    layout.image([20_000, 3_500, 9_000], name="v1")
    return layout.path


def copying(source: Path, kind: str, folder: Path) -> list[str]:
    # One blob at a time, so that the steps are the same each time.
    return ["copy", "--jobs", "1", "--progress", "none", f"oci:{source}", kind.format(folder)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}


def is_visible(folder: Path) -> bool:
    """Return whether there is a result: an archive, or an index that lists an image."""
    index = folder / "x" / "index.json"
    return (folder / "x.tar").exists() or (index.exists() and b"sha256" in index.read_bytes())


def folders(parent: Path) -> Iterator[Path]:
    """Make a new folder for each run."""
    for number in itertools.count():
        (parent / f"{number}").mkdir(parents=True)
        yield parent / f"{number}"


@pytest.mark.parametrize(("kind", "every"), KINDS)
@pytest.mark.parametrize("by", KINDS_OF_END)
def test_after_an_end_at_any_step_the_next_run_writes_the_complete_result(
    source: Path, tmp_path: Path, kind: str, every: int, by: signal.Signals
) -> None:
    (undisturbed,) = itertools.islice(folders(tmp_path), 1)
    assert traced_run.run(copying(source, kind, undisturbed)) == 0
    complete = contents(undisturbed)
    count = 0
    first = KINDS_OF_END.index(by) % every
    for step, folder in zip(itertools.count(first, every), folders(tmp_path / "ended"), strict=False):
        argv = copying(source, kind, folder)
        code = traced_run.ended(argv, folder, step, by)
        if code == 0:
            break
        assert code == (-by if by == signal.SIGKILL else 128 + by)
        count += 1
        if is_visible(folder):
            assert contents(folder) == complete
        if by == signal.SIGKILL:
            # Kill it again at the same step.
            if count % 3 == 0:
                traced_run.ended(argv, folder, step, by)
        else:
            names = [Path(name) for name in contents(folder)]
            assert not [name for name in names if STRAY.fullmatch(name.name)]
            resumable = [folder / name for name in names if RESUMABLE.fullmatch(name.name)]
            assert all(path.stat().st_size >= limits.MIN_PARTIAL_SIZE for path in resumable)
        assert traced_run.run(argv) == 0
        assert contents(folder) == complete, f"ended before step {step}"
    assert count * every > 10
