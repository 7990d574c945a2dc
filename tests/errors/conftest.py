"""The fixture in which failures happen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.archives import small_first, tar_of
from tests.certificates import Certificate
from tests.errors.common_failures import MIB, Place
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout
from tests.registry_http import seed


@pytest.fixture
def place(
    start: Callable[..., FaultyRegistry],
    served: FaultyRegistry,
    layout: Layout,
    certificate: Certificate,
    tmp_path: Path,
) -> Place:
    """Return a place with an image in a registry, a layout and a file."""
    image = layout.image([2 * MIB, b"a second one"], name="app")
    seed(layout, image, served.host, "app", "1")
    file, folder = tmp_path / "app.tar", tmp_path / "folder"
    file.write_bytes(tar_of(small_first(layout)))
    folder.mkdir()
    return Place(start, served, layout, image, file, folder, certificate)
