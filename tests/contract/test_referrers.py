"""Referrers are copied with their image, and no other ones, from every source to every destination."""

from __future__ import annotations

import json
from typing import Final

import pytest

from tests.contract.adapter import copy, needed_by
from tests.contract.adapter_types import NOT_CHOSEN, NOT_WANTED, Listing
from tests.contract.image_shapes import parts_of
from tests.contract.stores import DESTINATIONS, SOURCES, Store, store_fixture, way_fixture
from tests.images import Layout, digest_of, small_image, tar_layer, two_platforms
from tests.signed_image import Signed, cosign_tag, referrer, signed

References = set[tuple[str, str, str | None]]

#: Sources find referrers and destinations write them independently: each is tested once, and a pipe with its index
#: last, whose blobs come first, with each destination.
WAYS: Final = [
    *((source, "layout") for source in SOURCES),
    *(("archive-pipe-index-last", destination) for destination in DESTINATIONS if destination != "layout"),
    ("registry", "registry"),
    ("layout", "registry"),
]


store = store_fixture(SOURCES)
way = way_fixture(WAYS)


@pytest.fixture
def found(layout: Layout) -> Signed:
    """Return a signed image, with its referrers in the layout's index.json."""
    made = signed(layout)
    made.enter(layout, "v1")
    return made


def expected(found: Signed) -> References:
    """Return the references: subject, referrer, and tag or None."""
    image, signature = found.image["digest"], found.signature["digest"]
    return {
        (image, signature, None),
        (image, found.sbom["digest"], None),
        (signature, found.attestation["digest"], None),
        (image, found.cosign["digest"], found.cosign_tag),
    }


def references(listing: Listing) -> References:
    return {(one.subject, one.digest, one.tag) for one in listing.referrers}


def digests(listing: Listing) -> list[str]:
    return [manifest.piece.digest for manifest in listing.manifests]


