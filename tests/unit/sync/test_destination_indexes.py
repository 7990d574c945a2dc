"""What is asked of a destination beforehand: a layout's index is read once, as long as it stays what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ocistream.layout.directory import LayoutDirectory
from ocistream.locations import parse_location
from ocistream.sync.destination_state import IndexCache
from tests.images import Descriptor, Layout, small_image


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    found: list[Path] = []
    index = LayoutDirectory.read_index

    def counted(self: LayoutDirectory) -> object:
        found.append(self.path)
        return index(self)

    monkeypatch.setattr(LayoutDirectory, "read_index", counted)
    return found


def listed(folder: Path, descriptor: Descriptor, name: str) -> None:
    """Write an index.json with one name, as whoever writes one does: whole."""
    entry = {**descriptor, "annotations": {"org.opencontainers.image.ref.name": name}}
    (folder / "new").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "new").replace(folder / "index.json")


def test_an_index_is_read_again_only_where_it_has_changed(tmp_path: Path, reads: list[Path]) -> None:
    layout, end, indexes = Layout(tmp_path / "x"), parse_location(f"oci:{tmp_path / 'x'}"), IndexCache()
    one = small_image(layout)
    listed(layout.path, one, "1")
    for _ in range(3):
        assert indexes.read(end).by_name == {"1": one["digest"]}
    assert len(reads) == 1
    listed(layout.path, one, "2")
    assert indexes.read(end).by_name == {"2": one["digest"]}
    assert indexes.read(end).digests == {one["digest"]}


def test_where_there_is_no_layout_there_is_nothing(tmp_path: Path) -> None:
    assert IndexCache().read(parse_location(f"oci:{tmp_path}")).digests == frozenset()
    assert IndexCache().read(parse_location(f"oci:{tmp_path / 'none'}")).by_name == {}
