"""A file is synced before it gets its name, so after a power failure it is complete or does not exist.

A test cannot cut the power, so these check the order of system calls: first the bytes of a file, then its name, then
its folder; and all blobs of a layout before the index that lists them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from ocistream import limits
from ocistream.serve import Registry
from tests.contract.traced_run import Event, Named, Synced, watch, watched
from tests.images import Layer, Layout, tar_layer
from tests.registry_http import seed

MIB: Final = 1 << 20


@pytest.fixture
def source(layout: Layout) -> Layout:
    """Return a layout of images with a layer large enough to resume, a small one, and digests of two algorithms."""
    layers: list[Layer] = [limits.MIN_PARTIAL_SIZE + MIB, tar_layer({"etc/motd": b"hello\n"})]
    layout.image(layers, name="v1")
    layout.image([tar_layer({"etc/motd": b"good bye\n"})], name="v2", algorithm="sha512")
    return layout


def copied(source: Layout, destination: str, notes: Path, *argv: str, name: str = "") -> list[Event]:
    return watched(["copy", "--progress", "none", *argv, f"oci:{source.path}{name}", destination], notes)


def named(events: list[Event]) -> dict[Path, int]:
    """Return the position of each naming event, and check that all bytes of the file were synced before."""
    found = {event.path: place for place, event in enumerate(events) if isinstance(event, Named)}
    assert found
    for path, place in found.items():
        inode = path.stat().st_ino
        synced = [event.size for event in events[:place] if isinstance(event, Synced) and event.inode == inode]
        assert synced[-1:] == [path.stat().st_size], path
    return found


def is_folder_synced(events: list[Event], folder: Path, after: int, before: int | None = None) -> bool:
    """Return whether a folder was synced between two events."""
    inode = folder.stat().st_ino
    return any(isinstance(event, Synced) and event.inode == inode for event in events[after:before])


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_an_archive_and_a_result_are_durable_before_they_are_visible(source: Layout, tmp_path: Path, kind: str) -> None:
    archive, result = tmp_path / "x.tar", tmp_path / "result.json"
    destination = f"{kind}:{archive}:example.com/app:1"
    events = copied(source, destination, tmp_path / "notes", "--result", str(result), name=":v1")
    places = named(events)
    assert list(places) == [archive, result]
    for path in (archive, result):
        assert is_folder_synced(events, tmp_path, places[path])


def test_all_blobs_of_a_layout_are_durable_before_its_index_lists_them(source: Layout, tmp_path: Path) -> None:
    out = tmp_path / "out"
    events = copied(source, f"oci:{out}", tmp_path / "notes")
    places = named(events)
    index = places[out / "index.json"]
    blobs = [path for path in places if path.parent.parent == out / "blobs"]
    assert {path.parent.name for path in blobs} == {"sha256", "sha512"}
    assert len(blobs) == len([path for path in (out / "blobs").rglob("*") if path.is_file()])
    for path in blobs:
        assert is_folder_synced(events, path.parent, places[path], index), path
    assert is_folder_synced(events, out, index)


def test_all_volumes_are_durable_before_the_first_is_named_and_they_are_named_in_order(
    layout: Layout, tmp_path: Path
) -> None:
    layout.image([300_000, 200_000], name="app")
    events = copied(layout, f"oci-archive:{tmp_path}/app.%d.tar", tmp_path / "notes", "--split", "200000")
    paths = [tmp_path / f"app.{number}.tar" for number in range(len(list(tmp_path.glob("app.*"))))]
    assert len(paths) > 2
    places = named(events)
    assert list(places) == paths
    before = events[: places[paths[0]]]
    assert {Synced(path.stat().st_ino, path.stat().st_size) for path in paths} <= set(before)
    assert is_folder_synced(events, tmp_path, places[paths[-1]])


def test_a_push_that_a_served_layout_accepted_is_durable(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "served"
    image = layout.image([tar_layer({"etc/motd": b"hello\n"})])
    events: list[Event] = []
    with Registry(out) as registry:
        watch(events.append, monkeypatch.setattr)
        digest = seed(layout, image, registry.host, "app", "v1")
        events = list(events)
    places = named(events)
    manifest, index = out / "blobs" / "sha256" / digest[7:], out / "index.json"
    assert is_folder_synced(events, manifest.parent, places[manifest], places[index])
    assert is_folder_synced(events, out, places[index])
