"""What `gc` drops: nothing that somebody has taken into use since it was looked at."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ocistream.errors import ArchiveError
from ocistream.model import Descriptor
from ocistream.stores import unneeded
from ocistream.stores.layout_directory import LayoutDirectory
from tests.images import Layout


@pytest.mark.parametrize("change", [os.utime, os.unlink])
def test_what_is_used_or_removed_meanwhile_is_not_dropped(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    first, second = (str(layout.blob(content, "x/y")["digest"]) for content in (b"one", b"two"))
    for digest in (first, second):
        os.utime(layout.file(digest), (1, 1))
    original = LayoutDirectory.entries

    def meanwhile(directory: LayoutDirectory) -> object:
        change(layout.file(first))
        return original(directory)

    monkeypatch.setattr(LayoutDirectory, "entries", meanwhile)
    done = unneeded.collect(LayoutDirectory(layout.path))
    assert (done.dropped, done.size) == ([second], 3)
    assert not layout.file(second).exists()


@pytest.mark.parametrize("target", ["elsewhere", "nowhere", None])
def test_where_a_manifest_is_a_link_or_no_file_nothing_is_dropped(
    layout: Layout, tmp_path: Path, target: str | None
) -> None:
    image = layout.image([b"layer"], name="app")
    path = layout.file(image["digest"])
    path.rename(tmp_path / "elsewhere")
    if target is None:
        path.mkdir()
    else:
        path.symlink_to(tmp_path / target)
    before = sorted(layout.path.rglob("*"))
    with pytest.raises(ArchiveError, match="no regular file"):
        unneeded.collect(LayoutDirectory(layout.path), older_than=0)
    assert sorted(layout.path.rglob("*")) == before


def test_a_manifest_that_is_nowhere_is_no_hindrance(layout: Layout) -> None:
    image = layout.image([b"layer"], name="app")
    layout.file(image["digest"]).unlink()
    assert len(unneeded.collect(LayoutDirectory(layout.path), older_than=0).dropped) == 2


def test_a_blob_is_in_use_as_soon_as_it_is_looked_at(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = layout.blob(b"blob", "x/y")
    os.utime(layout.file(blob["digest"]), (1, 1))
    directory = LayoutDirectory(layout.path)
    original = LayoutDirectory.blob_chunks
    dropped: list[str] = []

    def meanwhile(self: LayoutDirectory, digest: str, size: int) -> object:
        dropped.extend(unneeded.collect(directory).dropped)
        return original(self, digest, size)

    monkeypatch.setattr(LayoutDirectory, "blob_chunks", meanwhile)
    assert directory.holds(Descriptor("x/y", blob["digest"], blob["size"]))
    assert dropped == []
