"""The chapter "Content Management"."""

from __future__ import annotations

from tests.conformance.registry_content import TAGS, World, url


def test_delete_a_tag(filled: World) -> None:
    assert filled.ask("DELETE", url("manifests", TAGS[0])).status == 202
    assert filled.ask("GET", url("manifests", TAGS[0])).status == 404
    # The manifest still exists under its digest.
    assert filled.ask("GET", url("manifests", filled.images[0]["digest"])).status == 200


def test_delete_a_manifest_with_its_tags(filled: World) -> None:
    target, tags = url("manifests", filled.images[0]["digest"]), url("tags", "list")
    assert filled.ask("GET", tags).json()["tags"] == list(TAGS)
    assert filled.ask("DELETE", target).status == 202
    assert filled.ask("GET", target).refusal == (404, ["MANIFEST_UNKNOWN"])
    assert filled.ask("DELETE", target).status == 404
    assert filled.ask("GET", tags).json()["tags"] == list(TAGS[1:])


def test_delete_blobs(filled: World) -> None:
    for digest in (filled.config(0), filled.layer):
        assert filled.ask("DELETE", url("blobs", digest)).status == 202
        assert filled.ask("GET", url("blobs", digest)).refusal == (404, ["BLOB_UNKNOWN"])
        assert filled.ask("DELETE", url("blobs", digest)).status == 404
