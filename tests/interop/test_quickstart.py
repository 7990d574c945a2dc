"""README's first command copies an image through a pipe; nightly in a fresh clone, with only Python installed."""

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
from tests.runner import forking_command

#: Files that a fresh clone does not have.
_NOT_CLONED = shutil.ignore_patterns(".*cache*", ".git", ".tox", ".venv", "__pycache__", "dist")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the sources."""
    folder = tmp_path_factory.mktemp("quickstart") / "clone"
    shutil.copytree(ROOT, folder, ignore=_NOT_CLONED)
    return folder


def quickstart(
    clone: Path, home: Path, *arguments: str, before: str = "", replaced: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the quickstart with its own HOME, and assert that it leaves HOME empty.

    `before` is Python code that runs first in the same process; `replaced` are globals of the script, as keyword
    arguments.
    """
    programs = clone / "programs"
    programs.mkdir(exist_ok=True)
    # pip asks rustc for its version. rustup's rustc first creates this folder.
    (programs / "rustc").write_text('#!/bin/sh\nmkdir -p "${RUSTUP_HOME:-$HOME/.rustup}"\necho "rustc 1.0.0 (x)"\n')
    (programs / "rustc").chmod(0o755)
    env = {"HOME": str(home), "PATH": f"{programs}:{os.defpath}", "LANG": "C.UTF-8"}
    # The machine configures pip's index and proxies.
    env |= {name: value for name, value in os.environ.items() if name.lower().startswith(("pip_", "http", "no_proxy"))}
    script = str(clone / "scripts" / "quickstart")
    line = [sys.executable, "-P", script, *arguments]
    if before or replaced:
        code = f"import runpy, sys; {before or 'pass'}; main = runpy.run_path({script!r})['main']"
        line = [sys.executable, "-P", "-c", f"{code}; main.__globals__.update({replaced}); main()", *arguments]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert list(home.iterdir()) == []
    return done


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return an empty HOME."""
    path = tmp_path / "home"
    path.mkdir()
    return path


# The installation takes most of the script's time.
@pytest.mark.nightly
def test_the_quickstart_installs_the_command_in_a_fresh_clone_and_copies_an_image(clone: Path, home: Path) -> None:
    done = quickstart(clone, home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Both registries have the same digest: sha256:" in done.stdout


@pytest.mark.parametrize("given", [False, True], ids=["an image that it makes", "an image of a registry"])
def test_the_quickstart_copies_an_image_and_shows_the_next_steps(
    given: bool, clone: Path, registry: DockerRegistry, layout: Layout, home: Path
) -> None:
    seed(layout, layout.image([2_000_000, 1_000_000]), registry.host, "team/app", "v1")
    name = f"{registry.host}/team/app:v1"
    program = clone / "ocistream-in-a-fork"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(forking_command())} "$@"\n')
    program.chmod(0o755)
    replaced = f"ocistream=lambda: {str(program)!r}, LAYER_SIZE=500_000"
    done = quickstart(clone, home, *([name] if given else []), replaced=replaced)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (f"Copy {name} to the first one:" in done.stdout) == given
    assert "Both registries have the same digest: sha256:" in done.stdout
    assert "ocistream help pull" in done.stdout.partition("Next:")[2]


@pytest.mark.parametrize(
    ("arguments", "before", "code", "words"),
    [
        (["--help"], "", 0, "usage: scripts/quickstart"),
        (["--nothing"], "", 2, "unrecognized arguments: --nothing"),
        ([], "sys.version_info = (3, 10, 12)", 1, "3.11 or later is required"),
        ([], "sys.modules['ensurepip'] = None", 1, "apt install python3-venv"),
        ([], "sys.modules['venv'] = None", 1, "apt install python3-venv"),
    ],
)
def test_an_error_of_the_quickstart_is_at_most_two_lines(
    clone: Path, home: Path, arguments: list[str], before: str, code: int, words: str
) -> None:
    done = quickstart(clone, home, *arguments, before=before)
    assert done.returncode == code, done.stderr
    shown = done.stderr if code else done.stdout
    assert words in shown
    assert "Traceback" not in shown
    assert len(done.stderr.splitlines()) <= 2
