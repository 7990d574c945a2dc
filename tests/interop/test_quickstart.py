"""README's first command works in a copy of the sources, for who has nothing but Python and an empty HOME."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs_examples import ROOT
from tests.images import Layout
from tests.peers import DockerRegistry
from tests.registry_http import seed

#: What a fresh clone has not.
_NOT_CLONED = shutil.ignore_patterns(".*cache*", ".git", ".tox", ".venv", "__pycache__", "dist")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the sources."""
    folder = tmp_path_factory.mktemp("quickstart") / "clone"
    shutil.copytree(ROOT, folder, ignore=_NOT_CLONED)
    return folder


def run(clone: Path, home: Path, *arguments: str, python: str = "") -> subprocess.CompletedProcess[str]:
    """Run it with a HOME of its own; `python` is code that runs before, in the same process."""
    # Not the whole PATH: pip asks rustc for its version, and rustup's rustc writes into HOME.
    env = {"HOME": str(home), "PATH": os.defpath, "LANG": "C.UTF-8"}
    # Where packages come from, and by which proxy, is the machine's affair.
    env |= {name: value for name, value in os.environ.items() if name.lower().startswith(("pip_", "http", "no_proxy"))}
    script = str(clone / "scripts" / "quickstart")
    line = [sys.executable, "-P", script, *arguments]
    if python:
        code = f"import runpy, sys; {python}; runpy.run_path({script!r}, run_name='__main__')"
        line = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=600, check=False)


def quickstart(clone: Path, home: Path, *arguments: str) -> str:
    """Run it to its end, and return what it showed. It leaves nothing in HOME."""
    done = run(clone, home, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(home.iterdir()) == []
    return done.stdout


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return an empty HOME."""
    path = tmp_path / "home"
    path.mkdir()
    return path


def test_the_quickstart_shows_an_image_go_through_a_pipe_and_what_to_do_next(clone: Path, home: Path) -> None:
    shown = quickstart(clone, home)
    assert "Both registries have the same digest: sha256:" in shown
    assert "ocistream help pull" in shown.partition("Next:")[2]


def test_the_quickstart_takes_an_image(clone: Path, registry: DockerRegistry, layout: Layout, home: Path) -> None:
    seed(layout, layout.image([2_000_000, 1_000_000]), registry.host, "team/app", "v1")
    name = f"{registry.host}/team/app:v1"
    shown = quickstart(clone, home, name)
    assert f"Copy {name} to the first one:" in shown
    assert "Both registries have the same digest: sha256:" in shown


@pytest.mark.parametrize(
    ("arguments", "python", "code", "words"),
    [
        (["--help"], "", 0, "usage: scripts/quickstart"),
        (["--nothing"], "", 2, "unrecognized arguments: --nothing"),
        ([], "sys.version_info = (3, 10, 12)", 1, "3.11 or later is required"),
        ([], "sys.modules['ensurepip'] = None", 1, "apt install python3-venv"),
        ([], "sys.modules['venv'] = None", 1, "apt install python3-venv"),
    ],
)
def test_what_the_quickstart_cannot_do_is_one_clear_line(
    clone: Path, home: Path, arguments: list[str], python: str, code: int, words: str
) -> None:
    done = run(clone, home, *arguments, python=python)
    assert done.returncode == code, done.stderr
    shown = done.stderr if code else done.stdout
    assert words in shown
    assert "Traceback" not in shown
    assert len(done.stderr.splitlines()) <= 2
    assert list(home.iterdir()) == []
