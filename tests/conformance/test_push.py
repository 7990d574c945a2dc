"""The chapter "Push"."""

from __future__ import annotations

import json

import pytest

from tests.conformance.cases import case
from tests.conformance.registry_content import NOBODY, OTHER, REPOSITORY, World, url
from tests.images import Layout, digest_of
from tests.raw_http import Client, Response

BLOB = b"a blob of the suite's"
FIRST, SECOND = BLOB[:7], BLOB[7:]
UPLOADS = f"/v2/{REPOSITORY}/blobs/uploads/"
CONTENT = "application/octet-stream"


def begin(ask: Client) -> str:
    """Open an upload session and return its location."""
    answer = ask("POST", UPLOADS, headers={"Content-Length": "0"})
    assert answer.status == 202
    return answer.headers["Location"]


def chunk(ask: Client, location: str, content: bytes, start: int) -> Response:
    """Send a chunk that starts at byte `start`."""
    stated = f"{start}-{start + len(content) - 1}"
    return ask("PATCH", location, content, {"Content-Type": CONTENT, "Content-Range": stated})


def close(ask: Client, location: str, body: bytes | None = None, content: bytes = BLOB) -> Response:
    """Complete an upload session with the digest of `content`."""
    return ask("PUT", f"{location}?digest={digest_of(content)}", body, {"Content-Type": CONTENT})


class TestBlobUploadStreamed:
    @case("Push", "Blob Upload Streamed", "PATCH request with blob in body should yield 202 response")
    def test_patch(self, ask: Client) -> None:
        answer = ask("PATCH", begin(ask), BLOB, {"Content-Type": CONTENT})
        assert (answer.status, answer.headers["Range"]) == (202, f"0-{len(BLOB) - 1}")
        assert answer.headers["Location"]

    @case("Push", "Blob Upload Streamed", "PUT request to session URL with digest should yield 201 response")
    def test_put(self, ask: Client) -> None:
        location = ask("PATCH", begin(ask), iter([FIRST, SECOND]), {"Content-Type": CONTENT}).headers["Location"]
        answer = close(ask, location)
        assert (answer.status, answer.headers["Location"]) == (201, url("blobs", digest_of(BLOB)))
        assert ask("GET", answer.headers["Location"]).body == BLOB


class TestBlobUploadMonolithic:
    @case("Push", "Blob Upload Monolithic", "GET nonexistent blob should result in 404 response")
    def test_get_of_a_nonexistent_blob(self, ask: Client) -> None:
        assert ask("GET", url("blobs", NOBODY)).status == 404

    @case("Push", "Blob Upload Monolithic", "POST request with digest and blob should yield a 201 or 202")
    def test_post_with_digest(self, ask: Client) -> None:
        answer = ask("POST", f"{UPLOADS}?digest={digest_of(BLOB)}", BLOB, {"Content-Type": CONTENT})
        assert (answer.status, answer.headers["Location"]) == (201, url("blobs", digest_of(BLOB)))

    @case(
        "Push",
        "Blob Upload Monolithic",
        "GET request to blob URL from prior request should yield 200 or 404 based on response code",
    )
    def test_get_after_post_with_digest(self, ask: Client) -> None:
        location = ask("POST", f"{UPLOADS}?digest={digest_of(BLOB)}", BLOB).headers["Location"]
        answer = ask("GET", location)
        assert (answer.status, answer.body) == (200, BLOB)

    @case("Push", "Blob Upload Monolithic", "POST request should yield a session ID")
    def test_post(self, ask: Client) -> None:
        assert begin(ask).startswith(UPLOADS)

    @case("Push", "Blob Upload Monolithic", "PUT upload of a blob should yield a 201 Response")
    @case("Push", "Blob Upload Monolithic", "PUT upload of a layer blob should yield a 201 Response")
    @pytest.mark.parametrize("content", [BLOB, bytes(300_000)])
    def test_put(self, ask: Client, content: bytes) -> None:
        answer = close(ask, begin(ask), content, content)
        assert (answer.status, answer.headers["Docker-Content-Digest"]) == (201, digest_of(content))

    @case("Push", "Blob Upload Monolithic", "GET request to existing blob should yield 200 response")
    @case("Push", "Blob Upload Monolithic", "GET request to existing layer should yield 200 response")
    @pytest.mark.parametrize("content", [BLOB, bytes(300_000)])
    def test_get(self, ask: Client, content: bytes) -> None:
        close(ask, begin(ask), content, content)
        assert ask("GET", url("blobs", digest_of(content))).body == content


