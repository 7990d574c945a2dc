"""The fuzzing engine: targets, their inputs, and the faults that it reports.

Input number N of a target and a seed is always the same, except in a guided run, which mutates inputs that reached new
code.
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

#: The default limit for the memory that an input uses, in bytes.
MEMORY: Final = 32 * MIB
#: The longest error text, in characters.
_TEXT: Final = 1_000
_CORPUS: Final = 2_000

#: Checks one input. It may raise an OcistreamError; any other exception is a fault.
Check = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """One parser to fuzz.

    `opened` returns a context manager of the check, for an empty folder. `seeds` are the first inputs; `make` makes
    other inputs that are mostly valid. `codes` are the expected exit codes for an invalid input, `tokens` are words of
    the format, and `share` is the number of inputs in a usual test run, by the cost of an input.
    """

    name: str
    opened: Callable[[Path], AbstractContextManager[Check]]
    seeds: Callable[[], Sequence[bytes]]
    codes: frozenset[int]
    make: Callable[[Random], bytes] | None = None
    tokens: tuple[bytes, ...] = ()
    share: int = 400
    #: The limit for the memory that one input uses, in bytes.
    memory: int = MEMORY


@dataclass(frozen=True)
class Find:
    """An input that causes a fault; `problem` is one line, the same for inputs with the same fault."""

    target: str
    data: bytes = field(repr=False)
    problem: str
    trace: str = field(repr=False, default="")


class Run:
    """One target on one seed."""

    def __init__(self, target: Target, folder: Path, seed: int = 0, guide: Guide | None = None) -> None:
        """Use the empty `folder` for the target. With a `guide`, mutate inputs that reach new code."""
        self._target = target
        self._folder = folder / "within"
        self._seed = seed
        self._guide = guide
        self._seeds: list[bytes] = []
        self._grown: list[bytes] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Change to the folder and open the target there."""
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
        """Close the target and restore the working directory."""
        self._stack.close()

    def inputs(self) -> Iterator[bytes]:
        """Yield inputs without end; the seeds come first, unchanged."""
        yield from self._seeds
        number = 0
        while True:
            yield self._input(Random(f"{self._target.name} {self._seed} {number}"))
            number += 1

    def look(self, data: bytes) -> Find | None:
        """Check one input, and return its fault, if any."""
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
        """Remove the parts of an input that its problem does not need."""
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
        """The inputs that reached new code."""
        return self._grown

    def _input(self, rng: Random) -> bytes:
        made = self._target.make(rng) if self._target.make is not None and rng.random() < 0.5 else None
        if made is not None and rng.random() < 0.5:
            return made
        pool = self._grown if self._grown and rng.random() < 0.7 else self._seeds
        return mutated(rng, rng.choice(pool) if made is None else made, self._target.tokens, self._seeds)

    def _wrong(self, error: OcistreamError) -> str | None:
        """Return the problem of an OcistreamError, if any."""
        if error.exit_code not in self._target.codes:
            return f"exit code {error.exit_code}, by {type(error).__name__}"
        for text in (error.message, error.hint or "x"):
            if not text or len(text) > _TEXT or not text.isprintable():
                return f"a text that is not one short line of print, of {type(error).__name__}"
        return None


def _said(error: BaseException) -> str:
    """Name a fault: the exception, and the innermost function of ocistream in its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "ocistream" in Path(frame.filename).parts[-3:-1]] or frames
    text = str(error) if isinstance(error, AssertionError) else ""
    where = f"{Path(ours[-1].filename).name}:{ours[-1].name}"
    return f"{type(error).__name__} in {where}" + (f": {text[:200]}" if text else "")
