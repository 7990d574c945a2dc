"""The index of a destination layout is read once as long as it does not change."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from ocistream.layout.directory import LayoutDirectory
from ocistream.locations import parse_location
from ocistream.streams.files import FilePart
from ocistream.sync.open_locations import LayoutWriters
from tests.images import Descriptor, Layout, small_image


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    found: list[Path] = []
    read = LayoutDirectory.open_index

    def counted(self: LayoutDirectory) -> contextlib.AbstractContextManager[FilePart | None]:
        found.append(self.path)
        return read(self)

    monkeypatch.setattr(LayoutDirectory, "open_index", counted)
    return found


def listed(folder: Path, descriptor: Descriptor, name: str) -> None:
    """Replace index.json by one with a single name."""
    entry = {**descriptor, "annotations": {"org.opencontainers.image.ref.name": name}}
    (folder / "new").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "new").replace(folder / "index.json")


def test_an_index_is_read_again_only_after_a_change(tmp_path: Path, reads: list[Path]) -> None:
    layout, end, layouts = Layout(tmp_path / "x"), parse_location(f"oci:{tmp_path / 'x'}"), LayoutWriters()
    one = small_image(layout)
    listed(layout.path, one, "1")
    assert layouts.list_images(end).find_digest("1") == one["digest"]
    before = len(reads)
    assert layouts.list_images(end).find_digest("1") == one["digest"]
    assert len(reads) == before
    listed(layout.path, one, "2")
    assert layouts.list_images(end).find_digest("2") == one["digest"]
    assert layouts.list_images(end).referrers == set()


def test_a_missing_layout_has_no_images(tmp_path: Path) -> None:
    assert LayoutWriters().list_images(parse_location(f"oci:{tmp_path}")).referrers == frozenset()
    assert LayoutWriters().list_images(parse_location(f"oci:{tmp_path / 'none'}")).find_digest("1") is None
