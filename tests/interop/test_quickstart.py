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
from tests.runner import forking_command

#: What a fresh clone has not.
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
    """Run it with a HOME of its own, in which it must leave nothing.

    `before` is Python code that runs first, in the same process; `replaced` are globals of the script, as keyword
    arguments.
    """
    programs = clone / "programs"
    programs.mkdir(exist_ok=True)
    # pip asks rustc for its version. This is what rustup's rustc does first.
    (programs / "rustc").write_text('#!/bin/sh\nmkdir -p "${RUSTUP_HOME:-$HOME/.rustup}"\necho "rustc 1.0.0 (x)"\n')
    (programs / "rustc").chmod(0o755)
    env = {"HOME": str(home), "PATH": f"{programs}:{os.defpath}", "LANG": "C.UTF-8"}
    # Where packages come from, and by which proxy, is the machine's affair.
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


# To install takes most of the time that the script takes.
@pytest.mark.nightly
def test_in_a_fresh_clone_it_installs_the_command_and_shows_an_image_go_through_a_pipe(clone: Path, home: Path) -> None:
    done = quickstart(clone, home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Both registries have the same digest: sha256:" in done.stdout


@pytest.mark.parametrize("given", [False, True], ids=["an image that it makes", "an image of a registry"])
def test_it_shows_an_image_go_through_a_pipe_and_what_to_do_next(
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
def test_what_the_quickstart_cannot_do_is_one_clear_line(
    clone: Path, home: Path, arguments: list[str], before: str, code: int, words: str
) -> None:
    done = quickstart(clone, home, *arguments, before=before)
    assert done.returncode == code, done.stderr
    shown = done.stderr if code else done.stdout
    assert words in shown
    assert "Traceback" not in shown
    assert len(done.stderr.splitlines()) <= 2
