"""The chapter "Content Discovery", with a directory and with an archive."""

from __future__ import annotations

from typing import Any

from tests.conformance.registry_content import KIND_A, NOBODY, TAGS, World, url

INDEX = "application/vnd.oci.image.index.v1+json"
TAGS_OF = url("tags", "list")


def referrers(world: World, digest: str, query: str = "") -> list[dict[str, Any]]:
    """Return the listed referrers of a digest, and check that each entry has the annotations of its manifest."""
    answer = world.ask("GET", url("referrers", digest) + query)
    assert (answer.status, answer.headers["Content-Type"]) == (200, INDEX)
    applied = "artifactType" if query else None
    assert answer.headers.get("OCI-Filters-Applied") == applied
    listed: list[dict[str, Any]] = answer.json()["manifests"]
    for entry in listed:
        assert entry["annotations"] == world.layout.read(entry["digest"])["annotations"]
    return listed


class TestTags:
    def test_all(self, world: World) -> None:
        answer = world.ask("GET", TAGS_OF)
        assert (answer.status, answer.json()["tags"]) == (200, list(TAGS))
        assert "Link" not in answer.headers

    def test_a_limited_number(self, world: World) -> None:
        answer = world.ask("GET", f"{TAGS_OF}?n=2")
        assert (answer.status, answer.json()["tags"]) == (200, list(TAGS[:2]))
        following = answer.headers["Link"].partition(">")[0].lstrip("<")
        assert world.ask("GET", following).json()["tags"] == list(TAGS[2:])

    def test_after_a_tag(self, world: World) -> None:
        answer = world.ask("GET", f"{TAGS_OF}?n=2&last={TAGS[1]}")
        assert (answer.status, answer.json()["tags"]) == (200, list(TAGS[2:]))

    def test_after_everything_is_deleted(self, filled: World) -> None:
        assert filled.ask("DELETE", url("manifests", filled.images[0]["digest"])).status == 202
        for tag in TAGS[1:]:
            assert filled.ask("DELETE", url("manifests", tag)).status == 202
        assert filled.ask("GET", TAGS_OF).status == 404


class TestReferrers:
    def test_of_a_nonexistent_digest(self, world: World) -> None:
        assert referrers(world, NOBODY) == []

    def test_all(self, world: World) -> None:
        listed = referrers(world, world.images[0]["digest"])
        assert {entry["digest"] for entry in listed} == {entry["digest"] for entry in world.referrers[:5]}
        assert len(listed) == 5
        for referrer in world.referrers:
            assert world.ask("GET", url("manifests", referrer["digest"])).status == 200

    def test_of_one_artifact_type(self, world: World) -> None:
        listed = referrers(world, world.images[0]["digest"], f"?artifactType={KIND_A}")
        assert {entry["digest"] for entry in listed} == {entry["digest"] for entry in world.referrers[:2]}
        assert {entry["artifactType"] for entry in listed} == {KIND_A}

    def test_of_a_missing_manifest(self, world: World) -> None:
        assert [entry["digest"] for entry in referrers(world, world.missing)] == [world.referrers[5]["digest"]]

    def test_a_push_confirms_the_subject(self, filled: World) -> None:
        referrer = filled.referrers[0]
        raw = filled.layout.file(referrer["digest"]).read_bytes()
        headers = {"Content-Type": referrer["mediaType"]}
        answer = filled.ask("PUT", url("manifests", referrer["digest"]), raw, headers)
        assert (answer.status, answer.headers["OCI-Subject"]) == (201, filled.images[0]["digest"])

    def test_after_they_are_deleted(self, filled: World) -> None:
        for referrer in filled.referrers:
            assert filled.ask("DELETE", url("manifests", referrer["digest"])).status == 202
        assert referrers(filled, filled.images[0]["digest"]) == []
        assert referrers(filled, filled.missing) == []
