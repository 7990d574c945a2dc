"""`scripts/test -e quick`: lint and the suites that find most defects, in parallel. Takes at most a minute.

These suites cover most of the product for the time that they take.
"""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_BIN: Final = Path(sys.executable).parent
_LINT: Final = (["ruff", "check"], ["ruff", "format", "--check"], ["lint-imports"])
_QUIRKS: Final = (
    *("credential_isolation", "manifests_and_rates", "mirror_credentials", "mounts_and_auth", "pulls", "uploads"),
)
_COMMANDS: Final = ("exit_codes", "gc", "incomplete_indexes", "push", "source_and_destination_options", "verify")
#: These run at the same time: one more than the two cores of most machines, because they often wait.
_PARTS: Final = (
    ["tests/contract", "--ignore=tests/contract/test_killed.py", "--ignore=tests/contract/test_properties.py"],
    ["tests/conformance", "tests/self/test_imports.py", *(f"tests/quirks/test_{name}.py" for name in _QUIRKS)],
    ["tests/limits", *(f"tests/cli/test_{name}.py" for name in _COMMANDS)],
)


def run(lines: Sequence[Sequence[str]]) -> tuple[int, str]:
    """Run programs one after the other until one fails; return its exit code and all output."""
    said = ""
    for program, *arguments in lines:
        began = time.monotonic()
        done = subprocess.run(
            [_BIN / program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        said += f"{program} {' '.join(arguments)}: {time.monotonic() - began:.0f} s\n{done.stdout}"
        if done.returncode:
            return done.returncode, said
    return 0, said


def main(options: Sequence[str]) -> int:
    """Run all parts with `options` for pytest; return 0 if nothing failed."""
    jobs = [_LINT, *([["pytest", "-q", *options, *part]] for part in _PARTS)]
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        results = list(pool.map(run, jobs))
    for _, said in results:
        sys.stdout.write(said)
    return max(code for code, _ in results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
