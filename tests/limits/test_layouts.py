"""Links in a layout that lead out of it: nothing is read or written through them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.hostile.archive_parts import LAYER, LAYERS, MANIFEST, digest_of, image, tar
from tests.images import Layout, small_image
from tests.limits.rules import limit

Run = Callable[[Sequence[object]], int]
_SECRET: Final = b"a file of the reader's\n"
#: Parts of a layout that may be links.
_LINKS: Final = ["oci-layout", "index.json", "blobs", "blobs/sha256", "manifest", "layer"]


def linked(layout: Path, what: str, target: Path) -> None:
    """Replace a part of a layout with a link to the moved part."""
    names = {"manifest": image()[MANIFEST][0], "layer": image()[LAYER][0]}
    path = layout / names.get(what, what)
    if path.exists():
        path.rename(target)
    elif what.startswith("blobs"):
        target.mkdir()
    else:
        target.write_bytes(_SECRET)
    path.symlink_to(target)


def written(folder: Path) -> Path:
    """Write the valid image as a layout."""
    for name, content in image():
        path = folder / str(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content or b"")
    return folder


def contents(place: Path) -> object:
    """Return the contents of a file or a folder."""
    if place.is_dir():
        return {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    return place.read_bytes()


@limit(17)
@pytest.mark.parametrize("what", _LINKS)
@pytest.mark.parametrize("verb", ["verify", "copy"])
def test_nothing_is_read_through_a_link(ocistream: Run, tmp_path: Path, what: str, verb: str) -> None:
    layout = written(tmp_path / "layout")
    linked(layout, what, tmp_path / "outside")
    assert ocistream([verb, layout, *(["./out.tar"] if verb == "copy" else [])]) == 6
    assert list(Path().iterdir()) == []


@limit(17)
@pytest.mark.parametrize("what", _LINKS)
def test_nothing_is_written_through_a_link(ocistream: Run, tmp_path: Path, layout: Layout, what: str) -> None:
    small_image(layout, name="other")
    target = written(tmp_path / "layout")
    linked(target, what, tmp_path / "outside")
    before = contents(tmp_path / "outside")
    code = ocistream(["copy", f"oci:{layout.path}:other", f"oci:{target}:other"])
    assert code == (0 if what in {"manifest", "layer"} else 6)
    assert contents(tmp_path / "outside") == before
    assert [path for path in target.rglob("*.partial") if path.is_file()] == []


@limit(17)
@pytest.mark.parametrize("what", ["manifest", "layer"])
def test_a_link_in_a_blobs_place_is_replaced_by_the_blob(ocistream: Run, tmp_path: Path, what: str) -> None:
    target = written(tmp_path / "layout")
    linked(target, what, tmp_path / "outside")
    (tmp_path / "outside").write_bytes(_SECRET)
    (tmp_path / "app.tar").write_bytes(tar(*image()))
    assert ocistream(["copy", tmp_path / "app.tar", f"oci:{target}"]) == 0
    assert (tmp_path / "outside").read_bytes() == _SECRET
    assert ocistream(["verify", target]) == 0


@limit(17)
def test_a_fifo_in_the_place_of_a_blob_does_not_block(ocistream: Run, tmp_path: Path) -> None:
    layout = written(tmp_path / "layout")
    blob = layout / "blobs" / "sha256" / digest_of(LAYERS[0]).partition(":")[2]
    blob.unlink()
    os.mkfifo(blob)
    assert ocistream(["verify", layout]) == 6
    assert ocistream(["copy", layout, "./out.tar"]) == 6
