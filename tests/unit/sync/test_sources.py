"""The layouts and archives that a sync reads: each is opened once, and again only after it has changed."""

from __future__ import annotations

import tarfile
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest

from ocistream.layout.directory import LayoutDirectory
from ocistream.layout.image_selection import Selection, check_all_images
from ocistream.locations import OpenContext, parse_location
from ocistream.sync.open_locations import SyncSources, resolve_graph
from tests.images import OCI_MANIFEST, Layout, small_image
from tests.runner import ocistream


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "layout")
    for number in range(3):
        layout.name(small_image(layout, annotations={"number": f"{number}"}), f"v{number}")
    return layout


def digest(sources: SyncSources, text: str) -> str:
    location = parse_location(text)
    with closing(sources.open(location, OpenContext(), Selection())) as source:
        return resolve_graph(source, location).roots[0].descriptor.digest


def test_the_index_of_a_layout_is_read_once_for_all_images(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    read = LayoutDirectory.read_index

    def counted(self: LayoutDirectory) -> object:
        reads.append(self.path)
        return read(self)

    monkeypatch.setattr(LayoutDirectory, "read_index", counted)
    with closing(SyncSources()) as sources:
        first = [digest(sources, f"oci:{layout.path}:v{number}") for number in range(3)]
        assert len(set(first)) == 3
        assert len(reads) == 1
        new = small_image(layout, annotations={"number": "new"})
        (layout.path / "index.json").rename(layout.path / "old")
        layout.write_index([])
        layout.name(new, "v0")
        assert digest(sources, f"oci:{layout.path}:v0") == new["digest"]


def test_archives_are_closed_when_others_are_opened_or_replaced(layout: Layout, tmp_path: Path) -> None:
    archives = [tmp_path / f"{number}.tar" for number in range(10)]
    for archive in archives:
        assert not ocistream("copy", f"oci:{layout.path}:v1", f"oci-archive:{archive}:x").code
    with closing(SyncSources()) as sources:
        before = set(Path("/proc/self/fd").iterdir())
        held = parse_location(f"oci-archive:{archives[0]}:x")
        with closing(sources.open(held, OpenContext(), Selection())) as source:
            digests = {digest(sources, f"oci-archive:{archive}:x") for archive in archives}
            # The first archive is not closed while one of its images is in use.
            assert {resolve_graph(source, held).roots[0].descriptor.digest} == digests
        assert len(set(Path("/proc/self/fd").iterdir()) - before) <= 4
        archives[-1].rename(tmp_path / "old.tar")
        assert not ocistream("copy", f"oci:{layout.path}:v2", f"oci-archive:{archives[-1]}:x").code
        assert digest(sources, f"oci-archive:{archives[-1]}:x") not in digests
    assert set(Path("/proc/self/fd").iterdir()) <= before


@pytest.mark.uncounted
@pytest.mark.parametrize("kind", ["oci", "oci-archive"])
def test_neither_an_index_nor_the_images_that_it_lists_are_in_memory_as_a_whole(tmp_path: Path, kind: str) -> None:
    layout = Layout(tmp_path / "large")
    names = [f"registry.example/team/app:{number}" for number in range(4_000)]
    layout.write_index(
        [
            {
                "mediaType": OCI_MANIFEST,
                "digest": f"sha256:{number:064x}",
                "size": 500,
                "annotations": {"io.containerd.image.name": name},
            }
            for number, name in enumerate(names)
        ]
    )
    with tarfile.open(tmp_path / "large.tar", "w") as tar:
        tar.add(layout.path, "")
    location = parse_location(f"{kind}:{tmp_path / ('large' if kind == 'oci' else 'large.tar')}")
    tracemalloc.start()
    try:
        with closing(SyncSources()) as sources:
            images, _ = sources.list_images(location, OpenContext())
            check_all_images(images, "in it", "tag", "name them")
            assert sum(1 for image in images if image.name in names[:1]) == 1
            _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len((layout.path / "index.json").read_bytes()) > 700_000
    assert peak < 650_000
