"""Draw a sample of mutants, run the tests that execute each mutant's line, and print the survivors.

See `scripts/mutants --help`. In the project's folder, this program only changes .cache/mutants.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import queue
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.mutants.areas import SURVIVING_FOR_A_REASON, area_of
from tests.mutants.mutations import Mutant, mutants
from tests.mutants.record import Record, Test
from tests.mutants.workshop import Workshop

PROJECT: Final = Path(__file__).parents[2]
CACHE: Final = PROJECT / ".cache/mutants"
_LAST: Final = CACHE / "survivors.json"
#: Default seconds for all tests of one mutant. A mutant that is not killed by then counts as a survivor.
TIME: Final = 60.0
#: Recorded seconds of the tests in the first run for a mutant; each further run gets twice as much.
_FIRST_RUN: Final = 4.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a mutant: the test that killed it, or an empty text if it survived; `note` has details."""

    mutant: Mutant
    killed_by: str
    note: str


class Judge:
    """Tries mutants in a copy of the project. `sound` says which tests pass without a mutant, as far as known."""

    def __init__(self, shop: Workshop, record: Record, sound: dict[str, bool]) -> None:
        self._shop, self._record, self._sound = shop, record, sound

    def try_out(self, mutant: Mutant, seconds: float) -> Outcome:
        """Apply the mutant, run tests until one fails, and restore the file."""
        tests = self._record.tests_for(mutant)
        if not tests:
            return Outcome(mutant, "", "not executed")
        began = time.monotonic()
        tried = 0
        for tests_of_run in _runs(tests):
            try:
                killed_by = self._killed_by(mutant, tests_of_run, began + seconds)
            except subprocess.TimeoutExpired:
                return Outcome(mutant, "", f"time over; {tried} of {len(tests)} tests passed")
            tried += len(tests_of_run)
            if killed_by:
                return Outcome(mutant, killed_by, f"one of the first {tried} of {len(tests)} tests")
        return Outcome(mutant, "", f"{tried} tests passed")

    def _killed_by(self, mutant: Mutant, tests: Sequence[Test], until: float) -> str:
        """Return the first test that fails with the mutant and passes alone without it."""
        limits = {test.name: 15 + 5 * test.seconds for test in tests if self._sound.get(test.name, True)}
        while limits:
            mutant.apply(self._shop.project)
            try:
                failed = self._shop.first_failure(limits, until - time.monotonic())
            finally:
                self._shop.restore(mutant.path)
            if not failed:
                break
            if failed not in limits:
                return failed
            if failed not in self._sound:
                self._sound[failed] = not self._shop.first_failure({failed: limits[failed]}, 2 * limits[failed])
            if self._sound[failed]:
                return failed
            del limits[failed]
        return ""


def _runs(tests: Sequence[Test]) -> Iterator[list[Test]]:
    """Split tests into runs of pytest, each with twice the time of the previous one; tests of a file stay together."""
    most, chosen, seconds = _FIRST_RUN, list[Test](), 0.0
    for test in tests:
        if chosen and seconds + test.seconds > most:
            yield sorted(chosen, key=lambda test: test.name.partition("::")[0])
            most, chosen, seconds = 2 * most, [], 0.0
        chosen.append(test)
        seconds += test.seconds
    yield sorted(chosen, key=lambda test: test.name.partition("::")[0])


def say(*lines: object) -> None:
    """Write lines to stdout and flush."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def drawn(arguments: argparse.Namespace) -> list[Mutant]:
    """Return the sample, drawn from the mutants of all selected modules."""
    files = sorted((PROJECT / "ocistream").rglob("*.py"))
    every = [mutant for file in files for mutant in mutants(PROJECT, file)]
    if arguments.again:
        last = json.loads(_LAST.read_text())
        return [mutant for mutant in every if dataclasses.asdict(mutant) in last]
    chosen = [mutant for mutant in every if re.search(arguments.modules, mutant.path)]
    say(f"{len(chosen)} mutants, of which {min(arguments.count, len(chosen))} are tried")
    return random.Random(arguments.seed).sample(chosen, min(arguments.count, len(chosen)))


def try_all(sample: Sequence[Mutant], judges: Sequence[Judge], seconds: float) -> list[Outcome]:
    """Try the mutants, one at a time in each copy, and print each result."""
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in sample:
        waiting.put(mutant)
    outcomes: list[Outcome] = []

    def work(judge: Judge) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                mutant = waiting.get_nowait()
                began = time.monotonic()
                outcome = judge.try_out(mutant, seconds)
                outcomes.append(outcome)
                said = f"killed by {outcome.killed_by}" if outcome.killed_by else "SURVIVED"
                spent = time.monotonic() - began
                say(f"{len(outcomes)}/{len(sample)} {spent:.0f} s {mutant}: {said} ({outcome.note})")

    threads = [threading.Thread(target=work, args=(judge,), daemon=True) for judge in judges]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def print_summary(outcomes: Sequence[Outcome]) -> None:
    """Print the survivors, and the number of killed mutants of each area."""
    say("\nSurvivors:")
    for outcome in sorted((outcome for outcome in outcomes if not outcome.killed_by), key=lambda o: o.mutant):
        line = str(outcome.mutant)
        reason = next((why for place, why in SURVIVING_FOR_A_REASON if place in line), "")
        say(f"  {line} ({outcome.note})", *([f"      {reason}"] if reason else []))
    total = Counter(area_of(o.mutant.path) for o in outcomes)
    killed = Counter(area_of(o.mutant.path) for o in outcomes if o.killed_by)
    say(f"\n{'area':24} {'tried':>6} {'killed':>6}")
    for area in sorted(total):
        say(f"{area:24} {total[area]:6} {killed[area]:6}")
    say(f"{'all':24} {total.total():6} {killed.total():6}  {100 * killed.total() / max(1, total.total()):.0f} %")


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=150, help="number of mutants (default: 150)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample (default: 1)")
    parser.add_argument("--modules", default="", help="a regular expression for the paths of modules (default: all)")
    parser.add_argument("--again", action="store_true", help="try only the survivors of the last run")
    parser.add_argument(
        "--jobs", type=int, default=2, help="number of copies of the project that run at once (default: 2)"
    )
    parser.add_argument("--seconds", type=float, default=TIME, help="for one mutant (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the sample and run nothing")
    arguments = parser.parse_args()
    sample = drawn(arguments)
    if arguments.list:
        say(*sample)
        return 0
    shops = [Workshop(PROJECT, CACHE / str(number)) for number in range(arguments.jobs)]
    record = Record(PROJECT, CACHE / "record")
    for line in record.bring_up_to_date(shops):
        say(line)
    sound: dict[str, bool] = {}
    outcomes = try_all(sample, [Judge(shop, record, sound) for shop in shops], arguments.seconds)
    _LAST.write_text(json.dumps([dataclasses.asdict(outcome.mutant) for outcome in outcomes if not outcome.killed_by]))
    print_summary(outcomes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
