"""Uploads of blobs: all request sequences, chunks, digests, and incomplete bodies."""

from __future__ import annotations

import pytest

from tests.http_push import CONTENT, DIGEST, FIRST, SECOND, begin, blobs, closed, is_stored
from tests.images import digest_of
from tests.raw_http import Client, connect, converse
from tests.raw_server import eventually
from tests.serve.served_layout import Served


class TestRequests:
    def test_one_post_with_the_complete_blob(self, ask: Client) -> None:
        answer = ask("POST", f"/v2/app/blobs/uploads/?digest={DIGEST}", CONTENT)
        assert (answer.status, answer.body) == (201, b"")
        assert answer.headers["Location"] == f"/v2/app/blobs/{DIGEST}"
        assert answer.headers["Docker-Content-Digest"] == DIGEST
        assert is_stored(ask)

    def test_a_post_and_a_put_with_the_complete_blob(self, ask: Client) -> None:
        answer = ask("PUT", f"{begin(ask)}?digest={DIGEST}", CONTENT)
        assert (answer.status, answer.headers["Location"]) == (201, f"/v2/app/blobs/{DIGEST}")
        assert is_stored(ask)

    @pytest.mark.parametrize("chunked", [True, False])
    def test_one_streamed_patch_and_an_empty_put(self, ask: Client, chunked: bool) -> None:
        location = begin(ask)
        answer = ask("PATCH", location, iter([FIRST, SECOND]) if chunked else CONTENT)
        assert (answer.status, answer.headers["Range"]) == (202, "0-2999")
        assert closed(ask, answer.headers["Location"]) == 201
        assert is_stored(ask)

    def test_chunks_with_ranges_the_last_one_in_the_put(self, ask: Client) -> None:
        location = begin(ask)
        answer = ask("PATCH", location, FIRST, {"Content-Range": "0-999"})
        assert (answer.status, answer.headers["Range"]) == (202, "0-999")
        answer = ask("PUT", f"{location}?digest={DIGEST}", SECOND, {"Content-Range": "1000-2999"})
        assert answer.status == 201
        assert is_stored(ask)

    def test_an_empty_blob(self, ask: Client) -> None:
        assert closed(ask, begin(ask), digest_of(b"")) == 201
        assert is_stored(ask, digest_of(b""), b"")

    def test_other_parameters_of_the_location_are_ignored(self, ask: Client) -> None:
        assert ask("PUT", f"{begin(ask)}?_state=a%3D&digest={DIGEST.replace(':', '%3A')}", CONTENT).status == 201

    def test_only_the_blob_remains(self, ask: Client, served: Served) -> None:
        assert closed(ask, begin(ask), body=CONTENT) == 201
        assert blobs(served.path) == [DIGEST[7:]]

    def test_pushing_a_blob_again_repairs_a_damaged_one(self, ask: Client, served: Served) -> None:
        ask.upload(CONTENT)
        (served.path / "blobs/sha256" / DIGEST[7:]).write_bytes(b"damaged")
        ask.upload(CONTENT)
        assert is_stored(ask)


class TestAlgorithms:
    SHA512 = digest_of(CONTENT, "sha512")

    def test_sha512_in_one_request(self, ask: Client, served: Served) -> None:
        assert ask.upload(CONTENT, algorithm="sha512") == self.SHA512
        assert (served.path / "blobs/sha512" / self.SHA512[7:]).read_bytes() == CONTENT

    @pytest.mark.parametrize("query", ["", "?digest-algorithm=sha512"])
    @pytest.mark.parametrize("in_put", [True, False])
    def test_sha512_with_and_without_an_announced_algorithm(self, ask: Client, query: str, in_put: bool) -> None:
        location = begin(ask, query)
        if not in_put:
            ask("PATCH", location, CONTENT)
        assert closed(ask, location, self.SHA512, CONTENT if in_put else None) == 201
        assert is_stored(ask, self.SHA512)

    def test_sha256_after_sha512_was_announced(self, ask: Client) -> None:
        location = begin(ask, "?digest-algorithm=sha512")
        ask("PATCH", location, CONTENT)
        assert closed(ask, location) == 201

    def test_a_wrong_sha512_is_refused(self, ask: Client, served: Served) -> None:
        location = begin(ask)
        ask("PATCH", location, CONTENT)
        assert closed(ask, location, digest_of(b"another", "sha512")) == 400
        assert blobs(served.path) == []

    @pytest.mark.parametrize("query", ["?digest-algorithm=md5", f"?digest=md5:{'0' * 32}", "?digest=sha256:x"])
    def test_another_algorithm_is_refused_at_once(self, ask: Client, served: Served, query: str) -> None:
        assert ask("POST", f"/v2/app/blobs/uploads/{query}").refusal == (400, ["DIGEST_INVALID"])
        assert blobs(served.path) == []


