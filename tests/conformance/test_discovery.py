"""The chapter "Content Discovery", with a directory and with an archive."""

from __future__ import annotations

from typing import Any

from tests.conformance.cases import case
from tests.conformance.registry_content import KIND_A, NOBODY, TAGS, World, url

INDEX = "application/vnd.oci.image.index.v1+json"
TAGS_OF = url("tags", "list")
BY_TAGS = "Test content discovery endpoints (listing tags)"
BY_REFERENCES = "Test content discovery endpoints (listing references)"


def referrers(world: World, digest: str, query: str = "") -> list[dict[str, Any]]:
    """Return the listed referrers of a digest."""
    answer = world.ask("GET", url("referrers", digest) + query)
    assert (answer.status, answer.headers["Content-Type"]) == (200, INDEX)
    applied = "artifactType" if query else None
    assert answer.headers.get("OCI-Filters-Applied") == applied
    listed: list[dict[str, Any]] = answer.json()["manifests"]
    return listed


def notes(world: World, listed: list[dict[str, Any]]) -> None:
    """Assert that each entry has the annotations of its manifest."""
    for entry in listed:
        assert entry["annotations"] == world.layout.read(entry["digest"])["annotations"]


class TestSetup:
    @case("Content Discovery", "Setup", "Populate registry with test blob")
    @case("Content Discovery", "Setup", "Populate registry with test layer")
    def test_blobs_exist(self, world: World) -> None:
        for digest in (world.config(0), world.layer):
            assert world.ask("HEAD", url("blobs", digest)).status == 200

    @case("Content Discovery", "Setup", "Populate registry with test tags")
    @case("Content Discovery", "Setup", "Populate registry with test tags (no push)")
    def test_tags_exist(self, world: World) -> None:
        assert [world.ask("HEAD", url("manifests", tag)).status for tag in TAGS] == [200] * 4

    @case("Content Discovery", "Setup", "References setup")
    def test_referrers_exist(self, world: World) -> None:
        for referrer in world.referrers:
            assert world.ask("GET", url("manifests", referrer["digest"])).status == 200

    def test_a_push_confirms_the_subject(self, filled: World) -> None:
        referrer = filled.referrers[0]
        raw = filled.layout.file(referrer["digest"]).read_bytes()
        headers = {"Content-Type": referrer["mediaType"]}
        answer = filled.ask("PUT", url("manifests", referrer["digest"]), raw, headers)
        assert (answer.status, answer.headers["OCI-Subject"]) == (201, filled.images[0]["digest"])


class TestListingTags:
    @case("Content Discovery", BY_TAGS, "GET request to list tags should yield 200 response")
    def test_all(self, world: World) -> None:
        answer = world.ask("GET", TAGS_OF)
        assert (answer.status, answer.json()["tags"]) == (200, list(TAGS))
        assert "Link" not in answer.headers

    @case("Content Discovery", BY_TAGS, "GET number of tags should be limitable by `n` query parameter")
    def test_a_limited_number(self, world: World) -> None:
        answer = world.ask("GET", f"{TAGS_OF}?n=2")
        assert (answer.status, answer.json()["tags"]) == (200, list(TAGS[:2]))
        following = answer.headers["Link"].partition(">")[0].lstrip("<")
        assert world.ask("GET", following).json()["tags"] == list(TAGS[2:])

    @case("Content Discovery", BY_TAGS, "GET start of tag is set by `last` query parameter")
    def test_after_a_tag(self, world: World) -> None:
        answer = world.ask("GET", f"{TAGS_OF}?n=2&last={TAGS[1]}")
        assert (answer.status, answer.json()["tags"]) == (200, list(TAGS[2:]))


class TestListingReferences:
    @case("Content Discovery", BY_REFERENCES, "GET request to nonexistent blob should result in empty 200 response")
    def test_of_a_nonexistent_digest(self, world: World) -> None:
        assert referrers(world, NOBODY) == []

    @case("Content Discovery", BY_REFERENCES, "GET request to existing blob should yield 200")
    def test_all(self, world: World) -> None:
        listed = referrers(world, world.images[0]["digest"])
        assert {entry["digest"] for entry in listed} == {entry["digest"] for entry in world.referrers[:5]}
        assert len(listed) == 5
        notes(world, listed)

    @case("Content Discovery", BY_REFERENCES, "GET request to existing blob with filter should yield 200")
    def test_of_one_artifact_type(self, world: World) -> None:
        listed = referrers(world, world.images[0]["digest"], f"?artifactType={KIND_A}")
        assert {entry["digest"] for entry in listed} == {entry["digest"] for entry in world.referrers[:2]}
        assert {entry["artifactType"] for entry in listed} == {KIND_A}
        notes(world, listed)

    @case("Content Discovery", BY_REFERENCES, "GET request to missing manifest should yield 200")
    def test_of_a_missing_manifest(self, world: World) -> None:
        assert [entry["digest"] for entry in referrers(world, world.missing)] == [world.referrers[5]["digest"]]


class TestTeardown:
    @case("Content Discovery", "Teardown", "Delete created manifest & associated tags")
    def test_delete_a_manifest_and_tags(self, filled: World) -> None:
        assert filled.ask("DELETE", url("manifests", filled.images[0]["digest"])).status == 202
        for tag in TAGS[1:]:
            assert filled.ask("DELETE", url("manifests", tag)).status == 202
        assert filled.ask("GET", TAGS_OF).status == 404

    @case("Content Discovery", "Teardown", "Delete config blob created in tests")
    @case("Content Discovery", "Teardown", "Delete layer blob created in setup")
    def test_delete_blobs(self, filled: World) -> None:
        for digest in (filled.config(0), filled.layer):
            assert filled.ask("DELETE", url("blobs", digest)).status == 202

    @case("Content Discovery", "Teardown", "References teardown")
    def test_delete_referrers(self, filled: World) -> None:
        for referrer in filled.referrers:
            assert filled.ask("DELETE", url("manifests", referrer["digest"])).status == 202
        assert referrers(filled, filled.images[0]["digest"]) == []
        assert referrers(filled, filled.missing) == []
