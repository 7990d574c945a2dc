"""The engine: targets, inputs for them, and what counts as a fault.

Input number N of a target and a seed is always the same, unless it is guided by what code earlier ones have reached;
then it is one of those, changed.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Final, Self

from ocistream.errors import OcistreamError
from ocistream.limits import MIB
from tests.fuzz.coverage_guide import Guide
from tests.fuzz.monitor import HangError, watched
from tests.fuzz.mutation import mutated

#: How much memory an input may cost, in bytes, where nothing that it may ask for costs more.
MEMORY: Final = 32 * MIB
#: An error's text is a line for people.
_TEXT: Final = 1_000
_CORPUS: Final = 2_000

#: Looks at one input. It may raise an OcistreamError; whatever else it raises is a fault.
Check = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """One thing to be fuzzed.

    `opened` makes what checks inputs, in an empty folder of its own. `seeds` are inputs to begin with, `make` makes
    others that have the right form in most places. `codes` are the exit codes that are right for a bad input, `tokens`
    words of the format, and `share` says how many of the tests' inputs are its: by what one of them costs.
    """

    name: str
    opened: Callable[[Path], AbstractContextManager[Check]]
    seeds: Callable[[], Sequence[bytes]]
    codes: frozenset[int]
    make: Callable[[Random], bytes] | None = None
    tokens: tuple[bytes, ...] = ()
    share: int = 400
    #: How much memory one input may cost, in bytes.
    memory: int = MEMORY


@dataclass(frozen=True)
class Find:
    """An input that does what none may do; `problem` is one line, the same for inputs that show the same fault."""

    target: str
    data: bytes = field(repr=False)
    problem: str
    trace: str = field(repr=False, default="")


class Run:
    """One target on one seed."""

    def __init__(self, target: Target, folder: Path, seed: int = 0, guide: Guide | None = None) -> None:
        """Open the target below `folder`, which is empty. With a `guide`, inputs that reach new code are built upon."""
        self._target = target
        self._folder = folder / "within"
        self._seed = seed
        self._guide = guide
        self._seeds: list[bytes] = []
        self._grown: list[bytes] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Go into the folder: a relative path that is written to by mistake is to be seen there."""
        self._folder.mkdir(parents=True)
        before = Path.cwd(), tempfile.tempdir
        self._stack.callback(os.chdir, before[0])
        self._stack.callback(setattr, tempfile, "tempdir", before[1])
        os.chdir(self._folder)
        tempfile.tempdir = str(self._folder)
        self._seeds = list(self._target.seeds())
        self._check = self._stack.enter_context(self._target.opened(self._folder))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self._stack.close()

    def inputs(self) -> Iterator[bytes]:
        """Give inputs without end: first the seeds as they are."""
        yield from self._seeds
        number = 0
        while True:
            yield self._input(Random(f"{self._target.name} {self._seed} {number}"))
            number += 1

    def look(self, data: bytes) -> Find | None:
        """Look at one input, and give what is wrong with what became of it."""
        problem, trace = None, ""
        if self._guide is not None:
            self._guide.begin()
        with watched(self._folder) as seen:
            try:
                self._check(data)
            except OcistreamError as error:
                problem = self._wrong(error)
            except (Exception, HangError) as error:  # noqa: BLE001 - this is what is looked for
                problem, trace = _said(error), traceback.format_exc()
        if self._guide is not None and self._guide.reached() and problem is None and len(self._grown) < _CORPUS:
            self._grown.append(data)
        if problem is None and seen.grown > self._target.memory:
            problem = "it costs more memory than an input may"
        if problem is None and seen.deeds:
            problem = f"it does what none may do: {seen.deeds[0]}"
        return Find(self._target.name, data, problem, trace) if problem else None

    def smaller(self, find: Find) -> Find:
        """Leave away of an input what is not needed for its problem."""
        data, size = find.data, max(1, len(find.data) // 2)
        while True:
            start = 0
            while start < len(data):
                shorter = data[:start] + data[start + size :]
                again = self.look(shorter)
                if again is not None and again.problem == find.problem:
                    data, find = shorter, again
                else:
                    start += size
            if size == 1 or size * 64 < len(data):
                return find
            size //= 2

    @property
    def corpus(self) -> list[bytes]:
        """The inputs that reached something new."""
        return self._grown

    def _input(self, rng: Random) -> bytes:
        made = self._target.make(rng) if self._target.make is not None and rng.random() < 0.5 else None
        if made is not None and rng.random() < 0.5:
            return made
        pool = self._grown if self._grown and rng.random() < 0.7 else self._seeds
        return mutated(rng, rng.choice(pool) if made is None else made, self._target.tokens, self._seeds)

    def _wrong(self, error: OcistreamError) -> str | None:
        """Say what is wrong with an error of ours, if anything is."""
        if error.exit_code not in self._target.codes:
            return f"exit code {error.exit_code}, by {type(error).__name__}"
        for text in (error.message, error.hint or "x"):
            if not text or len(text) > _TEXT or not text.isprintable():
                return f"a text that is not one short line of print, of {type(error).__name__}"
        return None


def _said(error: BaseException) -> str:
    """Name a fault: what was raised, and the innermost line of ours that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "ocistream" in Path(frame.filename).parts[-3:-1]] or frames
    text = str(error) if isinstance(error, AssertionError) else ""
    where = f"{Path(ours[-1].filename).name}:{ours[-1].name}"
    return f"{type(error).__name__} in {where}" + (f": {text[:200]}" if text else "")
