"""One source to several destinations: each blob is read once, and a failing destination does not stop the others."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ocistream.errors import ArchiveError, IntegrityError, LocalDiskError, UnsupportedError
from tests.archives import Item, blob_name, items_of, small_first, tar_of
from tests.contract.adapter import (
    Destination,
    FanOut,
    archive_destination,
    copy,
    layout_destination,
    layout_source,
    pipe_source,
    registry_destination,
)
from tests.contract.image_shapes import parts_of
from tests.contract.pipes import Pipe
from tests.faulty_registry import Fault, FaultyRegistry, StopReading, refusal
from tests.images import Layer, Layout, tar_layer

MIB = 1 << 20
#: Layers of several chunks, of one chunk, and without bytes.
LAYERS: list[Layer] = [2 * MIB, 2 * MIB + 1, 100_000, b"", tar_layer({"a": b"b"})]


@pytest.fixture
def blobs(layout: Layout) -> dict[str, bytes]:
    """Write an image, and return its blobs: the config, then the layers in order."""
    layout.image(LAYERS, name="v1")
    return parts_of(layout).blobs


@pytest.fixture
def out(tmp_path: Path) -> Iterator[list[Destination]]:
    """Return two layouts to write to, `0` and `1`."""
    with contextlib.ExitStack() as stack:
        made = [layout_destination(tmp_path / str(number)) for number in range(2)]
        for one in made:
            stack.callback(one.close)
        yield made


def blobs_in(folder: Path) -> dict[str, bytes]:
    return {
        f"sha256:{path.name}": path.read_bytes()
        for path in (folder / "blobs" / "sha256").iterdir()
        if not path.name.startswith(".")
    }


def is_complete(folder: Path, layout: Layout) -> bool:
    return (folder / "index.json").exists() and parts_of(Layout(folder)) == parts_of(layout)


def store(folder: Path, blobs: dict[str, bytes], *digests: str) -> None:
    """Write some blobs into a layout."""
    made = Layout(folder)
    (folder / "blobs" / "sha256").mkdir()
    for digest in digests:
        made.file(digest).write_bytes(blobs[digest])


def block(folder: Path, step: str, digest: str) -> None:
    """Make one step of a layout fail, by a directory in the place of a file."""
    (folder / ("index.json" if step == "commit" else blob_name(digest)) / "full").mkdir(parents=True)


def test_each_blob_is_read_once_and_arrives_everywhere(
    layout: Layout, blobs: dict[str, bytes], out: list[Destination], tmp_path: Path
) -> None:
    fan = FanOut(out)
    copy(layout_source(layout.path), fan)
    assert all(is_complete(tmp_path / name, layout) for name in ("0", "1"))
    total = sum(map(len, blobs.values()))
    assert fan.sent == [total, total]
    assert fan.fetched == total
    assert fan.failures == [None, None]


def test_a_blob_that_one_destination_has_goes_only_to_the_other(
    layout: Layout, blobs: dict[str, bytes], tmp_path: Path
) -> None:
    config, first, second, third, *_ = blobs
    store(tmp_path / "0", blobs, first, second)
    store(tmp_path / "1", blobs, first, third)
    fan = FanOut([layout_destination(tmp_path / name) for name in ("0", "1")])
    copy(layout_source(layout.path), fan)
    assert all(is_complete(tmp_path / name, layout) for name in ("0", "1"))
    size = {digest: len(content) for digest, content in blobs.items()}
    total = sum(size.values())
    assert fan.sent == [total - size[first] - size[second], total - size[first] - size[third]]
    assert fan.fetched == total - size[first]
    assert config in blobs


def test_a_destination_gets_only_the_blobs_that_it_needs(
    layout: Layout, blobs: dict[str, bytes], tmp_path: Path
) -> None:
    *needed, last = blobs
    complete = layout_destination(tmp_path / "complete")
    part = layout_destination(tmp_path / "part")
    copy(layout_source(layout.path), FanOut([complete, part], {part: needed}))
    assert is_complete(tmp_path / "complete", layout)
    assert last not in blobs_in(tmp_path / "part")
    assert set(needed) <= set(blobs_in(tmp_path / "part"))


@pytest.mark.parametrize("step", ["put", "commit"])
@pytest.mark.parametrize("has_all", [False, True])
def test_a_failing_destination_does_not_stop_the_other(
    layout: Layout, blobs: dict[str, bytes], tmp_path: Path, step: str, has_all: bool
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    store(good, blobs, *(blobs if has_all else ()))
    digest = list(blobs)[2]
    destinations = [layout_destination(bad), layout_destination(good)]
    block(bad, step, digest)
    fan = FanOut(destinations)
    copy(layout_source(layout.path), fan)
    assert isinstance(fan.failures[0], LocalDiskError if step == "put" else ArchiveError)
    assert fan.failures[1] is None
    assert is_complete(good, layout)
    assert not (bad / "index.json").is_file()


@pytest.mark.parametrize("count", [1, 2])
def test_if_all_destinations_fail_the_copy_fails(
    layout: Layout, blobs: dict[str, bytes], tmp_path: Path, count: int
) -> None:
    destinations = [layout_destination(tmp_path / str(number)) for number in range(count)]
    for number in range(count):
        block(tmp_path / str(number), "put", list(blobs)[1])
    with pytest.raises(LocalDiskError, match="cannot write the blob"):
        copy(layout_source(layout.path), FanOut(destinations))
    assert not any((tmp_path / str(number) / "index.json").exists() for number in range(count))


def test_wrong_bytes_fail_the_copy_and_reach_no_destination(
    layout: Layout, blobs: dict[str, bytes], out: list[Destination], tmp_path: Path
) -> None:
    digest = list(blobs)[2]
    layout.file(digest).write_bytes(blobs[digest][:-1] + b"!")
    fan = FanOut(out)
    with pytest.raises(IntegrityError, match=digest):
        copy(layout_source(layout.path), fan)
    assert fan.failures == [None, None]
    for name in ("0", "1"):
        assert digest not in blobs_in(tmp_path / name)
        assert not (tmp_path / name / "index.json").exists()


def test_a_destination_that_restarts_a_blob_reads_it_separately(
    layout: Layout, blobs: dict[str, bytes], tmp_path: Path
) -> None:
    # The first upload of a large layer breaks, and its session is lost.
    faults = [
        Fault(StopReading(MIB), "PATCH"),
        Fault(refusal(404, "BLOB_UPLOAD_UNKNOWN"), "GET", "/blobs/uploads/"),
    ]
    with FaultyRegistry(tmp_path / "served", *faults) as registry:
        fan = FanOut([layout_destination(tmp_path / "0"), registry_destination(f"{registry.host}/app")])
        copy(layout_source(layout.path), fan, jobs=1)
        fan.close()
        assert is_complete(tmp_path / "0", layout)
        assert set(blobs) <= set(blobs_in(registry.layout.path))
    assert fan.failures == [None, None]
    total = sum(map(len, blobs.values()))
    # Each blob once for both, and one layer again for the registry.
    assert total + 2 * MIB <= fan.fetched <= total + 2 * MIB + 1


def test_no_early_blob_is_accepted(out: list[Destination], tmp_path: Path) -> None:
    archive = archive_destination(tmp_path / "image.tar")
    assert all(one.accepts_early for one in (*out, archive))
    assert not FanOut(out).accepts_early
    assert not FanOut([*out, archive]).accepts_early
    archive.close()


def test_blobs_are_kept_without_their_image_only_if_all_destinations_keep_them(
    out: list[Destination], tmp_path: Path
) -> None:
    archive = archive_destination(tmp_path / "image.tar")
    assert FanOut(out).keeps_blobs
    assert not FanOut([*out, archive]).keeps_blobs
    archive.close()


@pytest.mark.parametrize("order", [items_of, small_first])
def test_a_pipe_arrives_complete_or_not_at_all(
    layout: Layout,
    blobs: dict[str, bytes],
    out: list[Destination],
    tmp_path: Path,
    order: Callable[[Layout], Sequence[Item]],
) -> None:
    """With the index last, it is not known in time which destination needs which blob."""
    del blobs
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(pipe_source(Pipe(stack).opened_to_read(tar_of(order(layout)))))
        if order is items_of:
            with pytest.raises(UnsupportedError):
                copy(source, FanOut(out))
        else:
            copy(source, FanOut(out))
    for name in ("0", "1"):
        assert (tmp_path / name / "index.json").exists() == (order is small_first)
        assert order is items_of or is_complete(tmp_path / name, layout)


def test_each_destination_gets_only_the_platforms_that_a_pipe_has(
    layout: Layout, out: list[Destination], tmp_path: Path
) -> None:
    """The pipe lists two platforms, and has the config of one: that is known after its last byte."""
    images = [layout.image([platform.encode() * 9], platform=platform) for platform in ("linux/amd64", "linux/arm64")]
    layout.index(images, name="v1")
    lost = blob_name(layout.read(images[1]["digest"])["config"]["digest"])
    items = [item for item in small_first(layout) if item[0] != lost]
    with contextlib.ExitStack() as stack:
        copy(stack.enter_context(pipe_source(Pipe(stack).opened_to_read(tar_of(items)))), FanOut(out))
    for name in ("0", "1"):
        (entry,) = json.loads((tmp_path / name / "index.json").read_bytes())["manifests"]
        assert entry["digest"] == images[0]["digest"]