class TestBlobUploadChunked:
    @case("Push", "Blob Upload Chunked", "Out-of-order blob upload should return 416")
    def test_out_of_order(self, ask: Client) -> None:
        assert chunk(ask, begin(ask), SECOND, len(FIRST)).status == 416

    @case("Push", "Blob Upload Chunked", "PATCH request with first chunk should return 202")
    def test_first_chunk(self, ask: Client) -> None:
        answer = chunk(ask, begin(ask), FIRST, 0)
        assert (answer.status, answer.headers["Range"]) == (202, f"0-{len(FIRST) - 1}")

    @case("Push", "Blob Upload Chunked", "Retry previous blob chunk should return 416")
    def test_repeated_chunk(self, ask: Client) -> None:
        location = begin(ask)
        chunk(ask, location, FIRST, 0)
        answer = chunk(ask, location, FIRST, 0)
        assert (answer.status, answer.codes) == (416, ["BLOB_UPLOAD_INVALID"])
        assert answer.headers["Range"] == f"0-{len(FIRST) - 1}"

    @case("Push", "Blob Upload Chunked", "Get on stale blob upload should return 204 with a range and location")
    def test_get_after_a_repeated_chunk(self, ask: Client) -> None:
        location = begin(ask)
        chunk(ask, location, FIRST, 0)
        chunk(ask, location, FIRST, 0)
        answer = ask("GET", location)
        assert (answer.status, answer.headers["Range"]) == (204, f"0-{len(FIRST) - 1}")
        assert answer.headers["Location"]

    @case("Push", "Blob Upload Chunked", "PATCH request with second chunk should return 202")
    def test_second_chunk(self, ask: Client) -> None:
        answer = chunk(ask, chunk(ask, begin(ask), FIRST, 0).headers["Location"], SECOND, len(FIRST))
        assert (answer.status, answer.headers["Range"]) == (202, f"0-{len(BLOB) - 1}")
        assert answer.headers["Location"]

    @case("Push", "Blob Upload Chunked", "PUT request with digest should return 201")
    def test_put(self, ask: Client) -> None:
        location = chunk(ask, begin(ask), FIRST, 0).headers["Location"]
        location = chunk(ask, location, SECOND, len(FIRST)).headers["Location"]
        answer = close(ask, location)
        assert answer.status == 201
        assert ask("GET", answer.headers["Location"]).body == BLOB


