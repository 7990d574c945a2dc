"""Referrers: cosign's tags, fallback tags and kinds; and graphs without some referrers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ocistream.layout.image_selection import Selection
from ocistream.layout.index import build_entries
from ocistream.layout.source import LayoutSource
from ocistream.oci.descriptor import OCI_MANIFEST, Descriptor
from ocistream.oci.graph import Graph
from ocistream.oci.referrers import (
    Referrer,
    SkippedReferrer,
    classify_referrer,
    cosign_subject,
    cosign_tags,
    fallback_tag,
    format_kind_counts,
    is_fallback_tag,
)
from tests.contract.image_shapes import parts_of
from tests.images import Layout, digest_of
from tests.observers import NothingEarly
from tests.signed_image import ATTESTATION, Signed, referrer, signed

SHA256 = digest_of(b"x")
SHA512 = digest_of(b"x", "sha512")


class TestNames:
    def test_cosigns_tags_are_built_from_the_digest_and_parsed(self) -> None:
        tags = cosign_tags(SHA256)
        assert tags == [f"sha256-{SHA256[7:]}{suffix}" for suffix in (".sig", ".att", ".sbom")]
        assert {cosign_subject(tag) for tag in tags} == {SHA256}

    def test_a_sha512_digest_has_no_cosign_tags(self) -> None:
        assert cosign_tags(SHA512) == []

    @pytest.mark.parametrize(
        "tag",
        [
            "latest",
            f"sha256-{SHA256[7:]}",
            f"sha256-{SHA256[7:]}.txt",
            f"sha256-{SHA256[8:]}.sig",
            f"x-{SHA256[7:]}.sig",
        ],
    )
    def test_other_tags_are_not_cosigns(self, tag: str) -> None:
        assert cosign_subject(tag) is None

    @pytest.mark.parametrize("digest", [SHA256, SHA512])
    def test_a_fallback_tag_has_64_characters_of_the_digest(self, digest: str) -> None:
        algorithm, _, encoded = digest.partition(":")
        assert fallback_tag(digest) == f"{algorithm}-{encoded[:64]}"
        assert is_fallback_tag(fallback_tag(digest))

    def test_other_tags_are_not_fallback_tags(self) -> None:
        assert not any(map(is_fallback_tag, ["latest", *cosign_tags(SHA256)]))


class TestKinds:
    @pytest.mark.parametrize(
        ("artifact_type", "kind"),
        [
            ("application/vnd.cncf.notary.signature", "signature"),
            ("application/vnd.dev.cosign.artifact.sig.v1+json", "signature"),
            ("application/vnd.dev.sigstore.bundle.v0.3+json", "signature"),
            ("application/vnd.in-toto+json", "attestation"),
            ("application/spdx+json", "SBOM"),
            ("application/vnd.cyclonedx+json", "SBOM"),
            ("application/vnd.example.SBOM.v1+json", "SBOM"),
            ("application/vnd.example.thing", "artifact"),
            (None, "artifact"),
        ],
    )
    def test_an_artifact_type_has_a_common_name(self, artifact_type: str | None, kind: str) -> None:
        assert classify_referrer(artifact_type) == kind

    def test_cosigns_tag_overrides_the_type(self) -> None:
        found = [classify_referrer("application/vnd.oci.image.config.v1+json", tag) for tag in cosign_tags(SHA256)]
        assert found == ["signature", "attestation", "SBOM"]

    def test_kinds_are_counted_in_a_fixed_order(self) -> None:
        kinds = ["artifact", "SBOM", "signature", "signature", "attestation", "SBOM"]
        assert format_kind_counts(kinds) == "2 signatures, 1 attestation, 2 SBOMs, 1 artifact"
        assert format_kind_counts(reversed(kinds)) == format_kind_counts(kinds)
        assert format_kind_counts([]) == ""


@pytest.fixture
def found(layout: Layout) -> Signed:
    made = signed(layout)
    made.enter(layout, "registry.example.com/app:1")
    return made


def graph_of(path: Path) -> Graph:
    return LayoutSource(path, Selection()).resolve(NothingEarly())


class TestSkippingReferrers:
    def test_a_skipped_referrer_takes_its_referrers_and_blobs_with_it(self, layout: Layout, found: Signed) -> None:
        graph = graph_of(layout.path).without_referrers(
            lambda one: one.descriptor.digest == found.signature["digest"], "no reason"
        )
        left = parts_of(layout, found.signature, found.attestation)
        kept = parts_of(layout, found.image, found.sbom, found.cosign)
        assert {m.descriptor.digest for m in graph.manifests} == set(kept.manifests) == set(graph.documents)
        assert {blob.digest for blob in graph.blobs} == set(kept.blobs)
        # The empty config is shared by all.
        assert set(left.blobs) & set(kept.blobs)
        assert {(one.digest, one.kind, one.reason) for one in graph.skipped_referrers} == {
            (found.signature["digest"], "signature", "no reason"),
            (found.attestation["digest"], "attestation", "no reason"),
        }

    def test_without_referrers_only_the_image_is_left(self, layout: Layout, found: Signed) -> None:
        graph = graph_of(layout.path).without_referrers(lambda _: True, "no reason")
        image = parts_of(layout, found.image)
        assert {m.descriptor.digest for m in graph.manifests} == set(image.manifests)
        assert {blob.digest for blob in graph.blobs} == set(image.blobs)
        assert not graph.referrers
        assert len(graph.skipped_referrers) == 4

    def test_the_kind_of_a_skipped_referrer_is_its_type_or_its_tag(self) -> None:
        descriptor = Descriptor(OCI_MANIFEST, SHA256, 7, artifact_type=ATTESTATION)
        assert SkippedReferrer.from_referrer(Referrer(descriptor, SHA512), "why") == SkippedReferrer(
            SHA512, "why", "attestation", SHA256
        )
        tag = cosign_tags(SHA256)[0]
        assert SkippedReferrer.from_referrer(Referrer(descriptor, SHA256, tag), "why").kind == "signature"


class TestEntries:
    def test_images_come_first_and_referrers_have_no_image_name(self, layout: Layout, found: Signed) -> None:
        entries = build_entries(graph_of(layout.path))
        assert [entry.digest for entry in entries[:1]] == [found.image["digest"]]
        for entry in entries[1:]:
            assert not {"org.opencontainers.image.ref.name", "io.containerd.image.name"} & entry.annotations.keys()

    def test_a_cosign_signature_has_a_tag_in_the_repository_of_the_image(self, layout: Layout, found: Signed) -> None:
        (entry,) = (one for one in build_entries(graph_of(layout.path)) if one.digest == found.cosign["digest"])
        assert entry.annotations == {
            "vnd.ocistream.image.name": f"registry.example.com/app:{found.cosign_tag}",
            "io.containerd.manifest.subject": found.image["digest"],
        }

    def test_a_signature_of_an_image_in_two_repositories_is_in_both(self, layout: Layout, found: Signed) -> None:
        layout.name(found.image, "registry.example.com/other:2")
        entries = [one for one in build_entries(graph_of(layout.path)) if one.digest == found.cosign["digest"]]
        assert [entry.annotations["vnd.ocistream.image.name"] for entry in entries] == [
            f"registry.example.com/{name}:{found.cosign_tag}" for name in ("app", "other")
        ]

    def test_annotations_of_a_referrer_do_not_make_it_an_image(self, layout: Layout) -> None:
        made = signed(layout)
        posing = {"org.opencontainers.image.ref.name": "v1", "io.containerd.image.name": "docker.io/library/a:1"}
        poser = referrer(layout, made.image, "a/b", b"not what it seems", **posing, kept="yes")
        Signed(made.image, poser, made.sbom, poser, made.cosign).enter(layout, "v2")
        # As a careful writer would have listed it.
        entries = json.loads((layout.path / "index.json").read_bytes())["manifests"]
        layout.clear()
        for entry in entries:
            annotations = entry.get("annotations", {}).items()
            layout.enter({**entry, "annotations": {key: text for key, text in annotations if posing.get(key) != text}})
        graph = graph_of(layout.path)
        assert [root.name for root in graph.roots] == ["v2"]
        (entry,) = (one for one in build_entries(graph) if one.digest == poser["digest"])
        assert entry.annotations == {"kept": "yes", "io.containerd.manifest.subject": made.image["digest"]}