class TestDigests:
    @pytest.mark.parametrize("way", ["post", "put", "patch"])
    def test_bytes_of_another_digest_never_become_a_blob(self, ask: Client, served: Served, way: str) -> None:
        if way == "post":
            answer = ask("POST", f"/v2/app/blobs/uploads/?digest={DIGEST}", b"another")
        else:
            location = begin(ask)
            if way == "patch":
                ask("PATCH", location, b"another")
            answer = ask("PUT", f"{location}?digest={DIGEST}", b"another" if way == "put" else None)
            assert ask("GET", location).status == 404
        assert answer.refusal == (400, ["DIGEST_INVALID"])
        assert answer.json()["errors"][0]["detail"] == {"digest": DIGEST, "received": 7}
        assert blobs(served.path) == []

    @pytest.mark.parametrize("query", ["", "?digest=", "?digest=sha256:abc", f"?digest=md5:{'0' * 32}"])
    def test_a_put_without_a_digest_is_refused_and_the_upload_stays_open(self, ask: Client, query: str) -> None:
        location = begin(ask)
        ask("PATCH", location, FIRST)
        assert ask("PUT", location + query, SECOND).refusal == (400, ["DIGEST_INVALID"])
        assert closed(ask, location, body=SECOND) == 201


class TestChunks:
    @pytest.mark.parametrize("stated", ["0-999", "2000-2999", "999-1998"])
    @pytest.mark.parametrize("method", ["PATCH", "PUT"])
    def test_a_chunk_at_another_offset_is_refused_with_the_offset(self, ask: Client, method: str, stated: str) -> None:
        location = begin(ask)
        ask("PATCH", location, FIRST, {"Content-Range": "0-999"})
        answer = ask(method, f"{location}?digest={DIGEST}", FIRST, {"Content-Range": stated})
        assert answer.refusal == (416, ["BLOB_UPLOAD_INVALID"])
        assert answer.headers["Range"] == "0-999"
        assert answer.headers["Location"] == location
        assert closed(ask, location, body=SECOND) == 201

    @pytest.mark.parametrize("stated", ["bytes 0-999/*", "0-999/1000", "0", "-999", "5-4", "0-" + "9" * 40, ""])
    def test_a_malformed_range_is_refused(self, ask: Client, stated: str) -> None:
        assert ask("PATCH", begin(ask), FIRST, {"Content-Range": stated}).refusal == (400, ["BLOB_UPLOAD_INVALID"])

    @pytest.mark.parametrize("chunked", [True, False])
    def test_a_range_of_another_length_is_refused_and_nothing_stored(self, ask: Client, chunked: bool) -> None:
        location = begin(ask)
        body = iter([FIRST]) if chunked else FIRST
        assert ask("PATCH", location, body, {"Content-Range": "0-998"}).refusal == (400, ["SIZE_INVALID"])
        assert closed(ask, location, body=CONTENT) == 201


