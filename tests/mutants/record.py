"""Record which tests execute which lines of the product, and how long each takes; update the record after changes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import queue
import re
import sqlite3
import subprocess
import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.mutants.lines import Scope, scope_of
from tests.mutants.mutations import Mutant
from tests.mutants.workshop import Workshop, listed

#: Suites that do not run: tests/unit, to measure the other suites, and suites that need more than Python.
_NOT_RUN: Final = ("tests/unit/", "tests/interop/", "tests/package/", "tests/typing/")
_BITS: Final = range(8)
_IS_TEST: Final = re.compile(r"tests/.*\btest_\w+\.py")
#: Seconds for one file of tests.
_MOST: Final = 1800.0


@dataclass(frozen=True)
class Test:
    """A test and its recorded duration."""

    name: str
    seconds: float


class Record:
    """The records of the test files, stored in `folder`."""

    def __init__(self, project: Path, folder: Path) -> None:
        self._project = project
        self._folder = folder
        self._tests: list[Test] = []
        self._executing: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
        self._lines: defaultdict[str, set[int]] = defaultdict(set)

    def bring_up_to_date(self, shops: Sequence[Workshop]) -> Iterator[str]:
        """Record changed test files, or all if another file has changed; yield a line about each recorded file."""
        keys = self._keys()
        old = {name for name, key in keys.items() if self._read(name).get("key") != key}
        for path in self._folder.glob("*.json"):
            if path not in {self._path(name) for name in keys}:
                path.unlink()
        waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        done: queue.SimpleQueue[str] = queue.SimpleQueue()
        for name in sorted(old):
            waiting.put(name)

        def work(shop: Workshop) -> None:
            with contextlib.suppress(queue.Empty):
                while True:
                    name = waiting.get_nowait()
                    try:
                        done.put(self._record(shop, name, keys[name]))
                    except (OSError, sqlite3.Error, subprocess.SubprocessError) as error:
                        done.put(f"{name}: {error}")

        threads = [threading.Thread(target=work, args=(shop,), daemon=True) for shop in shops]
        for thread in threads:
            thread.start()
        for number in range(len(old)):
            yield f"recorded {number + 1}/{len(old)} {done.get()}"
        for thread in threads:
            thread.join()
        self._load(keys)

    def tests_for(self, mutant: Mutant) -> list[Test]:
        """Return the tests that execute the mutant: specific and quick ones first, similar ones not in a row.

        A test is specific to a module if it executes lines of the module that few other tests execute.
        """
        numbers = self._executing_scope(scope_of(self._project, mutant.path, mutant.line), set())
        fewest = dict.fromkeys(numbers, len(numbers))
        for line in self._lines[mutant.path]:
            executing = self._executing[mutant.path, line] & numbers
            for number in executing:
                fewest[number] = min(fewest[number], len(executing))
        best_first = sorted(numbers, key=lambda number: fewest[number] * (self._tests[number].seconds + 0.1))
        similar: Counter[str] = Counter()
        ordered: list[tuple[int, int, Test]] = []
        for place, number in enumerate(best_first):
            test = self._tests[number]
            function = test.name.partition("[")[0]
            similar[function] += 1
            ordered.append((similar[function], place, test))
        return [test for _, _, test in sorted(ordered, key=lambda entry: entry[:2])]

    def _executing_scope(self, scope: Scope, seen: set[tuple[str, int]]) -> set[int]:
        """Return the tests that execute the scope, or if importing executes it, the lines that use its names."""
        found = self._executing_any(scope.path, scope.lines)
        if not scope.is_import:
            return found
        users: set[int] = self._executing_any(scope.path, scope.body)
        for path, line in _mentions(self._project, scope):
            if (path, line) not in seen:
                seen.add((path, line))
                user = scope_of(self._project, path, line)
                if not user.is_import or user.names or user.body:
                    users |= self._executing_scope(user, seen)
        return users or found

    def _executing_any(self, path: str, lines: Collection[int]) -> set[int]:
        return set().union(*(self._executing.get((path, line), ()) for line in lines))

    def _keys(self) -> dict[str, str]:
        """Return for each test file a hash of the file and of all shared files."""
        names = [name for name in listed(self._project) if name.startswith(("ocistream/", "tests/"))]
        tests = {name for name in names if _IS_TEST.fullmatch(name)}
        common = hashlib.sha256()
        for name in names:
            if name not in tests and not name.startswith("tests/mutants/"):
                common.update(name.encode() + b"\0" + (self._project / name).read_bytes())
        return {
            name: hashlib.sha256(common.digest() + (self._project / name).read_bytes()).hexdigest()
            for name in sorted(tests)
            if not name.startswith(_NOT_RUN)
        }

    def _record(self, shop: Workshop, name: str, key: str) -> str:
        times, data = shop.record(name, _MOST)
        lines: defaultdict[str, defaultdict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        for path in data:
            for source, context, executed in _counted(path):
                if context.isdecimal():
                    relative = str(Path(source).relative_to(shop.project.resolve()))
                    for line in executed:
                        lines[relative][line].add(int(context))
        # The same tests execute many lines, so lines refer to groups of tests.
        groups: dict[tuple[int, ...], int] = {}
        compact = {
            source: {line: groups.setdefault(tuple(sorted(tests)), len(groups)) for line, tests in sorted(of.items())}
            for source, of in lines.items()
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path(name).write_text(json.dumps({"key": key, "tests": times, "groups": list(groups), "lines": compact}))
        return f"{name}: {len(times)} tests, {sum(seconds for _, seconds in times):.0f} s"

    def _load(self, keys: Mapping[str, str]) -> None:
        self._tests.clear()
        self._executing.clear()
        self._lines.clear()
        for name, key in keys.items():
            read = self._read(name)
            if read.get("key") != key:
                continue
            first = len(self._tests)
            groups = [{first + number for number in group} for group in read["groups"]]
            for path, lines in read["lines"].items():
                for line, group in lines.items():
                    self._executing[path, int(line)] |= groups[group]
                    self._lines[path].add(int(line))
            self._tests.extend(Test(test, seconds) for test, seconds in read["tests"])

    def _path(self, name: str) -> Path:
        return self._folder / f"{name.replace('/', '.')}.json"

    def _read(self, name: str) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            read: dict[str, Any] = json.loads(self._path(name).read_bytes())
            return read
        return {}


def _mentions(project: Path, scope: Scope) -> Iterator[tuple[str, int]]:
    """Yield the lines of the product that mention one of the names, except those that assign it."""
    if not scope.names:
        return
    name = re.compile(rf"\b({'|'.join(map(re.escape, scope.names))})\b")
    for path in sorted((project / "ocistream").rglob("*.py")):
        relative = str(path.relative_to(project))
        for number, line in enumerate(_text(path), 1):
            if name.search(line) and not (relative == scope.path and number in scope.lines):
                yield relative, number


@functools.cache
def _text(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _counted(path: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Yield file, context and lines of one of coverage's databases, whose schema coverage documents."""
    query = (
        "SELECT path, context, numbits FROM line_bits"
        " JOIN file ON file.id = file_id JOIN context ON context.id = context_id"
    )
    # A killed process may have left an incomplete database.
    with contextlib.closing(sqlite3.connect(path)) as database, contextlib.suppress(sqlite3.DatabaseError):
        for source, context, bits in database.execute(query):
            yield (
                source,
                context,
                [8 * number + bit for number, byte in enumerate(bits) for bit in _BITS if byte >> bit & 1],
            )
