"""The contract of every destination: nothing is visible before it is verified and committed, and everything after."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ocistream.errors import IntegrityError, MissingContentError, NotFoundError
from tests.contract.adapter import Blob, Chunk, Destination, copy, layout_source
from tests.contract.adapter_types import Listing, Piece
from tests.contract.image_shapes import SHAPES, named_in, parts_of
from tests.contract.stores import (
    ALL_DESTINATIONS,
    DESTINATIONS,
    REF_NAME,
    LayoutStore,
    Store,
    opened,
    store_fixture,
    way_fixture,
)
from tests.images import OCI_LAYER, Layout, small_image, tar_layer, two_platforms


class BrokenError(Exception):
    """Raised by the chunks of a blob."""


def listed(layout: Layout) -> Listing:
    """List a layout, and check that nothing came early."""
    listing = layout_source(layout.path).list()
    assert not listing.early
    return listing


def write_all(destination: Destination, layout: Layout, listing: Listing) -> None:
    stored = destination.stored(listing.blobs)
    for blob in layout_source(layout.path).blobs([blob for blob in listing.blobs if blob.digest not in stored]):
        destination.write(blob)


def assert_all_visible(store: Store, layout: Layout) -> None:
    """Assert that the store has every image of `layout`, with exact bytes, and all blobs."""
    expected = {d["annotations"][REF_NAME]: layout.file(d["digest"]).read_bytes() for d in named_in(layout)}
    assert store.images() == expected
    parts = parts_of(layout)
    # A registry names a manifest by sha256, even if the source uses another algorithm.
    manifests = {digest for digest in parts.manifests if digest.startswith("sha256:")}
    assert manifests | set(parts.blobs) <= store.blobs()


#: The tested pairs of source and destination. To a destination only the order of blobs differs: any order from a
#: directory, the order of a pipe, some blobs before the images are known, parts from volumes. Each destination is
#: tested with each of these, except that volumes need all sizes first. An archive in a file is read like a layout, so
#: one destination is enough. A registry is read over connections, which fail in other ways.
WAYS: Final = [
    *((source, destination) for source in ("layout", "archive-pipe") for destination in ALL_DESTINATIONS),
    *(("archive-pipe-index-last", destination) for destination in DESTINATIONS),
    *(("volumes", destination) for destination in ("layout", "registry", "volumes")),
    *(("registry", destination) for destination in ("layout", "archive-pipe", "registry")),
    ("archive-file", "layout"),
]

#: Pairs for a corrupt blob: every source, and every destination with blobs in any order and in the order of a pipe.
CORRUPT_WAYS: Final = [way for way in WAYS if way[0] in {"layout", "archive-pipe"} or way[1] == "layout"]


store = store_fixture(ALL_DESTINATIONS)
early = store_fixture(DESTINATIONS)
way = way_fixture(WAYS)
lasting = store_fixture({kind: DESTINATIONS[kind] for kind in ("layout", "registry")})


def written(store: Store, layout: Layout) -> tuple[Destination, Listing]:
    """Open a store and write all blobs of `layout`, but do not commit them."""
    listing = listed(layout)
    destination = store.destination()
    destination.begin(listing)
    write_all(destination, layout, listing)
    return destination, listing


class TestVisibility:
    def test_everything_is_visible_after_commit_and_nothing_before(self, store: Store, layout: Layout) -> None:
        for name, make in SHAPES.items():
            make(layout, name)
        listing = listed(layout)
        destination = store.destination()
        assert store.images() == {}
        destination.begin(listing)
        assert store.images() == {}
        write_all(destination, layout, listing)
        assert store.images() == {}
        destination.commit(listing)
        assert_all_visible(store, layout)

    def test_close_discards_uncommitted_content(self, store: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        destination, _ = written(store, layout)
        destination.close()
        destination.close()
        assert store.images() == {}
        # Only complete blobs may remain; the next run does not copy them again.
        assert store.blobs() <= set(parts_of(layout).blobs)

    def test_close_keeps_committed_content(self, store: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        destination, listing = written(store, layout)
        destination.commit(listing)
        destination.close()
        destination.close()
        assert_all_visible(store, layout)

    def test_a_destination_that_was_never_used_leaves_nothing(self, store: Store) -> None:
        store.destination().close()
        assert store.images() == {}
        assert store.blobs() == set()

    def test_a_name_refers_to_the_old_image_until_commit(self, lasting: Store, layout: Layout, tmp_path: Path) -> None:
        old = Layout(tmp_path / "old")
        small_image(old, name="v1")
        copy(layout_source(old.path), lasting.destination())
        small_image(layout, name="v1", platform="linux/arm64")
        destination, listing = written(lasting, layout)
        assert_all_visible(lasting, old)
        destination.commit(listing)
        assert_all_visible(lasting, layout)

    def test_other_images_are_kept(self, lasting: Store, tmp_path: Path) -> None:
        for number in range(3):
            other = Layout(tmp_path / str(number))
            other.image([tar_layer({"n": bytes([number])})], name=f"v{number}")
            copy(layout_source(other.path), lasting.destination())
        assert set(lasting.images()) == {"v0", "v1", "v2"}


class TestWriting:
    def test_a_blob_is_stored_after_it_is_written(self, store: Store, layout: Layout) -> None:
        for name, make in SHAPES.items():
            make(layout, name)
        listing = listed(layout)
        destination = store.destination()
        destination.begin(listing)
        for blob in layout_source(layout.path).blobs(listing.blobs):
            assert not destination.stored([blob.piece])
            destination.write(blob)
            assert destination.stored([blob.piece])

    @pytest.mark.parametrize("left", [0, 1, 2], ids=["at-the-very-end", "before-the-last-chunk", "in-the-middle"])
    def test_a_blob_whose_chunks_raise_leaves_nothing(self, store: Store, layout: Layout, left: int) -> None:
        image = layout.image([(5 << 20) // 2], name="v1")
        (layer,) = layout.read(image["digest"])["layers"]
        listing = listed(layout)
        content = layout.file(layer["digest"]).read_bytes()
        chunks = [content[at : at + (1 << 20)] for at in range(0, len(content), 1 << 20)]
        assert len(chunks) == 3

        def broken(offset: int) -> Iterator[Chunk]:
            assert offset == 0
            yield from chunks[: 3 - left]
            raise BrokenError

        destination = store.destination()
        destination.begin(listing)
        piece = next(blob for blob in listing.blobs if blob.digest == layer["digest"])
        with pytest.raises(BrokenError):
            # A layout keeps a partial file of a reopenable blob, for another run to resume.
            destination.write(Blob(piece, broken, reopenable=False))
        assert store.blobs() == set()
        destination.close()
        assert store.blobs() == set()
        assert store.images() == {}

    def test_a_blob_may_come_before_the_images_are_known(self, early: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        listing = listed(layout)
        destination = early.destination()
        write_all(destination, layout, listing)
        destination.begin(listing)
        assert destination.stored(listing.blobs) == {blob.digest for blob in listing.blobs}
        destination.commit(listing)
        assert_all_visible(early, layout)

    def test_the_same_images_can_be_committed_again(self, lasting: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        for _ in range(2):
            destination, listing = written(lasting, layout)
            destination.commit(listing)
        assert_all_visible(lasting, layout)

    def test_two_blobs_are_written_at_once_if_the_destination_is_concurrent(self, store: Store, layout: Layout) -> None:
        layout.image([3 << 20, (3 << 20) + 1], name="v1")
        listing = listed(layout)
        destination = store.destination()
        if not destination.concurrent:
            return
        destination.begin(listing)
        both = threading.Barrier(2)

        def slow(blob: Blob) -> Blob:
            def chunks(offset: int) -> Iterator[Chunk]:
                for number, chunk in enumerate(blob.open(offset)):
                    if number == 1:
                        # Neither continues before the other has started.
                        both.wait(60)
                    yield chunk

            return Blob(blob.piece, chunks)

        config, *layers = layout_source(layout.path).blobs(listing.blobs)
        threads = [threading.Thread(target=destination.write, args=(slow(layer),)) for layer in layers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not both.broken
        destination.write(config)
        destination.commit(listing)
        assert_all_visible(store, layout)

    def test_small_blobs_can_be_read_back_if_the_destination_supports_it(self, early: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        listing = listed(layout)
        destination = early.destination()
        write_all(destination, layout, listing)
        found = {piece.digest: destination.read_back(piece) for piece in listing.blobs}
        if set(found.values()) != {None}:
            assert found == parts_of(layout).blobs
            with pytest.raises(NotFoundError):
                destination.read_back(Piece("text/plain", "sha256:" + "0" * 64, 5))

    def test_a_manifest_is_stored_after_commit(self, lasting: Store, layout: Layout) -> None:
        two_platforms(layout, name="v1")
        destination, listing = written(lasting, layout)
        manifests = [manifest.piece for manifest in listing.manifests]
        assert destination.stored(manifests) == set()
        destination.commit(listing)
        assert destination.stored(manifests) == {manifest.digest for manifest in manifests}


class TestCopies:
    def test_every_shape_arrives(self, way: tuple[Store, Store], layout: Layout) -> None:
        origin, store = way
        for name, make in SHAPES.items():
            make(layout, name)
        # A manifest that is a layer of another one arrives as both.
        inner = small_image(layout)
        document = layout.read(inner["digest"])
        document["layers"] = [{**inner, "mediaType": OCI_LAYER}]
        layout.index([inner, layout.document(document)], name="manifest-as-layer")
        origin.fill(layout)
        done = copy(origin.source(), store.destination())
        assert_all_visible(store, layout)
        parts = parts_of(layout)
        assert set(done.outcomes) == set(parts.blobs)
        assert done.moved == done.total == sum(map(len, parts.blobs.values()))

    def test_existing_blobs_are_not_copied_again(self, lasting: Store, layout: Layout) -> None:
        SHAPES["many-layers"](layout, "v1")
        copy(layout_source(layout.path), lasting.destination())
        again = copy(layout_source(layout.path), lasting.destination())
        assert set(again.outcomes.values()) == {"skipped"}
        assert again.moved == again.total

    @pytest.mark.parametrize("way", CORRUPT_WAYS, ids="-to-".join, indirect=True)
    def test_a_corrupt_blob_changes_nothing(self, way: tuple[Store, Store], layout: Layout) -> None:
        origin, store = way
        image = small_image(layout, name="v1")
        digest = layout.read(image["digest"])["layers"][1]["digest"]
        content = layout.file(digest).read_bytes()
        origin.fill(layout)
        origin.damage(digest, content[:-1] + bytes([content[-1] ^ 1]))
        destination = store.destination()
        with pytest.raises(IntegrityError, match=digest):
            copy(origin.source(), destination)
        destination.close()
        assert store.images() == {}
        assert digest not in store.blobs()

    def test_a_missing_blob_changes_nothing(self, store: Store, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        digest = layout.read(image["digest"])["layers"][1]["digest"]
        layout.file(digest).unlink()
        destination = store.destination()
        with pytest.raises(MissingContentError, match=digest):
            copy(layout_source(layout.path), destination)
        destination.close()
        assert store.images() == {}

    def test_content_that_the_source_lacks_may_exist_at_the_destination(self, lasting: Store, layout: Layout) -> None:
        index = two_platforms(layout, name="v1")
        copy(layout_source(layout.path), lasting.destination())
        child = layout.read(index["digest"])["manifests"][0]
        for blob in parts_of(layout, child).blobs:
            layout.file(blob).unlink()
        layout.file(child["digest"]).unlink()
        layout.name(index, "v2")
        copy(layout_source(layout.path), lasting.destination())
        assert lasting.images()["v2"] == layout.file(index["digest"]).read_bytes()


def test_an_image_can_be_copied_within_a_layout(layout: Layout, tmp_path: Path) -> None:
    small_image(layout, name="v1")
    with opened(LayoutStore, tmp_path / "store") as store:
        store.fill(layout)
        copy(store.source(), store.destination(), rename=lambda _: "v2")
        assert set(store.images()) == {"v1", "v2"}
