"""The chapter "Pull", with a directory and with an archive, which the suite calls a registry without push."""

from __future__ import annotations

import pytest

from tests.conformance.cases import case
from tests.conformance.registry_content import NOBODY, TAGS, World, url
from tests.images import digest_of
from tests.raw_http import Response


class TestSetup:
    @case("Pull", "Setup", "Populate registry with test blob")
    @case("Pull", "Setup", "Populate registry with test layer")
    def test_blobs_exist(self, world: World) -> None:
        for digest in (world.config(0), world.config(1), world.layer):
            assert world.ask("HEAD", url("blobs", digest)).status == 200

    @case("Pull", "Setup", "Populate registry with test manifest")
    def test_manifests_exist(self, world: World) -> None:
        for image in world.images:
            assert world.ask("HEAD", url("manifests", image["digest"])).status == 200

    @case("Pull", "Setup", "Get tag name from environment")
    def test_a_tag_exists(self, world: World) -> None:
        assert world.ask("GET", url("manifests", TAGS[0])).status == 200


class TestPullBlobs:
    @case("Pull", "Pull blobs", "HEAD request to nonexistent blob should result in 404 response")
    def test_head_of_a_nonexistent_blob(self, world: World) -> None:
        assert world.ask("HEAD", url("blobs", NOBODY)).status == 404

    @case("Pull", "Pull blobs", "HEAD request to existing blob should yield 200")
    def test_head(self, world: World) -> None:
        answer = world.ask("HEAD", url("blobs", world.config(0)))
        assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, world.config(0))
        assert answer.headers["Content-Length"] == str(world.manifest(0)["config"]["size"])

    @case("Pull", "Pull blobs", "GET nonexistent blob should result in 404 response")
    def test_get_of_a_nonexistent_blob(self, world: World) -> None:
        answer = world.ask("GET", url("blobs", NOBODY))
        assert (answer.status, answer.codes) == (404, ["BLOB_UNKNOWN"])

    @case("Pull", "Pull blobs", "GET request to existing blob URL should yield 200")
    def test_get(self, world: World) -> None:
        for digest in (world.config(0), world.layer):
            answer = world.ask("GET", url("blobs", digest))
            assert (answer.status, digest_of(answer.body)) == (200, digest)


class TestPullManifests:
    @staticmethod
    def check(world: World, answer: Response, number: int, *, with_body: bool) -> None:
        image = world.images[number]
        assert answer.status == 200
        assert answer.headers["Docker-Content-Digest"] == image["digest"]
        assert answer.headers["Content-Type"] == image["mediaType"]
        assert answer.headers["Content-Length"] == str(image["size"])
        assert answer.body == (world.layout.file(image["digest"]).read_bytes() if with_body else b"")

    @case("Pull", "Pull manifests", "HEAD request to nonexistent manifest should return 404")
    def test_head_of_a_nonexistent_manifest(self, world: World) -> None:
        for reference in ("none", NOBODY):
            assert world.ask("HEAD", url("manifests", reference)).status == 404

    @pytest.mark.parametrize(
        "number",
        [
            pytest.param(
                number,
                marks=case(
                    "Pull",
                    "Pull manifests",
                    f"HEAD request to manifest[{number}] path (digest) should yield 200 response",
                ),
            )
            for number in (0, 1)
        ],
    )
    def test_head_by_digest(self, world: World, number: int) -> None:
        answer = world.ask("HEAD", url("manifests", world.images[number]["digest"]))
        self.check(world, answer, number, with_body=False)

    @case("Pull", "Pull manifests", "HEAD request to manifest path (tag) should yield 200 response")
    def test_head_by_tag(self, world: World) -> None:
        self.check(world, world.ask("HEAD", url("manifests", TAGS[0])), 0, with_body=False)

    @case("Pull", "Pull manifests", "GET nonexistent manifest should return 404")
    def test_get_of_a_nonexistent_manifest(self, world: World) -> None:
        for reference in ("none", NOBODY):
            answer = world.ask("GET", url("manifests", reference))
            assert (answer.status, answer.codes) == (404, ["MANIFEST_UNKNOWN"])

    @pytest.mark.parametrize(
        "number",
        [
            pytest.param(
                number,
                marks=case(
                    "Pull",
                    "Pull manifests",
                    f"GET request to manifest[{number}] path (digest) should yield 200 response",
                ),
            )
            for number in (0, 1)
        ],
    )
    def test_get_by_digest(self, world: World, number: int) -> None:
        answer = world.ask("GET", url("manifests", world.images[number]["digest"]))
        self.check(world, answer, number, with_body=True)

    @case("Pull", "Pull manifests", "GET request to manifest path (tag) should yield 200 response")
    def test_get_by_tag(self, world: World) -> None:
        self.check(world, world.ask("GET", url("manifests", TAGS[1])), 1, with_body=True)


class TestErrorCodes:
    @case("Pull", "Error codes", "400 response body should contain OCI-conforming JSON message")
    def test_an_invalid_digest(self, world: World) -> None:
        answer = world.ask("GET", url("manifests", "sha256:totallywrong"), b"blablabla")
        assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])
        assert answer.headers["Content-Type"] == "application/json"
        assert set(answer.json()["errors"][0]) <= {"code", "message", "detail"}


class TestTeardown:
    @staticmethod
    def delete(world: World, target: str) -> None:
        """Delete a blob or manifest, which then no longer exists; an archive refuses to delete."""
        answer = world.ask("DELETE", target)
        assert answer.status == (405 if world.is_archive else 202)
        assert world.ask("GET", target).status == (200 if world.is_archive else 404)

    @pytest.mark.parametrize(
        "number",
        [pytest.param(n, marks=case("Pull", "Teardown", f"Delete manifest[{n}] created in setup")) for n in (0, 1)],
    )
    def test_delete_a_manifest(self, world: World, number: int) -> None:
        if number == 1:
            # An index refers to this manifest.
            self.delete(world, url("manifests", world.referrers[4]["digest"]))
        self.delete(world, url("manifests", world.images[number]["digest"]))

    @pytest.mark.parametrize(
        "number",
        [pytest.param(n, marks=case("Pull", "Teardown", f"Delete config[{n}] blob created in setup")) for n in (0, 1)],
    )
    def test_delete_a_config(self, world: World, number: int) -> None:
        self.delete(world, url("blobs", world.config(number)))

    @case("Pull", "Teardown", "Delete layer blob created in setup")
    def test_delete_a_layer(self, world: World) -> None:
        self.delete(world, url("blobs", world.layer))