class TestSources:
    def test_referrers_are_listed_with_their_image_and_not_as_images(
        self, store: Store, found: Signed, layout: Layout
    ) -> None:
        store.fill(layout)
        listing = store.source(referrers="copy").list()
        image = found.image["digest"]
        assert [digest for _, digest in listing.images] == [image]
        assert references(listing) == expected(found)
        parts = parts_of(layout)
        assert {manifest.raw for manifest in listing.manifests} == set(parts.manifests.values())
        assert {blob.digest for blob in listing.blobs} == set(parts.blobs)
        assert needed_by(listing, image) == set(parts.manifests) | set(parts.blobs)

    def test_subjects_come_first_and_the_order_is_the_same_everywhere(
        self, store: Store, found: Signed, layout: Layout
    ) -> None:
        store.fill(layout)
        listing = store.source(referrers="copy").list()
        first = sorted([found.signature["digest"], found.sbom["digest"]])
        order = [found.image["digest"], *first, found.cosign["digest"], found.attestation["digest"]]
        assert digests(listing) == order

    def test_a_referrer_has_its_own_type_and_annotations(self, store: Store, found: Signed, layout: Layout) -> None:
        store.fill(layout)
        described = {one.digest: one for one in store.source(referrers="copy").list().referrers}
        signature = described[found.signature["digest"]]
        assert (signature.artifact_type, signature.annotations) == (found.signature["artifactType"], {"signer": "me"})
        assert described[found.sbom["digest"]].artifact_type == found.sbom["artifactType"]

    def test_a_signature_of_one_platform_is_copied_with_it(self, store: Store, layout: Layout) -> None:
        index = two_platforms(layout, name="v1")
        arm, amd = (signed(layout, child) for child in reversed(layout.read(index["digest"])["manifests"]))
        whole = signed(layout, index)
        for found in (arm, amd, whole):
            found.enter(layout, None)
        # Only the index has entries for images without names.
        document = json.loads((layout.path / "index.json").read_bytes())
        images = {found.image["digest"] for found in (arm, amd, whole)}
        document["manifests"] = [e for e in document["manifests"] if e["digest"] not in images or "annotations" in e]
        (layout.path / "index.json").write_text(json.dumps(document))
        store.fill(layout)
        listing = store.source("linux/arm64", referrers="copy").list()
        assert [digest for _, digest in listing.images] == [arm.image["digest"]]
        assert references(listing) == expected(arm)
        left = {(one.subject, one.digest or one.tag) for one in listing.skipped if one.reason == NOT_CHOSEN}
        assert {
            (whole.image["digest"], whole.signature["digest"]),
            (whole.image["digest"], whole.sbom["digest"]),
        } <= left
        assert len([one for one in listing.skipped if one.subject == whole.image["digest"]]) == 3

    def test_a_referrer_that_is_an_index_is_listed_with_its_manifests(self, store: Store, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        parts = [
            layout.image([tar_layer({"a": text})], platform=f"linux/{text.decode()}") for text in (b"arm64", b"s390x")
        ]
        index = layout.index(parts, subject={key: image[key] for key in ("mediaType", "digest", "size")})
        layout.enter(index)
        store.fill(layout)
        listing = store.source("linux/amd64", asked=False, referrers="copy").list()
        assert references(listing) == {(image["digest"], index["digest"], None)}
        assert set(digests(listing)) == {image["digest"], index["digest"], *(part["digest"] for part in parts)}

    def test_unwanted_referrers_are_not_listed(self, store: Store, found: Signed, layout: Layout) -> None:
        store.fill(layout)
        listing = store.source(referrers="skip").list()
        assert digests(listing) == [found.image["digest"]]
        assert references(listing) == set()
        # A registry is not even asked.
        if not store.is_remote:
            assert {one.digest for one in listing.skipped} == found.hanging
            assert {one.reason for one in listing.skipped} == {NOT_WANTED}


class TestCopies:
    def test_referrers_arrive_unchanged(self, way: tuple[Store, Store], found: Signed, layout: Layout) -> None:
        store, other = way
        store.fill(layout)
        done = copy(store.source(referrers="copy"), other.destination())
        assert references(done.listing) == expected(found)
        assert other.images()["v1"] == layout.file(found.image["digest"]).read_bytes()
        assert other.cosign_tags() == {found.cosign_tag: found.cosign["digest"]}
        assert set(parts_of(layout).manifests) | set(parts_of(layout).blobs) <= other.blobs()
        for subject, ours in found.subjects().items():
            listed = {one["digest"]: one for one in other.referrers(subject)}
            assert listed.keys() == {one["digest"] for one in ours}
            for one in ours:
                assert listed[one["digest"]]["artifactType"] == one["artifactType"]
                annotations = dict(listed[one["digest"]].get("annotations") or {})
                # An index.json marks the entries that are not images.
                said = None if other.is_remote else subject
                assert annotations.pop("io.containerd.manifest.subject", None) == said
                assert annotations == (found.listed(layout, one).get("annotations") or {})

    def test_unwanted_referrers_are_not_copied(self, way: tuple[Store, Store], found: Signed, layout: Layout) -> None:
        store, other = way
        store.fill(layout)
        copy(store.source(referrers="skip"), other.destination())
        assert set(other.images()) == {"v1"}
        referring = {digest_of(raw) for raw in parts_of(layout, *found.referrers, found.cosign).manifests.values()}
        assert referring.isdisjoint(other.blobs())

    def test_a_referrer_without_its_subject_is_copied_as_an_image(
        self, way: tuple[Store, Store], layout: Layout
    ) -> None:
        store, other = way
        small_image(layout, name="v1")
        elsewhere = layout.image([b""])
        alone = referrer(layout, elsewhere, "a/b", b"alone")
        layout.name(alone, "alone")
        layout.name(alone, cosign_tag(elsewhere))
        store.fill(layout)
        copy(store.source(referrers="copy"), other.destination())
        assert {"v1", "alone"} <= set(other.images())