class TestCrossRepositoryBlobMount:
    TO = f"/v2/{OTHER}/blobs/uploads/"

    @case(
        "Push",
        "Cross-Repository Blob Mount",
        "Cross-mounting of a blob without the from argument should yield session id",
    )
    def test_a_nonexistent_blob_without_from(self, ask: Client) -> None:
        answer = ask("POST", f"{self.TO}?mount={NOBODY}")
        assert answer.status == 202
        assert answer.headers["Location"].startswith(self.TO)

    @case(
        "Push",
        "Cross-Repository Blob Mount",
        "POST request to mount another repository's blob should return 201 or 202",
    )
    def test_a_blob_of_another_repository(self, ask: Client) -> None:
        digest = ask.upload(BLOB, REPOSITORY)
        answer = ask("POST", f"{self.TO}?mount={digest}&from={REPOSITORY}")
        assert (answer.status, answer.headers["Location"]) == (201, url("blobs", digest, OTHER))

    @case(
        "Push",
        "Cross-Repository Blob Mount",
        "GET request to test digest within cross-mount namespace should return 200",
    )
    def test_get(self, ask: Client) -> None:
        digest = ask.upload(BLOB, REPOSITORY)
        location = ask("POST", f"{self.TO}?mount={digest}&from={REPOSITORY}").headers["Location"]
        assert ask("GET", location).body == BLOB

    @case("Push", "Cross-Repository Blob Mount", "Cross-mounting of nonexistent blob should yield session id")
    def test_a_nonexistent_blob(self, ask: Client) -> None:
        answer = ask("POST", f"{self.TO}?mount={NOBODY}&from={REPOSITORY}")
        assert answer.status == 202
        assert answer.headers["Location"].startswith(self.TO)

    @case(
        "Push",
        "Cross-Repository Blob Mount",
        "Cross-mounting without from, and automatic content discovery enabled should return a 201",
    )
    def test_without_from(self, ask: Client) -> None:
        digest = ask.upload(BLOB, REPOSITORY)
        assert ask("POST", f"{self.TO}?mount={digest}").status == 201

    @case(
        "Push",
        "Cross-Repository Blob Mount",
        "Cross-mounting without from, and automatic content discovery disabled should return a 202",
    )
    def test_without_from_and_without_discovery(self, ask: Client) -> None:
        # These registries have content discovery. For a blob that does not exist, the response is the same as without.
        answer = ask("POST", f"{self.TO}?mount={NOBODY}")
        assert answer.status == 202
        assert answer.headers["Location"].startswith(self.TO)


class TestManifestUpload:
    @case("Push", "Manifest Upload", "GET nonexistent manifest should return 404")
    def test_get_of_a_nonexistent_manifest(self, ask: Client) -> None:
        assert ask("GET", url("manifests", NOBODY)).status == 404

    @case("Push", "Manifest Upload", "PUT should accept a manifest upload")
    def test_put(self, filled: World) -> None:
        image = filled.images[0]
        raw = filled.layout.file(image["digest"]).read_bytes()
        for reference in ("test0", "another", image["digest"]):
            answer = filled.ask("PUT", url("manifests", reference), raw, {"Content-Type": image["mediaType"]})
            assert answer.status == 201
            assert answer.headers["Location"] == url("manifests", image["digest"])
            assert answer.headers["Docker-Content-Digest"] == image["digest"]

    @case("Push", "Manifest Upload", "Registry should accept a manifest upload with no layers")
    def test_put_without_layers(self, ask: Client, layout: Layout) -> None:
        image = layout.image([])
        ask.upload(layout.file(layout.read(image["digest"])["config"]["digest"]).read_bytes(), REPOSITORY)
        raw = layout.file(image["digest"]).read_bytes()
        answer = ask("PUT", url("manifests", "emptylayer"), raw, {"Content-Type": image["mediaType"]})
        assert (json.loads(raw)["layers"], answer.status) == ([], 201)

    @case("Push", "Manifest Upload", "GET request to manifest URL (digest) should yield 200 response")
    def test_get(self, filled: World) -> None:
        assert filled.ask("GET", url("manifests", filled.images[0]["digest"])).status == 200


class TestTeardown:
    @case("Push", "Teardown", "Delete manifest created in tests")
    def test_delete_a_manifest(self, filled: World) -> None:
        assert filled.ask("DELETE", url("manifests", filled.images[0]["digest"])).status == 202

    @case("Push", "Teardown", "Delete config blob created in tests")
    @case("Push", "Teardown", "Delete layer blob created in setup")
    def test_delete_blobs(self, filled: World) -> None:
        for digest in (filled.config(0), filled.layer):
            assert filled.ask("DELETE", url("blobs", digest)).status == 202
