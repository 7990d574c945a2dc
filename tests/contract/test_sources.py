"""The contract of every source: all sources deliver the same images and blobs."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ocistream.errors import IntegrityError, NetworkError, NotFoundError
from tests.contract.adapter import Blob
from tests.contract.adapter_types import Listing, Piece
from tests.contract.image_shapes import SHAPES, attestation, named_in, nested_index, parts_of
from tests.contract.stores import (
    REF_NAME,
    SOURCES,
    IndexLastPipeStore,
    RegistryStore,
    Store,
    fetched,
    opened,
    store_fixture,
)
from tests.images import Layout, digest_of, small_image, tar_layer, two_platforms


def late(listing: Listing) -> list[Piece]:
    """Return the blobs that did not come early."""
    return [piece for piece in listing.blobs if piece.digest not in listing.early]


def raw_manifests(listing: Listing) -> list[bytes]:
    return [manifest.raw for manifest in listing.manifests]


def digests(listing: Listing) -> list[str]:
    return [manifest.piece.digest for manifest in listing.manifests]


store = store_fixture(SOURCES)


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    """Return the name of each shape."""
    name: str = request.param
    return name


class TestListing:
    def test_it_has_manifests_after_their_children_and_every_blob_once_and_configs_first(
        self, store: Store, shape: str, layout: Layout
    ) -> None:
        made = SHAPES[shape](layout, "v1")
        store.fill(layout)
        listing = store.source().list()
        raw, parts = raw_manifests(listing), parts_of(layout)
        assert set(raw) == set(parts.manifests.values())
        assert len(raw) == len(set(raw))
        assert layout.file(made["digest"]).read_bytes() in raw
        seen: set[str] = set()
        for manifest in listing.manifests:
            assert set(manifest.children) <= seen
            assert len(manifest.raw) == manifest.piece.size
            seen.add(manifest.piece.digest)
        found = [blob.digest for blob in listing.blobs]
        assert len(found) == len(set(found))
        assert {blob.digest: blob.size for blob in listing.blobs} == {d: len(c) for d, c in parts.blobs.items()}
        assert listing.size == sum(map(len, parts.blobs.values()))
        assert set(found[: len(listing.configs)]) == listing.configs

    def test_every_image_has_its_name(self, store: Store, layout: Layout) -> None:
        for name, make in SHAPES.items():
            make(layout, name)
        store.fill(layout)
        listing = store.source().list()
        raw = {manifest.piece.digest: manifest.raw for manifest in listing.manifests}
        found = {name.rpartition(":")[2]: raw[digest] for name, digest in listing.images}
        expected = {d["annotations"][REF_NAME]: layout.file(d["digest"]).read_bytes() for d in named_in(layout)}
        assert found == expected
        assert SHAPES.keys() < found.keys()

    def test_a_missing_manifest_is_listed_as_absent(self, store: Store, layout: Layout) -> None:
        index = two_platforms(layout, name="v1")
        kept, lost = layout.read(index["digest"])["manifests"]
        store.fill(layout)
        store.damage(lost["digest"], None)
        listing = store.source().list()
        assert listing.absent == (lost["digest"],)
        assert digests(listing) == [kept["digest"], index["digest"]]

    def test_a_changed_manifest_is_refused(self, store: Store, layout: Layout) -> None:
        index = two_platforms(layout, name="v1")
        changed = layout.read(index["digest"])["manifests"][1]
        store.fill(layout)
        # It is still a manifest of the same length.
        store.damage(changed["digest"], layout.file(changed["digest"]).read_bytes()[:-1] + b" ")
        # A registry that verifies its content refuses the request itself.
        with pytest.raises((IntegrityError, NetworkError), match=changed["digest"]):
            fetched(store.source())


class TestPlatforms:
    def test_one_platform_is_the_image_without_an_index(self, store: Store, layout: Layout) -> None:
        index = nested_index(layout, "v1")
        inner = layout.read(layout.read(index["digest"])["manifests"][0]["digest"])["manifests"][0]
        arm = layout.read(inner["digest"])["manifests"][1]
        store.fill(layout)
        listing = store.source("linux/arm64").list()
        assert [digest for _, digest in listing.images] == [arm["digest"]]
        assert {blob.digest for blob in listing.blobs} == set(parts_of(layout, arm).blobs)

    def test_several_platforms_are_the_same_smaller_index_from_every_source(
        self, layout: Layout, tmp_path: Path
    ) -> None:
        nested_index(layout, "v1")
        found = set()
        for name, kind in SOURCES.items():
            with opened(kind, tmp_path / name) as store:
                store.fill(layout)
                found.add(tuple(raw_manifests(store.source("linux/riscv64", "linux/amd64").list())))
        (manifests,) = found
        assert len(manifests) == 3

    def test_several_platforms_include_their_attestations_and_no_others(self, store: Store, layout: Layout) -> None:
        entries = []
        for architecture in ("amd64", "arm64", "riscv64"):
            layer = tar_layer({"bin/arch": architecture.encode()})
            image = layout.image([layer], platform=f"linux/{architecture}")
            entries.append([image, attestation(layout, image)])
        amd, arm, riscv = entries
        layout.index([*amd, *arm, *riscv], name="v1")
        store.fill(layout)
        listing = store.source("linux/amd64", "linux/riscv64").list()
        (_, chosen) = listing.images[0]
        children = {manifest.piece.digest: manifest.children for manifest in listing.manifests}[chosen]
        assert children == tuple(one["digest"] for one in (*amd, *riscv))
        assert set(digests(listing)) == {*children, chosen}

    def test_a_missing_platform_is_not_found(self, store: Store, layout: Layout) -> None:
        two_platforms(layout, name="v1")
        store.fill(layout)
        with pytest.raises(NotFoundError, match="linux/s390x") as caught:
            store.source("linux/s390x").list()
        assert "linux/amd64, linux/arm64/v8" in (caught.value.hint or "")

    def test_a_single_image_of_another_platform_is_not_found(self, store: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        store.fill(layout)
        with pytest.raises(NotFoundError, match="linux/s390x") as caught:
            store.source("linux/s390x").list()
        assert "linux/amd64" in (caught.value.hint or "")

    def test_a_single_image_of_the_platform_arrives_complete(self, store: Store, layout: Layout) -> None:
        # The source read the config to find the platform.
        image = small_image(layout, name="v1")
        layout.name(image, "v2")
        store.fill(layout)
        assert fetched(store.source("linux/amd64")) == parts_of(layout).blobs

    def test_platforms_that_are_not_selected_may_be_missing(self, store: Store, layout: Layout) -> None:
        index = two_platforms(layout, name="v1")
        kept, lost = layout.read(index["digest"])["manifests"]
        store.fill(layout)
        store.damage(lost["digest"], None)
        listing = store.source("linux/amd64").list()
        assert listing.absent == ()
        assert digests(listing) == [kept["digest"]]


class TestBlobs:
    def test_all_bytes_arrive(self, store: Store, shape: str, layout: Layout) -> None:
        SHAPES[shape](layout, "v1")
        store.fill(layout)
        assert fetched(store.source()) == parts_of(layout).blobs
        assert not store.source().list().unnamed

    def test_only_requested_blobs_are_delivered(self, store: Store, layout: Layout) -> None:
        SHAPES["many-layers"](layout, "v1")
        store.fill(layout)
        blobs = parts_of(layout).blobs
        wanted = [piece.digest for piece in store.source().list().blobs[::3]]
        assert fetched(store.source(), 3) == {digest: blobs[digest] for digest in wanted}

    def test_nothing_is_delivered_if_nothing_is_requested(self, store: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        store.fill(layout)
        source = store.source()
        source.list()
        assert list(source.blobs([])) == []

    def test_a_blob_that_is_read_only_in_part_does_not_affect_the_next(self, store: Store, layout: Layout) -> None:
        SHAPES["many-layers"](layout, "v1")
        store.fill(layout)
        source = store.source()
        for number, blob in enumerate(source.blobs(late(source.list()))):
            if number % 2:
                next(blob.open(0))
            else:
                assert len(blob.content()) == blob.size

    def test_a_missing_blob_is_not_delivered(self, store: Store, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        lost = layout.read(image["digest"])["layers"][1]["digest"]
        kept = parts_of(layout, image).blobs
        del kept[lost]
        store.fill(layout)
        store.damage(lost, None)
        if store.is_remote:
            # Checking each blob before the fetch would cost one more request for each.
            with pytest.raises(NotFoundError, match=lost):
                fetched(store.source())
        else:
            assert fetched(store.source()) == kept

    @pytest.mark.parametrize("how", ["flipped", "shorter", "longer"])
    def test_a_wrong_blob_is_detected(self, store: Store, layout: Layout, how: str) -> None:
        image = small_image(layout, name="v1")
        digest = layout.read(image["digest"])["layers"][1]["digest"]
        content = layout.file(digest).read_bytes()
        broken = {
            "flipped": content[:-1] + bytes([content[-1] ^ 1]),
            "shorter": content[:-1],
            "longer": content + b"\0",
        }
        store.fill(layout)
        store.damage(digest, broken[how])
        # Over a network, a short blob looks like a lost connection.
        lost = store.is_remote and how == "shorter"
        with pytest.raises(NetworkError if lost else IntegrityError, match=digest):
            fetched(store.source())

    def test_a_reopened_blob_has_the_same_bytes(self, store: Store, layout: Layout) -> None:
        SHAPES["many-layers"](layout, "v1")
        store.fill(layout)
        source = store.source()
        listing = source.list()
        reopened = 0
        for blob in source.blobs(late(listing)):
            if blob.reopenable:
                # Interrupt the read, as a lost connection does, then start again.
                next(blob.open(0))
                assert blob.content() == blob.content()
                reopened += 1
        if source.concurrent:
            assert reopened == len(listing.blobs)

    def test_a_blob_can_be_read_from_an_offset_if_the_source_is_concurrent(self, store: Store, layout: Layout) -> None:
        SHAPES["many-layers"](layout, "v1")
        store.fill(layout)
        source = store.source()
        listing = source.list()
        begun = 0
        for blob in source.blobs(late(listing)):
            if blob.reopenable:
                content = blob.content()
                for offset in (0, 1, blob.size // 2, blob.size - 1):
                    assert b"".join(map(bytes, blob.open(offset))) == content[offset:]
                begun += 1
        # Only a pipe cannot seek, except in buffered blobs, and only a pipe is not concurrent.
        assert begun == len(listing.blobs) or not source.concurrent

    def test_blobs_can_be_read_at_once_if_the_source_is_concurrent(self, store: Store, layout: Layout) -> None:
        layout.image([3 << 20, (3 << 20) + 1], name="v1")
        store.fill(layout)
        source = store.source()
        listing = source.list()
        if not source.concurrent:
            return
        both = threading.Barrier(2)
        found: dict[str, bytes] = {}

        def read(blob: Blob) -> None:
            chunks = []
            for chunk in blob.open(0):
                chunks.append(bytes(chunk))
                if len(chunks) == 1:
                    # Each thread has its first chunk, which the other must not overwrite.
                    both.wait(60)
            found[blob.digest] = b"".join(chunks)

        layers = [blob for blob in source.blobs(listing.blobs) if blob.size >= 3 << 20]
        threads = [threading.Thread(target=read, args=(blob,)) for blob in layers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 2
        assert all(digest_of(content) == digest for digest, content in found.items())


def test_a_source_can_be_closed_twice_and_at_any_time(store: Store, layout: Layout) -> None:
    small_image(layout, name="v1")
    store.fill(layout)
    unread = store.source()
    unread.close()
    unread.close()
    read = store.source()
    read.list()
    read.close()
    read.close()


def test_a_pipe_with_its_index_last_delivers_blobs_early(layout: Layout, tmp_path: Path) -> None:
    small_image(layout, name="v1")
    layer = tar_layer({"a": b"b"})
    with opened(IndexLastPipeStore, tmp_path / "store") as store:
        layout.image([layer], name="v2")
        store.fill(layout)
        assert digest_of(layer) in store.source().list().early


def test_only_selected_manifests_are_fetched_from_a_registry(layout: Layout, tmp_path: Path) -> None:
    # Without this test, a source that fetches everything and drops most of it would pass the tests of platforms.
    index = two_platforms(layout, name="v1")
    _, other = layout.read(index["digest"])["manifests"]
    with opened(RegistryStore, tmp_path / "store") as store:
        store.fill(layout)
        store.damage(other["digest"], b"{}")
        store.source("linux/amd64").list()
