"""README's first command shows an image go through a pipe; at night in a fresh clone, with nothing but Python."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs_examples import ROOT
from tests.images import Layout
from tests.peers import DockerRegistry
from tests.registry_http import seed
from tests.runner import forking_command, run

_SCRIPT = "scripts/quickstart"
#: What a fresh clone has not.
_NOT_CLONED = shutil.ignore_patterns(".*cache*", ".git", ".tox", ".venv", "__pycache__", "dist")


#: Runs the script with a small image, and with a program in place of the command that it would install.
_WITH_PROGRAM = """
import runpy, sys
script, program, *given = sys.argv[1:]
sys.argv = [script, *given]
main = runpy.run_path(script)["main"]
main.__globals__.update(ocistream=lambda: program, LAYER_SIZE=500_000)
main()
"""


# Installing takes most of the time that the script takes; tests/package/test_distributions.py installs too.
@pytest.mark.parametrize("given", [False, True], ids=["an image that it makes", "an image of a registry"])
def test_an_image_goes_through_a_pipe(given: bool, registry: DockerRegistry, layout: Layout, tmp_path: Path) -> None:
    seed(layout, layout.image([2_000_000, 1_000_000]), registry.host, "team/app", "v1")
    name = f"{registry.host}/team/app:v1"
    program = tmp_path / "ocistream"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(forking_command())} "$@"\n')
    program.chmod(0o755)
    line = [sys.executable, "-P", "-c", _WITH_PROGRAM, str(ROOT / _SCRIPT), str(program), *([name] if given else [])]
    done = run(line)
    assert done.code == 0, done.err
    assert (f"Copy {name} to the first one" in done.out.decode()) == given
    assert "Both registries have the same digest: sha256:" in done.out.decode()


@pytest.mark.nightly
def test_in_a_fresh_clone_it_installs_what_it_needs(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(ROOT, clone, ignore=_NOT_CLONED)
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    # Where packages come from, and by which proxy, is the machine's affair.
    env |= {name: value for name, value in os.environ.items() if name.lower().startswith(("pip_", "http", "no_proxy"))}
    line = [sys.executable, "-P", str(clone / _SCRIPT)]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Both registries have the same digest: sha256:" in done.stdout
