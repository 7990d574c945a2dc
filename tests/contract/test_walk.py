"""The walk from the images of an index to everything that they need: each item once, in order, and within limits."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, UnsupportedError
from tests.contract.adapter import layout_source, needed_by
from tests.contract.adapter_types import EVERYTHING, Listing, Wanted
from tests.contract.image_shapes import nested_index, parts_of
from tests.images import OCI_INDEX, Descriptor, Layout, small_image, tar_layer, two_platforms

AMD = Wanted(("linux/amd64",))


def enter(layout: Layout, *images: Descriptor) -> None:
    """Write an index.json with exactly these images, each under its own name."""
    layout.clear()
    for number, image in enumerate(images):
        layout.name(image, f"v{number + 1}")


def listing_of(
    layout: Layout, *images: Descriptor, wanted: Wanted = EVERYTHING, missing: Collection[str] = ()
) -> Listing:
    """List these images of a layout, after removing the `missing` manifests."""
    enter(layout, *images)
    for digest in missing:
        layout.file(digest).unlink()
    return layout_source(layout.path, wanted).list()


def manifests(listing: Listing) -> list[str]:
    return [manifest.piece.digest for manifest in listing.manifests]


def images(listing: Listing) -> list[str]:
    return [digest for _, digest in listing.images]


def children(layout: Layout, index: Descriptor) -> list[Descriptor]:
    found: list[Descriptor] = layout.read(index["digest"])["manifests"]
    return found


class TestOrder:
    def test_children_come_before_parents_and_each_once(self, layout: Layout) -> None:
        index = nested_index(layout, "v1")
        single = children(layout, index)[1]
        found = listing_of(layout, index, single, index)
        assert len(manifests(found)) == len(set(manifests(found)))
        assert manifests(found)[-1] == index["digest"]
        assert set(manifests(found)) == set(parts_of(layout, index).manifests)
        assert images(found) == [index["digest"], single["digest"], index["digest"]]

    def test_foreign_layers_are_not_copied(self, layout: Layout) -> None:
        foreign = {
            **layout.blob(b"licence", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            "urls": ["https://elsewhere.example/layer"],
        }
        document = layout.read(small_image(layout)["digest"])
        document["layers"] += [foreign, foreign]
        found = listing_of(layout, layout.document(document))
        assert foreign["digest"] not in {blob.digest for blob in found.blobs}
        assert len(found.blobs) == 3

    def test_a_subject_is_not_followed(self, layout: Layout) -> None:
        artifact = layout.artifact(b"sbom", subject=small_image(layout))
        assert manifests(listing_of(layout, artifact)) == [artifact["digest"]]

    def test_the_needs_of_each_image_are_known(self, layout: Layout) -> None:
        index, other = two_platforms(layout), layout.image([tar_layer({"x": b"y"})])
        found = listing_of(layout, index, other)
        for image in (index, other):
            parts = parts_of(layout, image)
            assert needed_by(found, image["digest"]) == set(parts.manifests) | set(parts.blobs)


class TestAbsent:
    @pytest.mark.parametrize("wanted", [EVERYTHING, AMD])
    def test_a_missing_image_is_listed_as_absent(self, layout: Layout, wanted: Wanted) -> None:
        index = two_platforms(layout)
        found = listing_of(layout, index, index, wanted=wanted, missing={index["digest"]})
        assert found.absent == (index["digest"],)
        assert manifests(found) == []
        assert images(found) == [index["digest"]] * 2


class TestChecks:
    @pytest.mark.parametrize("change", [-1, 1])
    def test_bytes_with_a_wrong_size_are_refused(self, layout: Layout, change: int) -> None:
        image = small_image(layout)
        with pytest.raises(IntegrityError, match=image["digest"]):
            listing_of(layout, {**image, "size": image["size"] + change})

    def test_a_blob_with_two_sizes_is_refused(self, layout: Layout) -> None:
        document = layout.read(small_image(layout)["digest"])
        document["layers"].append({**document["layers"][0], "size": 1})
        with pytest.raises(ArchiveError, match="is referenced with"):
            listing_of(layout, layout.document(document))

    @pytest.mark.parametrize("order", [1, -1])
    @pytest.mark.parametrize("other", [{"size": 1}, {"mediaType": OCI_INDEX}])
    @pytest.mark.parametrize("nested", [False, True])
    def test_a_manifest_with_two_sizes_or_types_is_refused(
        self, layout: Layout, other: dict[str, Any], order: int, nested: bool
    ) -> None:
        image = small_image(layout)
        twice = [image, {**image, **other}][::order]
        index = layout.index([twice[0], layout.index([twice[1]])] if nested else twice)
        with pytest.raises((ArchiveError, IntegrityError)):
            listing_of(layout, index)

    def test_a_missing_manifest_with_two_sizes_is_refused(self, layout: Layout) -> None:
        image = small_image(layout)
        index = layout.index([image, layout.index([{**image, "size": 1}])])
        with pytest.raises(ArchiveError, match="is referenced as"):
            listing_of(layout, index, missing={image["digest"]})

    def test_a_manifest_that_claims_to_be_too_large_is_not_read(self, layout: Layout) -> None:
        image = {**small_image(layout), "size": limits.MAX_MANIFEST}
        with pytest.raises(IntegrityError, match=image["digest"]):
            listing_of(layout, image)
        with pytest.raises(ArchiveError, match="larger than 4194304 bytes"):
            listing_of(layout, {**image, "size": limits.MAX_MANIFEST + 1}, missing={image["digest"]})


class TestLimits:
    @pytest.mark.parametrize("wanted", [EVERYTHING, AMD])
    def test_the_depth_of_nested_indexes_is_limited(self, layout: Layout, wanted: Wanted) -> None:
        found = small_image(layout)
        for _ in range(limits.MAX_INDEX_DEPTH):
            found = layout.index([found])
        listing_of(layout, found, wanted=wanted)
        with pytest.raises(ArchiveError, match="nested more than 8 deep"):
            listing_of(layout, layout.index([layout.index([found])]), wanted=wanted)

    def test_a_chain_of_indexes_in_one_list_counts_with_its_depth(self, layout: Layout) -> None:
        chain = [small_image(layout)]
        for _ in range(100):
            chain.append(layout.index([chain[-1]]))
        with pytest.raises(ArchiveError, match="nested more than 8 deep"):
            listing_of(layout, layout.index(list(reversed(chain))))

    @pytest.mark.parametrize("wanted", [EVERYTHING, AMD])
    def test_indexes_that_list_each_other_a_thousand_times_are_read_once(self, layout: Layout, wanted: Wanted) -> None:
        found = image = small_image(layout)
        for _ in range(limits.MAX_INDEX_DEPTH - 1):
            found = layout.index([found] * 1000)
        # There are 1000 ** 7 paths.
        assert image["digest"] in manifests(listing_of(layout, found, wanted=wanted))

    @pytest.mark.parametrize("wanted", [EVERYTHING, AMD])
    def test_the_number_of_manifests_is_limited(
        self, layout: Layout, monkeypatch: pytest.MonkeyPatch, wanted: Wanted
    ) -> None:
        monkeypatch.setattr(limits, "MAX_MANIFESTS", 3)
        index = two_platforms(layout)
        listing_of(layout, index, wanted=wanted)
        with pytest.raises(ArchiveError, match="more than 3 manifests"):
            listing_of(layout, index, layout.artifact(b"1"), layout.artifact(b"2"), layout.artifact(b"3"))

    def test_the_number_of_images_is_limited(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MAX_IMAGES", 2)
        image = small_image(layout)
        assert len(listing_of(layout, image, image).images) == 2
        with pytest.raises(UnsupportedError, match="more than 2 images"):
            listing_of(layout, image, image, image)

    def test_the_needs_of_all_images_are_limited_even_if_they_are_the_same(
        self, layout: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index = two_platforms(layout)
        # An index, two manifests, two configs and three layers.
        monkeypatch.setattr(limits, "MAX_REQUIRED_DESCRIPTORS", 16)
        listing_of(layout, index, index)
        with pytest.raises(UnsupportedError, match="more than 16 manifests and blobs, counted for each image"):
            listing_of(layout, index, index, index)

    def test_manifests_to_choose_platforms_from_are_limited(
        self, layout: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inner = two_platforms(layout)
        roots = [layout.index([inner], subject={**inner, "size": number}) for number in range(3)]
        monkeypatch.setattr(limits, "MAX_PLATFORM_CANDIDATES", 4)
        listing_of(layout, *roots[:2], wanted=AMD)
        with pytest.raises(UnsupportedError, match="more than 4 manifests to choose"):
            listing_of(layout, *roots, wanted=AMD)

    def test_the_number_of_blobs_is_limited(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MAX_BLOBS", 5)
        layers = [tar_layer({"x": b"%d" % number}) for number in range(4)]
        # Two configs and three layers, one of them in both images.
        first, second = layout.image(layers[:2]), layout.image(layers[1:3])
        assert len(listing_of(layout, first, second).blobs) == 5
        with pytest.raises(ArchiveError, match="more than 5 blobs"):
            listing_of(layout, first, layout.image(layers[1:4]))

    def test_a_layer_with_many_media_types_counts_as_many(
        self, layout: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_BLOBS", 5)
        image = layout.read(small_image(layout)["digest"])
        image["layers"] = [{**image["layers"][0], "mediaType": f"a/{number}"} for number in range(4)]
        assert len(listing_of(layout, layout.document(image)).blobs) == 2
        image["layers"].append({**image["layers"][0], "mediaType": "a/4"})
        with pytest.raises(ArchiveError, match="more than 5 blobs"):
            listing_of(layout, layout.document(image))

    def test_the_total_size_of_manifests_is_limited(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        index = two_platforms(layout)
        total = sum(map(len, parts_of(layout, index).manifests.values()))
        monkeypatch.setattr(limits, "MAX_GRAPH_BYTES", total)
        listing_of(layout, index)
        monkeypatch.setattr(limits, "MAX_GRAPH_BYTES", total - 1)
        with pytest.raises(ArchiveError, match=r"the images have more than \d+ manifests, or more than") as caught:
            listing_of(layout, index)
        assert caught.value.hint == "copy fewer images or platforms at a time"
