"""What has a name was synced before it got it: after a power failure it is whole, or not there.

That cannot be tried out, so what is seen to here is the order in which the system is asked: a file's bytes, its name,
its folder; and all blobs of a layout before the index that names them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.files import atomic_file, lasting_file, named_at_the_end, write_all
from ocistream.interfaces import Sink
from ocistream.serve import Registry
from ocistream.stores.archive import ArchiveSink
from ocistream.stores.layout import LayoutSink, LayoutSource
from ocistream.stores.outputs import file_output
from ocistream.stores.volume_archive import VolumesSink
from ocistream.transfer import copy
from tests.images import Layer, Layout, tar_layer
from tests.pushing import image
from tests.talking import Client

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Synced:
    """A file or folder was made durable: which (its inode), and how many bytes it had."""

    inode: int
    size: int


@dataclasses.dataclass(frozen=True)
class Named:
    """A file got its name."""

    inode: int
    path: Path


Events = list[Synced | Named]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """Return what the system is asked for from now on, in its order."""
    asked: Events = []
    real_sync = os.fsync

    def sync(descriptor: int) -> None:
        real_sync(descriptor)
        status = os.fstat(descriptor)
        asked.append(Synced(status.st_ino, status.st_size))

    def noted(real: Callable[..., None]) -> Callable[..., None]:
        def rename(source: Path, target: Path, **options: int) -> None:
            inode = os.lstat(source).st_ino
            real(source, target, **options)
            asked.append(Named(inode, Path(target)))

        return rename

    monkeypatch.setattr(os, "fsync", sync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, noted(getattr(os, name)))
    return asked


def names(events: Events) -> Iterator[tuple[int, Named]]:
    """Give each name that was given, with its place among the events."""
    return ((place, event) for place, event in enumerate(events) if isinstance(event, Named))


def check_files(events: Events) -> None:
    """Assert that each file had all its bytes synced before it got its name."""
    assert list(names(events))
    for place, named in names(events):
        synced = [event for event in events[:place] if isinstance(event, Synced) and event.inode == named.inode]
        assert [event.size for event in synced[-1:]] == [named.path.stat().st_size], named.path


def folder_synced(events: Events, folder: Path, after: int, before: int | None = None) -> bool:
    """Say whether a folder was synced between two events."""
    inode = folder.stat().st_ino
    return any(isinstance(event, Synced) and event.inode == inode for event in events[after:before])


def write_atomic(path: Path) -> None:
    with atomic_file(path) as file:
        write_all(file, b"content")


def write_lasting(path: Path) -> None:
    with lasting_file(path) as partial:
        write_all(partial.file, b"content")


def write_named(path: Path) -> None:
    with named_at_the_end(path.parent) as (file, name):
        write_all(file, b"content")
        name(path)


@pytest.mark.parametrize("write", [write_atomic, write_lasting, write_named])
def test_a_file_is_synced_and_then_named_and_then_its_folder_is_synced(
    tmp_path: Path, events: Events, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "a")
    check_files(events)
    ((place, named),) = names(events)
    assert named.path == tmp_path / "a"
    assert folder_synced(events, tmp_path, place)


def test_an_archive_is_synced_before_it_is_visible(layout: Layout, tmp_path: Path, events: Events) -> None:
    move(layout, ArchiveSink(file_output(tmp_path / "x.tar")), events)
    check_files(events)
    ((place, named),) = names(events)
    assert named.path == tmp_path / "x.tar"
    assert folder_synced(events, tmp_path, place)


def test_of_a_layout_all_that_an_index_names_is_durable_before_the_index_is(
    layout: Layout, tmp_path: Path, events: Events
) -> None:
    out = tmp_path / "out"
    move(layout, LayoutSink(out), events)
    check_files(events)
    places = {named.path: place for place, named in names(events)}
    index = places[out / "index.json"]
    blobs = [path for path in places if path.parent.parent == out / "blobs"]
    # Two layers, one of each way to be written, in both folders; configs and manifests.
    assert {path.parent.name for path in blobs} == {"sha256", "sha512"}
    assert len(blobs) == len([path for path in (out / "blobs").rglob("*") if path.is_file()])
    for path in blobs:
        assert folder_synced(events, path.parent, places[path], index), path
    assert folder_synced(events, out, index)


def test_of_a_push_that_a_served_layout_accepted_all_is_durable(tmp_path: Path, events: Events) -> None:
    out = tmp_path / "served"
    with Registry(out) as registry, Client(registry.host) as ask:
        document = image(ask)
        events.clear()
        digest = ask.push(document, "v1")
        after_push = list(events)
    check_files(after_push)
    places = {named.path: place for place, named in names(after_push)}
    manifest, index = out / "blobs" / "sha256" / digest[7:], out / "index.json"
    assert folder_synced(after_push, manifest.parent, places[manifest], places[index])
    assert folder_synced(after_push, out, places[index])


def move(layout: Layout, sink: Sink, events: Events) -> None:
    """Copy images with a layer that may be gone on with, and one that is too small for it; note what that does."""
    layers: list[Layer] = [limits.WORTH_KEEPING + MIB, tar_layer({"etc/motd": b"hello\n"})]
    layout.image(layers, name="v1")
    layout.image([tar_layer({"etc/motd": b"good bye\n"})], name="v2", algorithm="sha512")
    events.clear()
    try:
        copy(LayoutSource(layout.path), sink)
    finally:
        sink.close()


def test_all_volumes_are_durable_before_the_first_has_its_name_and_the_last_is_named_last(
    events: Events, layout: Layout, tmp_path: Path
) -> None:
    layout.image([300_000, 200_000], name="app")
    sink = VolumesSink(tmp_path / "app.%d.tar", 200_000)
    copy(LayoutSource(layout.path), sink)
    paths = [tmp_path / f"app.{number}.tar" for number in range(len(list(tmp_path.glob("app.*"))))]
    assert len(paths) > 2
    named = [event for event in events if isinstance(event, Named) and event.path.suffix == ".tar"]
    assert [event.path for event in named] == paths
    before = events[: events.index(named[0])]
    assert {Synced(path.stat().st_ino, path.stat().st_size) for path in paths} <= set(before)
