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


def quickstart(clone: Path, home: Path, *arguments: str) -> str:
    """Run it with a HOME of its own, and return what it showed."""
    env = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    # Where packages come from, and by which proxy, is the machine's affair.
    env |= {name: value for name, value in os.environ.items() if name.lower().startswith(("pip_", "http", "no_proxy"))}
    line = [sys.executable, "-P", str(clone / "scripts" / "quickstart"), *arguments]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_quickstart_shows_an_image_go_through_a_pipe(clone: Path, tmp_path: Path) -> None:
    assert "Both registries have the same digest: sha256:" in quickstart(clone, tmp_path)


def test_the_quickstart_takes_an_image(clone: Path, registry: DockerRegistry, layout: Layout, tmp_path: Path) -> None:
    seed(layout, layout.image([2_000_000, 1_000_000]), registry.host, "team/app", "v1")
    name = f"{registry.host}/team/app:v1"
    shown = quickstart(clone, tmp_path, name)
    assert f"{name} goes into the first one" in shown
    assert "Both registries have the same digest: sha256:" in shown
