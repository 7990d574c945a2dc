"""The chapter "Pull", with a directory and with an archive, which the suite calls a registry without push."""

from __future__ import annotations

import pytest

from tests.conformance.registry_content import NOBODY, TAGS, World, url
from tests.images import digest_of


class TestBlobs:
    def test_head(self, world: World) -> None:
        for digest in (world.config(0), world.config(1), world.layer):
            answer = world.ask("HEAD", url("blobs", digest))
            assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, digest)
            assert answer.headers["Content-Length"] == str(world.layout.file(digest).stat().st_size)

    def test_get(self, world: World) -> None:
        for digest in (world.config(0), world.layer):
            answer = world.ask("GET", url("blobs", digest))
            assert (answer.status, digest_of(answer.body)) == (200, digest)

    def test_a_nonexistent_blob(self, world: World) -> None:
        assert world.ask("HEAD", url("blobs", NOBODY)).status == 404
        assert world.ask("GET", url("blobs", NOBODY)).refusal == (404, ["BLOB_UNKNOWN"])


class TestManifests:
    @pytest.mark.parametrize("method", ["HEAD", "GET"])
    def test_an_image_by_digest_and_by_tag(self, world: World, method: str) -> None:
        first, second = world.images
        references = {first["digest"]: first, second["digest"]: second, TAGS[0]: first}
        for reference, image in {**references, **dict.fromkeys(TAGS[1:], second)}.items():
            answer = world.ask(method, url("manifests", reference))
            assert answer.status == 200
            assert answer.headers["Docker-Content-Digest"] == image["digest"]
            assert answer.headers["Content-Type"] == image["mediaType"]
            assert answer.headers["Content-Length"] == str(image["size"])
            raw = world.layout.file(image["digest"]).read_bytes()
            assert answer.body == (raw if method == "GET" else b"")

    def test_a_nonexistent_manifest(self, world: World) -> None:
        for reference in ("none", NOBODY):
            assert world.ask("HEAD", url("manifests", reference)).status == 404
            assert world.ask("GET", url("manifests", reference)).refusal == (404, ["MANIFEST_UNKNOWN"])

    def test_an_invalid_digest(self, world: World) -> None:
        answer = world.ask("GET", url("manifests", "sha256:totallywrong"), b"blablabla")
        assert answer.refusal == (400, ["DIGEST_INVALID"])
        assert answer.headers["Content-Type"] == "application/json"
        assert set(answer.json()["errors"][0]) <= {"code", "message", "detail"}


def test_deleted_content_no_longer_exists_and_an_archive_refuses_to_delete(world: World) -> None:
    # An index refers to the second image, so the index is deleted first.
    manifests = [world.images[0]["digest"], world.referrers[4]["digest"], world.images[1]["digest"]]
    blobs = [world.config(0), world.config(1), world.layer]
    for target in (*(url("manifests", one) for one in manifests), *(url("blobs", one) for one in blobs)):
        answer = world.ask("DELETE", target)
        assert answer.status == (405 if world.is_archive else 202)
        assert world.ask("GET", target).status == (200 if world.is_archive else 404)
