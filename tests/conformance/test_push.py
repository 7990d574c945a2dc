"""The chapter "Push". `test_data` pushes an image without layers."""

from __future__ import annotations

import pytest

from tests.conformance.registry_content import NOBODY, OTHER, REPOSITORY, World, url
from tests.images import digest_of
from tests.raw_http import Client, Response

BLOB = b"a blob of the suite's"
FIRST, SECOND = BLOB[:7], BLOB[7:]
UPLOADS = f"/v2/{REPOSITORY}/blobs/uploads/"
CONTENT = "application/octet-stream"


def begin(ask: Client) -> str:
    """Open an upload session and return its location."""
    answer = ask("POST", UPLOADS, headers={"Content-Length": "0"})
    assert answer.status == 202
    assert answer.headers["Location"].startswith(UPLOADS)
    return answer.headers["Location"]


def chunk(ask: Client, location: str, content: bytes, start: int) -> Response:
    """Send a chunk that starts at byte `start`."""
    stated = f"{start}-{start + len(content) - 1}"
    return ask("PATCH", location, content, {"Content-Type": CONTENT, "Content-Range": stated})


def close(ask: Client, location: str, body: bytes | None = None, content: bytes = BLOB) -> None:
    """Complete an upload session with the digest of `content`, and check that the blob exists."""
    answer = ask("PUT", f"{location}?digest={digest_of(content)}", body, {"Content-Type": CONTENT})
    assert answer.headers["Docker-Content-Digest"] == digest_of(content)
    check(ask, answer, content)


def check(ask: Client, answer: Response, content: bytes) -> None:
    """Check the answer to the last request of an upload, and that the blob exists."""
    assert (answer.status, answer.headers["Location"]) == (201, url("blobs", digest_of(content)))
    found = ask("GET", answer.headers["Location"])
    assert (found.status, found.body) == (200, content)


class TestBlobUpload:
    @pytest.mark.parametrize("body", [BLOB, [FIRST, SECOND]], ids=["sized", "chunked coding"])
    def test_streamed(self, ask: Client, body: bytes | list[bytes]) -> None:
        sent = body if isinstance(body, bytes) else iter(body)
        answer = ask("PATCH", begin(ask), sent, {"Content-Type": CONTENT})
        assert (answer.status, answer.headers["Range"]) == (202, f"0-{len(BLOB) - 1}")
        close(ask, answer.headers["Location"])

    def test_by_one_post(self, ask: Client) -> None:
        answer = ask("POST", f"{UPLOADS}?digest={digest_of(BLOB)}", BLOB, {"Content-Type": CONTENT})
        check(ask, answer, BLOB)

    @pytest.mark.parametrize("content", [BLOB, bytes(300_000)])
    def test_by_post_and_put(self, ask: Client, content: bytes) -> None:
        close(ask, begin(ask), content, content)

    def test_in_chunks(self, ask: Client) -> None:
        first = chunk(ask, begin(ask), FIRST, 0)
        assert (first.status, first.headers["Range"]) == (202, f"0-{len(FIRST) - 1}")
        second = chunk(ask, first.headers["Location"], SECOND, len(FIRST))
        assert (second.status, second.headers["Range"]) == (202, f"0-{len(BLOB) - 1}")
        close(ask, second.headers["Location"])

    def test_a_chunk_out_of_order(self, ask: Client) -> None:
        assert chunk(ask, begin(ask), SECOND, len(FIRST)).status == 416

    def test_a_repeated_chunk(self, ask: Client) -> None:
        location = begin(ask)
        chunk(ask, location, FIRST, 0)
        answer = chunk(ask, location, FIRST, 0)
        assert answer.refusal == (416, ["BLOB_UPLOAD_INVALID"])
        assert answer.headers["Range"] == f"0-{len(FIRST) - 1}"
        answer = ask("GET", location)
        assert (answer.status, answer.headers["Range"]) == (204, f"0-{len(FIRST) - 1}")
        assert answer.headers["Location"]


class TestCrossRepositoryBlobMount:
    TO = f"/v2/{OTHER}/blobs/uploads/"

    @pytest.mark.parametrize("source", [f"&from={REPOSITORY}", ""], ids=["from", "found by the registry"])
    def test_a_blob_of_another_repository(self, ask: Client, source: str) -> None:
        digest = ask.upload(BLOB, REPOSITORY)
        answer = ask("POST", f"{self.TO}?mount={digest}{source}")
        assert (answer.status, answer.headers["Location"]) == (201, url("blobs", digest, OTHER))
        assert ask("GET", answer.headers["Location"]).body == BLOB

    @pytest.mark.parametrize("source", [f"&from={REPOSITORY}", ""], ids=["from", "without from"])
    def test_a_nonexistent_blob_opens_a_session(self, ask: Client, source: str) -> None:
        answer = ask("POST", f"{self.TO}?mount={NOBODY}{source}")
        assert answer.status == 202
        assert answer.headers["Location"].startswith(self.TO)


def test_a_manifest_by_tag_and_by_digest(filled: World) -> None:
    image = filled.images[0]
    raw = filled.layout.file(image["digest"]).read_bytes()
    for reference in ("test0", "another", image["digest"]):
        answer = filled.ask("PUT", url("manifests", reference), raw, {"Content-Type": image["mediaType"]})
        assert answer.status == 201
        assert answer.headers["Location"] == url("manifests", image["digest"])
        assert answer.headers["Docker-Content-Digest"] == image["digest"]
