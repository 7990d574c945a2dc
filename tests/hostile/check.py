"""Gives hostile archives to the command, and says what is not as it should be: for the tests and for `scripts/hostile`.

Each goes by every one of `WAYS`: from a file and from a pipe into a registry, offline, and into a layout.
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

#: What the project promises of any run, in bytes.
BUDGET: Final = 48 * MIB
_SEQUENTIAL_RUNNER: Final = Path(__file__).with_name("sequential_runner.py")


@dataclasses.dataclass(frozen=True)
class Way:
    """One way of giving an archive to the command: the rest of its command line, and the exit code that is right."""

    name: str
    argv: Callable[[Hostile, Path, Target], list[str]]
    code: Callable[[Hostile], int]
    piped: bool = False


@dataclasses.dataclass(frozen=True)
class Target:
    """Where an archive would go: an empty registry, or a layout that is not there yet. Each run has its own."""

    folder: Path
    registry: Registry

    @property
    def layout(self) -> Path:
        """The layout that would be made."""
        return self.folder / "layout"

    def spoiled(self) -> Iterator[str]:
        """Say what has come into it that should not have: an image, a blob that is none, an open session, a stray."""
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
    """How one run went: in `seconds`, `cpu` of them at work; `wrong` says what is not as it should be."""

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
    """Run the command on an archive, in a process for each way; `line` begins the command line."""
    for way in ways:
        with _target(folder / f"{hostile.name}-{way.name}") as target:
            argv = [*(line or command()), *way.argv(hostile, archive, target)]
            began, worked = time.monotonic(), _worked()
            result = run_measured(argv, stdin=archive if way.piped else None, cwd=target.folder)
            seconds, cpu = time.monotonic() - began, _worked() - worked
            yield Taken(way.name, result, seconds, cpu, tuple(_wrong(hostile, way, result, target)))


def one_by_one(archives: Sequence[tuple[Hostile, Path]], folder: Path, way: Way) -> Iterator[tuple[str, str]]:
    """Run the command on archives in one process, one after the other; say of each what is wrong."""
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
            # What the runs before it have left in memory is none of its own.
            result = Result(job["argv"], answer["code"], answer["out"].encode(), answer["err"], 0)
            yield from ((hostile.name, wrong) for wrong in _wrong(hostile, way, result, target))


def _worked() -> float:
    """Return the seconds that children of this process have been at work."""
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
        yield "something on stdout"
    if result.peak is None or result.peak >= BUDGET:
        yield f"a peak of {result.peak} bytes"
    yield from _wrong_words(result.err, has_problems=way.name == "verify")
    yield from target.spoiled()


def _wrong_words(said: str, *, has_problems: bool) -> Iterator[str]:
    """Say what is wrong with an error's words: they are a line, or two with what to do.

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
    """Say what is in a layout that is neither its markers nor a whole blob under its own digest."""
    for path in layout.rglob("*"):
        name = str(path.relative_to(layout))
        if path.is_symlink():
            yield f"a link {name}"
        elif path.is_file() and name not in {"oci-layout", "index.json"}:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if name != f"blobs/sha256/{digest}":
                yield f"a stray {name}"
