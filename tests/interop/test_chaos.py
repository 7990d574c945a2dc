"""Kills at random moments, in small: `scripts/chaos` does the same as often as one likes."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers import need
from tests.runner import command

#: How often, and with which registry: a push out of a file and one out of a directory; and each way often. In a usual
#: run tests/contract/test_killed.py and test_interrupted_push.py kill at chosen moments.
RUNS = [(2, "docker-registry"), pytest.param(60, "both", marks=pytest.mark.nightly)]
#: The seed of the first run. Others are for a search by hand: a change must not fail by chance.
SEED = 3
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "chaos"


@pytest.mark.parametrize(("runs", "registry"), RUNS)
def test_pulls_and_pushes_that_are_killed_at_random_moments_end_as_if_nothing_had_happened(
    runs: int, registry: str
) -> None:
    need("docker-registry")
    chaos = [sys.executable, str(SCRIPT), "--runs", str(runs), "--seed", str(SEED), "--registry", registry]
    chaos += ["--command", shlex.join(command())]
    done = subprocess.run(chaos, capture_output=True, text=True, check=False)
    # The seed of a run that failed is in it, by which it can be had again.
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{runs} runs, from seed {SEED}" in done.stdout
