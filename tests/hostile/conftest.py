"""The archives of the corpus, for all its tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.archive_parts import Hostile
from tests.hostile.corpus import CORPUS


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Hostile, Path]]:
    """Return a function that returns an archive of the corpus by name, and its path; each is made once."""
    folder = tmp_path_factory.mktemp("corpus")

    def make(name: str) -> tuple[Hostile, Path]:
        path = folder / f"{name}.tar"
        if not path.exists():
            path.write_bytes(CORPUS[name].make())
        return CORPUS[name], path

    return make
