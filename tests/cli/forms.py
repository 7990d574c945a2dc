"""A layout as a directory, an archive in a file, and an archive in a pipe: the forms in which commands read images."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.archives import items_of, small_first, tar_of
from tests.images import Layout

FORMS: Final = ["layout", "file", "pipe", "pipe, index first"]
#: Runs a test with an archive in a file and in a pipe.
both: Final = pytest.mark.parametrize("how", ["file", "pipe"])


def location(form: str, layout: Layout, folder: Path) -> tuple[str, bytes | None]:
    """Return the location of a layout in one of `FORMS`, and the stdin for it; a file is written to `folder`."""
    if form == "layout":
        return f"oci:{layout.path}", None
    archive = tar_of(small_first(layout) if form == "pipe, index first" else items_of(layout))
    if form != "file":
        return "-", archive
    (folder / "x.tar").write_bytes(archive)
    return f"oci-archive:{folder / 'x.tar'}", None
