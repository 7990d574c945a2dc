"""Runs the command on hostile archives and reports every deviation: for the tests and for `scripts/hostile`.

Each archive is used in all `WAYS`: pushed from a file and from a pipe, verified, and copied into a layout.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.hostile.archive_parts import MIB, Hostile
from tests.registry import Registry
from tests.runner import Result, command, run_measured

#: The memory limit that the project promises for any run, in bytes.
BUDGET: Final = 48 * MIB
_SEQUENTIAL_RUNNER: Final = Path(__file__).with_name("sequential_runner.py")


@dataclasses.dataclass(frozen=True)
class Way:
    """One use of an archive: the rest of the command line, and the expected exit code."""

    name: str
    argv: Callable[[Hostile, Path, Target], list[str]]
    code: Callable[[Hostile], int]
    piped: bool = False


@dataclasses.dataclass(frozen=True)
class Target:
    """The destination of an archive: an empty registry, or a layout that does not exist. Each run has its own."""

    folder: Path
    registry: Registry

    @property
    def layout(self) -> Path:
        """The path of the layout."""
        return self.folder / "layout"

    def spoiled(self) -> Iterator[str]:
        """Yield what must not be there: an image, a wrong blob, an open session, a stray file."""
        served = self.registry.layout.path
        if json.loads((served / "index.json").read_bytes())["manifests"]:
            yield "an image was pushed"
        if (self.layout / "index.json").exists():
            yield "an image was copied"
        yield from strays(served)
        yield from strays(self.layout)
        for left in self.folder.iterdir():
            if left not in {served, self.layout}:
                yield f"{left.name} was written"


@dataclasses.dataclass(frozen=True)
class Taken:
    """The outcome of one run: `seconds` of time, `cpu` seconds, and in `wrong` the deviations."""

    way: str
    result: Result
    seconds: float
    cpu: float
    wrong: tuple[str, ...]


WAYS: Final = (
    Way(
        "file",
        lambda one, path, to: ["push", "-i", str(path), f"{to.registry.host}/app:1", *one.options],
        lambda one: one.code,
    ),
    Way(
        "pipe",
        lambda one, _, to: ["push", f"{to.registry.host}/app:1", *one.options],
        lambda one: one.from_pipe,
        piped=True,
    ),
    Way("verify", lambda one, path, _: ["verify", str(path), *one.looked], lambda one: one.from_verify),
    Way("copy", lambda one, path, to: ["copy", str(path), f"oci:{to.layout}", *one.options], lambda one: one.from_copy),
)


def each_way(
    hostile: Hostile, archive: Path, folder: Path, ways: Sequence[Way] = WAYS, line: Sequence[str] | None = None
) -> Iterator[Taken]:
    """Run the command on an archive, in a process for each way; `line` is the start of the command line."""
    for way in ways:
        with _target(folder / f"{hostile.name}-{way.name}") as target:
            argv = [*(line or command()), *way.argv(hostile, archive, target)]
            began, worked = time.monotonic(), _worked()
            result = run_measured(argv, stdin=archive if way.piped else None, cwd=target.folder)
            seconds, cpu = time.monotonic() - began, _worked() - worked
            yield Taken(way.name, result, seconds, cpu, tuple(_wrong(hostile, way, result, target)))


def one_by_one(archives: Sequence[tuple[Hostile, Path]], folder: Path, way: Way) -> Iterator[tuple[str, str]]:
    """Run the command on archives in one process, one after the other; yield the deviations of each."""
    with contextlib.ExitStack() as stack:
        targets = [stack.enter_context(_target(folder / hostile.name)) for hostile, _ in archives]
        jobs = [
            {"argv": way.argv(hostile, path, target), "stdin": str(path) if way.piped else ""}
            for (hostile, path), target in zip(archives, targets, strict=True)
        ]
        line = [sys.executable, "-P", str(_SEQUENTIAL_RUNNER)]
        done = run_measured(line, stdin="".join(f"{json.dumps(job)}\n" for job in jobs).encode(), cwd=folder)
        assert done.code == 0, done.err
        for (hostile, _), target, job, answer in zip(archives, targets, jobs, json.loads(done.out), strict=True):
            # Earlier runs in the process have used memory too, so the peak is not that of this run.
            result = Result(job["argv"], answer["code"], answer["out"].encode(), answer["err"], 0)
            yield from ((hostile.name, wrong) for wrong in _wrong(hostile, way, result, target))


def _worked() -> float:
    """Return the CPU seconds of this process's children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def _target(folder: Path) -> Iterator[Target]:
    folder.mkdir()
    with Registry(folder / "registry") as registry:
        yield Target(folder, registry)


def _wrong(hostile: Hostile, way: Way, result: Result, target: Target) -> Iterator[str]:
    if result.code != way.code(hostile):
        yield f"exit code {result.code}, not {way.code(hostile)}: {result.err}"
    if result.out and way.name != "verify":
        yield "output on stdout"
    if result.peak is None or result.peak >= BUDGET:
        yield f"a peak of {result.peak} bytes"
    yield from _wrong_words(result.err, has_problems=way.name == "verify")
    yield from target.spoiled()


def _wrong_words(said: str, *, has_problems: bool) -> Iterator[str]:
    """Yield what is wrong with the text of an error: it must be one line, or two with a hint.

    With `has_problems`, lines with further problems come first.
    """
    lines = said.splitlines()
    while has_problems and len(lines) > 1 and re.match("ocistream: (?!error: )", lines[0]):
        del lines[0]
    if not lines or not lines[0].startswith("ocistream: error: ") or len(lines) > 2:
        yield f"{len(lines)} lines"
    if len(lines) == 2 and not lines[1].startswith("  "):
        yield "a second line that is no hint"
    if not said.replace("\n", "").isprintable():
        yield "control characters"
    if "Traceback" in said or "internal error" in said:
        yield "a traceback"


def strays(layout: Path) -> Iterator[str]:
    """Yield everything in a layout that is neither one of its JSON files nor a complete blob under its digest."""
    for path in layout.rglob("*"):
        name = str(path.relative_to(layout))
        if path.is_symlink():
            yield f"a link {name}"
        elif path.is_file() and name not in {"oci-layout", "index.json"}:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if name != f"blobs/sha256/{digest}":
                yield f"a stray {name}"
