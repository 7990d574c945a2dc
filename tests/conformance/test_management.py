"""The chapter "Content Management"."""

from __future__ import annotations

from tests.conformance.cases import case
from tests.conformance.registry_content import TAGS, World, url

TAGS_OF = url("tags", "list")


class TestSetup:
    @case("Content Management", "Setup", "Populate registry with test config blob")
    @case("Content Management", "Setup", "Populate registry with test layer")
    @case("Content Management", "Setup", "Populate registry with test tag")
    def test_blobs_and_tags_exist(self, filled: World) -> None:
        for target in (url("blobs", filled.config(0)), url("blobs", filled.layer), url("manifests", TAGS[0])):
            assert filled.ask("HEAD", target).status == 200

    @case("Content Management", "Setup", "Check how many tags there are before anything gets deleted")
    def test_the_number_of_tags(self, filled: World) -> None:
        assert len(filled.ask("GET", TAGS_OF).json()["tags"]) == len(TAGS)


class TestManifestDelete:
    @case(
        "Content Management",
        "Manifest delete",
        "DELETE request to manifest tag should return 202, unless tag deletion is disallowed (400/405)",
    )
    def test_delete_a_tag(self, filled: World) -> None:
        assert filled.ask("DELETE", url("manifests", TAGS[0])).status == 202
        assert filled.ask("GET", url("manifests", TAGS[0])).status == 404
        # The manifest still exists under its digest.
        assert filled.ask("GET", url("manifests", filled.images[0]["digest"])).status == 200

    @case(
        "Content Management",
        "Manifest delete",
        "DELETE request to manifest (digest) should yield 202 response unless already deleted",
    )
    @case(
        "Content Management",
        "Manifest delete",
        "GET request to deleted manifest URL should yield 404 response, unless delete is disallowed",
    )
    def test_delete_by_digest(self, filled: World) -> None:
        target = url("manifests", filled.images[0]["digest"])
        assert filled.ask("DELETE", target).status == 202
        answer = filled.ask("GET", target)
        assert (answer.status, answer.codes) == (404, ["MANIFEST_UNKNOWN"])
        assert filled.ask("DELETE", target).status == 404

    @case(
        "Content Management",
        "Manifest delete",
        "GET request to tags list should reflect manifest deletion",
    )
    def test_tags_of_a_deleted_manifest(self, filled: World) -> None:
        filled.ask("DELETE", url("manifests", filled.images[0]["digest"]))
        assert filled.ask("GET", TAGS_OF).json()["tags"] == list(TAGS[1:])


class TestBlobDelete:
    @case("Content Management", "Blob delete", "DELETE request to blob URL should yield 202 response")
    @case("Content Management", "Blob delete", "GET request to deleted blob URL should yield 404 response")
    def test_delete_blobs(self, filled: World) -> None:
        for digest in (filled.config(0), filled.layer):
            assert filled.ask("DELETE", url("blobs", digest)).status == 202
            answer = filled.ask("GET", url("blobs", digest))
            assert (answer.status, answer.codes) == (404, ["BLOB_UNKNOWN"])
            assert filled.ask("DELETE", url("blobs", digest)).status == 404
