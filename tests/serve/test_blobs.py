"""Reading blobs, completely, in ranges and with conditions, and deleting them."""

from __future__ import annotations

import hashlib
import http.client
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images import OCI_INDEX, digest_of
from tests.raw_http import Client
from tests.serve.served_layout import Served

CONTENT = bytes(range(256)) * 8
SIZE = len(CONTENT)
MIB = 1 << 20


@pytest.fixture
def digest(ask: Client) -> str:
    return ask.upload(CONTENT)


class TestReading:
    def test_a_blob_is_sent_with_its_digest_and_size(self, ask: Client, digest: str) -> None:
        answer = ask("GET", f"/v2/app/blobs/{digest}")
        assert (answer.status, answer.body) == (200, CONTENT)
        assert answer.headers["Docker-Content-Digest"] == digest
        assert answer.headers["Content-Length"] == str(SIZE)
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["Accept-Ranges"] == "bytes"

    def test_every_blob_is_visible_in_every_repository(self, ask: Client, digest: str) -> None:
        assert ask("GET", f"/v2/another/one/blobs/{digest}").body == CONTENT

    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    def test_an_empty_blob_exists_for_each_algorithm(self, ask: Client, algorithm: str) -> None:
        answer = ask("GET", f"/v2/app/blobs/{ask.upload(b'', algorithm=algorithm)}")
        assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")

    def test_a_missing_blob_is_unknown(self, ask: Client) -> None:
        for method in ("GET", "DELETE"):
            assert ask(method, f"/v2/app/blobs/{digest_of(b'nothing')}").refusal == (404, ["BLOB_UNKNOWN"])
        assert ask("HEAD", f"/v2/app/blobs/{digest_of(b'nothing')}").status == 404

    def test_a_link_in_the_layout_is_not_followed(self, ask: Client, digest: str, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_bytes(b"secret")
        blob = tmp_path / "served/blobs/sha256" / digest_of(b"secret")[7:]
        blob.symlink_to(secret)
        assert ask("GET", f"/v2/app/blobs/{digest_of(b'secret')}").status == 404
        folder = tmp_path / "served/blobs/sha256"
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
        assert ask("GET", f"/v2/app/blobs/{digest}").status == 404

    def test_only_regular_files_are_served(self, ask: Client, digest: str, tmp_path: Path) -> None:
        blob = tmp_path / "served/blobs/sha256" / digest[7:]
        blob.unlink()
        os.mkfifo(blob)
        assert ask("GET", f"/v2/app/blobs/{digest}").status == 404

    def test_memory_does_not_grow_with_the_size_of_a_blob(self, ask: Client, served: Served) -> None:
        whole, piece = hashlib.sha256(), os.urandom(MIB)
        for _ in range(64):
            whole.update(piece)
        digest = f"sha256:{whole.hexdigest()}"
        target, headers = f"/v2/app/blobs/uploads/?digest={digest}", {"Content-Length": str(64 * MIB)}

        def pieces() -> Iterator[bytes]:
            for _ in range(64):
                yield piece

        tracemalloc.start()
        try:
            assert ask("POST", target, pieces(), headers).status == 201
            connection = http.client.HTTPConnection(served.host)
            connection.request("GET", f"/v2/app/blobs/{digest}")
            answer = connection.getresponse()
            while answer.readinto(bytearray(MIB)):
                pass
            connection.close()
            assert tracemalloc.get_traced_memory()[1] < 8 * MIB
        finally:
            tracemalloc.stop()


class TestRanges:
    @pytest.mark.parametrize(
        ("asked", "start", "stop"),
        [
            ("bytes=0-0", 0, 1),
            ("bytes=10-19", 10, 20),
            ("bytes=10-", 10, SIZE),
            ("bytes=-10", SIZE - 10, SIZE),
            (f"bytes=-{SIZE * 2}", 0, SIZE),
            (f"bytes=10-{SIZE * 2}", 10, SIZE),
            (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
            ("bytes= 10 - 19", 10, 20),
        ],
    )
    def test_a_range_of_a_blob_is_sent_with_its_last_byte(
        self, ask: Client, digest: str, asked: str, start: int, stop: int
    ) -> None:
        answer = ask("GET", f"/v2/app/blobs/{digest}", headers={"Range": asked})
        assert (answer.status, answer.body) == (206, CONTENT[start:stop])
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
        assert answer.headers["Docker-Content-Digest"] == digest

    @pytest.mark.parametrize("asked", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0"])
    def test_a_range_beyond_the_end_is_refused_with_the_size(self, ask: Client, digest: str, asked: str) -> None:
        answer = ask("GET", f"/v2/app/blobs/{digest}", headers={"Range": asked})
        assert answer.refusal == (416, ["UNSUPPORTED"])
        assert answer.headers["Content-Range"] == f"bytes */{SIZE}"

    @pytest.mark.parametrize(
        "asked",
        ["bytes=0-1,5-6", "bytes=5-1", "bytes=-", "bytes=a-b", "bits=0-1", "0-1", "", "bytes=1" + "0" * 5000 + "-"],
    )
    def test_malformed_and_multiple_ranges_are_ignored(self, ask: Client, digest: str, asked: str) -> None:
        answer = ask("GET", f"/v2/app/blobs/{digest}", headers={"Range": asked})
        assert (answer.status, answer.body) == (200, CONTENT)

    def test_an_empty_blob_has_no_range(self, ask: Client) -> None:
        digest = ask.upload(b"")
        assert ask("GET", f"/v2/app/blobs/{digest}", headers={"Range": "bytes=0-"}).status == 416

    def test_head_ignores_ranges(self, ask: Client, digest: str) -> None:
        answer = ask("HEAD", f"/v2/app/blobs/{digest}", headers={"Range": "bytes=0-0"})
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(SIZE))

    def test_if_range_of_other_content_returns_the_complete_blob(self, ask: Client, digest: str) -> None:
        same = {"Range": "bytes=5-9", "If-Range": f'"{digest}"'}
        assert ask("GET", f"/v2/app/blobs/{digest}", headers=same).status == 206
        other = {"Range": "bytes=5-9", "If-Range": '"another"'}
        assert ask("GET", f"/v2/app/blobs/{digest}", headers=other).body == CONTENT


@pytest.mark.parametrize("target", ["manifests/v1", "blobs/{0}"])
@pytest.mark.parametrize(
    ("match", "status"),
    [('"{0}"', 304), ('W/"{0}"', 304), ('"x", "{0}"', 304), ("*", 304), ('"x"', 200), ("{0}", 200)],
)
def test_content_that_the_client_has_is_not_sent(ask: Client, target: str, match: str, status: int) -> None:
    tag = ask.push({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}, "v1")
    answer = ask("GET", f"/v2/app/{target.format(tag)}", headers={"If-None-Match": match.format(tag)})
    assert (answer.status, answer.headers["ETag"]) == (status, f'"{tag}"')
    assert answer.headers["Docker-Content-Digest"] == tag
    assert (answer.body != b"", "Content-Length" in answer.headers) == (status == 200, status == 200)
    assert ask("GET", "/v2/").status == 200


class TestDeleting:
    def test_a_deleted_blob_is_gone(self, ask: Client, digest: str, tmp_path: Path) -> None:
        assert ask("DELETE", f"/v2/app/blobs/{digest}").status == 202
        assert ask("GET", f"/v2/app/blobs/{digest}").status == 404
        assert not (tmp_path / "served/blobs/sha256" / digest[7:]).exists()
