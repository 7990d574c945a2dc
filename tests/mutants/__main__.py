"""Draws a sample of mutants, runs the suites of each mutant's area, and prints what survived.

See `scripts/mutants --help`. Each worker has a copy of the project with an environment of its own, so nothing here
touches the tree that it is started from.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.mutants.areas import AREAS, SURVIVING_FOR_A_REASON, Area
from tests.mutants.mutations import Mutant, mutants

PROJECT: Final = Path(__file__).parents[2]
#: Seconds for all suites of one mutant, by default. A mutant that is not killed by then counts as a survivor.
TIME: Final = 300.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a mutant: the test that killed it, or an empty text if it survived. `area` is the area's name."""

    mutant: Mutant
    area: str
    killed_by: str
    seconds: float


class Workshop:
    """A copy of the project in which one mutant at a time is tried."""

    def __init__(self, folder: Path) -> None:
        """Copy what git knows of the project, and install the copy."""
        self.project = folder / "project"
        shutil.rmtree(self.project, ignore_errors=True)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=PROJECT,
            check=True,
            capture_output=True,
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (PROJECT / name).is_file():
                (self.project / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(PROJECT / name, self.project / name)
        self._python = folder / "environment/bin/python"
        if not self._python.exists():
            subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True)
        pip = [
            str(self._python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--editable",
            ".[test]",
        ]
        subprocess.run(pip, cwd=self.project, check=True)

    def try_out(self, mutant: Mutant, area: Area, seconds: float) -> Outcome:
        """Apply the mutant, run the suites, and put the file back."""
        began = time.monotonic()
        mutant.apply(self.project)
        try:
            killed_by = self._killed_by(area.suites, seconds)
        finally:
            shutil.copy2(PROJECT / mutant.path, self.project / mutant.path)
        return Outcome(mutant, area.name, killed_by, time.monotonic() - began)

    def fails(self, suites: Sequence[str], seconds: float) -> str:
        """Return the first test that fails without any mutant."""
        return self._killed_by(suites, seconds)

    def _killed_by(self, suites: Sequence[str], seconds: float) -> str:
        arguments = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no", "-o", "addopts="]
        line = [str(self._python), "-m", "pytest", *arguments, *suites]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(
            line,
            cwd=self.project,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return ""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode == 0:
            return ""
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", out.decode(errors="replace"), re.MULTILINE)
        return failed[1] if failed else f"exit code {process.returncode}"


def say(*lines: object) -> None:
    """Write lines to stdout at once."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def area_of(path: str) -> Area:
    """Return the area that a module belongs to."""
    return next(area for area in AREAS if re.search(area.modules, path))


def drawn(arguments: argparse.Namespace) -> list[Mutant]:
    """Return the sample: each module's share is its share of all mutants."""
    files = sorted((PROJECT / "ocistream").rglob("*.py"))
    every = [mutant for file in files for mutant in mutants(PROJECT, file)]
    chosen = [mutant for mutant in every if re.search(arguments.modules, mutant.path)]
    say(f"{len(chosen)} mutants, of which {min(arguments.count, len(chosen))} are tried")
    return random.Random(arguments.seed).sample(chosen, min(arguments.count, len(chosen)))


def try_all(sample: Sequence[Mutant], shops: Sequence[Workshop], seconds: float) -> list[Outcome]:
    """Try the mutants, one at a time in each copy, and say what becomes of each."""
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in sample:
        waiting.put(mutant)
    outcomes: list[Outcome] = []

    def work(shop: Workshop) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                mutant = waiting.get_nowait()
                outcome = shop.try_out(mutant, area_of(mutant.path), seconds)
                outcomes.append(outcome)
                over = " (time over)" if outcome.seconds >= seconds else ""
                said = f"killed by {outcome.killed_by}" if outcome.killed_by else f"SURVIVED{over}"
                say(f"{len(outcomes)}/{len(sample)} {outcome.seconds:.0f} s {mutant}: {said}")

    threads = [threading.Thread(target=work, args=(shop,), daemon=True) for shop in shops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def print_summary(outcomes: Sequence[Outcome]) -> None:
    """Print the survivors, and what was killed of each area."""
    survivors = sorted(outcome.mutant for outcome in outcomes if not outcome.killed_by)
    say("\nSurvivors:")
    for mutant in survivors:
        reason = next((why for place, why in SURVIVING_FOR_A_REASON if place in str(mutant)), "")
        say(f"  {mutant}{f'  ({reason})' if reason else ''}")
    total, killed = Counter(o.area for o in outcomes), Counter(o.area for o in outcomes if o.killed_by)
    say(f"\n{'area':24} {'tried':>6} {'killed':>6}")
    for area in sorted(total):
        say(f"{area:24} {total[area]:6} {killed[area]:6}")
    say(f"{'all':24} {total.total():6} {killed.total():6}  {100 * killed.total() / max(1, total.total()):.0f} %")


def main() -> int:
    """Run it all; 1 if a suite fails without any mutant."""
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=150, help="how many mutants (default: 150)")
    parser.add_argument("--seed", type=int, default=1, help="what the sample is drawn with (default: 1)")
    parser.add_argument("--modules", default="", help="a regular expression for the paths of modules (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="how many copies of the project work at once (default: 2)")
    parser.add_argument("--seconds", type=float, default=TIME, help="for one mutant (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the sample and run nothing")
    parser.add_argument("--unchecked", action="store_true", help="do not check first that the suites pass as they are")
    arguments = parser.parse_args()
    sample = drawn(arguments)
    if arguments.list:
        say(*sample)
        return 0
    suites = sorted({suite for area in AREAS for suite in area.suites})
    if missing := [suite for suite in suites if not (PROJECT / suite).exists()]:
        say("these suites do not exist:", *missing)
        return 1
    shops = [Workshop(PROJECT / f".cache/mutants/{number}") for number in range(arguments.jobs)]
    if not arguments.unchecked:
        suites = sorted({suite for mutant in sample for suite in area_of(mutant.path).suites})
        if failing := shops[0].fails(suites, 60 * arguments.seconds):
            say(f"without any mutant this fails: {failing}")
            return 1
    print_summary(try_all(sample, shops, arguments.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
