"""Fixtures for the tests of the command line: registries in the process of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.fixture_types import Give, Start
from tests.faulty_registry import FaultyRegistry
from tests.images import Descriptor, Layout, small_image
from tests.registry_http import seed
from tests.runner import Argument, Result, ocistream


@pytest.fixture
def target(start: Start) -> FaultyRegistry:
    """Return an empty registry, the destination of copies."""
    return start()


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return a small image, named `app` in the layout. Modules override it."""
    return small_image(layout, name="app")


@pytest.fixture
def registry(served: FaultyRegistry, layout: Layout, image: Descriptor) -> FaultyRegistry:
    """Return a registry that has the image as `app:1`, without recorded requests."""
    seed(layout, image, served.host, "app", "1")
    served.requests.clear()
    return served


@pytest.fixture
def give(tmp_path: Path) -> Give:
    """Return a function that runs a command with an archive as -i, or as the argument `{}`; `how` is file or pipe."""

    def run(content: bytes, how: str, *argv: Argument, prefix: str = "") -> Result:
        path = tmp_path / "given.tar"
        if how == "file":
            path.write_bytes(content)
        name = f"{prefix}{path if how == 'file' else '-'}"
        placed = [name if word == "{}" else word for word in argv]
        if "{}" not in argv:
            placed += ["-i", name]
        return ocistream(*placed, stdin=None if how == "file" else content)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an empty folder, to see what a run leaves in it."""
    path = tmp_path / "folder"
    path.mkdir()
    return path


@pytest.fixture
def dev_stdout(tmp_path: Path) -> Path:
    """Return a link to the process's own stdout, like /dev/stdout.

    It replaces the real /dev/stdout: tests may run as root, and wrong code could delete a device of the machine.
    """
    link = tmp_path / "stdout"
    link.symlink_to("/proc/self/fd/1")
    return link


@pytest.fixture(scope="session")
def low_expansion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a `machine` of `runner.ocistream` that applies `--max-ratio` from 1 MiB on, not from 1 GiB on."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / "sitecustomize.py").write_text("from ocistream import limits\nlimits.UNCHECKED_EXPANSION = 1 << 20\n")
    return folder