class TestBrokenBodies:
    def send(self, registry: Served, head: str, body: bytes) -> bytes:
        return converse(registry.host, f"{head}\r\n\r\n".encode(), body)

    def test_the_bytes_of_an_incomplete_body_are_kept_and_the_upload_resumed(self, ask: Client, served: Served) -> None:
        location = begin(ask)
        raw = self.send(served, f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 3000", FIRST)
        assert raw.startswith(b"HTTP/1.1 400 ")
        assert b"SIZE_INVALID" in raw
        answer = ask("GET", location)
        assert (answer.status, answer.headers["Range"], answer.body) == (204, "0-999", b"")
        assert "Content-Length" not in answer.headers
        assert ask("PATCH", location, SECOND, {"Content-Range": "1000-2999"}).status == 202
        assert closed(ask, location) == 201
        assert is_stored(ask)

    def test_the_bytes_before_a_lost_connection_are_kept(self, ask: Client, served: Served) -> None:
        location = begin(ask)
        with connect(served.host) as connection:
            connection.sendall(f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n".encode() + FIRST)
            eventually(lambda: ask("GET", location).headers["Range"] == "0-999")
        assert ask("PATCH", location, SECOND, {"Content-Range": "1000-2999"}).status == 202
        assert closed(ask, location) == 201

    def test_a_closing_put_that_ends_early_closes_nothing(self, ask: Client, served: Served) -> None:
        location = begin(ask)
        self.send(served, f"PUT {location}?digest={DIGEST} HTTP/1.1\r\nHost: x\r\nContent-Length: 3000", FIRST)
        assert ask("GET", location).headers["Range"] == "0-999"
        assert ask("HEAD", f"/v2/app/blobs/{DIGEST}").status == 404
        assert closed(ask, location, body=SECOND) == 201

    @pytest.mark.parametrize(("stated", "status"), [("1-5", 416), ("0-5", 400), ("bytes 0-4/5", 400)])
    def test_a_single_post_with_another_range_leaves_nothing(
        self, ask: Client, served: Served, stated: str, status: int
    ) -> None:
        headers = {"Content-Range": stated}
        answer = ask("POST", f"/v2/app/blobs/uploads/?digest={digest_of(b'layer')}", b"layer", headers)
        assert answer.status == status
        assert blobs(served.path) == []

    def test_a_single_post_that_ends_early_leaves_nothing(self, served: Served) -> None:
        head = f"POST /v2/app/blobs/uploads/?digest={DIGEST} HTTP/1.1\r\nHost: x\r\nContent-Length: 3000"
        assert self.send(served, head, FIRST).startswith(b"HTTP/1.1 400 ")
        assert blobs(served.path) == []

    @pytest.mark.parametrize(
        ("body", "kept"),
        [
            (b"3e8\r\n" + FIRST + b"\r\n", "0-999"),
            (b"3e8\r\n" + FIRST[:500], "0-499"),
            (b"3e8\r\n" + FIRST + b"XX\r\n0\r\n\r\n", "0-999"),
            (b"3e8\r\n" + FIRST + b"\r\n0\r\nA: b\r\n", "0-999"),
            (b"3e8\r\n" + FIRST + b"\r\n0\r\n" + b"A: b\r\n" * 40 + b"\r\n", "0-999"),
            (b"what\r\n", "0-0"),
            (b"3e8\n" + FIRST + b"\n0\n\n", "0-0"),
            (b"3e8;a\rb\r\n" + FIRST + b"\r\n0\r\n\r\n", "0-0"),
            (b"3e8\r\n" + FIRST + b"\n0\r\n\r\n", "0-999"),
            (b"-1\r\n", "0-0"),
            (b"1" * 5000 + b"\r\n", "0-0"),
            (b"fffffffffffffffff\r\n", "0-0"),
        ],
    )
    def test_malformed_chunks_end_the_request_and_earlier_bytes_are_kept(
        self, ask: Client, served: Served, body: bytes, kept: str
    ) -> None:
        location = begin(ask)
        raw = self.send(served, f"PATCH {location} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked", body)
        assert raw.startswith(b"HTTP/1.1 400 ")
        assert b"Connection: close" in raw
        assert ask("GET", location).headers["Range"] == kept

    def test_chunk_extensions_and_trailers_are_ignored(self, ask: Client, served: Served) -> None:
        location = begin(ask)
        body = b"3e8 ; a=b\r\n" + FIRST + b"\r\n0\r\nA: b\r\nC: d\r\n\r\nGET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
        raw = self.send(served, f"PATCH {location} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked", body)
        assert raw.count(b"HTTP/1.1 202 ") == raw.count(b"HTTP/1.1 200 ") == 1
        assert closed(ask, location, body=SECOND) == 201
