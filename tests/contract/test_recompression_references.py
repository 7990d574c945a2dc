"""References to an image whose layers are recompressed: indexes, attestations, subjects, Docker's lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.contract.image_shapes import with_attestation
from tests.contract.test_recompression import converted, copied, only_image, only_image_of, pick
from tests.contract.test_recompression_refused import TAR
from tests.images import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Layout,
    small_image,
    tar_layer,
    two_platforms,
)
from tests.recompression_checks import VOUCHES_FOR, named


class TestReferences:
    def test_an_attestation_refers_to_the_new_image(self, layout: Layout, tmp_path: Path) -> None:
        index = with_attestation(layout, "v1")
        after, _ = converted(layout, tmp_path / "out", "zstd")
        image, vouching = only_image(after)["manifests"]
        before = layout.read(index["digest"])["manifests"][1]
        assert vouching["annotations"] == {VOUCHES_FOR: image["digest"]}
        assert image["digest"] != layout.read(index["digest"])["manifests"][0]["digest"]
        assert vouching["digest"] == before["digest"]

    def test_an_attestation_in_index_json_refers_to_the_new_image(self, layout: Layout, tmp_path: Path) -> None:
        image = small_image(layout)
        vouching = layout.artifact(b"{}", kind="application/vnd.in-toto+json")
        annotations = {VOUCHES_FOR: image["digest"], "a": "b"}
        layout.enter({**image, "data": "AAAA", "mine": "stays"}, {**vouching, "annotations": annotations, "mine": 1})
        copied(layout, tmp_path / "out", "zstd")
        first, second = json.loads((tmp_path / "out" / "index.json").read_bytes())["manifests"]
        assert "data" not in first
        assert first["mine"] == "stays"
        assert first["digest"] != image["digest"]
        assert second == {**vouching, "annotations": {VOUCHES_FOR: first["digest"], "a": "b"}, "mine": 1}

    def test_referrers_and_their_referrers_refer_to_the_new_subjects(self, layout: Layout, tmp_path: Path) -> None:
        image = small_image(layout, name="image")
        # The index lists referrers before their subjects.
        sbom = layout.artifact(b"parts", subject=image)
        signature = layout.artifact(b"signed", subject=sbom)
        of_index = layout.index([], subject=image)
        index = layout.index([signature, of_index, sbom, image], name="v1")
        after, _ = copied(layout, tmp_path / "out", "zstd")
        new_signature, new_of_index, new_sbom, new_image = only_image_of(after, "v1")["manifests"]
        assert after.read(new_sbom["digest"])["subject"] == {**image, **pick(new_image)}
        assert after.read(new_of_index["digest"])["subject"]["digest"] == new_image["digest"]
        assert after.read(new_signature["digest"])["subject"]["digest"] == new_sbom["digest"]
        assert after.read(new_sbom["digest"])["layers"] == layout.read(sbom["digest"])["layers"]
        assert named(after)["image"]["digest"] == new_image["digest"]
        assert len({index["digest"], named(after)["v1"]["digest"]}) == 2

    def test_a_missing_subject_is_unchanged(self, layout: Layout, tmp_path: Path) -> None:
        subject = {"mediaType": OCI_MANIFEST, "digest": "sha256:" + "5" * 64, "size": 5}
        layout.image([TAR], name="v1", subject=subject)
        after, _ = converted(layout, tmp_path / "out", "gzip")
        assert only_image(after)["subject"] == subject

    @pytest.mark.parametrize("codec", ["zstd", "none", "gzip"])
    def test_a_docker_list_becomes_an_index_if_zstd_is_requested(
        self, layout: Layout, tmp_path: Path, codec: str
    ) -> None:
        two_platforms(layout, media="docker", name="v1")
        after, done = converted(layout, tmp_path / "out", codec)
        index = only_image(after)
        kinds = {index["mediaType"], *(entry["mediaType"] for entry in index["manifests"])}
        assert kinds == ({OCI_INDEX, OCI_MANIFEST} if codec == "zstd" else {DOCKER_LIST, DOCKER_MANIFEST})
        called = {blob.digest: blob.media_type for blob in done.listing.blobs}
        listed = [b for e in index["manifests"] for m in [after.read(e["digest"])] for b in (m["config"], *m["layers"])]
        assert called == {blob["digest"]: blob["mediaType"] for blob in listed}

    def test_a_list_with_a_docker_zstd_image_gets_no_mixed_types(self, layout: Layout, tmp_path: Path) -> None:
        zstd = layout.image([tar_layer({"a": b"b"}, compression="zstd")], media="docker")
        other = layout.image([tar_layer({"c": b"d"})], media="docker", platform="linux/arm64")
        mixed = layout.image([tar_layer({"a": b"b"}, compression="zstd"), TAR], media="docker", platform="linux/arm/v7")
        layout.index([zstd, other, mixed], media="docker", name="v1")
        after, _ = converted(layout, tmp_path / "out", "zstd")
        assert only_image(after)["mediaType"] == OCI_INDEX

    def test_embedded_bytes_and_urls_of_a_changed_manifest_are_removed(self, layout: Layout, tmp_path: Path) -> None:
        holding = {"data": "AAAA", "urls": ["https://a.example/x"], "mine": "stays"}
        image = layout.image([TAR])
        same = {**layout.image([tar_layer({"a": b"b"})]), **holding}
        layout.index([{**image, **holding}, same], name="v1")
        copied(layout, tmp_path / "out", "gzip")
        first, second = only_image(Layout(tmp_path / "out"))["manifests"]
        assert first == {**image, **pick(first), "mine": "stays"}
        assert second == same

    @pytest.mark.uncounted
    def test_a_long_index_can_be_rewritten(self, layout: Layout, tmp_path: Path) -> None:
        image = layout.image([TAR])
        annotated = {**image, "annotations": {f"key-{n}": "v" * 20 for n in range(8)}}
        layout.index([{**annotated, "number": n} for n in range(500)], name="v1")
        after, _ = converted(layout, tmp_path / "out", "gzip")
        entries = only_image(after)["manifests"]
        assert [entry["number"] for entry in entries] == list(range(500))
        assert len({entry["digest"] for entry in entries}) == 1

    def test_a_manifest_without_a_media_type_and_with_lists_of_null(self, layout: Layout, tmp_path: Path) -> None:
        image = layout.image([TAR])
        document = layout.read(image["digest"])
        del document["mediaType"]
        raw = json.dumps(document).encode()
        untyped = layout.blob(raw, OCI_MANIFEST)
        layout.name(untyped, "v1")
        referrer = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": document["config"], "layers": None}
        layout.document({**referrer, "subject": untyped}, name="v2")
        after, _ = copied(layout, tmp_path / "out", "gzip")
        assert only_image_of(after, "v1")["layers"][0]["mediaType"] == OCI_LAYER + "+gzip"
        assert only_image_of(after, "v2")["layers"] == []
        assert only_image_of(after, "v2")["subject"]["digest"] == named(after)["v1"]["digest"]

    def test_a_child_of_an_index_with_an_unknown_media_type_is_unchanged(self, layout: Layout, tmp_path: Path) -> None:
        image = layout.image([TAR])
        blob = layout.document({"mediaType": "application/vnd.example+json", "subject": image, "mine": {"a": [None]}})
        layout.index([blob, image], name="v1")
        after, _ = copied(layout, tmp_path / "out", "gzip")
        kept, new_image = only_image(after)["manifests"]
        assert kept == blob
        assert after.file(blob["digest"]).read_bytes() == layout.file(blob["digest"]).read_bytes()
        assert new_image["digest"] != image["digest"]
