"""Kill pulls and pushes at random moments, with a few runs of `scripts/chaos`."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers import need
from tests.runner import command

#: Number of runs, and registry: pushes from a file and from a directory; nightly, every way many times. In a usual run
#: tests/contract/test_killed.py and test_interrupted_push.py kill at chosen moments.
RUNS = [(2, "docker-registry"), pytest.param(60, "both", marks=pytest.mark.nightly)]
#: The seed of the first run. It is fixed, so that a change does not fail by chance; use other seeds by hand.
SEED = 3
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "chaos"


@pytest.mark.parametrize(("runs", "registry"), RUNS)
def test_pulls_and_pushes_resume_after_kills_at_random_moments(runs: int, registry: str) -> None:
    need("docker-registry")
    chaos = [sys.executable, str(SCRIPT), "--runs", str(runs), "--seed", str(SEED), "--registry", registry]
    chaos += ["--command", shlex.join(command())]
    done = subprocess.run(chaos, capture_output=True, text=True, check=False)
    # The output names the seed of a failed run, which repeats it.
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{runs} runs, from seed {SEED}" in done.stdout
